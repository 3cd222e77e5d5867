"""What carries file operations out at each level; `AsyncSafeFS` guards the path's text before, and words errors after.

    lexical    the provider's own file operations, nothing else
    checked    the same, after a look at every name on the way, and at what is there
    enforced   operations below the root, resolved in the sandbox in the very step that uses the path

Paths are confined ones. Errors are SafeFSErrors whose text the caller never sees, except `reason`, which is ours.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Protocol

import anyio

from sandboxkit._types import FileInfo, Level
from sandboxkit.errors import (
    Changed,
    IsADirectory,
    LinkEscape,
    NotADirectory,
    NotFound,
    SafeFSError,
    SpecialFile,
    TooLarge,
)
from sandboxkit.provider._base import Confined, Files, ProviderSandbox
from sandboxkit.provider._confined import (
    ERRORS,
    MAX_ENTRIES,
    MAX_FIELDS,
    BrokenAnswer,
    FileAnswer,
    FileCall,
    OperationFailed,
    number,
    to_text,
)
from sandboxkit.safefs._helper import HelperConfined

_IDENTITY: Final = re.compile(rb"[0-9]{1,20}:[0-9]{1,20}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OWNERS: Final = {0: "root", 1000: "user"}
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file: its bytes, the file's whole size, and what changes when its content does (empty: unknown)."""

    data: bytes
    size: int
    version: bytes = b""


class LevelFiles(Protocol):
    """The operations of one level."""

    level: Level
    takes_any_name: bool
    """Whether names that are not UTF-8 can be sent."""
    reads_parts: bool
    """Whether a part of a file costs less than all of it."""

    @property
    def root_adversary(self) -> bool: ...

    async def read(
        self, path: str, *, start: int, length: int, max_bytes: int | None, version: bytes = b""
    ) -> Piece: ...

    async def write(self, path: str, data: bytes) -> None: ...

    async def append(self, path: str, data: bytes, *, max_bytes: int) -> None: ...

    async def list(self, path: str, *, depth: int) -> list[FileInfo]: ...

    async def stat(self, path: str) -> FileInfo: ...

    async def exists(self, path: str) -> bool: ...

    async def make_dir(self, path: str) -> bool: ...

    async def remove(self, path: str) -> None: ...

    async def rename(self, source: str, target: str) -> None: ...

    async def copy(self, source: str, target: str, *, max_bytes: int) -> None: ...

    async def watching(self) -> Confined | None:
        """What can watch; None where changes have to be looked for."""


class LexicalFiles:
    """The provider's file operations as they are."""

    level: Level = "lexical"
    takes_any_name = False
    reads_parts = False
    root_adversary = True

    def __init__(self, files: Files) -> None:
        self._files = files

    async def read(self, path: str, *, start: int, length: int, max_bytes: int | None, version: bytes = b"") -> Piece:
        data = await self._files.read(path, max_bytes=max_bytes)
        if max_bytes is not None and len(data) > max_bytes:
            raise TooLarge("")
        return Piece(data[start : start + length], len(data))

    async def write(self, path: str, data: bytes) -> None:
        await self._files.write(path, data)

    async def append(self, path: str, data: bytes, *, max_bytes: int) -> None:
        try:
            before = (await self.read(path, start=0, length=max_bytes, max_bytes=max_bytes)).data
        except NotFound:
            before = b""
        await self._files.write(path, before + data)

    async def list(self, path: str, *, depth: int) -> list[FileInfo]:
        return await self._files.list(path, depth=depth)

    async def stat(self, path: str) -> FileInfo:
        return await self._files.stat(path)

    async def exists(self, path: str) -> bool:
        return await self._files.exists(path)

    async def make_dir(self, path: str) -> bool:
        return await self._files.make_dir(path)

    async def remove(self, path: str) -> None:
        await self._files.remove(path)

    async def rename(self, source: str, target: str) -> None:
        await self._files.rename(source, target)

    async def copy(self, source: str, target: str, *, max_bytes: int) -> None:
        await self._files.write(target, (await self.read(source, start=0, length=max_bytes, max_bytes=max_bytes)).data)

    async def watching(self) -> Confined | None:
        return None


