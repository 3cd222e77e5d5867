"""The steps by which a fork of the zygote enters a box and becomes its agent: the one piece of security code of ours.

    zygote ── fork ──> outside: cgroup, namespaces ── fork ──> inside: all the others ──> the agent

The order, the reason of each step and what would be lost without it are told in `docs/explanation/the-zygote.md`.
Each step is a function in one of the two tables below; they run in the tables' order, and a step that fails ends the
process. Afterwards the process looks at itself (`faults`); the engine looks at it from outside
(`isolation/zygote/_entered`), and does not talk to it before both are content. The engine lets no program start in the
box before that.

Standard library only. Nothing here may start a thread: who has one cannot enter a user namespace. What is touched for
the first time in a fork is copied, page by page, and that is most of what a fork costs: so what can be made before is
made before, and little is done in many words.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # (the plain one: `signal` makes enums of all numbers)
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import random
import resource
import socket
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ._programs import LOCKED, QUEUED, SIGNALS, lower

HOME = "/home/user"
UID = 1000

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: all that a box has of its own.
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

PR_SET_DUMPABLE, PR_GET_DUMPABLE = 4, 3
PR_SET_SECCOMP, PR_GET_SECCOMP, SECCOMP_MODE_FILTER = 22, 21, 2
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 38, 39
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
CAPABILITY_VERSION_3 = 0x20080522

USUAL: dict[int, Any] = {
    signal.SIGPIPE: signal.SIG_IGN,
    signal.SIGXFSZ: signal.SIG_IGN,
    signal.SIGINT: signal.default_int_handler,
}
"""What Python makes of signals at its start, beside the kernel's defaults."""

AGENT_FD, REPORT_FD = 3, 4
HIGHEST = 1 << 20
"""No descriptor has a number beyond it."""
ASKED, POLLNVAL = 4096, 0x20
POLLED = struct.Struct("<ihH")
_QUESTIONS = b"".join(POLLED.pack(fd, 0, 0) for fd in range(ASKED))

LIMITS = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_MEMLOCK, LOCKED),
    (resource.RLIMIT_SIGPENDING, SIGNALS),
    (resource.RLIMIT_MSGQUEUE, QUEUED),
)

_HEADER, _CAPABILITIES = struct.pack("Ii", CAPABILITY_VERSION_3, 0), 24
_libc = ctypes.CDLL(None, use_errno=True)
_libc.getenv.restype = ctypes.c_char_p
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def _must(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: int, value: int = 0, more: int = 0) -> int:
    """prctl(2)."""
    return _must(_libc.prctl(option, value, more, 0, 0), f"prctl({option})")


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def set_filter(program: bytes) -> None:
    """Add a system-call filter to those of this process."""
    given = _Filter(len(program) // 8, program)
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(given))


@dataclass(frozen=True, slots=True)
class Entry:
    """What the engine sends for one box."""

    socket: int
    """The agent's end of its socket."""
    report: int
    """Where a descriptor of the box's first process comes, and where to say that all went well, or what did not."""
    cgroups: tuple[int, ...]
    """The files by which one joins the box's control groups, opened by the engine."""
    filter: bytes
    """The box's system-call filter."""


Step = Callable[[Entry], None]


# -- outside: still in the zygote's namespaces ------------------------------------------------------------------------


def _cgroup(entry: Entry) -> None:
    for fd in entry.cgroups:
        os.write(fd, b"0")


def _namespaces(entry: Entry) -> None:
    # The box may still be in the making.
    with socket.socket(fileno=os.dup(entry.report)) as report:
        _, rights, _, _ = report.recvmsg(16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    if not rights:
        os._exit(0)  # nobody wants it any more
    (init,) = struct.unpack("i", rights[0][2][:4])
    _must(_libc.setns(init, NAMESPACES), "setns")
    os.close(init)


# -- inside, with all rights over the box until they are dropped ------------------------------------------------------


def _session(entry: Entry) -> None:
    os.setsid()


def _descriptors(entry: Entry) -> None:
    # 0-2 have been /dev/null since the zygote's start, but the zygote's is one of another /dev.
    null = os.open("/dev/null", os.O_RDWR)
    kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (entry.socket, entry.report)]
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.dup2(kept[0], AGENT_FD, False)
    os.dup2(kept[1], REPORT_FD, False)
    os.closerange(REPORT_FD + 1, HIGHEST)


