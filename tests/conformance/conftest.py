"""A sandbox of the real engine behind the unmodified SDK, in both of its colours, for one test body."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest


class Colour:
    """One colour of the SDK. `do` waits for whatever its calls return, so that a test reads the same in both."""

    def __init__(self, name: str, options: dict[str, str]) -> None:
        from e2b import AsyncSandbox, Sandbox

        self.name = name
        self._class: Any = Sandbox if name == "sync" else AsyncSandbox
        self.options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{name} SDK")
        self._made: list[Any] = []
        self._thread.start()

    def do(self, value: Any) -> Any:
        """The result of a call: as it is in sync, awaited on the colour's loop in async."""
        if not inspect.isawaitable(value):
            return value

        async def wait() -> Any:
            return await value

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result(50)

    def on_loop(self, make: Callable[[], Any]) -> Any:
        """Call something that needs a running loop in async, and wait for what it returns."""
        if self.name == "sync":
            return make()

        async def call() -> Any:
            made = make()
            return await made if inspect.isawaitable(made) else made

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(50)

    def create(self, template: str = "base", **more: Any) -> Any:
        """A sandbox that is killed at the end."""
        sandbox = self.do(self._class.create(template, timeout=300, **self.options, **more))
        self._made.append(sandbox)
        return sandbox

    def close(self) -> None:
        for sandbox in self._made:
            self.do(sandbox.kill())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module", params=["sync", "async"])
def colour(request: pytest.FixtureRequest, sdk: dict[str, str]) -> Iterator[Colour]:
    """Each colour of the SDK in turn."""
    made = Colour(request.param, sdk)
    yield made
    made.close()


@pytest.fixture(scope="module")
def box(colour: Colour) -> Any:
    """A sandbox that the tests of a module share."""
    return colour.create(envs={"FROM_SANDBOX": "yes"})


@pytest.fixture
def folder(colour: Colour, box: Any, request: pytest.FixtureRequest) -> str:
    """A directory of this test's own in the shared sandbox."""
    path = f"/home/user/{abs(hash(request.node.nodeid)):x}"
    colour.do(box.files.make_dir(path))
    return path