class CheckedFiles(LexicalFiles):
    """The same, after a look. It sees links that lie there; it does not hold against one that comes after the look."""

    level: Level = "checked"

    def __init__(self, files: Files, root: str, *, follows: bool = True) -> None:
        super().__init__(files)
        self._root = root
        self._follows = follows

    async def read(self, path: str, *, start: int, length: int, max_bytes: int | None, version: bytes = b"") -> Piece:
        self._require_file(await self._look(path), path)
        return await super().read(path, start=start, length=length, max_bytes=max_bytes)

    async def write(self, path: str, data: bytes) -> None:
        await self._before_writing(path)
        await super().write(path, data)

    async def append(self, path: str, data: bytes, *, max_bytes: int) -> None:
        await self._before_writing(path)
        await super().append(path, data, max_bytes=max_bytes)

    async def list(self, path: str, *, depth: int) -> builtins.list[FileInfo]:
        found = await self._look(path)
        if found is None:
            raise NotFound("")
        if found.type != "dir":
            raise NotADirectory("")
        return await super().list(path, depth=depth)

    async def stat(self, path: str) -> FileInfo:
        await self._look_above(path)
        return await super().stat(path)

    async def exists(self, path: str) -> bool:
        try:
            found = await self._look(path)
        except NotADirectory:
            return False
        return found is not None and not _leads_nowhere(found, path)

    async def make_dir(self, path: str) -> bool:
        found = await self._look(path, missing_parents=True)
        if found is not None and found.type != "dir":
            raise NotADirectory("")
        return await super().make_dir(path)

    async def remove(self, path: str) -> None:
        await self._look_above(path)
        await super().remove(path)

    async def rename(self, source: str, target: str) -> None:
        await self._look_above(source)
        await self._look_above(target)
        await super().rename(source, target)

    async def copy(self, source: str, target: str, *, max_bytes: int) -> None:
        data = (await self.read(source, start=0, length=max_bytes, max_bytes=max_bytes)).data
        await self.write(target, data)

    async def _before_writing(self, path: str) -> None:
        found = await self._look(path, missing_parents=True)
        if found is None:
            return
        if _leads_nowhere(found, path):
            raise SpecialFile("")
        self._require_file(found, path)

    def _require_file(self, found: FileInfo | None, path: str) -> None:
        if found is None or _leads_nowhere(found, path):
            raise NotFound("")
        if found.type == "dir":
            raise IsADirectory("")
        if found.type != "file":
            raise SpecialFile("")

    async def _look_above(self, path: str) -> None:
        await self._look(path.rpartition("/")[0] if path != self._root else path, missing_parents=True)

    async def _look(self, path: str, *, missing_parents: bool = False) -> FileInfo | None:
        """Look at each name on the way, and return what has the last one; None where it is missing. LinkEscape where
        one is a link that leads out, NotADirectory where one on the way is none."""
        below = path[len(self._root) :].strip("/").split("/") if path != self._root else []
        root = self._root.rstrip("/")
        names = [self._root, *("/".join([root, *below[: end + 1]]) for end in range(len(below)))]
        found: dict[str, FileInfo | None] = {}

        async def look(name: str) -> None:
            async with limiter:
                try:
                    found[name] = await self._files.stat(name)
                except (NotFound, NotADirectory):
                    found[name] = None
                except Exception as error:
                    failures.append(error)
                    tasks.cancel_scope.cancel()

        failures: builtins.list[Exception] = []
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(look, name)
        if failures:
            raise failures[0]
        for name in names:
            info = found[name]
            if info is None:
                if name != names[-1] and not missing_parents:
                    raise NotFound("")
                return None
            target = info.link_target
            if target is not None and (not self._follows or name == self._root or not _is_below(target, root)):
                raise LinkEscape("")
            if name != names[-1] and info.type != "dir":
                raise NotFound("") if _leads_nowhere(info, name) else NotADirectory("")
        return found[names[-1]]