def _signals(entry: Entry) -> None:
    for number in _altered_signals():
        signal.signal(number, USUAL.get(number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _place(entry: Entry) -> None:
    os.chdir(HOME)


def _umask(entry: Entry) -> None:
    os.umask(0o022)


def _limits(entry: Entry) -> None:
    for kind, value in LIMITS:
        lower(kind, value)


def _first_to_die(entry: Entry) -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b"1000")
    os.close(fd)


def _bounding(entry: Entry) -> None:
    for number in range(64):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return  # past the last that this kernel has


def _no_new_privileges(entry: Entry) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def _capabilities(entry: Entry) -> None:
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    _must(_libc.capset(_HEADER, bytes(_CAPABILITIES)), "capset")


def _not_dumpable(entry: Entry) -> None:
    prctl(PR_SET_DUMPABLE, 0)


def _seccomp(entry: Entry) -> None:
    set_filter(entry.filter)


def _environment(entry: Entry) -> None:
    os.environ.clear()


def _randomness(entry: Entry) -> None:
    random.seed()


OUTSIDE: tuple[tuple[str, Step], ...] = (("cgroup", _cgroup), ("namespaces", _namespaces))

INSIDE: tuple[tuple[str, Step], ...] = (
    ("session", _session),
    ("descriptors", _descriptors),
    ("signals", _signals),
    ("place", _place),
    ("umask", _umask),
    ("limits", _limits),
    # Before the process becomes closed to itself in /proc.
    ("first_to_die", _first_to_die),
    # While there is still the right to: dropping needs a capability of its own.
    ("bounding", _bounding),
    ("no_new_privileges", _no_new_privileges),
    ("capabilities", _capabilities),
    # After the last change of rights, which could undo it.
    ("not_dumpable", _not_dumpable),
    ("environment", _environment),
    ("randomness", _randomness),
    # Last: the filter allows less than the other steps need.
    ("seccomp", _seccomp),
)


def run(steps: tuple[tuple[str, Step], ...], entry: Entry, without: Collection[str] = ()) -> None:
    """Carry out a table's steps in order. OSError names the step that failed.

    Args:
        without: steps that are left out, by name; for the tests that show that this is noticed, and for nothing else.
    """
    for name, step in steps:
        if name in without:
            continue
        try:
            step(entry)
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from error


# -- looking at oneself -----------------------------------------------------------------------------------------------


def faults(before: object) -> list[str]:
    """What is wrong with this process, of that which it can see itself: names of the steps that are to blame.

    Args:
        before: the state of `random` in the zygote.
    """
    found = [name for name, check in CHECKS if not check()]
    return found if random.getstate() != before else [*found, "randomness"]


def _has_no_capabilities() -> bool:
    held = ctypes.create_string_buffer(_CAPABILITIES)
    return _must(_libc.capget(_HEADER, held), "capget") == 0 and not any(held.raw)


def _has_umask() -> bool:
    return os.umask(0o022) == 0o022


def _is_filtered() -> bool:
    # The zygote's filter lets this call pass, to fail on a descriptor that is none; the box's refuses it.
    return _libc.setns(-1, 0) < 0 and ctypes.get_errno() == errno.EPERM


CHECKS: tuple[tuple[str, Callable[[], bool]], ...] = (
    ("namespaces", lambda: os.getresuid() == (UID, UID, UID) and os.getresgid() == (UID, UID, UID)),
    ("session", lambda: os.getsid(0) == os.getpgid(0) == os.getpid()),
    ("descriptors", lambda: _open_descriptors() == [0, 1, 2, AGENT_FD, REPORT_FD] and _are_null((0, 1, 2))),
    ("signals", lambda: not signal.pthread_sigmask(signal.SIG_BLOCK, []) and not _altered_signals()),
    ("place", lambda: os.getcwd() == HOME),
    ("umask", _has_umask),
    ("limits", lambda: all(resource.getrlimit(kind)[1] in range(value + 1) for kind, value in LIMITS)),
    ("bounding", lambda: not any(_libc.prctl(PR_CAPBSET_READ, one, 0, 0, 0) == 1 for one in range(64))),
    ("no_new_privileges", lambda: prctl(PR_GET_NO_NEW_PRIVS) == 1),
    ("capabilities", _has_no_capabilities),
    ("not_dumpable", lambda: prctl(PR_GET_DUMPABLE) == 0),
    ("environment", lambda: not os.environ and _libc.getenv(b"HOME") is None),
    ("seccomp", _is_filtered),
)


def _open_descriptors() -> list[int]:
    # By poll, which says of each number whether it is one, in one call; /proc/self/fd is closed to a process that
    # cannot be dumped. In memory of its own, which goes again: what is written to stays a fork's own.
    top = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], ASKED)
    with mmap.mmap(-1, len(_QUESTIONS)) as table:
        table.write(_QUESTIONS)
        first = ctypes.c_char.from_buffer(table)
        _must(_libc.poll(ctypes.byref(first), ctypes.c_ulong(top), 0), "poll")
        del first
        said = table[POLLED.size - 2 : top * POLLED.size : POLLED.size]
    return list(itertools.compress(itertools.count(), map(POLLNVAL.__ne__, said)))


def _are_null(fds: tuple[int, ...]) -> bool:
    null = os.stat("/dev/null")
    return all((os.fstat(fd).st_rdev, os.fstat(fd).st_dev) == (null.st_rdev, null.st_dev) for fd in fds)


def _altered_signals() -> list[int]:
    return [
        number
        for number in signal.valid_signals()
        if signal.getsignal(number) not in (USUAL.get(number, signal.SIG_DFL), None)
    ]
