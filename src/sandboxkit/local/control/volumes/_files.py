"""What is done with the files in a volume, by name: each name is resolved below the volume's root, and never out of it.

What lies there was written by sandboxes, which go on writing meanwhile; so it is reached as `SafeFS` reaches what lies
in a sandbox at its level `enforced` (`agent/_beneath`), here on the host's side. Everything here blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandboxkit.local.agent import _beneath, _confined, _removal
from sandboxkit.local.isolation._base import UID

MOST_LISTED = 100_000
MOST_DEEP = 1_000
PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """One entry by lstat; times in seconds."""

    path: str
    """Below the volume's root, with a leading slash."""
    kind: str
    size: int
    mode: int
    atime: float
    mtime: float
    ctime: float
    target: str | None = None

    @property
    def name(self) -> str:
        """The last part of its path."""
        return os.path.basename(self.path) or "/"


class Files:
    """The files below one directory. OSError where something is refused: EXDEV for what leads out of it."""

    def __init__(self, data: Path) -> None:
        self._path = os.fsencode(os.path.realpath(data.parent) + "/" + data.name)

    def info(self, path: str) -> Stat:
        """Look at one entry; a link is looked at itself."""
        with self._root() as root:
            return self._stat(root, cut(path))

    def listing(self, path: str, depth: int) -> list[Stat]:
        """List a directory, so many levels deep: parents before what lies in them. E2BIG past 100,000 entries."""
        found: list[Stat] = []
        with self._root() as root:
            level = [cut(path)]
            for _ in range(min(depth, MOST_DEEP)):
                below: list[list[bytes]] = []
                for parts in level:
                    try:
                        names = self._names(root, parts)
                    except OSError:
                        if parts == cut(path):
                            raise
                        continue  # it went meanwhile
                    for name in names:
                        with suppress(FileNotFoundError):
                            one = self._stat(root, [*parts, name])
                            found.append(one)
                            if one.kind == "directory":
                                below.append([*parts, name])
                        if len(found) > MOST_LISTED:
                            raise _beneath.fail(errno.E2BIG)
                level = below
        return found

    def make_dir(self, path: str, *, mode: int | None, parents: bool) -> Stat:
        """Make a directory. EEXIST where there is something; with `parents` the missing ones are made, and a directory
        that is there is fine."""
        parts = cut(path)
        with self._root() as root:
            if parents:
                os.close(root.make_dirs(parts)[0])
            else:
                if not parts:
                    raise _beneath.fail(errno.EEXIST)
                parent = root.parent(parts)
                try:
                    os.mkdir(parts[-1], 0o755, dir_fd=parent)
                finally:
                    os.close(parent)
            if mode is not None:
                self._chmod(root, parts, mode)
            return self._stat(root, parts)

    def change_mode(self, path: str, mode: int | None) -> Stat:
        """Change the permissions of one entry, not those of what a link leads to (EOPNOTSUPP)."""
        with self._root() as root:
            if mode is not None:
                self._chmod(root, cut(path), mode)
            return self._stat(root, cut(path))

    def remove(self, path: str) -> None:
        """Remove an entry with all that lies below it. ENOENT where there is none; EBUSY for the volume itself."""
        parts = cut(path)
        if not parts:
            raise _beneath.fail(errno.EBUSY)
        with self._root() as root:
            for _ in _confined.remove(root, self._whole(root, parts)):
                pass

    def open(self, path: str) -> int:
        """Open a regular file for reading: a descriptor."""
        with self._root() as root:
            return _confined.opened(root, self._whole(root, cut(path)))

    def replace(self, path: str, *, parents: bool) -> Writing:
        """Begin to write a file, which has its name at the end, and until then what it had. ENOENT where its directory
        is missing, unless `parents`."""
        parts = cut(path)
        with self._root() as root:
            if parts and not parents:
                os.close(root.parent(parts))
            return Writing(_confined.Replacement(root, self._whole(root, parts)))

    def _root(self) -> _beneath.Root:
        return _beneath.Root(self._path)

    @staticmethod
    def _whole(root: _beneath.Root, parts: list[bytes]) -> bytes:
        return b"/".join([root.path, *parts])

    def _names(self, root: _beneath.Root, parts: list[bytes]) -> list[bytes]:
        directory = root.reach(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            names = _removal.names_in(directory)
            if len(names) > MOST_LISTED:
                raise _beneath.fail(errno.E2BIG)
            return sorted(names)
        finally:
            os.close(directory)

    def _stat(self, root: _beneath.Root, parts: list[bytes]) -> Stat:
        target = None
        if not parts:
            info = os.fstat(root.fd)
        else:
            parent = root.parent(parts)
            try:
                info = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
                if stat.S_ISLNK(info.st_mode):
                    target = _text(_beneath.link_text(parts[-1], parent) or b"")
            finally:
                os.close(parent)
        return Stat(
            path="/" + _text(b"/".join(parts)),
            kind=_kind(info.st_mode),
            size=info.st_size,
            mode=stat.S_IMODE(info.st_mode),
            atime=info.st_atime,
            mtime=info.st_mtime,
            ctime=info.st_ctime,
            target=target,
        )

    def _chmod(self, root: _beneath.Root, parts: list[bytes], mode: int) -> None:
        if not parts:
            os.chmod(f"/proc/self/fd/{root.fd}", mode)
            return
        parent = root.parent(parts)
        try:
            entry = os.open(parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            if stat.S_ISLNK(os.fstat(entry).st_mode):
                raise _beneath.fail(errno.EOPNOTSUPP)
            # A descriptor by O_PATH takes no fchmod; by this name it is the same object, whatever it is called now.
            os.chmod(f"/proc/self/fd/{entry}", mode)
        finally:
            os.close(entry)


class Writing:
    """A file that is being written, beside the one that it will replace. Let go of it with `close`."""

    def __init__(self, new: _confined.Replacement) -> None:
        self._new = new

    def write(self, data: bytes) -> None:
        """Write more of it."""
        self._new.write(data)

    def finish(self, mode: int | None) -> None:
        """Give it its name, and its permissions where they are not what they were."""
        if mode is not None:
            os.fchmod(self._new.fd, mode)
        self._new.put_in_place()

    def close(self) -> None:
        """Let go of it; what has no name yet is removed. Idempotent."""
        self._new.close()


def pieces(descriptor: int) -> Iterator[bytes]:
    """The content of an open file, piece by piece; closes it."""
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            yield piece


def cut(path: str) -> list[bytes]:
    """The names in a path below the root. EINVAL for one with `..`, or that no file can have."""
    if "\0" in path:
        raise _beneath.fail(errno.EINVAL)
    parts = _beneath.cut(os.fsencode(path))
    if b".." in parts:
        raise _beneath.fail(errno.EINVAL)
    return parts


def _text(name: bytes) -> str:
    """A name for showing: JSON has no form for what is not UTF-8."""
    return name.decode(errors="replace")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "symlink"
    return "file" if stat.S_ISREG(mode) else "unknown"


OWNER = UID
"""What all of it belongs to, as sandboxes see it."""
