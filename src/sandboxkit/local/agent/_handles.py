"""Files that stay open inside, for an engine that cannot be passed their descriptors."""

from __future__ import annotations

import errno
import os
import resource

from ._codec import (
    FILE_CLOSE,
    FILE_EMPTY,
    FILE_FACTS,
    FILE_READ,
    FILE_WRITE,
    MAX_READ,
    number,
)
from ._files import XATTR_PREFIX, Fields, fail

MOST = 256
VERBS = (FILE_FACTS, FILE_READ, FILE_WRITE, FILE_EMPTY, FILE_CLOSE)


class Handles:
    """The open files, by number."""

    def __init__(self) -> None:
        self._open: dict[int, int] = {}
        self._next = 1

    def do(self, kind: int, args: list[bytes]) -> Fields:
        """Carry out one verb. OSError where the kernel refuses, EBADF for a number that is not open."""
        handle = number(args[0])
        fd = self._open.get(handle)
        if fd is None:
            raise fail(errno.EBADF, b"")
        if kind == FILE_FACTS:
            info = os.fstat(fd)
            return [info.st_size, info.st_mtime_ns, info.st_ino, int(_has_metadata(fd))]
        if kind == FILE_READ:
            return [os.pread(fd, min(number(args[1]), MAX_READ), number(args[2]))]
        if kind == FILE_WRITE:
            return [os.write(fd, args[1])]
        if kind == FILE_EMPTY:
            os.ftruncate(fd, 0)
        else:
            del self._open[handle]
            os.close(fd)
        return []

    def keep(self, fd: int) -> int:
        """Keep a duplicate of a descriptor open, and return its number. EMFILE where there are too many."""
        if len(self._open) >= MOST:
            raise fail(errno.EMFILE, b"")
        fd = os.dup(fd)
        handle, self._next = self._next, self._next + 1
        self._open[handle] = fd
        return handle


def raise_limit() -> None:
    """Let this process open as many files as it may."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _has_metadata(fd: int) -> bool:
    try:
        return any(os.fsencode(name).startswith(XATTR_PREFIX) for name in os.listxattr(fd))
    except OSError:
        return False  # the file system has none