class EnforcedFiles:
    """Operations below the root, resolved in the sandbox: by its server where that can, else by a helper."""

    level: Level = "enforced"
    takes_any_name = True
    reads_parts = True

    def __init__(self, sandbox: ProviderSandbox, root: str, asked: bytes = b"") -> None:
        self._sandbox = sandbox
        self._root = root
        self._asked = asked
        self._found: Confined | None = None
        self._identity = b""

    @property
    def root_adversary(self) -> bool:
        return self._found is None or self._found.root_adversary

    async def read(self, path: str, *, start: int, length: int, max_bytes: int | None, version: bytes = b"") -> Piece:
        most = b"" if max_bytes is None else max_bytes
        answer = await self._do("read", path, start, length, most, version, max_answer=length)
        try:
            size, found = number(_at(answer, 0)), _at(answer, 1)
        except BrokenAnswer as error:
            raise self._broken(str(error)) from None
        if len(answer.data) > length or len(found) > 200:
            raise self._broken("more than was asked for")
        if max_bytes is not None and size > max_bytes:
            raise TooLarge("")
        if len(answer.data) != max(min(size - start, length), 0):
            raise Changed("")
        return Piece(answer.data, size, found)

    async def write(self, path: str, data: bytes) -> None:
        await self._do("write", path, data=data)

    async def append(self, path: str, data: bytes, *, max_bytes: int) -> None:
        await self._do("append", path, max_bytes, data=data)

    async def list(self, path: str, *, depth: int) -> list[FileInfo]:
        answer = await self._do("list", path, min(depth, 4096), MAX_ENTRIES, max_answer=MAX_FIELDS)
        return self._entries(answer)

    async def stat(self, path: str) -> FileInfo:
        found = self._entries(await self._do("stat", path))
        if len(found) != 1:
            raise self._broken("not one entry")
        return found[0]

    async def exists(self, path: str) -> bool:
        return _flag(await self._do("exists", path))

    async def make_dir(self, path: str) -> bool:
        return _flag(await self._do("make_dir", path))

    async def remove(self, path: str) -> None:
        await self._do("remove", path)

    async def rename(self, source: str, target: str) -> None:
        await self._do("rename", source, target)

    async def copy(self, source: str, target: str, *, max_bytes: int) -> None:
        await self._do("copy", source, target, max_bytes)

    async def watching(self) -> Confined | None:
        way = await self._way()
        return way if way.can_watch else None

    async def events(self, operation: str, name: str, *args: int) -> Sequence[bytes]:
        """One of the operations on watchers, whose first argument is a name, or a path for `watch`."""
        return (await self._do(operation, name, *args)).fields

    async def _way(self) -> Confined:
        if self._found is None:
            own = await self._sandbox.confined(self._root)
            self._found = HelperConfined(self._sandbox, self._root) if own is None else own
        return self._found

    async def _do(
        self, operation: str, path: str, *args: str | bytes | int, data: bytes = b"", max_answer: int = 1024 * 1024
    ) -> FileAnswer:
        way = await self._way()
        call = FileCall(
            operation=operation,
            path=path,
            args=args,
            data=data,
            identity=self._identity,
            asked=self._asked,
            max_answer=max_answer,
        )
        try:
            answer = await way.call(call)
        except OperationFailed as failed:
            kind = ERRORS.get(failed.number)
            if kind is None:
                raise SafeFSError("", reason=f"The sandbox could not do it (errno {failed.number})") from None
            raise kind("") from None
        except BrokenAnswer as error:
            raise self._broken(str(error)) from None
        if operation not in ("events", "unwatch", "watch"):
            if not _IDENTITY.fullmatch(answer.identity):
                raise self._broken("no identity")
            self._identity = self._identity or answer.identity
            if answer.identity != self._identity:
                raise Changed("")
        return answer

    def _entries(self, answer: FileAnswer) -> builtins.list[FileInfo]:
        fields = answer.fields
        if len(fields) % 10 or len(fields) > 10 * MAX_ENTRIES:
            raise self._broken("entries are cut off")
        try:
            return [_info(fields[at : at + 10]) for at in range(0, len(fields), 10)]
        except BrokenAnswer as error:
            raise self._broken(str(error)) from None

    def _broken(self, why: str) -> SafeFSError:
        return SafeFSError("", reason=f"What the sandbox answered is no answer ({why})")


def _leads_nowhere(info: FileInfo, path: str) -> bool:
    """Whether an entry as the service describes it is a link that it could not resolve: it then names itself."""
    return info.link_target == path and info.type == "other"


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")


def _at(answer: FileAnswer, index: int) -> bytes:
    try:
        return answer.fields[index]
    except IndexError:
        raise SafeFSError("", reason="What the sandbox answered is no answer (a field is missing)") from None


def _flag(answer: FileAnswer) -> bool:
    return _at(answer, 0) == b"1"


def _kind(mode: int) -> Literal["file", "dir", "other"]:
    return {0o100000: "file", 0o040000: "dir"}.get(mode & 0o170000, "other")  # type: ignore[return-value]


def _info(fields: Sequence[bytes]) -> FileInfo:
    """One entry. A link has the type of what it leads to inside, and the rest of its own."""
    name, path, mode, size, uid, gid, modified, text, target, _ = fields
    own = number(mode)
    is_link = own & 0o170000 == 0o120000
    shown = (number(target) if target else 0) if is_link else own
    # Dates end somewhere, and a sandbox may set any time.
    nanos = number(modified, most=10**28) if not modified.startswith(b"-") else 0
    micros = min(nanos // 1000, 250_000_000_000_000_000)
    return FileInfo(
        name=to_text(name),
        path=to_text(path),
        type=_kind(shown),
        size=number(size),
        mode=shown & 0o777,
        owner=_OWNERS.get(number(uid), str(number(uid))),
        group=_OWNERS.get(number(gid), str(number(gid))),
        modified=_EPOCH + timedelta(microseconds=micros),
        link_target=to_text(text) if is_link else None,
    )
