"""The client's side of a connection that speaks HTTP no more: bytes, both ways, within bounds."""

from __future__ import annotations

import asyncio
import contextlib

from uvicorn.protocols.http.flow_control import FlowControl

TAKE_OVER = "sandboxkit.take_over"
"""The ASGI extension that a request has which asks for another protocol. Its `call` takes the head of the answer, and
gives the Tunnel; the application then sends nothing by itself."""

HELD = 64 * 1024
"""Bytes that are read ahead."""


class Tunnel:
    """Reads and writes; at most one task may do each. The connection's protocol feeds it."""

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow
        self._held = bytearray()
        self._ended = False
        self._lost = False
        self._fed = asyncio.Event()
        self._flow.resume_reading()

    async def receive(self) -> bytes:
        """Some bytes; empty at the end."""
        while not self._held and not self._ended:
            self._fed.clear()
            await self._fed.wait()
        data = bytes(self._held)
        self._held.clear()
        if not self._ended:
            self._flow.resume_reading()
        return data

    async def send(self, data: bytes) -> None:
        """All of the bytes. ConnectionError where the client is gone."""
        if self._lost or self._transport.is_closing():
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)
        await self._flow.drain()

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError, RuntimeError):
            if not self._transport.is_closing():
                self._transport.write_eof()

    def close(self) -> None:
        """Send what is left, and close."""
        self._transport.close()

    def abort(self) -> None:
        """Close, whatever is left."""
        self._transport.abort()

    # -- the protocol's side --------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what came in."""
        self._held += data
        if len(self._held) > HELD:
            self._flow.pause_reading()
        if data:
            self._fed.set()

    def feed_end(self, *, is_lost: bool = False) -> None:
        """Nothing more will come in; `is_lost`: nothing can be sent either."""
        self._ended = True
        self._lost = self._lost or is_lost
        self._fed.set()
