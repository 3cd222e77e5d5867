"""A hollow engine, whose boxes are empty: control and gateway are real, on a real socket; nothing is isolated."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from sandboxkit._types import Endpoint
from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound
from sandboxkit.local._config import EngineConfig
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local._serve import Engine
from sandboxkit.local.control._parts import Services
from sandboxkit.local.control._store import open_store
from sandboxkit.local.gateway._listener import bind
from sandboxkit.local.images import BuiltTemplate
from sandboxkit.local.images._store import Store, give_store
from sandboxkit.local.isolation._archive import Packed, Stopped, TooLarge
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost, BoxEnd, BoxSpec, LimitInForce, Usage


class EmptyBox:
    """A box with nothing in it, which can be made to end."""

    def __init__(self, spec: BoxSpec, isolation: EmptyIsolation) -> None:
        self.files = b"" if spec.files is None else os.pread(spec.files, 1 << 20, 0)
        self.resumed = 0
        self.box_id = spec.box_id
        self.agent = cast(Agent, self)  # the services of this engine ask it for nothing
        self.limits: tuple[LimitInForce, ...] = (LimitInForce("memory", spec.limits.memory, "watchdog", "a note"),)
        self.ended: asyncio.Future[BoxEnd] = asyncio.get_running_loop().create_future()
        self._isolation = isolation
        self.is_silent = False
        self.is_paused = False

    async def dial(self, port: int, *, host: str = "127.0.0.1") -> int:
        """Connect to what a test serves in the place of a program inside."""
        there = self._isolation.ports.get(port)
        if there is None or host != "127.0.0.1":
            raise AgentError(errno.ECONNREFUSED, "Connection refused")
        if self.is_silent:
            raise AgentLost
        with socket.create_connection(("127.0.0.1", there), 5) as connection:
            return connection.detach()

    async def ping(self) -> None:
        if self.is_silent:
            raise AgentLost

    def die(self, reason: Any = "agent") -> None:
        if not self.ended.done():
            self.ended.set_result(BoxEnd(reason))

    async def kill(self) -> None:
        await self._isolation.killing.wait()
        self.die("killed")
        self._isolation.killed += 1
        self._isolation.boxes.pop(self.box_id, None)

    async def pause(self) -> None:
        await self._isolation.pausing.wait()
        if self.ended.done():
            raise AgentLost
        self.is_paused = True

    async def resume(self) -> None:
        if self.ended.done():
            raise AgentLost
        self.is_paused = False
        self.resumed += 1

    async def save(self, descriptor: int, *, most: int, stop: threading.Event) -> Packed:
        assert self.is_paused
        self._isolation.saving += 1
        try:
            while not self._isolation.letting_save.is_set():
                if stop.is_set():
                    raise Stopped("stopped")
                await asyncio.sleep(0.001)
        finally:
            self._isolation.saving -= 1
        if self._isolation.save_failure is not None:
            raise self._isolation.save_failure
        if self.ended.done():
            raise AgentLost
        if len(self.files) > most:
            raise TooLarge("too much")
        os.write(descriptor, self.files)
        return Packed(len(self.files), 1, 0)

    async def usage(self) -> Usage:
        return Usage(cpu_seconds=0.5, memory=1000, cache=300, disk=2000, processes=3)


@dataclass
class EmptyIsolation:
    """Makes empty boxes, when `making` is set and unless `failure` says otherwise."""

    name: str = "empty"
    boxes: dict[str, EmptyBox] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    """What listens in every box: its port there, and where it really is."""
    making: asyncio.Event = field(default_factory=asyncio.Event)
    killing: asyncio.Event = field(default_factory=asyncio.Event)
    pausing: asyncio.Event = field(default_factory=asyncio.Event)
    made: int = 0
    killed: int = 0
    at_once: int = 0
    most_at_once: int = 0
    failure: BaseException | None = None
    letting_save: asyncio.Event = field(default_factory=asyncio.Event)
    saving: int = 0
    save_failure: BaseException | None = None

    async def start(self) -> None:
        self.making.set()
        self.killing.set()
        self.pausing.set()
        self.letting_save.set()

    async def create(self, spec: BoxSpec) -> EmptyBox:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.making.wait()
        finally:
            self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        self.made += 1
        box = self.boxes[spec.box_id] = EmptyBox(spec, self)
        return box

    async def aclose(self) -> None:
        assert not self.boxes


class EchoService:
    """Says which service it is and for whom; `/lost` is an agent that is gone, `/cut` one that goes in the middle."""

    kind = "envd"

    def __init__(self, agent: Agent, settings: SandboxSettings) -> None:
        self.settings = settings
        self.is_closed = False

    def owns(self, query_params: Any) -> bool:
        return bool(query_params.get("signature") == self.settings.access_token)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["path"] == "/lost":
            raise AgentLost
        if scope["path"] == "/bug":
            raise ZeroDivisionError
        if scope["path"] == "/health":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        body = json.dumps({"service": self.kind, "sandbox": self.settings.sandbox_id}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/cut":
            await send({"type": "http.response.body", "body": body[:5], "more_body": True})
            raise AgentLost
        await send({"type": "http.response.body", "body": body})

    async def aclose(self) -> None:
        self.is_closed = True


class EchoInterpreter(EchoService):
    """The same on the other port."""

    kind = "interpreter"
    adopted: SandboxSettings | None = None
    pauses = 0

    def pause(self) -> None:
        self.pauses += 1

    def resume(self) -> None:
        self.pauses -= 1

    def adopt(self, settings: SandboxSettings) -> None:
        self.adopted = self.settings = settings


class ThreeTemplates:
    """One template without an interpreter, one with, one that is not built."""

    def known(self) -> tuple[str, ...]:
        return "base", "code-interpreter-v1", "unbuilt"

    def find(self, template_id: str) -> BuiltTemplate:
        template_id = template_id.removesuffix(":default")
        if template_id not in self.known():
            raise TemplateNotFound(f"no template {template_id}")
        if template_id == "unbuilt":
            raise TemplateNotBuilt("Build it once with: sandboxkit templates build unbuilt")
        return BuiltTemplate(id=template_id, has_interpreter=template_id != "base", envs={"FROM": "template"})


@dataclass
class Running:
    """A running engine, and what a test needs to look into it."""

    endpoint: Endpoint
    isolation: EmptyIsolation
    engine: Engine
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    thread: threading.Thread

    def do(self, function: Callable[[], Any]) -> None:
        """Call something in the engine's own thread."""
        self.loop.call_soon_threadsafe(function)

    def create(self, template: str = "base", **fields: Any) -> Any:
        """Create a sandbox by the wire, as the SDK does."""
        answer = self.client.post("/v2/sandboxes", json={"templateID": template, "metadata": {}, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def stop(self) -> None:
        """End the engine in order."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.engine.end)
            self.thread.join(20)
        assert not self.thread.is_alive()


@contextmanager
def _starter() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []
    home = tempfile.TemporaryDirectory()
    give_store(Path(home.name), os.geteuid())
    store = Store(Path(home.name), uid=os.geteuid())

    def start(*, kept: Path | None = None, state: Path = Path("/nonexistent"), **values: Any) -> Running:
        config = EngineConfig(**{"warm": 0, "keep": kept is not None, **values})
        place = Path(tempfile.mkdtemp(prefix="sandboxkit-hollow-")) if kept is None else kept
        keeper = open_store(config, place, state)
        listener = bind(config.host, config.port)
        ready: list[Endpoint] = []
        event = threading.Event()
        parts: dict[str, Any] = {}

        async def main() -> None:
            parts["loop"] = asyncio.get_running_loop()
            parts["isolation"] = EmptyIsolation()
            parts["engine"] = Engine(
                config,
                listener,
                isolation=parts["isolation"],
                services=Services(envd=EchoService, interpreter=EchoInterpreter),
                templates=ThreeTemplates(),
                store=store,
                kept=keeper,
            )

            def on_ready(endpoint: Endpoint) -> None:
                ready.append(endpoint)
                event.set()

            try:
                await parts["engine"].run(on_ready=on_ready)
            finally:
                keeper.close()
                if kept is None:
                    shutil.rmtree(place)

        thread = threading.Thread(target=lambda: asyncio.run(main()), name="engine under test")
        thread.start()
        assert event.wait(10)
        client = httpx.Client(base_url=str(ready[0].api_url), headers={"X-API-KEY": ready[0].api_key}, timeout=20)
        found = Running(ready[0], parts["isolation"], parts["engine"], parts["loop"], client, thread)
        running.append(found)
        return found

    yield start
    for one in running:
        one.client.close()
        one.stop()
    home.cleanup()


@pytest.fixture
def start_hollow() -> Iterator[Callable[..., Running]]:
    """Start an engine with empty boxes: `start_hollow(max_sandboxes=3)`."""
    with _starter() as starter:
        yield starter


@pytest.fixture(scope="module")
def shared_hollow() -> Iterator[Running]:
    """One engine for all tests of a module that only ask, or that clean up after themselves."""
    with _starter() as starter:
        yield starter()


@pytest.fixture
def hollow(start_hollow: Callable[..., Running]) -> Running:
    """An engine with empty boxes and the usual values."""
    return start_hollow()
