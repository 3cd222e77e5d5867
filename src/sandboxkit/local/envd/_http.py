"""What the plain HTTP routes need of ASGI: refusals, a body in pieces, a client's going away, files in threads."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterable, AsyncIterator
from typing import Final, ParamSpec, TypeVar

from starlette.types import Receive

_P = ParamSpec("_P")
_T = TypeVar("_T")

IDLE: Final = 60.0
"""Seconds that a client may leave an upload without a byte."""

PIECE: Final = 256 * 1024
"""Bytes of a file that are in memory at once."""


class ClientGone(Exception):
    """The client closed its connection; nobody waits for an answer."""


class Refused(Exception):
    """An answer other than success, as `{"code", "message"}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Body:
    """A request's body, to be iterated over once, in the pieces in which it arrives.

    Iterating raises ClientGone when it breaks off, and Refused (408) when nothing came for `IDLE` seconds.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._more:
            try:
                async with asyncio.timeout(IDLE):
                    event = await self._receive()
            except TimeoutError:
                raise Refused(408, f"the upload stalled for {IDLE:.0f} seconds") from None
            if event["type"] == "http.disconnect":
                raise ClientGone
            self._more = event.get("more_body", False)
            if event.get("body"):
                yield event["body"]

    async def discard(self, *, at_most: int) -> None:
        """Read the rest, so that a client that still sends gets to see the answer; give up after `at_most` bytes."""
        left = at_most
        async for piece in self:
            left -= len(piece)
            if left <= 0:
                return


async def unzipped(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Decode a gzip body, one member or several, in pieces of bounded size whatever its ratio.

    Raises:
        Refused: 400 when it is not gzip, or ends too early.
    """
    decoder = zlib.decompressobj(wbits=31)
    begun = False
    async for piece in pieces:
        rest = piece
        while rest:
            if decoder.eof:
                decoder = zlib.decompressobj(wbits=31)
            begun = True
            try:
                data = decoder.decompress(rest, PIECE)
            except zlib.error as error:
                raise Refused(400, f"error decompressing request body: {error}") from None
            if data:
                yield data
            rest = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
    # Output that filled the last piece exactly may still wait inside.
    while begun and not decoder.eof:
        data = decoder.decompress(b"", PIECE)
        if not data:
            raise Refused(400, "error decompressing request body: unexpected EOF")
        yield data
    if not begun:
        raise Refused(400, "error decompressing request body: EOF")


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
