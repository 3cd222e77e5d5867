"""Pools over the fake provider, on both backends, and on a clock that tests can let pass."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio.testing

from sandboxkit.pool import _life
from sandboxkit.testing import FakeProvider


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every asynchronous test of the pool runs on both."""
    return str(request.param)


class VirtualTime:
    """Runs on trio with a clock that jumps to the next thing to happen, the calendar moving with it."""

    START = datetime(2030, 1, 1, tzinfo=UTC)

    def __init__(self) -> None:
        self._clock = trio.testing.MockClock(autojump_threshold=0)
        self._zero = self._clock.current_time()

    def elapsed(self) -> float:
        """Seconds that have passed."""
        return self._clock.current_time() - self._zero

    def now(self) -> datetime:
        return self.START + timedelta(seconds=self.elapsed())

    def provider(self, **more: Any) -> FakeProvider:
        """A provider whose sandboxes live by this clock."""
        return FakeProvider(clock=lambda: self.now().timestamp(), **more)

    def run(self, func: Callable[[], Awaitable[None]]) -> None:
        anyio.run(func, backend="trio", backend_options={"clock": self._clock})


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    # The one thing patched: the loop's clock can be chosen, the calendar cannot.
    time = VirtualTime()
    monkeypatch.setattr(_life, "utc_now", time.now)
    return time


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait, checkpoint by checkpoint, until something is so."""

    async def wait(condition: Callable[[], bool]) -> None:
        with anyio.fail_after(10):
            while not condition():
                await anyio.lowlevel.checkpoint()

    return wait


@pytest.fixture
def fresh_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[], VirtualTime]:
    """Makes virtual times, for tests that run their body many times."""

    def make() -> VirtualTime:
        time = VirtualTime()
        monkeypatch.setattr(_life, "utc_now", time.now)
        return time

    return make
