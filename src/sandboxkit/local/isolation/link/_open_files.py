"""A file inside that is open for the engine: by its descriptor, or by a number where no descriptor can be passed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.isolation._base import FileFacts
from sandboxkit.local.isolation.link._channel import Channel

_P = ParamSpec("_P")
_T = TypeVar("_T")

XATTR_PREFIX = "user.e2b."


async def in_thread(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run blocking work on a descriptor, and never return before it is done: were the descriptor closed and its
    number given away meanwhile, the work would hit another file."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()
        raise cancelled
    return task.result()


class DescriptorFile:
    """`_base.File` over a descriptor that came out of the box and was checked. Owns it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def facts(self) -> FileFacts:
        """Size, time and identity; see `_base.File`."""
        info = os.fstat(self._fd)
        return FileFacts(size=info.st_size, mtime_ns=info.st_mtime_ns, inode=info.st_ino, has_metadata=self._marked())

    async def read(self, size: int, at: int) -> bytes:
        """Read; see `_base.File`."""
        return await in_thread(os.pread, self._fd, size, at)

    async def write(self, data: bytes) -> None:
        """Write; see `_base.File`."""
        await in_thread(_write_all, self._fd, data)

    async def empty(self) -> None:
        """Cut it to nothing; see `_base.File`."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _marked(self) -> bool:
        try:
            return any(name.startswith(XATTR_PREFIX) for name in os.listxattr(self._fd))
        except OSError:
            # The file system has no attributes, so none to be cleared.
            return False


class RemoteFile:
    """`_base.File` over the agent's requests: each call is one or more of them."""

    def __init__(self, channel: Channel, handle: int) -> None:
        self._channel = channel
        self._handle = handle
        self._closed = False

    async def facts(self) -> FileFacts:
        """Size, time and identity; see `_base.File`."""
        fields, _ = await self._channel.ask(wire.FILE_FACTS, [self._handle])
        try:
            size, mtime, inode, marked = map(wire.number, fields)
            if size < 0:
                raise ValueError("a size below nothing")
        except ValueError:
            raise self._channel.broken("facts of a file that do not parse") from None
        return FileFacts(size=size, mtime_ns=mtime, inode=inode, has_metadata=marked != 0)

    async def read(self, size: int, at: int) -> bytes:
        """Read; see `_base.File`."""
        parts: list[bytes] = []
        while size > 0:
            wanted = min(size, wire.MAX_READ)
            fields, _ = await self._channel.ask(wire.FILE_READ, [self._handle, wanted, at])
            if len(fields) != 1 or len(fields[0]) > wanted:
                raise self._channel.broken("more of a file than was asked for")
            parts.append(fields[0])
            if len(fields[0]) < wanted:
                break
            size, at = size - wanted, at + wanted
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Write; see `_base.File`. Cancelled, a part may have been written."""
        rest = memoryview(data)
        while rest:
            piece = bytes(rest[: wire.MAX_READ])
            fields, _ = await self._channel.ask(wire.FILE_WRITE, [self._handle, piece])
            count = self._channel.number(fields)
            if not 0 < count <= len(piece):
                raise self._channel.broken("a count of bytes that cannot be")
            rest = rest[count:]

    async def empty(self) -> None:
        """Cut it to nothing; see `_base.File`."""
        await self._channel.ask(wire.FILE_EMPTY, [self._handle])

    def close(self) -> None:
        """Let the agent close it. Idempotent."""
        if not self._closed:
            self._closed = True
            self._channel.tell(wire.FILE_CLOSE, [self._handle])


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
