"""SafeFS: the files of a sandbox below a root, every path guarded, every read bounded.

Level `lexical`: what is sent to the sandbox is absolute, normalised, without "..", and is the root or lies below it.
One request names one path, and never `~`, a relative path or a user, which the service would interpret by itself.
Nothing is said about links: one that lies inside the root leads wherever the service follows it to.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeAlias

from sandboxkit._confine import confine, require_plain_names, shown
from sandboxkit._types import DEFAULT_ROOT, FileInfo, FileNode, Level
from sandboxkit.errors import (
    ConfigurationError,
    InvalidPath,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    PathError,
    PathEscape,
    SafeFSError,
    SpecialFile,
    TooLarge,
    UnsupportedOption,
)
from sandboxkit.provider._base import Files, ProviderSandbox
from sandboxkit.safefs._tree import DEFAULT_EXCLUDES, gather, is_directory

DEFAULT_MAX_BYTES = 64 * 1024 * 1024

AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SAYS: dict[type[SafeFSError], str] = {
    NotFound: "No such file or directory",
    IsADirectory: "A directory, where a file is needed",
    NotADirectory: "Not a directory, where one is needed",
    SpecialFile: "Not a regular file or a directory",
    NoSpace: "No space or no inode is left",
    TooLarge: "The file is larger than max_bytes",
}


class AsyncSafeFS:
    """Files of one sandbox, confined to a root. Relative paths count from the root; all others have to lie below it.

    Every method refuses a path that leads out (`PathEscape`) or is none (`InvalidPath`) before any request is made.
    Errors carry the path as it was given, as `.path`, and show it in ASCII.

    Args:
        sandbox: a session's sandbox, or the SDK's own `AsyncSandbox`; no pool is needed.
        root: an absolute path in the sandbox.
        level: what is promised; `None` is the best that there is, which is `"lexical"` now. `.level` names it.
        strict_names: also refuse control and bidirectional characters and backslashes in names.
        on_refused: is told each refusal of the guard; what it returns is ignored.

    Raises:
        ConfigurationError: `sandbox` is of the wrong kind (a synchronous one belongs to `SafeFS`), or the level is
            none of the three.
        UnsupportedOption: the level is `"checked"` or `"enforced"`, which are not there yet.
        InvalidPath: the root is no absolute path.
    """

    def __init__(
        self,
        sandbox: object,
        *,
        root: str = DEFAULT_ROOT,
        level: Level | None = None,
        strict_names: bool = False,
        on_refused: Callable[[PathError], object] | None = None,
    ) -> None:
        if level in ("checked", "enforced"):
            raise UnsupportedOption(
                f"SafeFS(level={level!r}) is not supported yet; level=None takes the best that there is.",
                option="level",
            )
        if level not in (None, "lexical"):
            raise ConfigurationError(f"SafeFS(level={level!r}): 'lexical', 'checked', 'enforced' or None is needed.")
        self._files, self._sandbox_id = _files_of(sandbox)
        self._root = confine(root, root)
        self._strict_names = strict_names
        self._on_refused = on_refused

    @property
    def level(self) -> Level:
        """What is promised: the level in force."""
        return "lexical"

    @property
    def root(self) -> str:
        """The directory that nothing leaves, absolute and normalised."""
        return self._root

    async def read_text(self, path: AnyPath, *, max_bytes: int = DEFAULT_MAX_BYTES) -> str:
        """Read a file as UTF-8 text; line ends are left as they are.

        Raises:
            UnicodeDecodeError: it is not UTF-8; `read_bytes` reads anything.
            NotFound, IsADirectory, SpecialFile, TooLarge, PathError: as in `read_bytes`.
        """
        data = await self.read_bytes(path, max_bytes=max_bytes)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            error.reason = f"{error.reason}; {shown(path)} is not UTF-8 text, read_bytes() reads it"
            raise

    async def read_bytes(self, path: AnyPath, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Read a file of at most `max_bytes` bytes (64 MiB by default).

        Raises:
            NotFound, IsADirectory, SpecialFile: there is no such file.
            TooLarge: it has more; no more was kept.
            PathError: the path was refused.
        """
        target = self._file(path)
        with self._telling(path):
            data = await self._files.read(target, max_bytes=max_bytes)
            if len(data) > max_bytes:
                raise TooLarge("", path=path)
            return data

    async def write(self, path: AnyPath, data: str | bytes) -> None:
        """Write text (as UTF-8) or bytes, replacing the file that was there; missing parents are made.

        Raises:
            IsADirectory, NotADirectory, NoSpace, PathError: nothing was written.
        """
        await self.write_bytes(path, data.encode() if isinstance(data, str) else data)

    async def write_text(self, path: AnyPath, text: str) -> None:
        """Write text as UTF-8; line ends are left as they are. Else as `write`."""
        await self.write_bytes(path, text.encode())

    async def write_bytes(self, path: AnyPath, data: bytes) -> None:
        """Write bytes; else as `write`."""
        if not isinstance(data, bytes | bytearray | memoryview):  # bytes(3) would be three zero bytes
            raise ConfigurationError(
                f"The data to write is {type(data).__name__}; bytes are needed, or text with write()."
            )
        target = self._file(path)
        with self._telling(path):
            await self._files.write(target, bytes(data))

    async def append(self, path: AnyPath, data: str | bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Add text or bytes to the end of a file, or make it.

        Not atomic: the file is read and written again as a whole, so what somebody else writes to it at the same
        time may be lost.

        Raises:
            TooLarge: the file is larger than `max_bytes` already.
            IsADirectory, NotADirectory, SpecialFile, NoSpace, PathError: nothing was written.
        """
        added = data.encode() if isinstance(data, str) else bytes(data)
        try:
            before = await self.read_bytes(path, max_bytes=max_bytes)
        except NotFound:
            before = b""
        await self.write_bytes(path, before + added)

    async def list(self, path: AnyPath = ".", *, depth: int = 1) -> list[FileInfo]:
        """List the entries below a directory, `depth` levels deep, sorted by path.

        The service leaves out what is neither file nor directory, dangling links among it.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
        """
        if depth < 1:
            raise ConfigurationError(f"list(depth={depth!r}): a positive number is needed.")
        directory = self._confined(path)
        with self._telling(path):
            entries = await self._files.list(directory, depth=depth)
            return sorted((_believed(entry, directory) for entry in entries), key=lambda entry: entry.path)

    async def walk(self, path: AnyPath = ".") -> AsyncGenerator[FileInfo]:
        """Yield every entry below a directory, each directory before what is in it; links are not followed.

        One request per directory, made when it is reached. A directory that is gone by then yields nothing.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory to begin with.
        """
        pending = await self.list(path)
        pending.reverse()
        while pending:
            entry = pending.pop()
            yield entry
            if is_directory(entry):
                try:
                    pending += reversed(await self.list(entry.path))
                except (NotFound, NotADirectory):
                    continue

    async def tree(
        self,
        path: AnyPath = ".",
        *,
        depth: int = 8,
        max_entries: int = 10_000,
        exclude: Collection[str] = DEFAULT_EXCLUDES,
    ) -> FileNode:
        """Gather a directory and what is below it.

        Args:
            path: the directory.
            depth: how many levels below it.
            max_entries: how many entries altogether; what is deepest is left out first.
            exclude: names of directories that are shown but not opened (caches, installed packages).

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
        """
        if depth < 1 or max_entries < 1:
            raise ConfigurationError(
                f"tree(depth={depth!r}, max_entries={max_entries!r}): positive numbers are needed."
            )
        directory = self._confined(path)
        return await gather(self.list, directory, depth=depth, max_entries=max_entries, exclude=frozenset(exclude))

    async def stat(self, path: AnyPath) -> FileInfo:
        """Describe one entry. For a link the service says the type and size of its target.

        Raises:
            NotFound, NotADirectory, PathError: there is no such entry.
        """
        target = self._confined(path)
        with self._telling(path):
            info = await self._files.stat(target)
        return dataclasses.replace(info, name=target.rpartition("/")[2], path=target)

    async def exists(self, path: AnyPath) -> bool:
        """Say whether there is an entry.

        Raises:
            PathError: the path was refused; that is not answered with False.
        """
        target = self._confined(path)
        with self._telling(path):
            return await self._files.exists(target)

    async def make_dir(self, path: AnyPath) -> bool:
        """Make a directory and its missing parents. False if it was there already.

        Raises:
            NotADirectory: a file is in the way.
            NoSpace, PathError: nothing was made.
        """
        target = self._confined(path)
        with self._telling(path):
            return await self._files.make_dir(target)

    async def remove(self, path: AnyPath) -> None:
        """Remove a file or a link, or a directory with all that is in it; never the root.

        Raises:
            NotFound: there is nothing.
            PathError: the path was refused.
        """
        target = self._entry(path)
        with self._telling(path):
            await self._files.remove(target)

    async def rename(self, source: AnyPath, target: AnyPath) -> None:
        """Rename or move an entry, replacing a file at the target; neither is the root.

        Raises:
            NotFound: there is no such source.
            IsADirectory, NotADirectory, NoSpace: the target is in the way, or has no place.
            PathError: a path was refused, or the target lies inside the source.
        """
        old, new = self._entry(source), self._entry(target)
        if new.startswith(old + "/"):
            self._refuse(InvalidPath(f"{shown(source)} cannot be moved into itself, to {shown(target)}.", path=target))
        with self._telling(source):
            await self._files.rename(old, new)

    async def copy(self, source: AnyPath, target: AnyPath, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Copy the content of one file (not a directory), through this process; mode and times are not copied.

        Raises:
            NotFound, IsADirectory, SpecialFile, TooLarge, NoSpace: it could not be read or written.
            PathError: a path was refused; nothing was read.
        """
        self._file(target)
        await self.write_bytes(target, await self.read_bytes(source, max_bytes=max_bytes))

    # -- the guard ------------------------------------------------------------------------------------------------

    def _confined(self, path: AnyPath) -> str:
        """The path to send, or a refusal that listeners are told of."""
        try:
            confined = confine(path, self._root)
            if self._strict_names:
                require_plain_names(confined, path)
        except PathError as error:
            self._refuse(error)
        if not confined.isascii() and any("\udc80" <= char <= "\udcff" for char in confined):
            # The service's messages are UTF-8, so no request can name it.
            self._refuse(InvalidPath(f"The name {shown(path)} is not UTF-8, which the file API needs.", path=path))
        return confined

    def _file(self, path: AnyPath) -> str:
        """The confined path of a file; the root is none."""
        confined = self._confined(path)
        if confined == self._root:
            raise IsADirectory(f"{shown(path)} is the root, a directory.", sandbox_id=self._sandbox_id, path=path)
        return confined

    def _entry(self, path: AnyPath) -> str:
        """The confined path of an entry that may go; the root's own entry lies outside of the root."""
        confined = self._confined(path)
        if confined == self._root:
            self._refuse(PathEscape(f"{shown(path)} is the root, which cannot be removed or renamed.", path=path))
        return confined

    def _refuse(self, error: PathError) -> NoReturn:
        error.sandbox_id = self._sandbox_id
        if self._on_refused is not None:
            self._on_refused(error)
        raise error

    @contextmanager
    def _telling(self, path: AnyPath) -> Iterator[None]:
        """Say the caller's path, in ASCII, instead of what the service said: its text may be the sandbox's own."""
        try:
            yield
        except SafeFSError as error:
            says = _SAYS.get(type(error), "The file operation failed")
            raise type(error)(
                f"{says}: {shown(path)} in sandbox {self._sandbox_id}.", sandbox_id=self._sandbox_id, path=path
            ) from error


def _files_of(sandbox: object) -> tuple[Files, str]:
    """The file access of what the caller gave, with the sandbox's id."""
    if isinstance(sandbox, ProviderSandbox):
        return sandbox.files, sandbox.sandbox_id
    from sandboxkit.provider import _e2b  # late: it imports the SDK, which only its own objects need

    return _e2b.file_access(sandbox), str(getattr(sandbox, "sandbox_id", None))


def _believed(entry: FileInfo, directory: str) -> FileInfo:
    """Return an entry of a listing if it can lie where it says; a sandbox may answer anything."""
    try:
        path = confine(entry.path, directory)
    except PathError:
        path = directory
    if path == directory or path != entry.path or path.rpartition("/")[2] != entry.name:
        raise SafeFSError(
            f"The sandbox listed {shown(entry.path)}, which cannot lie in {shown(directory)}.", path=directory
        )
    return entry


AsyncSafeFS.__module__ = "sandboxkit"
