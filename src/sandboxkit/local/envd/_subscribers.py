"""Hands a process's events to those who listen, each with a queue of bounded size.

A queue that is full holds the process back, so that endless output and a slow reader meet in bounded memory. Where
several listen, one that takes nothing at all must not stop the others for ever: it is cut off after `STALLED` seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from sandboxkit.local.envd._connect import ConnectError
from sandboxkit.local.isolation._base import ExitStatus

QUEUE_BYTES: Final = 256 * 1024
STALLED: Final = 30.0
"""Seconds after which a listener that takes nothing, while others wait for the same output, is cut off."""

Kind = Literal["stdout", "stderr", "pty"]


@dataclass(frozen=True, slots=True)
class Data:
    """A chunk of output."""

    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended, in the words of Go's os.ProcessState."""

    exit_code: int
    exited: bool
    status: str
    error: str | None

    @classmethod
    def of(cls, status: ExitStatus) -> Ended:
        if status.signal is not None:
            name = _SIGNALS.get(status.signal, f"signal {status.signal}")
            text = f"signal: {name}"
            return cls(exit_code=-1, exited=False, status=text, error=text)
        code = status.code or 0
        text = f"exit status {code}"
        return cls(exit_code=code, exited=True, status=text, error=text if code else None)


Event = Data | Ended


class Subscription:
    """One listener's queue of events, the last of which is the end or an error."""

    def __init__(self) -> None:
        self._events: deque[Data] = deque()
        self._bytes = 0
        self._last: Ended | Exception | None = None
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    @property
    def closed(self) -> bool:
        """Nothing more goes in."""
        return self._last is not None

    async def put(self, event: Data) -> None:
        """Add output, once there is room. Dropped when the subscription is closed."""
        await self._room.wait()
        if self._last is None:
            self._events.append(event)
            self._bytes += len(event.data)
            if self._bytes >= QUEUE_BYTES:
                self._room.clear()
            self._some.set()

    def finish(self, last: Ended | Exception) -> None:
        """Close: after what is queued, `next` gives or raises `last`. The first call counts."""
        if self._last is None:
            self._last = last
            self._some.set()
            self._room.set()

    def close(self) -> None:
        """The listener has gone."""
        self.finish(ConnectError("canceled", "the subscriber has gone"))
        self._events.clear()

    async def next(self, *, timeout: float) -> Event | None:
        """The next event; None after `timeout` seconds without one. Raises the error that the subscription was
        finished with."""
        try:
            async with asyncio.timeout(timeout):
                await self._some.wait()
        except TimeoutError:
            return None
        if self._events:
            event = self._events.popleft()
            self._bytes -= len(event.data)
            if self._bytes < QUEUE_BYTES:
                self._room.set()
            if not self._events and self._last is None:
                self._some.clear()
            return event
        assert self._last is not None
        if isinstance(self._last, Exception):
            raise self._last
        return self._last


async def deliver(event: Data, subscriptions: Iterable[Subscription], *, stalled: float = STALLED) -> None:
    """Give an event to every listener, and return when all have it. Listeners without room are waited for; one that
    makes no room while others listen is cut off."""
    listeners = [each for each in subscriptions if not each.closed]
    for each in listeners:
        others = any(other is not each and not other.closed for other in listeners)
        try:
            async with asyncio.timeout(stalled if others else None):
                await each.put(event)
        except TimeoutError:
            each.finish(ConnectError("aborted", "the subscriber took no output while others waited for it"))


# Go's names of Linux signals.
_SIGNALS: Final = {
    1: "hangup",
    2: "interrupt",
    3: "quit",
    4: "illegal instruction",
    5: "trace/breakpoint trap",
    6: "aborted",
    7: "bus error",
    8: "floating point exception",
    9: "killed",
    10: "user defined signal 1",
    11: "segmentation fault",
    12: "user defined signal 2",
    13: "broken pipe",
    14: "alarm clock",
    15: "terminated",
    16: "stack fault",
    17: "child exited",
    18: "continued",
    19: "stopped (signal)",
    20: "stopped",
    21: "stopped (tty input)",
    22: "stopped (tty output)",
    23: "urgent I/O condition",
    24: "CPU time limit exceeded",
    25: "file size limit exceeded",
    26: "virtual timer expired",
    27: "profiling timer expired",
    28: "window changed",
    29: "I/O possible",
    30: "power failure",
    31: "bad system call",
}
