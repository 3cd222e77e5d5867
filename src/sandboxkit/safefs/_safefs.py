"""SafeFS: the files of a sandbox below a root, every path guarded, every read bounded.

Whatever the level, what is sent to the sandbox is absolute, normalised, without "..", and is the root or lies below it.
One request names one path, and never `~`, a relative path or a user, which the service would interpret by itself.
What is promised beyond that is the level's: `_levels` carries it out, docs/explanation/safefs-levels.md says it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

from sandboxkit._confine import confine, shown
from sandboxkit._types import DEFAULT_ROOT, FileEvent, FileInfo, FileNode, Level, TransferProgress
from sandboxkit.errors import (
    ConfigurationError,
    InvalidPath,
    NotADirectory,
    NotFound,
    SafeFSError,
)
from sandboxkit.events import listener
from sandboxkit.safefs import _transfer
from sandboxkit.safefs._asked import HardLinks, Links, asked, files_of
from sandboxkit.safefs._fileobj import AsyncSafeFile, Mode, mode_of
from sandboxkit.safefs._glob import expand
from sandboxkit.safefs._guard import AnyPath, Guard, believed, taken_up
from sandboxkit.safefs._transfer import DEFAULT_MAX_BYTES, streamed
from sandboxkit.safefs._tree import DEFAULT_EXCLUDES, gather, is_directory
from sandboxkit.safefs._watch import watched

DEFAULT_CHUNK = 1024 * 1024

LocalPath: TypeAlias = str | os.PathLike[str]
OnProgress: TypeAlias = Callable[[TransferProgress], object]
Entries: TypeAlias = list[FileInfo]  # `list` is also a method


class AsyncSafeFS(Guard):
    """Files of one sandbox, confined to a root. Relative paths count from the root; all others have to lie below it.

    Every method refuses a path that leads out (`PathEscape`) or is none (`InvalidPath`) before any request is made.
    Errors carry the path as it was given, as `.path`, and show it in ASCII. Any operation at any level may raise
    AccessDenied, at `"checked"` and `"enforced"` also LinkEscape and SpecialFile, at `"enforced"` also Changed and
    EnforcementUnavailable, besides what is said at the method.

    Args:
        sandbox: a session's sandbox, or the SDK's own `AsyncSandbox`; no pool is needed.
        root: an absolute path in the sandbox.
        level: what is promised. `"lexical"` judges the path's text alone; `"checked"` also looks for links that lead
            out, just before; `"enforced"` resolves the path in the sandbox, so that it holds against a process that
            exchanges files for links meanwhile. `None` is `"enforced"`, or EnforcementUnavailable where that cannot be
            had: no level is ever less than it says.
        strict_names: also refuse control and bidirectional characters and backslashes in names.
        links: `"refuse"` follows none, wherever it leads; not at `"lexical"`.
        hard_links: `"refuse"` reads and replaces no file that has a second name, which may lie outside; at
            `"enforced"` only.
        mounts: mount points below the root that may be entered, such as E2B's volumes; at `"enforced"` only. All
            others are refused there, and looked at by the other levels like any directory.
        on_refused: is told each refusal; what it returns is ignored.

    Raises:
        ConfigurationError: `sandbox` is of the wrong kind (a synchronous one belongs to `SafeFS`), or an option has
            no value that there is.
        UnsupportedOption: the level cannot keep what an option asks.
        InvalidPath, PathEscape: the root is no absolute path, or a mount does not lie below it.
    """

    def __init__(
        self,
        sandbox: object,
        *,
        root: str = DEFAULT_ROOT,
        level: Level | None = None,
        strict_names: bool = False,
        links: Links = "follow",
        hard_links: HardLinks = "allow",
        mounts: Collection[AnyPath] = (),
        on_refused: Callable[[SafeFSError], object] | None = None,
    ) -> None:
        listener(on_refused, name="on_refused")
        made = taken_up(sandbox)
        confined = confine(root, root)
        wanted = asked(confined, links=links, hard_links=hard_links, mounts=mounts)
        files = files_of(made, confined, level, wanted)
        super().__init__(files, made.sandbox_id, confined, strict_names=strict_names, on_refused=on_refused)

    @property
    def level(self) -> Level:
        """What is promised: the level in force."""
        return self._files.level

    @property
    def root_adversary(self) -> bool:
        """Whether somebody in the sandbox may be root there, which no level holds against inside it. False only where
        this is known: at `"enforced"`, after the first operation, on the local engine, whose sandboxes have no root."""
        return self._files.root_adversary

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
            return (await self._files.read(target, start=0, length=max_bytes, max_bytes=max_bytes)).data

    async def read_range(self, path: AnyPath, start: int, length: int) -> bytes:
        """Read up to `length` bytes of a file from the offset `start` on; fewer at its end, none behind it. At
        `"enforced"` no more than that is transferred; the other levels read the file up to 64 MiB.

        Raises:
            NotFound, IsADirectory, SpecialFile, TooLarge, PathError: as in `read_bytes`.
        """
        if start < 0 or length < 0:
            raise ConfigurationError(f"read_range(start={start!r}, length={length!r}): neither may be negative.")
        target = self._file(path)
        with self._telling(path):
            most = None if self._files.reads_parts else DEFAULT_MAX_BYTES
            return (await self._files.read(target, start=start, length=length, max_bytes=most)).data

    async def stream(self, path: AnyPath, *, chunk: int = DEFAULT_CHUNK) -> AsyncGenerator[bytes]:
        """Yield a file's content in pieces of `chunk` bytes. At `"enforced"` one request for each, of a file of any
        size; the other levels read it up to 64 MiB.

        Raises:
            Changed: another content came in its place meanwhile.
            NotFound, IsADirectory, SpecialFile, TooLarge, PathError: as in `read_bytes`.
        """
        if chunk < 1:
            raise ConfigurationError(f"stream(chunk={chunk!r}): a positive number is needed.")
        target = self._file(path)
        async for piece in streamed(self._files, target, chunk, lambda: self._telling(path)):
            yield piece

    def open(self, path: AnyPath, mode: Mode = "rb", *, max_bytes: int = DEFAULT_MAX_BYTES) -> AsyncSafeFile:
        """Open a file, to be used with `async with`: its methods are those of Python's files, and awaited.

        Reading goes piece by piece and can seek. What is written is kept here, up to `max_bytes`, and takes the
        file's place at the end of the block; an exception that leaves the block leaves the file as it was.

        Args:
            path: the file.
            mode: `r`, `w` or `a`, with `b` for bytes; without it text is UTF-8, its line ends left as they are.
            max_bytes: what may be written.

        Raises:
            ConfigurationError: another mode.
            PathError: the path was refused.
        """
        self._file(path)
        return AsyncSafeFile(self, path, mode_of(mode), max_bytes=max_bytes)

    async def write(self, path: AnyPath, data: str | bytes) -> None:
        """Write text (as UTF-8) or bytes, replacing the file that was there; missing parents are made.

        At `"enforced"` the content takes the file's place at once: whoever reads sees the old one or the new one.

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

        The file is written anew, at `"enforced"` in the sandbox and at once; what somebody else writes to it at the
        same time may be lost.

        Raises:
            TooLarge: the file is larger than `max_bytes` already.
            IsADirectory, NotADirectory, SpecialFile, NoSpace, PathError: nothing was written.
        """
        added = data.encode() if isinstance(data, str) else bytes(data)
        target = self._file(path)
        with self._telling(path):
            await self._files.append(target, added, max_bytes=max_bytes)

    async def list(self, path: AnyPath = ".", *, depth: int = 1) -> list[FileInfo]:
        """List the entries below a directory, `depth` levels deep, sorted by path.

        Links are not followed below it. At `"lexical"` and `"checked"` the service leaves out what is neither file nor
        directory, dangling links among it; at `"enforced"` all is there, a link with the type of what it leads to, or
        `"other"` where that lies outside or nowhere.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
            TooLarge: it has more than 100,000 entries.
        """
        if depth < 1:
            raise ConfigurationError(f"list(depth={depth!r}): a positive number is needed.")
        directory = self._confined(path)
        with self._telling(path):
            entries = await self._files.list(directory, depth=depth)
            return sorted((believed(entry, directory) for entry in entries), key=lambda entry: entry.path)

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

    async def glob(self, pattern: AnyPath) -> Entries:
        """List the entries that a pattern matches, sorted by path: `*`, `?` and `[...]` within one name, `**` for any
        number of directories. Names that begin with a dot match like others; links are not entered by `**`.

        Raises:
            PathError: the pattern leads out of the root.
        """
        parts = self._confined(pattern)[len(self._root) :].strip("/").split("/")
        found = await expand(self, self._root, [part for part in parts if part])
        return sorted(found, key=lambda entry: entry.path)

    async def watch(
        self, path: AnyPath = ".", *, recursive: bool = False, interval: float = 1.0
    ) -> AsyncGenerator[FileEvent]:
        """Yield what happens in a directory, from the first step of the iteration on, until it is closed.

        At `"enforced"` on the local engine every event comes, from inotify. Elsewhere the directory is listed every
        `interval` seconds, and what differs is told: a file that comes and goes in between is not seen, and a rename
        is a removal and a creation.

        Args:
            path: the directory.
            recursive: watch what is below its directories, too, links not followed.
            interval: seconds between two looks, where one has to look.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
            Changed: more happened than could be kept; begin again.
        """
        if not 0 < interval < float("inf"):
            raise ConfigurationError(f"watch(interval={interval!r}): a positive number of seconds is needed.")
        directory = self._confined(path)
        events = watched(self._files, directory, recursive=recursive, interval=interval)
        async with aclosing(events):
            with self._telling(path):
                async for event in events:
                    yield event

    async def upload(self, source: LocalPath, target: AnyPath, *, on_progress: OnProgress | None = None) -> int:
        """Copy a local file or folder into the sandbox, file by file, and return how many files it were.

        Links in the folder are neither followed nor sent; empty directories are made. Files that are there are
        replaced, others stay.

        Args:
            source: on this machine.
            target: where it lies afterwards, not the directory above.
            on_progress: called after each file.

        Raises:
            FileNotFoundError, OSError: it cannot be read.
            TooLarge: a file has more than 64 MiB.
            SafeFSError: a file could not be written; those before it are.
        """
        self._entry(target)
        return await _transfer.upload(self, Path(source), self._confined(target), on_progress=on_progress)

    async def download(
        self,
        source: AnyPath,
        target: LocalPath,
        *,
        overwrite: bool = False,
        max_bytes: int = 1024 * 1024 * 1024,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Copy a file or directory of the sandbox to this machine, and return how many files it were.

        Names are the sandbox's, so each is guarded again here: nothing is written outside of `target`, and never
        through a local link. Links, pipes and the like are left out. Modes and times are not taken over.

        Args:
            source: in the sandbox.
            target: where it lies afterwards, not the directory above.
            overwrite: replace local files that are there; else they are a FileExistsError.
            max_bytes: of all files together.
            on_progress: called after each file.

        Raises:
            FileExistsError, OSError: it cannot be written here.
            TooLarge: it is more than `max_bytes`; what came before is there.
            SafeFSError: it cannot be read, or a name has no place on this machine.
        """
        confined = self._confined(source)
        return await _transfer.download(
            self, confined, Path(target), overwrite=overwrite, max_bytes=max_bytes, on_progress=on_progress
        )

    async def stat(self, path: AnyPath) -> FileInfo:
        """Describe one entry. Of a link, the type and mode are those of what it leads to; at `"enforced"` the rest is
        the link's own, and one that leads out or nowhere is `"other"`.

        Raises:
            NotFound, NotADirectory, PathError: there is no such entry.
        """
        target = self._confined(path)
        with self._telling(path):
            info = await self._files.stat(target)
        return dataclasses.replace(info, name=target.rpartition("/")[2], path=target)

    async def exists(self, path: AnyPath) -> bool:
        """Say whether there is an entry. A link that leads nowhere inside is none at `"enforced"`; one that leads out
        is a LinkEscape, whether its target exists or not.

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
        """Copy the content of one file (not a directory); mode and times are not copied. At `"enforced"` in the
        sandbox, else through this process.

        Raises:
            NotFound, IsADirectory, SpecialFile, TooLarge, NoSpace: it could not be read or written.
            PathError: a path was refused; nothing was read.
        """
        old, new = self._file(source), self._file(target)
        with self._telling(source):
            await self._files.copy(old, new, max_bytes=max_bytes)


AsyncSafeFS.__module__ = "sandboxkit"
