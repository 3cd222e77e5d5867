"""The few system calls that Python has no name for, as plain functions that raise OSError."""

from __future__ import annotations

import ctypes
import os

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
"""Calls that have these numbers on every architecture."""
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, kind, data)]
    _check(
        _libc.mount(encoded[0], os.fsencode(target), encoded[1], flags, encoded[2]),
        f"mounting {kind or 'a directory'} at {target}",
    )


def detached_tmpfs(**options: str | int) -> int:
    """Make a tmpfs that is mounted nowhere, for whoever is given its descriptor: files below it have paths below
    /proc/self/fd/N. It goes with the last descriptor, or where it was mounted by then with that."""
    context = _check(_libc.syscall(FSOPEN, b"tmpfs", FSOPEN_CLOEXEC), "making a tmpfs")
    try:
        for name, value in {"source": "tmpfs", **options}.items():
            given = (FSCONFIG, context, FSCONFIG_SET_STRING, name.encode(), str(value).encode(), 0)
            _check(_libc.syscall(*given), f"{name}={value}")
        _check(_libc.syscall(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0), "making a tmpfs")
        return _check(_libc.syscall(FSMOUNT, context, FSMOUNT_CLOEXEC, MS_NOSUID | MS_NODEV), "making a tmpfs")
    finally:
        os.close(context)


def unmount(target: str) -> None:
    """umount2(2), lazily: open files below keep working, and the file system goes with the last of them."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmounting {target}")


def unshare(flags: int) -> None:
    """unshare(2). For a new user namespace the process must have one thread."""
    _check(_libc.unshare(flags), "making a namespace")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, value, 0, 0, 0), f"prctl({option})")
