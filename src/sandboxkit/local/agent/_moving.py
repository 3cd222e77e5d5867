"""Moves an entry to where the kernel does not rename it to: copies it beside its new place, then removes the original.

Home, /tmp and each directory that a template lets be written are mounts of their own, and an overlay renames no
directory that a template has brought. A program that was written for one file system notices none of this.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator

from . import _removal

Pauses = Generator[None, None, None]

PIECE = 1 << 18


def move(source: bytes, target: bytes) -> Pauses:
    """Move, as a rename to another file system does: whole or not at all to whoever looks at `target`.

    A generator that yields wherever it may pause. EXDEV for what cannot be taken from its place, and for sockets.
    """
    source = source.rstrip(b"/")
    if not os.access(os.path.dirname(source) or b"/", os.W_OK | os.X_OK) or _is_mounted(source):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
    part = os.path.join(os.path.dirname(target.rstrip(b"/")), b".sandboxkit-moved-%d" % _number())
    try:
        yield from _copy(source, part)
        os.rename(part, target)
    except OSError as error:  # it may name the copy, which nobody knows of
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO), source) from None
    finally:
        for _ in _removal.remove(part, None):
            pass
    yield from _removal.remove(source, None)


def _number() -> int:
    """A number that no other move has."""
    return int.from_bytes(os.urandom(8), "big")


def _is_mounted(path: bytes) -> bool:
    """Whether something is mounted there, or anywhere below."""
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    with open("/proc/self/mountinfo", "rb") as mounts:
        points = [line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in mounts]
    return any(point == real or point.startswith(real + b"/") for point in points)


def _copy(source: bytes, target: bytes) -> Pauses:
    """Copy a tree with modes, times and `user.*` attributes, links not entered."""
    directories = []
    waiting = [(source, target)]
    while waiting:
        one, other = waiting.pop()
        info = os.lstat(one)
        if stat.S_ISDIR(info.st_mode):
            os.mkdir(other, 0o700)
            directories.append((one, other, info))
            waiting += [(os.path.join(one, name), os.path.join(other, name)) for name in os.listdir(one)]
        elif stat.S_ISLNK(info.st_mode):
            os.symlink(os.readlink(one), other)
            os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)
        elif stat.S_ISREG(info.st_mode):
            yield from _copy_content(one, other)
            _describe(one, other, info)
        elif stat.S_ISFIFO(info.st_mode):
            os.mkfifo(other)
            _describe(one, other, info)
        else:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), one)
        yield None
    for one, other, info in reversed(directories):
        _describe(one, other, info)


def _copy_content(source: bytes, target: bytes) -> Pauses:
    """Copy what a file holds; what is zero stays a hole."""
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while piece := os.read(reading, PIECE):
                if piece.count(0) < len(piece):
                    while piece:
                        piece = piece[os.write(writing, piece) :]
                else:
                    os.lseek(writing, len(piece), os.SEEK_CUR)
                yield None
            os.ftruncate(writing, os.lseek(writing, 0, os.SEEK_CUR))
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _describe(source: bytes, target: bytes, info: os.stat_result) -> None:
    """Give a copy the attributes, as far as its file system has such, the mode and the times of its original."""
    try:
        for name in os.listxattr(source, follow_symlinks=False):
            if name.startswith("user."):
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False))
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENODATA):
            raise
    os.chmod(target, stat.S_IMODE(info.st_mode))
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))
