"""The filter, run by a small interpreter of BPF: what it answers to which call, on both architectures."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from sandboxkit.local.isolation.seccomp import _filter as seccomp
from sandboxkit.local.isolation.seccomp import _syscalls as syscalls

BOTH = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def answer(machine: str, number: int, *arguments: int, audit: int | None = None, uncounted: bool = True) -> int | str:
    """Run the filter on one call: "allow", "kill", or an errno."""
    program = list(struct.iter_unpack("<HBBI", seccomp.filter_for(machine, uncounted=uncounted)))
    given = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, audit or seccomp.AUDIT[machine], 0, *given)
    at = word = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == seccomp.LOAD:
            (word,) = struct.unpack_from("<I", data, value)
        elif code == seccomp.AND:
            word &= value
        elif code == seccomp.RETURN:
            if value == seccomp.ALLOW:
                return "allow"
            return "kill" if value == seccomp.KILL_PROCESS else value & 0xFFFF
        else:
            holds = {
                seccomp.JUMP_EQUAL: word == value,
                seccomp.JUMP_ABOVE: word >= value,
                seccomp.JUMP_ANY_BIT: bool(word & value),
            }[code]
            at += if_true if holds else if_false


@BOTH
def test_the_table_is_obeyed(machine: str) -> None:
    """Each call answers what the table says of it, and every other number, up to any, as if there were no such call."""
    told = dict.fromkeys(syscalls.allowed(machine).values(), "allow")
    told |= dict.fromkeys(syscalls.uncounted(machine).values(), "allow")
    told |= dict.fromkeys(syscalls.refused(machine).values(), errno.EPERM)
    looked_into = set(syscalls.looked_into(machine).values()) - {syscalls.looked_into(machine)["clone3"]}
    for number in [*range(1100), 0x3FFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF]:
        if number not in looked_into:
            assert answer(machine, number) == told.get(number, errno.ENOSYS), number


@BOTH
def test_no_call_is_in_two_lists(machine: str) -> None:
    """A call has one verdict, and no number two names."""
    lists = [
        part(machine)
        for part in (
            syscalls.allowed,
            syscalls.looked_into,
            syscalls.uncounted,
            syscalls.refused,
            syscalls.absent,
        )
    ]
    numbers = [number for part in lists for number in part.values()]
    assert len(numbers) == len(set(numbers)) > 300


@BOTH
def test_uncounted_memory(machine: str) -> None:
    """Where nothing counts memory without an owner, no call makes any; a program finds no memfd_create to use."""
    numbers = syscalls.uncounted(machine)
    for name in ("shmget", "msgget", "semget"):
        assert answer(machine, numbers[name], uncounted=False) == errno.EPERM
    assert answer(machine, numbers["memfd_create"], uncounted=False) == errno.ENOSYS
    assert answer(machine, syscalls.allowed(machine)["read"], uncounted=False) == "allow"


# What Docker's default profile refuses to a container without capabilities, by the names in its own rules for
# capabilities (github.com/moby/profiles), and the calls that its documentation names as blocked.
REFUSED_BY_DOCKER = tuple(
    """
    acct add_key bpf clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount fsopen
    fspick get_kernel_syms get_mempolicy init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl
    kcmp kexec_file_load kexec_load keyctl lookup_dcookie lsm_get_self_attr lsm_list_modules lsm_set_self_attr
    mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree
    perf_event_open pidfd_getfd pivot_root process_madvise query_module quotactl quotactl_fd reboot request_key
    set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon sysfs syslog
    chroot umount2 unshare uselib userfaultfd ustat vhangup _sysctl
    """.split()  # noqa: SIM905 (a list to be read)
)


@BOTH
def test_no_weaker_than_docker(machine: str) -> None:
    """All that Docker's default profile refuses to a container without capabilities is refused."""
    refused = syscalls.refused(machine)
    known = {**refused, **syscalls.allowed(machine), **syscalls.looked_into(machine), **syscalls.uncounted(machine)}
    assert [name for name in REFUSED_BY_DOCKER if name in known and name not in refused] == []
    assert len([name for name in REFUSED_BY_DOCKER if name in refused]) > 45


@BOTH
def test_clone(machine: str) -> None:
    """clone makes threads and children but no namespace; clone3, which cannot be looked into, is not there."""
    numbers = syscalls.looked_into(machine)
    assert answer(machine, numbers["clone"], 0x3D0F00) == "allow"
    assert answer(machine, numbers["clone"], 17) == "allow"
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(machine, numbers["clone"], flag | 17) == errno.EPERM
    assert answer(machine, numbers["clone3"]) == errno.ENOSYS


