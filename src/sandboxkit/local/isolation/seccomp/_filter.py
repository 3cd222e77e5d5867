"""The system-call filter of a box, assembled from the table of calls by ourselves: pure bytes, no library.

The table (`_syscalls`) says of every call whether it is allowed, refused (EPERM) or absent (ENOSYS, as is any number
that the table does not know: programs then go on without, as on an older kernel). Some calls depend on an argument:

- `clone` makes processes and threads, but no namespace; `clone3` is absent, since its flags lie in memory that a
  filter cannot read: C libraries then use `clone`.
- `socket` and `socketpair` make Unix sockets, the internet's TCP, UDP and ping, and read-only routing queries.
- `ioctl` does not type into a terminal for somebody else, `personality` turns no protection off.

A foreign architecture (int 0x80 on x86_64) kills the process; the x32 ABI is absent.

A table of hundreds of numbers is searched by halves: about eight comparisons a call.
"""

from __future__ import annotations

import errno
import functools
import struct

from sandboxkit.local.isolation.seccomp import _syscalls

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

# struct seccomp_data: the call's number, the architecture, then six arguments of 64 bits (low half first).
AT_NUMBER, AT_ARCHITECTURE = 0, 4
LOAD, AND, JUMP_EQUAL, JUMP_ABOVE, JUMP_ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06

AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ARCHITECTURES = _syscalls.ARCHITECTURES

X32_BIT = 0x40000000
NEW_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, and NEWTIME (which `clone` reads as a signal)."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
KINDS = (1, 2, 3)
"""SOCK_STREAM, SOCK_DGRAM, and SOCK_RAW, which the kernel itself refuses to who has no capability."""
PROTOCOLS = (0, 1, 6, 17, 58)
"""The usual one, ICMP, TCP, UDP, ICMPv6. Others would load their kernel module: SCTP, DCCP, MPTCP, SMC, L2TP."""


@functools.cache
def filter_for(machine: str, *, uncounted: bool = True, entering: bool = False) -> bytes:
    """The filter for `os.uname().machine`, as bubblewrap's `--seccomp` reads it. KeyError for an unknown machine.

    Args:
        uncounted: allow the calls that make memory which belongs to no process.
        entering: allow `setns`, too: for a zygote, whose forks then add the box's own filter.
    """
    audit = AUDIT[machine]
    special = _syscalls.looked_into(machine)
    answers = dict.fromkeys(_syscalls.refused(machine).values(), errno.EPERM)
    answers |= dict.fromkeys(_syscalls.allowed(machine).values(), 0)
    for name, number in _syscalls.uncounted(machine).items():
        # Programs fall back from memfd_create where the kernel has none.
        answers[number] = 0 if uncounted else errno.ENOSYS if name == "memfd_create" else errno.EPERM
    if entering:
        answers[_syscalls.refused(machine)["setns"]] = 0
    program = [_load(AT_ARCHITECTURE), *_unless_equal(audit, [_return(KILL_PROCESS)]), _load(AT_NUMBER)]
    program += _when_call(special["clone"], _clone())
    program += _when_call(special["ioctl"], _ioctl())
    program += _when_call(special["personality"], _personality())
    program += _when_call(special["socket"], _socket(routing=True))
    program += _when_call(special["socketpair"], _socket(routing=False))
    program += _search(_segments(answers))
    return b"".join(program)


# -- calls that depend on an argument ----------------------------------------------------------------------------


def _clone() -> list[bytes]:
    # CLONE_NEWTIME shares its bit with the exit signal, of which no signal uses it.
    return [_load(_argument(0)), _jump(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1), _answer(errno.EPERM), _return(ALLOW)]


def _ioctl() -> list[bytes]:
    refuse = [_answer(errno.EPERM)]
    return [_load(_argument(1)), *_when_equal(TIOCSTI, refuse), *_when_equal(TIOCLINUX, refuse), _return(ALLOW)]


def _personality() -> list[bytes]:
    known = [inner for value in PERSONALITIES for inner in _when_equal(value, [_return(ALLOW)])]
    return [_load(_argument(0)), *known, _answer(errno.EPERM)]


def _socket(*, routing: bool) -> list[bytes]:
    """By family; of the internet's by kind and protocol, too."""
    protocols = [inner for one in PROTOCOLS for inner in _when_equal(one, [_return(ALLOW)])]
    allowed_protocol = [_load(_argument(2)), *protocols, _answer(errno.EPROTONOSUPPORT)]
    kinds = []
    for kind in KINDS:
        kinds += _when_equal(kind, allowed_protocol)
    # The upper bits of the kind are SOCK_CLOEXEC and SOCK_NONBLOCK.
    internet = [_load(_argument(1)), _jump(AND, 0xF, 0, 0), *kinds, _answer(errno.ESOCKTNOSUPPORT)]
    program = [_load(_argument(0)), *_when_equal(AF_UNIX, [_return(ALLOW)])]
    program += [*_when_equal(AF_INET, internet), *_when_equal(AF_INET6, internet)]
    if routing:
        route = [_load(_argument(2)), *_when_equal(0, [_return(ALLOW)]), _answer(errno.EAFNOSUPPORT)]
        program += _when_equal(AF_NETLINK, route)
    return [*program, _answer(errno.EAFNOSUPPORT)]


# -- the table, searched by halves -------------------------------------------------------------------------------


def _segments(answers: dict[int, int]) -> list[tuple[int, int]]:
    """Runs of numbers with the same answer: (first number, errno or 0 to allow). The last one has no end: ENOSYS."""
    segments: list[tuple[int, int]] = []
    for number in range(max(answers) + 2):
        answer = answers.get(number, errno.ENOSYS)
        if not segments or segments[-1][1] != answer:
            segments.append((number, answer))
    return segments


def _search(segments: list[tuple[int, int]]) -> list[bytes]:
    """Instructions that find the segment of the loaded number and return its answer."""
    if len(segments) == 1:
        answer = segments[0][1]
        return [_answer(answer) if answer else _return(ALLOW)]
    middle = len(segments) // 2
    lower, upper = _search(segments[:middle]), _search(segments[middle:])
    return [_jump(JUMP_ABOVE, segments[middle][0], len(lower), 0), *lower, *upper]


# -- instructions ------------------------------------------------------------------------------------------------


def _argument(index: int) -> int:
    """Where the low half of an argument lies; the kernel, too, looks at no more of those that are tested here."""
    return 16 + 8 * index


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    return _jump(LOAD, offset, 0, 0)


def _return(value: int) -> bytes:
    return _jump(RETURN, value, 0, 0)


def _answer(number: int) -> bytes:
    return _return(ERRNO | number)


def _when_equal(value: int, then: list[bytes]) -> list[bytes]:
    """`then` where the loaded word is `value`; otherwise go on behind it."""
    return [_jump(JUMP_EQUAL, value, 0, len(then)), *then]


def _unless_equal(value: int, then: list[bytes]) -> list[bytes]:
    return [_jump(JUMP_EQUAL, value, len(then), 0), *then]


def _when_call(number: int, then: list[bytes]) -> list[bytes]:
    """`then`, which always returns, for one call: the number stays loaded for the others."""
    return _when_equal(number, then)
