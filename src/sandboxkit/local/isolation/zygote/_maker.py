"""Makes one box without bubblewrap, from the words that bubblewrap would get: run in a fork of a warden.

Of bubblewrap's language this knows what `_argv` says of the file system, and does the same for each word, in the same
order, so that a box has the same mount table whoever made it (`tests/security/test_maker.py` compares them, line by
line). What bubblewrap spends its time on is left out: it reads the whole mount table again for each mount.

    warden ── clone: user, mount, process, network, IPC and UTS namespaces ──> the box's first process
              control groups, cgroup namespace, mounts, root, a second user namespace, no rights, filter ──> holder

The first process ends up as a program that does nothing but keep the box open. It ignores the ends of children, so that
the kernel lets orphans go by itself. Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x20080522
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
CALLS = {"x86_64": (56, 155, 442), "aarch64": (220, 41, 442)}
"""The numbers of clone, pivot_root and mount_setattr."""
_MOVE_MOUNT, MOVE_MOUNT_F_EMPTY_PATH = 429, 4

BASE = "/tmp"
"""Covered, in the box's own mount table, by what its root is built on."""
NEW = f"{BASE}/newroot"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = (
    *(("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")),
    *(("fd", "/proc/self/fd"), ("core", "/proc/kcore"), ("ptmx", "pts/ptmx")),
)

# Keeps the lock of Python's, so that a fork by it is a copy of the only thread, without what Python does at forks.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_clone, _pivot_root, _mount_setattr = CALLS.get(os.uname().machine, (-1, -1, -1))


@dataclass(frozen=True)
class Box:
    """What a box is made of."""

    words: Sequence[str]
    """bubblewrap's, of the file system alone."""
    stage: str | None
    """A directory in BASE that `words` know its own file system by, where it has one."""
    tree: int
    """That file system, mounted nowhere yet."""
    hostname: str
    uid: int
    argv: Sequence[str]
    filter: bytes


def clone() -> int:
    """Fork into all namespaces that a box has, but for the cgroup's: 0 in the child."""
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    return _must(_libc.syscall(_clone, ctypes.c_ulong(flags | signal.SIGCHLD), None, None, None, None), "clone")


def become(box: Box, groups: Sequence[int], outside: tuple[int, int]) -> None:
    """In the child: make the box around this process, give up what it can do, and be the box's first program.

    Args:
        groups: files by which it joins its control groups.
        outside: this process's user and group in the namespace above.
    """
    for group in groups:
        os.write(group, b"0")
    # After that: the groups are the root of what its processes see of control groups.
    _must(_libc.unshare(CLONE_NEWCGROUP), "a cgroup namespace")
    oneself = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _map(oneself, (0, 0), outside)
    os.umask(0o022)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", BASE, "tmpfs", MS_NOSUID | MS_NODEV)
    os.mkdir(NEW, 0o755)
    mount(NEW, NEW, None, MS_BIND)
    if box.stage is not None:
        os.mkdir(box.stage, 0o755)
        call = (_MOVE_MOUNT, box.tree, b"", AT_FDCWD, os.fsencode(box.stage), MOVE_MOUNT_F_EMPTY_PATH)
        _must(_libc.syscall(*call), "mounting its file system")
    nested = _build(iter(box.words))
    os.chdir(NEW)
    _must(_libc.syscall(_pivot_root, b".", b"."), "pivot_root")
    _must(_libc.umount2(b".", MNT_DETACH), "unmounting the old root")
    os.chdir("/")
    _must(_libc.sethostname(box.hostname.encode(), len(box.hostname)), "sethostname")
    _loopback_up()
    # A second one, whose maker has no right in the first: neither its mounts nor these settings can be changed again.
    os.write(nested, b"1")
    _must(_libc.unshare(CLONE_NEWUSER), "a second user namespace")
    _map(oneself, (box.uid, box.uid), (0, 0))
    os.chdir(_after(box.words, "--chdir"))
    os.setsid()
    # What Python has made of signals. Ends of children are ignored: the kernel lets orphans go by itself then.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _drop()
    _must(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    set_filter(box.filter)
    os.execve(box.argv[0], list(box.argv), {})


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    given = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _must(_libc.mount(given[0], given[1], given[2], flags, given[3]), f"mounting {kind or 'a directory'} at {target}")


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def set_filter(program: bytes) -> None:
    """Add a system-call filter to this process."""
    given = _Filter(len(program) // 8, program)
    _must(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(given), 0, 0), "setting the filter")


def _must(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _map(oneself: int, inside: tuple[int, int], outside: tuple[int, int]) -> None:
    maps = (f"{inside[0]} {outside[0]} 1", "deny", f"{inside[1]} {outside[1]} 1")
    for name, text in zip(("uid_map", "setgroups", "gid_map"), maps, strict=True):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=oneself)
        os.write(fd, text.encode())
        os.close(fd)


def _build(words: Iterator[str]) -> int:
    """Carry out what bubblewrap's words say. Returns a descriptor by which further user namespaces are forbidden, of
    the box's own /proc: the warden's has a file of this name for each box, and looks through all of them."""
    mode = 0o755
    nested = -1
    for word in words:
        if word == "--perms":
            mode = int(next(words), 8)
            continue
        if word == "--dir":
            os.makedirs(NEW + next(words), mode)
        elif word in ("--ro-bind", "--bind"):
            _bind(next(words), NEW + next(words), MS_RDONLY if word == "--ro-bind" else 0)
        elif word == "--symlink":
            text = next(words)
            os.symlink(text, NEW + next(words))
        elif word == "--proc":
            target = NEW + next(words)
            os.mkdir(target, 0o755)
            mount("proc", target, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
            # Before its settings are made read-only.
            nested = os.open(f"{target}/sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC)
        elif word == "--dev":
            _devices(NEW + next(words))
        elif word == "--remount-ro":
            flags = MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV
            mount(None, NEW + next(words), None, flags)
        elif word == "--chdir":
            next(words)
        else:
            raise ValueError(f"{word} is not known here")
        mode = 0o755
    return nested


def _bind(source: str, target: str, read_only: int) -> None:
    """Show a file or directory, with all that is mounted below it: no devices, no set-user-ID, and read-only where it
    is to be, throughout."""
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(target, 0o755, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = struct.pack("4Q", MS_NOSUID | MS_NODEV | read_only, 0, 0, 0)
    call = (_mount_setattr, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    _must(_libc.syscall(*call), f"protecting {target}")


def _devices(target: str) -> None:
    os.mkdir(target, 0o755)
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    for name in DEVICES:
        os.close(os.open(f"{target}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        mount(f"/dev/{name}", f"{target}/{name}", None, MS_BIND)
        mount(None, f"{target}/{name}", None, MS_REMOUNT | MS_BIND | MS_NOSUID)
    for name, text in DEVICE_LINKS:
        os.symlink(text, f"{target}/{name}")
    for name in ("shm", "pts"):
        os.mkdir(f"{target}/{name}", 0o755)
    mount("devpts", f"{target}/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, SIOCGIFFLAGS, name), 16)
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _drop() -> None:
    """No capability, now and ever."""
    number = 0
    while _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) == 0:
        number += 1
    if number < 32:
        raise OSError(ctypes.get_errno(), "dropping capabilities")
    _must(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _must(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clearing ambient capabilities")
    _must(_libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)), "capset")


def _after(words: Sequence[str], word: str) -> str:
    return words[words.index(word) + 1]
