"""A folder of this machine, whose content somebody may exchange meanwhile: nothing in it is reached through a link.

Where directories can be opened (not on Windows), each step is one O_NOFOLLOW from the directory before, which is held;
elsewhere the steps are looked at first.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sandboxkit.errors import TooLarge

_CAN_HOLD: Final = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")
_FOLDER: Final = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_READING: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class LocalFolder:
    """A folder that the caller has named; a link in its own path is followed, none below it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, names: Sequence[str], max_bytes: int) -> bytes:
        """A regular file's content. TooLarge, and OSError for what is no regular file (any more)."""
        with self._at(names[:-1]) as (where, fd), os.fdopen(_opened(where, fd, names[-1], _READING), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileExistsError(f"{where / names[-1]} is no regular file any more")
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TooLarge(f"{where / names[-1]} has more than {max_bytes} bytes.", path=str(where / names[-1]))
        return data

    def make_dir(self, names: Sequence[str]) -> None:
        """Make a folder, or find it there. FileExistsError where something else has its name, be it a link."""
        with self._at(names[:-1]) as (where, fd):
            try:
                os.mkdir(where / names[-1] if fd is None else names[-1], dir_fd=fd)
            except FileExistsError:
                found = os.lstat(where / names[-1] if fd is None else names[-1], dir_fd=fd)
                if not stat.S_ISDIR(found.st_mode):
                    raise FileExistsError(f"{where / names[-1]} is no folder; nothing is written through it") from None

    def put(self, names: Sequence[str], data: bytes, *, overwrite: bool) -> None:
        """Write a file beside its place, then move it there. FileExistsError where something has its name."""
        part = f".sandboxkit-{secrets.token_hex(8)}.part"
        with self._at(names[:-1]) as (where, fd):
            new, place = (where / part, where / names[-1]) if fd is None else (Path(part), Path(names[-1]))
            made = os.open(new, _NEW, 0o644, dir_fd=fd)
            try:
                with os.fdopen(made, "wb") as file:
                    file.write(data)
                if overwrite:
                    os.replace(new, place, src_dir_fd=fd, dst_dir_fd=fd)
                elif os.name == "nt":
                    os.rename(new, place)  # refuses there what has the name
                else:
                    os.link(new, place, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            finally:
                with suppress(FileNotFoundError):  # it has been moved
                    os.unlink(new, dir_fd=fd)

    @contextmanager
    def _at(self, names: Sequence[str]) -> Iterator[tuple[Path, int | None]]:
        """A folder below: its path, and its descriptor where there are such."""
        where = self.path
        if not _CAN_HOLD:
            for name in names:
                where = where / name
                if where.is_symlink() or not where.is_dir():
                    raise FileExistsError(f"{where} is no folder; nothing is reached through it")
            yield where, None
            return
        fd = os.open(where, _FOLDER & ~getattr(os, "O_NOFOLLOW", 0))
        try:
            for name in names:
                below = os.open(name, _FOLDER, dir_fd=fd)
                os.close(fd)
                fd, where = below, where / name
            yield where, fd
        finally:
            os.close(fd)


def _opened(where: Path, fd: int | None, name: str, flags: int) -> int:
    return os.open(where / name, flags) if fd is None else os.open(name, flags, dir_fd=fd)
