"""`provider.Files` over the files of one of the SDK's asynchronous sandboxes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from sandboxkit._types import FileInfo
from sandboxkit.errors import (
    IsADirectory,
    NotADirectory,
    ProviderUnavailable,
    SandboxkitError,
    SpecialFile,
    TooLarge,
)
from sandboxkit.provider import _errors
from sandboxkit.provider._e2b._request import REQUEST_LIMIT

if TYPE_CHECKING:
    from e2b import AsyncSandbox
    from e2b.sandbox.filesystem.filesystem import EntryInfo

T = TypeVar("T")

TRANSFER_LIMIT = 300.0
"""Seconds that one file may take to be read or written."""

Cross = Callable[..., Awaitable[Any]]
"""Carries a coroutine function out on asyncio, whichever backend the caller is on."""


class E2BFiles:
    """File operations by the SDK. No user is named in any request, so the template's own default user does them."""

    def __init__(self, raw: AsyncSandbox, cross: Callable[[], Cross], end_at: Callable[[], datetime | None]) -> None:
        self._raw = raw
        self._cross = cross
        self._end_at = end_at

    async def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        async def read() -> bytes:
            received = bytearray()
            async with await self._raw.files.read(path, format="stream") as stream:
                async for piece in stream:
                    received += piece
                    if max_bytes is not None and len(received) > max_bytes:
                        raise TooLarge(f"{path} is larger than {max_bytes} bytes.", path=path, max_bytes=max_bytes)
            return bytes(received)

        return await self._do(read, path, "reading", limit=TRANSFER_LIMIT, wants="file")

    async def write(self, path: str, data: bytes) -> None:
        async def write() -> None:
            await self._raw.files.write(path, bytes(data), use_octet_stream=True, request_timeout=TRANSFER_LIMIT)

        await self._do(write, path, "writing", limit=TRANSFER_LIMIT, wants="file")

    async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
        async def entries() -> list[FileInfo]:
            return [_info(entry) for entry in await self._raw.files.list(path, depth=depth)]

        return await self._do(entries, path, "listing", wants="dir")

    async def stat(self, path: str) -> FileInfo:
        async def stat() -> FileInfo:
            return _info(await self._raw.files.get_info(path))

        return await self._do(stat, path, "describing")

    async def exists(self, path: str) -> bool:
        async def exists() -> bool:
            return await self._raw.files.exists(path)

        try:
            return await self._do(exists, path, "looking for")
        except NotADirectory:
            return False  # a file stands where a parent would have to be

    async def make_dir(self, path: str) -> bool:
        async def make_dir() -> bool:
            return await self._raw.files.make_dir(path)

        made = await self._do(make_dir, path, "making", wants="dir")
        if not made and (await self.stat(path)).type != "dir":
            raise NotADirectory(f"{path} is not a directory.", sandbox_id=self._raw.sandbox_id, path=path)
        return made

    async def remove(self, path: str) -> None:
        async def remove() -> None:
            # The service says nothing when there was nothing.
            await self._raw.files.get_info(path)
            await self._raw.files.remove(path)

        await self._do(remove, path, "removing")

    async def rename(self, source: str, target: str) -> None:
        async def rename() -> None:
            await self._raw.files.rename(source, target)

        await self._do(rename, source, "renaming")

    async def _do(
        self,
        work: Callable[[], Awaitable[T]],
        path: str,
        verb: str,
        *,
        limit: float = REQUEST_LIMIT,
        wants: str | None = None,
    ) -> T:
        value: T = await self._cross()(self._bounded, work, path, f"{verb} {path}", limit, wants)
        return value

    async def _bounded(
        self, work: Callable[[], Awaitable[T]], path: str, doing: str, limit: float, wants: str | None
    ) -> T:
        try:
            with anyio.move_on_after(limit):
                return await work()
        except SandboxkitError as error:
            error.sandbox_id = self._raw.sandbox_id
            raise
        except Exception as error:
            if not _errors.is_from_the_sdk(error):
                raise
            raise await self._explained(error, path, doing, wants) from error
        raise ProviderUnavailable(
            f"No answer within {limit:g} s ({doing}).", sandbox_id=self._raw.sandbox_id, status=None
        )

    async def _explained(self, error: Exception, path: str, doing: str, wants: str | None) -> SandboxkitError:
        """Ours for the SDK's; where the service's answer does not tell, the entry itself is asked what it is."""
        ours = self._ours(error, path, doing)
        if wants is None or not _errors.may_be_of_the_wrong_kind(error):
            return ours
        found: FileInfo | None = None
        try:
            with anyio.move_on_after(REQUEST_LIMIT):
                found = _info(await self._raw.files.get_info(path))
        except Exception as probe:
            if not _errors.is_from_the_sdk(probe):
                raise
            asked = self._ours(probe, path, doing)
            return asked if isinstance(asked, NotADirectory) else ours
        if found is None or found.type == wants:
            return ours
        if wants == "dir":
            return NotADirectory(f"{path} is not a directory.", sandbox_id=self._raw.sandbox_id, path=path)
        if found.type == "dir":
            return IsADirectory(f"{path} is a directory.", sandbox_id=self._raw.sandbox_id, path=path)
        return SpecialFile(f"{path} is neither a file nor a directory.", sandbox_id=self._raw.sandbox_id, path=path)

    def _ours(self, error: Exception, path: str, doing: str) -> SandboxkitError:
        return _errors.files_error(error, path, sandbox_id=self._raw.sandbox_id, end_at=self._end_at(), doing=doing)


def _info(entry: EntryInfo) -> FileInfo:
    modified = entry.modified_time
    return FileInfo(
        name=entry.name,
        path=entry.path,
        # The service reports the type of what a link leads to, and none for what is neither a file nor a directory.
        type="file" if entry.type is not None and entry.type.value == "file" else _directory_or_other(entry),
        size=entry.size,
        mode=entry.mode,
        owner=entry.owner,
        group=entry.group,
        modified=modified if modified.tzinfo else modified.replace(tzinfo=UTC),
        link_target=entry.symlink_target,
    )


def _directory_or_other(entry: EntryInfo) -> Any:
    return "dir" if entry.type is not None and entry.type.value == "dir" else "other"
