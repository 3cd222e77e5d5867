"""What a descriptor from inside a box must be before anybody here touches it.

Each check raises ValueError (or OSError from the look itself) and otherwise leaves the descriptor close-on-exec and
non-blocking, with no status flag set that was not asked for.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

PTMX = os.makedev(5, 2)
SO_DOMAIN = 39
"""Linux's number; `socket` has no name for it."""


def check_file(fd: int, flags: int) -> None:
    """A regular file, opened for what was asked: not an O_PATH handle, not another access mode."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ValueError("not a regular file")
    has = fcntl.fcntl(fd, fcntl.F_GETFL)
    if has & os.O_PATH or has & os.O_ACCMODE != flags & os.O_ACCMODE:
        raise ValueError("a file opened for something else")
    _settle(fd, flags & os.O_APPEND)


def check_socket(fd: int) -> None:
    """A connected TCP socket."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise ValueError("not a socket")
    with socket.socket(fileno=os.dup(fd)) as look:
        if look.getsockopt(socket.SOL_SOCKET, SO_DOMAIN) not in (socket.AF_INET, socket.AF_INET6):
            raise ValueError("not an internet socket")
        if look.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_TCP:
            raise ValueError("not a TCP socket")
        if look.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("a listening socket")
    _settle(fd, 0)


def check_terminal(fd: int) -> None:
    """The master end of a pseudo-terminal."""
    info = os.fstat(fd)
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != PTMX:
        raise ValueError("not a terminal's master")
    _settle(fd, 0)


def _settle(fd: int, keep: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | keep)
