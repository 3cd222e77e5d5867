"""The filter, run by a small interpreter of BPF: what it answers to which call, on both architectures."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from sandboxkit.local.isolation import _seccomp as seccomp

BOTH = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def answer(machine: str, number: int, *arguments: int, audit: int | None = None) -> int | str:
    """Run the filter on one call: "allow", "kill", or an errno."""
    program = list(struct.iter_unpack("<HBBI", seccomp.filter_for(machine)))
    given = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, audit or seccomp.ARCHITECTURES[machine].audit, 0, *given)
    at = word = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == seccomp.LOAD:
            (word,) = struct.unpack_from("<I", data, value)
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
def test_refused_calls(machine: str) -> None:
    """Each call of the list answers EPERM."""
    numbers = seccomp.ARCHITECTURES[machine].numbers
    for name in seccomp.REFUSED:
        if name in numbers:
            assert answer(machine, numbers[name]) == errno.EPERM, name


@BOTH
def test_everything_else_is_allowed(machine: str) -> None:
    """No call is refused that the list does not name."""
    numbers = seccomp.ARCHITECTURES[machine].numbers
    refused = {numbers[name] for name in seccomp.REFUSED if name in numbers}
    special = {numbers[name] for name in ("clone3", "socket", "socketpair")}
    assert {n for n in range(500) if answer(machine, n) != "allow"} <= refused | special


@BOTH
def test_clone(machine: str) -> None:
    """clone makes threads and children but no namespace; clone3, which cannot be looked into, is not there."""
    numbers = seccomp.ARCHITECTURES[machine].numbers
    assert answer(machine, numbers["clone"], 0x3D0F00) == "allow"
    assert answer(machine, numbers["clone"], 17) == "allow"
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert answer(machine, numbers["clone"], flag | 17) == errno.EPERM
    assert answer(machine, numbers["clone3"]) == errno.ENOSYS


@BOTH
def test_ioctl(machine: str) -> None:
    """Terminals work, but nobody can type for another; high bits of the number, which the kernel ignores, hide
    nothing."""
    number = seccomp.ARCHITECTURES[machine].numbers["ioctl"]
    assert answer(machine, number, 0, 0x5413) == "allow"
    for refused in (0x5412, 0x541C, 0x5412 | 1 << 32):
        assert answer(machine, number, 0, refused) == errno.EPERM


@BOTH
def test_sockets(machine: str) -> None:
    """Unix, IP and routing sockets are there; every other family is not."""
    numbers = seccomp.ARCHITECTURES[machine].numbers
    for family in (1, 2, 10):
        assert answer(machine, numbers["socket"], family, 1, 0) == "allow"
        assert answer(machine, numbers["socketpair"], family, 1, 0) == "allow"
    assert answer(machine, numbers["socket"], 16, 3, 0) == "allow"
    assert answer(machine, numbers["socket"], 16, 3, 12) == errno.EAFNOSUPPORT
    for family in (0, 17, 31, 38, 40, 44):
        assert answer(machine, numbers["socket"], family, 3, 0) == errno.EAFNOSUPPORT


@BOTH
def test_personality(machine: str) -> None:
    """A personality may be asked for and set to the usual ones, not to one that turns protections off."""
    number = seccomp.ARCHITECTURES[machine].numbers["personality"]
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


@BOTH
def test_numbers_agree_with_the_headers(machine: str) -> None:
    """Each number is the one in the kernel's own header, where one is installed."""
    header = next((path for path in HEADERS[machine] if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers (linux-libc-dev) here")
    told = {name: int(number) for name, number in re.findall(r"#define __NR\w*?_(\w+) (\d+)\b", header.read_text())}
    told |= {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)\b", header.read_text())}
    numbers = seccomp.ARCHITECTURES[machine].numbers
    assert {name: number for name, number in numbers.items() if name in told and told[name] != number} == {}
    assert len([name for name in numbers if name in told]) > 50
