"""One operation of SafeFS's below a root: the route `/call` of the confined base path.

The request's body is the length (u32, network order) of its fields, the fields (each behind its length), then the
content to be written. Fields: operation, the root's terms (its identity or "", and what else is asked of it, see
`agent/_beneath.py`), path, arguments. The answer has the same form: "ok", identity, fields, then content; or "fail" and
an errno. Operations and their fields are those of
`agent/_confined.py`, and besides:

    watch    path, 1 = recursive      a watcher's name
    events   name, seconds            events as pairs of kind and name; waits so long for the first, at most 25 s
    unwatch  name

What is small goes with the agent's message. Large contents go over descriptors, which are checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandboxkit.local import _answers
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.envd._access import Signer
from sandboxkit.local.envd._files import Files
from sandboxkit.local.envd._http import PIECE, Body, ClientGone, Refused
from sandboxkit.local.envd._watchers import EventsLost, UnknownWatcher, Watchers
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost, File

INLINE: Final = 128 * 1024
"""Bytes of content that travel in the agent's own message."""
MAX_FIELDS: Final = 64 * 1024
MAX_WAIT: Final = 25.0
TYPE: Final = "application/octet-stream"

_LENGTH: Final = struct.Struct("!I")
_AS_THEY_ARE: Final = {"stat": 1, "exists": 1, "make_dir": 1, "remove": 1, "list": 3, "rename": 2, "copy": 3}
"""Operations that are the agent's own, and how many arguments each has."""


class Calls(Files):
    """Answers `/call` below one root."""

    def __init__(
        self,
        agent: Agent,
        settings: SandboxSettings,
        watchers: Watchers,
        root: str,
        *,
        signer: Signer,
        lost: Callable[[], Response],
    ) -> None:
        self._whole = agent
        super().__init__(agent, settings, signer=signer, lost=lost)
        self._watchers = watchers
        self._root = root

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
            return
        try:
            content = _Content(Body(receive))
            operation, identity, args = _request(await content.fields())
            await self._carry_out(operation, identity, args, content, send)
        except Refused as refusal:
            await _answers.error(refusal.status, refusal.message)(scope, receive, send)
        except AgentError as error:
            await _send(send, [b"fail", error.errno])
        except OSError as error:
            await _send(send, [b"fail", error.errno or errno.EIO])
        except AgentLost:
            await self._lost()(scope, receive, send)
        except ClientGone:
            return

    async def _carry_out(
        self, operation: str, identity: bytes, args: list[bytes], content: _Content, send: Send
    ) -> None:
        match operation, len(args):
            case "read", 5:
                await self._read(identity, args, send)
                return
            case "write", 1:
                fields = await self._write(identity, args[0], content)
            case "append", 2:
                fields = await self._append(identity, args[0], _number(args[1]), content)
            case "watch", 2:
                path = args[0].decode("utf-8", "surrogateescape")
                name = await self._watchers.begin(path, recursive=args[1] == b"1", root=self._root, terms=identity)
                fields = [identity, name.encode()]
            case "events", 2:
                fields = [identity, *await self._events(args[0].decode("ascii", "replace"), _number(args[1]))]
            case "unwatch", 1:
                with contextlib.suppress(UnknownWatcher):
                    await self._watchers.end(args[0].decode("ascii", "replace"))
                fields = [identity]
            case _ if _AS_THEY_ARE.get(operation) == len(args):
                fields = await self._whole.beneath(operation, self._root, identity, args)
            case _:
                raise Refused(400, f"no such operation: {operation!a} with {len(args)} arguments")
        await _send(send, [b"ok", *fields])

    async def _read(self, identity: bytes, args: list[bytes], send: Send) -> None:
        path, start, length, max_bytes, version = args
        at, wanted = _number(start), _number(length)
        asked: list[bytes | int] = [path, at, min(wanted, INLINE), max_bytes, version]
        fields = await self._whole.beneath("read", self._root, identity, asked)
        root, size, found, data = fields[0], _number(fields[1]), fields[2], fields[3]
        end = min(size, at + wanted)
        if len(data) == max(end - at, 0):
            await _send(send, [b"ok", root, size, found], data)
            return
        if len(data) != INLINE:
            raise AgentError(errno.ESTALE, os.strerror(errno.ESTALE))
        file, fields = await self._whole.open_beneath(
            "read", self._root, _again(identity, root), path.decode("utf-8", "surrogateescape")
        )
        try:
            if fields[2] != found:
                raise AgentError(errno.ESTALE, os.strerror(errno.ESTALE))
            await _send_from(send, [b"ok", root, size, found], file, at, end)
        finally:
            file.close()

    async def _write(self, identity: bytes, path: bytes, content: _Content) -> Sequence[bytes | int]:
        data = await content.small()
        if data is not None:
            return await self._whole.beneath("write", self._root, identity, [path, data])
        return await self._staged(identity, path, content.pieces())

    async def _append(self, identity: bytes, path: bytes, max_bytes: int, content: _Content) -> Sequence[bytes | int]:
        data = await content.small()
        if data is not None:
            return await self._whole.beneath("append", self._root, identity, [path, max_bytes, data])
        name = path.decode("utf-8", "surrogateescape")
        try:
            file, fields = await self._whole.open_beneath("read", self._root, identity, name)
        except AgentError as error:
            if error.errno != errno.ENOENT:
                raise
            return await self._staged(identity, path, content.pieces())
        try:
            size = _number(fields[1])
            if size > max_bytes:
                raise AgentError(errno.EFBIG, os.strerror(errno.EFBIG))
            return await self._staged(_again(identity, fields[0]), path, content.after(file, size))
        finally:
            file.close()

    async def _staged(self, identity: bytes, path: bytes, pieces: AsyncIterator[bytes]) -> Sequence[bytes | int]:
        """Write a content that comes bit by bit into a new file beside the old one, which then takes its name."""
        name = path.decode("utf-8", "surrogateescape")
        file, fields = await self._whole.open_beneath("stage", self._root, identity, name)
        root, part = _again(identity, fields[0]), fields[1]
        done = False
        try:
            async for piece in pieces:
                await file.write(piece)
            answer = await self._whole.beneath("commit", self._root, root, [path, part])
            done = True
            return answer
        finally:
            file.close()
            if not done:
                with contextlib.suppress(AgentError, AgentLost):
                    await self._whole.beneath("discard", self._root, root, [path, part])

    async def _events(self, name: str, seconds: int) -> list[bytes | int]:
        try:
            events = await self._watchers.events(name, timeout=min(float(seconds), MAX_WAIT))
        except UnknownWatcher:
            raise AgentError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        except EventsLost:
            return [b"lost", b""]
        fields: list[bytes | int] = []
        for event in events:
            fields += [event.kind.encode(), event.name.encode("utf-8", "surrogateescape")]
        return fields


