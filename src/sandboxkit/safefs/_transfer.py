"""Folders in and out of a sandbox, file by file; the sandbox's names meet this machine here, and are guarded again."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from sandboxkit._confine import confine, shown
from sandboxkit._types import FileInfo, TransferProgress
from sandboxkit.errors import InvalidPath, NotADirectory, SpecialFile, TooLarge

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
    meter = _Meter(on_progress, len(found), sum(size for _, size in found.values()))
    for below in directories:
        await files.make_dir(confine(below, target))
    for below, (path, size) in found.items():
        if size > MAX_FILE:
            raise TooLarge(f"{path} has more than {MAX_FILE} bytes.", path=str(path))
        remote = confine(below, target)
        data = await anyio.to_thread.run_sync(path.read_bytes)
        await files.write_bytes(remote, data)
        await meter.done(remote, len(data))
    return meter.files


def _local(source: Path) -> tuple[dict[str, tuple[Path, int]], list[str]]:
    """The regular files and the directories below a local path, by the path they get; links are left out."""
    if source.is_file():
        return {".": (source, source.stat().st_size)}, []
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is neither a file nor a folder")
    found: dict[str, tuple[Path, int]] = {}
    directories = ["."]
    for folder, names, plain in os.walk(source):
        within = Path(folder).relative_to(source)
        directories += [(within / name).as_posix() for name in names if not Path(folder, name).is_symlink()]
        for name in sorted(plain):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                found[(within / name).as_posix()] = (path, path.stat().st_size)
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
    for entry in entries:
        local = target.joinpath(*_names(entry, prefix)) if is_tree else target
        if entry.type == "dir" and entry.link_target is None:
            await anyio.to_thread.run_sync(_make_dir, local)
        elif entry in wanted:
            data = await files.read_bytes(entry.path, max_bytes=min(MAX_FILE, max_bytes - meter.size))
            await anyio.to_thread.run_sync(_put, local, data, overwrite)
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


def _make_dir(path: Path) -> None:
    path.mkdir(exist_ok=True)
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link; nothing is written through it")


def _put(path: Path, data: bytes, overwrite: bool) -> None:
    """Write a local file beside its place, then move it there: no link at its place is followed."""
    part = path.with_name(f".sandboxkit-{secrets.token_hex(8)}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o644)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        if overwrite:
            os.replace(part, path)
        else:
            _place_new(part, path)
    finally:
        part.unlink(missing_ok=True)


def _place_new(part: Path, path: Path) -> None:
    """Give a file its name if nothing has it. FileExistsError else."""
    if os.name == "nt":
        os.rename(part, path)
    else:
        os.link(part, path)
