"""What of one sandbox's previews must end with it: loopback ports, and requests that are being answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol


class Closable(Protocol):
    """A port that listens."""

    def close(self) -> None:
        """Listen no more."""


class Doors:
    """One per live sandbox."""

    def __init__(self) -> None:
        self.ports: dict[int, tuple[int, Closable]] = {}
        """By port of the sandbox: the loopback port, and what listens there."""
        self.is_closed = False
        self._answering: set[asyncio.Task[object]] = set()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Note that the current task answers a request; it is cut off when the sandbox ends."""
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            yield
        finally:
            self._answering.discard(task)

    async def aclose(self) -> None:
        """Listen no more, and cut off who is being answered. Idempotent."""
        self.is_closed = True
        for _port, listener in self.ports.values():
            listener.close()
        self.ports.clear()
        for task in set(self._answering):
            task.cancel()
        if self._answering:
            await asyncio.wait(set(self._answering))