@BOTH
def test_ioctl(machine: str) -> None:
    """Terminals work, but nobody can type for another; high bits of the number, which the kernel ignores, hide
    nothing."""
    number = syscalls.looked_into(machine)["ioctl"]
    assert answer(machine, number, 0, 0x5413) == "allow"
    for refused in (0x5412, 0x541C, 0x5412 | 1 << 32):
        assert answer(machine, number, 0, refused) == errno.EPERM


@BOTH
def test_sockets(machine: str) -> None:
    """Unix, IP and routing sockets are there; every other family is not."""
    numbers = syscalls.looked_into(machine)
    for family in (1, 2, 10):
        assert answer(machine, numbers["socket"], family, 1, 0) == "allow"
        assert answer(machine, numbers["socketpair"], family, 1, 0) == "allow"
    assert answer(machine, numbers["socket"], 16, 3, 0) == "allow"
    assert answer(machine, numbers["socket"], 16, 3, 12) == errno.EAFNOSUPPORT
    assert answer(machine, numbers["socketpair"], 16, 3, 0) == errno.EAFNOSUPPORT
    for family in (family for family in range(64) if family not in (1, 2, 10, 16)):
        assert answer(machine, numbers["socket"], family, 3, 0) == errno.EAFNOSUPPORT


@BOTH
@pytest.mark.parametrize("family", [2, 10])
def test_internet_sockets(machine: str, family: int) -> None:
    """TCP, UDP and ping are there, with any of the flags; kinds and protocols that would load a kernel module not."""
    number = syscalls.looked_into(machine)["socket"]
    for kind, protocol in ((1, 0), (1, 6), (2, 17), (2, 1), (2, 58), (3, 17)):
        for flags in (0, 0o4000, 0o2000000, 0o2004000):
            assert answer(machine, number, family, kind | flags, protocol) == "allow"
    for protocol in (33, 41, 132, 136, 255, 256, 262):
        assert answer(machine, number, family, 1, protocol) == errno.EPROTONOSUPPORT
    for kind in (0, 4, 5, 6, 10):
        assert answer(machine, number, family, kind, 0) == errno.ESOCKTNOSUPPORT


@BOTH
def test_personality(machine: str) -> None:
    """A personality may be asked for and set to the usual ones, not to one that turns protections off."""
    number = syscalls.looked_into(machine)["personality"]
    assert answer(machine, number, 0xFFFFFFFF) == "allow"
    assert answer(machine, number, 0x0040000) == errno.EPERM


def test_foreign_calls() -> None:
    """A 32-bit call kills the process; the x32 ABI does not exist."""
    assert answer("x86_64", 1, audit=0x40000003) == "kill"
    assert answer("x86_64", seccomp.X32_BIT | 1) == errno.ENOSYS
    assert answer("aarch64", 1, audit=0x40000028) == "kill"


HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
OLD_SIZES = range(403, 424)
"""In the generic header: calls of 32-bit machines."""


@BOTH
def test_every_call_of_the_headers_has_its_verdict(machine: str) -> None:
    """The table knows each call of the kernel's own headers, where they are installed, by the same number."""
    header = next((path for path in HEADERS[machine] if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers (linux-libc-dev) here")
    table = {
        **syscalls.allowed(machine),
        **syscalls.looked_into(machine),
        **syscalls.uncounted(machine),
        **syscalls.refused(machine),
        **syscalls.absent(machine),
    }
    text = header.read_text()
    told = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)\b", text)}
    aliases = dict(re.findall(r"#define __NR_(\w+) (__NR3264_\w+)", text))
    shared = {name: int(number) for name, number in re.findall(r"#define (__NR3264_\w+) (\d+)\b", text)}
    # The first name of an alias is the one for 64 bits: fcntl, not fcntl64.
    told |= {name: shared[alias] for name, alias in aliases.items() if name in table}
    numbers = {number for number in told.values() if machine == "x86_64" or number not in OLD_SIZES} | set(
        shared.values()
    )
    missing = sorted(numbers - set(table.values()) - {told.get("syscalls"), told.get("arch_specific_syscall")})
    assert missing == []
    wrong = {name: number for name, number in table.items() if name in told and told[name] != number}
    assert wrong == {}
    assert len([name for name in table if name in told]) > 250
