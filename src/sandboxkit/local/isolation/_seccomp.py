"""The system calls that a box may not make, assembled into a filter by ourselves: pure bytes, no library.

A deny list in the spirit of Docker's default profile: what reaches the kernel's less travelled parts (mounts,
namespaces, modules, tracing, keys, raw memory of others, other sockets than Unix, IP and routing) answers EPERM,
while ordinary programs notice nothing. `clone3` answers ENOSYS, since its flags lie in memory that a filter cannot
read: C libraries then use `clone`, whose flags it can. A foreign architecture kills the process; the x32 ABI answers
ENOSYS.

The rules run from top to bottom; each is "is it this call? then look at an argument? then answer", else the next.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000

# struct seccomp_data: the call's number, the architecture, then six arguments of 64 bits (low half first).
AT_NUMBER, AT_ARCHITECTURE = 0, 4
LOAD, JUMP_EQUAL, JUMP_ABOVE, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

X32_BIT = 0x40000000
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16


@dataclass(frozen=True, slots=True)
class Architecture:
    """AUDIT_ARCH value and call numbers; a call that the architecture lacks is absent."""

    audit: int
    numbers: dict[str, int]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


REFUSED = (
    # mounts
    *_names("mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr"),
    *_names("open_tree_attr"),
    # namespaces and names
    *_names("unshare setns sethostname setdomainname"),
    # other processes' memory and descriptors
    *_names("ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp"),
    # keys, tracing, programs in the kernel
    *_names("add_key request_key keyctl bpf perf_event_open userfaultfd lookup_dcookie fanotify_init"),
    *_names("io_uring_setup io_uring_enter io_uring_register"),
    # the machine
    *_names("kexec_load kexec_file_load init_module finit_module delete_module create_module get_kernel_syms"),
    *_names("query_module reboot swapon swapoff acct syslog quotactl quotactl_fd settimeofday clock_settime adjtimex"),
    *_names("clock_adjtime ioperm iopl nfsservctl vhangup uselib ustat sysfs _sysctl modify_ldt"),
    # files without names, memory policy
    *_names("name_to_handle_at open_by_handle_at mbind set_mempolicy get_mempolicy migrate_pages move_pages"),
    *_names("set_mempolicy_home_node"),
)

_NEW = {  # numbers that all architectures share
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "quotactl_fd": 443,
    "set_mempolicy_home_node": 450,
    "open_tree_attr": 467,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
}


def _numbers(text: str) -> dict[str, int]:
    words = text.split()
    return dict(zip(words[::2], map(int, words[1::2]), strict=True)) | _NEW


X86_64 = Architecture(
    0xC000003E,
    _numbers(
        "clone 56 ioctl 16 socket 41 socketpair 53 personality 135 "
        "mount 165 umount2 166 pivot_root 155 chroot 161 unshare 272 setns 308 sethostname 170 setdomainname 171 "
        "ptrace 101 process_vm_readv 310 process_vm_writev 311 kcmp 312 add_key 248 request_key 249 keyctl 250 "
        "bpf 321 perf_event_open 298 userfaultfd 323 lookup_dcookie 212 fanotify_init 300 kexec_load 246 "
        "kexec_file_load 320 init_module 175 finit_module 313 delete_module 176 create_module 174 "
        "get_kernel_syms 177 query_module 178 reboot 169 swapon 167 swapoff 168 acct 163 syslog 103 quotactl 179 "
        "settimeofday 164 clock_settime 227 adjtimex 159 clock_adjtime 305 ioperm 173 iopl 172 nfsservctl 180 "
        "vhangup 153 uselib 134 ustat 136 sysfs 139 _sysctl 156 modify_ldt 154 name_to_handle_at 303 "
        "open_by_handle_at 304 mbind 237 set_mempolicy 238 get_mempolicy 239 migrate_pages 256 move_pages 279"
    ),
)

AARCH64 = Architecture(
    0xC00000B7,
    _numbers(
        "clone 220 ioctl 29 socket 198 socketpair 199 personality 92 "
        "mount 40 umount2 39 pivot_root 41 chroot 51 unshare 97 setns 268 sethostname 161 setdomainname 162 "
        "ptrace 117 process_vm_readv 270 process_vm_writev 271 kcmp 272 add_key 217 request_key 218 keyctl 219 "
        "bpf 280 perf_event_open 241 userfaultfd 282 lookup_dcookie 18 fanotify_init 262 kexec_load 104 "
        "kexec_file_load 294 init_module 105 finit_module 273 delete_module 106 reboot 142 swapon 224 swapoff 225 "
        "acct 89 syslog 116 quotactl 60 settimeofday 170 clock_settime 112 adjtimex 171 clock_adjtime 266 "
        "nfsservctl 42 vhangup 58 name_to_handle_at 264 open_by_handle_at 265 mbind 235 get_mempolicy 236 "
        "set_mempolicy 237 migrate_pages 238 move_pages 239"
    ),
)

ARCHITECTURES = {"x86_64": X86_64, "aarch64": AARCH64}


def filter_for(machine: str) -> bytes:
    """The filter for `os.uname().machine`, as bubblewrap's `--seccomp` reads it. KeyError for an unknown machine."""
    return assemble(ARCHITECTURES[machine])


def assemble(architecture: Architecture) -> bytes:
    """Put the rules together."""
    numbers = architecture.numbers
    refuse = _answer(errno.EPERM)
    program = [
        _load(AT_ARCHITECTURE),
        *_unless_equal(architecture.audit, [_return(KILL_PROCESS)]),
        _load(AT_NUMBER),
    ]
    if architecture is X86_64:
        program += [_jump(JUMP_ABOVE, X32_BIT, 0, 1), _answer(errno.ENOSYS)]
    program += _when_call(numbers["clone3"], [_answer(errno.ENOSYS)])
    program += _when_call(numbers["clone"], [_load(_argument(0)), _jump(JUMP_ANY_BIT, NEW_NAMESPACES, 0, 1), refuse])
    program += _when_call(
        numbers["ioctl"],
        [_load(_argument(1)), *_when_equal(TIOCSTI, [refuse]), *_when_equal(TIOCLINUX, [refuse])],
    )
    known = [inner for value in PERSONALITIES for inner in _when_equal(value, [_return(ALLOW)])]
    program += _when_call(numbers["personality"], [_load(_argument(0)), *known, refuse])
    families = [inner for family in (AF_UNIX, AF_INET, AF_INET6) for inner in _when_equal(family, [_return(ALLOW)])]
    routing = [_load(_argument(2)), *_when_equal(0, [_return(ALLOW)])]
    no_family = _answer(errno.EAFNOSUPPORT)
    program += _when_call(
        numbers["socket"], [_load(_argument(0)), *families, *_when_equal(AF_NETLINK, routing), no_family]
    )
    program += _when_call(numbers["socketpair"], [_load(_argument(0)), *families, no_family])
    for name in REFUSED:
        if name in numbers:
            program += _when_equal(numbers[name], [refuse])
    program.append(_return(ALLOW))
    return b"".join(program)


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
    """`then` for one call; it may load arguments, so the number is loaded again for those that fall through."""
    return _when_equal(number, [*then, _load(AT_NUMBER)])
