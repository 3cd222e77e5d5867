"""GET and HEAD of `/files`: one file out of the sandbox, in bounded memory."""

from __future__ import annotations

import asyncio
import errno
import os
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Final

from starlette.types import Receive, Send

from sandboxkit.local.envd._file_agent import FileAgent
from sandboxkit.local.envd._http import PIECE, ClientGone, Refused, until_gone
from sandboxkit.local.envd._http_rules import (
    FileFacts,
    NotAcceptable,
    NotSatisfiable,
    byte_range,
    content_disposition,
    content_type,
    unchanged,
    use_gzip,
)
from sandboxkit.local.isolation._base import AgentError, File
from sandboxkit.local.isolation.link._open_files import in_thread

# The file is the sandbox's and the origin is the engine's: a browser that opens a signed link must not run it here.
_HARMLESS: Final = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "sandbox"}

_GZIP_LEVEL: Final = 1


async def download(
    agent: FileAgent, path: str, headers: Mapping[str, str], receive: Receive, send: Send, *, head: bool
) -> None:
    """Send the file, or what HTTP's conditions make of it.

    A file that says to be empty is read to its end all the same: those of /proc are not. A file that shrinks while it
    is sent ends the connection, since its length was promised.

    Raises:
        Refused: 400 a directory or no regular file, 403, 404, 406.
        ClientGone: the client left before the end.
        AgentLost: the sandbox is gone.
    """
    try:
        gzip = use_gzip(headers)
    except NotAcceptable as problem:
        raise Refused(406, f"error parsing Accept-Encoding: {problem}") from None
    try:
        file = await agent.open_file(path, os.O_RDONLY)
    except AgentError as error:
        raise _refusal(path, error) from None
    try:
        await _send_file(file, path, headers, receive, send, gzip=gzip, head=head)
    finally:
        file.close()


def _refusal(path: str, error: AgentError) -> Refused:
    match error.errno:
        case errno.ENOENT:
            return Refused(404, f"path '{path}' does not exist")
        case errno.EISDIR:
            return Refused(400, f"path '{path}' is a directory")
        case errno.EINVAL:
            return Refused(400, f"path '{path}' is not a regular file")
        case errno.ENAMETOOLONG:
            return Refused(400, f"error checking if path exists '{path}': {error}")
        case errno.EACCES | errno.EPERM | errno.EXDEV:
            return Refused(403, f"error opening file '{path}': {error}")
    return Refused(500, f"error checking if path exists '{path}': {error}")


async def _send_file(
    file: File,
    path: str,
    headers: Mapping[str, str],
    receive: Receive,
    send: Send,
    *,
    gzip: bool,
    head: bool,
) -> None:
    told = await file.facts()
    facts = FileFacts(size=told.size, mtime_ns=told.mtime_ns, inode=told.inode)
    answer = {
        "Content-Type": content_type(path),
        "Content-Disposition": content_disposition(path),
        "Vary": "Accept-Encoding",
        "Last-Modified": facts.last_modified,
        **_HARMLESS,
    }
    if gzip:
        # Another representation: it has no ranges, and the tag of the plain one would be wrong.
        answer["Content-Encoding"] = "gzip"
        await _send_body(_zipped(_pieces(file, 0, None)), None, 200, answer, receive, send, head=head)
        return
    answer["Accept-Ranges"] = "bytes"
    answer["ETag"] = facts.etag
    if unchanged(headers, facts):
        await _send_body(_nothing(), None, 304, answer, receive, send, head=True)
        return
    try:
        wanted = byte_range(headers, facts)
    except NotSatisfiable:
        answer["Content-Range"] = f"bytes */{facts.size}"
        await _send_body(_nothing(), 0, 416, answer, receive, send, head=head)
        return
    start, stop = wanted or (0, facts.size)
    if wanted is not None:
        answer["Content-Range"] = f"bytes {start}-{stop - 1}/{facts.size}"
    status = 200 if wanted is None else 206
    if facts.size:
        await _send_body(_pieces(file, start, stop), stop - start, status, answer, receive, send, head=head)
        return
    first = await file.read(PIECE, 0)
    length = None if first else 0
    await _send_body(_pieces(file, 0, None), length, status, answer, receive, send, head=head)


async def _send_body(
    pieces: AsyncIterator[bytes],
    length: int | None,
    status: int,
    headers: Mapping[str, str],
    receive: Receive,
    send: Send,
    *,
    head: bool,
) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    if length is not None:
        raw.append((b"content-length", str(length).encode()))
    # Before the answer begins: a sandbox that is paused or killed meanwhile can still be told as gone.
    piece = b"" if head or length == 0 else await anext(pieces, b"")
    await send({"type": "http.response.start", "status": status, "headers": raw})
    if head or length == 0:
        await send({"type": "http.response.body", "body": b""})
        return
    gone = asyncio.ensure_future(until_gone(receive))
    try:
        sent = 0
        while piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            sent += len(piece)
            if gone.done():
                raise ClientGone
            piece = await anext(pieces, b"")
        if length is not None and sent < length:
            raise ClientGone
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)


async def _pieces(file: File, start: int, stop: int | None) -> AsyncIterator[bytes]:
    at = start
    while stop is None or at < stop:
        size = PIECE if stop is None else min(PIECE, stop - at)
        piece = await file.read(size, at)
        if not piece:
            return
        at += len(piece)
        yield piece


async def _zipped(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    encoder = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, 31)
    async for piece in pieces:
        data = await in_thread(encoder.compress, piece)
        if data:
            yield data
    yield encoder.flush()


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
