"""One socket whose other end, or even whose very descriptor, may be in hostile hands.

A descriptor that came out of a box may have a copy there, and flags such as O_NONBLOCK belong to both copies: whoever
cleared it could make the whole engine wait in `recv`. So each call says MSG_DONTWAIT for itself, and asyncio's own
transports and `sock_*` calls are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable


class Stream:
    """Reads and writes; at most one task may do each. Owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self.bytes_in = 0
        self.bytes_out = 0

    async def receive(self, most: int) -> bytes:
        """Some bytes; empty at the end. OSError where the connection broke."""
        while True:
            try:
                data = self._sock.recv(most, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
                continue
            self.bytes_in += len(data)
            return data

    async def send(self, data: bytes) -> None:
        """All of the bytes. OSError where the connection broke."""
        view = memoryview(data)
        while view:
            try:
                sent = self._sock.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
                continue
            self.bytes_out += sent
            view = view[sent:]

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of it. Nobody may be reading or writing any more."""
        if self._sock.fileno() >= 0:
            # A copy of the descriptor elsewhere would keep the connection open.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        fd = self._sock.fileno()
        add(fd, _note, ready)
        try:
            await ready
        finally:
            remove(fd)


def _note(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