class _Content:
    """A request's body: its fields, then its content."""

    def __init__(self, body: Body) -> None:
        self._body = aiter(body)
        self._held = bytearray()
        self._ended = False

    async def _more(self) -> bool:
        if not self._ended:
            try:
                self._held += await anext(self._body)
            except StopAsyncIteration:
                self._ended = True
        return not self._ended

    async def fields(self) -> list[bytes]:
        """The fields. Refused (400) where they are none."""
        while len(self._held) < _LENGTH.size and await self._more():
            pass
        size = _LENGTH.unpack_from(self._held)[0] if len(self._held) >= _LENGTH.size else MAX_FIELDS + 1
        if size > MAX_FIELDS:
            raise Refused(400, "the request has no fields, or too many")
        end = _LENGTH.size + size
        while len(self._held) < end and await self._more():
            pass
        packed = bytes(self._held[_LENGTH.size : end])
        del self._held[:end]
        try:
            return wire.unpack(packed)
        except ValueError as error:
            raise Refused(400, f"the request's fields do not parse: {error}") from None

    async def small(self) -> bytes | None:
        """The whole content, or None where it is longer than INLINE."""
        while len(self._held) <= INLINE and await self._more():
            pass
        return bytes(self._held) if len(self._held) <= INLINE else None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The content, in pieces worth a system call."""
        while True:
            while len(self._held) < PIECE and await self._more():
                pass
            if not self._held:
                return
            piece, self._held = bytes(self._held), bytearray()
            yield piece

    async def after(self, file: File, size: int) -> AsyncIterator[bytes]:
        """The first `size` bytes of an open file, then the content."""
        at = 0
        while at < size:
            piece = await file.read(min(PIECE, size - at), at)
            if not piece:
                raise AgentError(errno.ESTALE, os.strerror(errno.ESTALE))
            at += len(piece)
            yield piece
        async for piece in self.pieces():
            yield piece


def _request(fields: list[bytes]) -> tuple[str, bytes, list[bytes]]:
    if len(fields) < 2:
        raise Refused(400, "the request names no operation")
    return fields[0].decode("ascii", "replace"), fields[1], fields[2:]


def _again(terms: bytes, identity: bytes) -> bytes:
    """The same terms, for the root that was met."""
    return b"\0".join([identity, *terms.split(b"\0")[1:]])


def _number(field: bytes) -> int:
    try:
        return wire.number(field)
    except ValueError:
        raise Refused(400, "a number is expected") from None


def _head(fields: Sequence[bytes | int]) -> bytes:
    packed = wire.pack(fields)
    return _LENGTH.pack(len(packed)) + packed


async def _begin(send: Send, length: int) -> None:
    headers = [
        (b"content-type", TYPE.encode()),
        (b"content-length", str(length).encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _send(send: Send, fields: Sequence[bytes | int], data: bytes = b"") -> None:
    body = _head(fields) + data
    await _begin(send, len(body))
    await send({"type": "http.response.body", "body": body})


async def _send_from(send: Send, fields: Sequence[bytes | int], file: File, at: int, end: int) -> None:
    """Answer with a part of an open file. Where it has become shorter, the answer breaks off."""
    head = _head(fields)
    await _begin(send, len(head) + end - at)
    await send({"type": "http.response.body", "body": head, "more_body": True})
    while at < end:
        piece = await file.read(min(PIECE, end - at), at)
        if not piece:
            raise ClientGone
        at += len(piece)
        await send({"type": "http.response.body", "body": piece, "more_body": at < end})
