"""Folders in and out of a sandbox, file by file; the sandbox's names meet this machine here, and are guarded again."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from sandboxkit._confine import confine, shown
from sandboxkit._types import FileInfo, TransferProgress
from sandboxkit.errors import InvalidPath, NotADirectory, SpecialFile, TooLarge
from sandboxkit.safefs._local import LocalFolder

if TYPE_CHECKING:
    from sandboxkit.safefs._levels import LevelFiles
    from sandboxkit.safefs._safefs import AsyncSafeFS

DEFAULT_MAX_BYTES: Final = 64 * 1024 * 1024
MAX_FILE: Final = 64 * 1024 * 1024
_WINDOWS: Final = frozenset('<>:"|?*\\')

OnProgress = Callable[[TransferProgress], object]


@dataclass(slots=True)
class _Meter:
    """Counts, and tells."""

    on_progress: OnProgress | None
    total_files: int
    total_size: int
    files: int = field(default=0)
    size: int = field(default=0)

    async def done(self, path: str, size: int) -> None:
        self.files += 1
        self.size += size
        if self.on_progress is not None:
            answer = self.on_progress(
                TransferProgress(
                    path=path,
                    files=self.files,
                    total_files=self.total_files,
                    size=self.size,
                    total_size=max(self.total_size, self.size),
                )
            )
            if hasattr(answer, "__await__"):
                await answer  # a callback may be a coroutine function


async def streamed(
    files: LevelFiles, path: str, chunk: int, telling: Callable[[], AbstractContextManager[None]]
) -> AsyncGenerator[bytes]:
    """See `AsyncSafeFS.stream`; `telling` words the errors of one request."""
    at, version = 0, b""
    length = chunk if files.reads_parts else DEFAULT_MAX_BYTES
    most = None if files.reads_parts else DEFAULT_MAX_BYTES
    while True:
        with telling():
            piece = await files.read(path, start=at, length=length, max_bytes=most, version=version)
        for begin in range(0, len(piece.data), chunk):
            yield piece.data[begin : begin + chunk]
        at, version = at + len(piece.data), piece.version
        if at >= piece.size:
            return


async def upload(files: AsyncSafeFS, source: Path, target: str, *, on_progress: OnProgress | None) -> int:
    """See `AsyncSafeFS.upload`."""
    found, directories = await anyio.to_thread.run_sync(_local, source)
    meter = _Meter(on_progress, len(found), sum(found.values()))
    for below in directories:
        await files.make_dir(confine(below, target))
    real = await anyio.to_thread.run_sync(source.resolve)
    folder = LocalFolder(real.parent if "." in found else real)
    for below in found:
        remote = confine(below, target)
        names = [real.name] if below == "." else below.split("/")
        data = await anyio.to_thread.run_sync(folder.read, names, MAX_FILE)
        await files.write_bytes(remote, data)
        await meter.done(remote, len(data))
    return meter.files


def _local(source: Path) -> tuple[dict[str, int], list[str]]:
    """The regular files with their sizes, and the directories, below a local path by the path they get; links are left
    out, but for the path itself."""
    if source.is_file():
        return {".": source.stat().st_size}, []
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is neither a file nor a folder")
    found: dict[str, int] = {}
    directories = ["."]
    for folder, names, plain in os.walk(source):
        within = Path(folder).relative_to(source)
        directories += [(within / name).as_posix() for name in names if not Path(folder, name).is_symlink()]
        for name in sorted(plain):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                found[(within / name).as_posix()] = path.lstat().st_size
    return found, directories


async def download(
    files: AsyncSafeFS,
    source: str,
    target: Path,
    *,
    overwrite: bool,
    max_bytes: int,
    on_progress: OnProgress | None,
) -> int:
    """See `AsyncSafeFS.download`."""
    try:
        entries = [entry async for entry in files.walk(source)]
        await anyio.to_thread.run_sync(lambda: target.mkdir(parents=True, exist_ok=True))
        is_tree = True
    except NotADirectory:
        entries = [await files.stat(source)]
        is_tree = False
        if entries[0].type != "file":
            raise SpecialFile(f"{shown(source)} is neither a file nor a directory.", path=source) from None
    wanted = [entry for entry in entries if entry.type == "file" and (entry.link_target is None or not is_tree)]
    meter = _Meter(on_progress, len(wanted), sum(entry.size for entry in wanted))
    if meter.total_size > max_bytes:
        raise TooLarge(f"{shown(source)} has more than max_bytes={max_bytes} bytes.", path=source)
    prefix = source.rstrip("/") + "/"
    folder = LocalFolder(target if is_tree else target.parent)
    for entry in entries:
        names = _names(entry, prefix) if is_tree else [target.name]
        if entry.type == "dir" and entry.link_target is None:
            await anyio.to_thread.run_sync(folder.make_dir, names)
        elif entry in wanted:
            data = await files.read_bytes(entry.path, max_bytes=min(MAX_FILE, max_bytes - meter.size))
            await anyio.to_thread.run_sync(partial(folder.put, names, data, overwrite=overwrite))
            await meter.done(entry.path, len(data))
    return meter.files


def _names(entry: FileInfo, prefix: str) -> list[str]:
    """The names of an entry below the directory that is copied. InvalidPath where this machine reads one otherwise."""
    names = entry.path.removeprefix(prefix).split("/")
    for name in names:
        is_odd = os.name == "nt" and (_WINDOWS & set(name) or name[-1:] in (".", " ") or os.path.isreserved(name))  # type: ignore[attr-defined,unused-ignore]
        if name in ("", ".", "..") or is_odd or os.sep in name or (os.altsep and os.altsep in name):
            raise InvalidPath(f"{shown(entry.path)} has a name that has no place on this machine.", path=entry.path)
    return names
