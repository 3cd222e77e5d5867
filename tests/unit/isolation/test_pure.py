"""The small decisions: limits and their report, the watchdog's verdict, remedies, the interpreter's library path."""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

import pytest

from sandboxkit.local.isolation._base import LimitInForce, Limits
from sandboxkit.local.isolation.bubblewrap._watchdog import Verdict, judge
from sandboxkit.local.isolation.host._elf import relocate
from sandboxkit.local.isolation.host._remedies import HostFacts, host_facts, remedy
from sandboxkit.local.isolation.limits._cgroup2 import BoxCgroup2, own_group, take_delegated
from sandboxkit.local.isolation.limits._limits import inside_limits, report

GIB = 1 << 30


def by(told: tuple[LimitInForce, ...]) -> dict[str, str]:
    """Resource to mechanism."""
    return {limit.resource: limit.by for limit in told}


def test_limits_without_a_cgroup() -> None:
    """On the lowest rung the watchdog and rlimits hold what they can, and the report hides nothing."""
    limits = Limits()
    inside = inside_limits(limits, None)
    assert inside.data == limits.memory
    assert inside.nice > 0
    told = report(limits, None, 0)
    assert by(told)["memory"] == "watchdog"
    assert by(told)["cpus"] == "none"
    assert all(limit.note for limit in told if limit.by in ("none", "watchdog"))


def test_limits_with_a_cgroup(tmp_path: Path) -> None:
    """With a cgroup the kernel holds memory, CPU and processes, and programs get no second, smaller limit."""
    group = BoxCgroup2(tmp_path, "box")
    assert inside_limits(Limits(), group).data == 0
    assert inside_limits(Limits(), group).nice == 0
    told = by(report(Limits(), group, 2))
    assert told["memory"] == told["cpus"] == told["processes"] == "cgroup2"


def test_cgroup2_writes_its_limits(tmp_path: Path) -> None:
    """A version 2 cgroup gets the kernel's own file names and units."""
    group = BoxCgroup2(tmp_path, "box")
    group.make(Limits(cpus=0.5, memory=GIB, processes=10))
    group.join(42)
    wrote = {path.name: path.read_text() for path in (tmp_path / "box").iterdir()}
    assert wrote["memory.max"] == str(GIB)
    assert wrote["memory.swap.max"] == "0"
    assert wrote["pids.max"] == "26"
    assert wrote["cpu.max"] == "50000 100000"
    assert wrote["cgroup.procs"] == "42"
    (tmp_path / "box" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "box" / "cpu.stat").write_text("usage_usec 1500000\n")
    assert group.memory_kills() == 2
    assert group.cpu_seconds() == 1.5


def test_cgroup2_delegation(tmp_path: Path) -> None:
    """A delegated cgroup is taken only when its controllers are there and this process is alone in it."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text("4:memory:/x\n0::/user/scope\n")
    group = tmp_path / "mount" / "user" / "scope"
    group.mkdir(parents=True)
    assert own_group(tmp_path / "proc", tmp_path / "mount") is None
    (group / "cgroup.controllers").write_text("cpu memory pids")
    assert own_group(tmp_path / "proc", tmp_path / "mount") == group
    (group / "cgroup.subtree_control").write_text("")
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    assert take_delegated(group) is None
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert take_delegated(group) == group
    assert (group / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (group / "engine" / "cgroup.procs").read_text() == str(os.getpid())
    (group / "cgroup.controllers").write_text("cpu")
    assert take_delegated(group) is None


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        ({1: 1, 2: 5, 3: 90}, None),
        ({1: 1, 2: 5, 3: 100}, Verdict(3)),
        ({1: 101, 2: 5, 3: 1}, Verdict(0)),
        ({1: 1, 3: 80, 4: 80}, Verdict(0)),
        ({}, None),
    ],
)
def test_watchdog_judges(memory: dict[int, int], verdict: Verdict | None) -> None:
    """Over the limit the largest process goes; far over it, or when the largest is ours, the whole box."""
    assert judge(memory, limit=100, ours=frozenset({1})) == verdict


def test_watchdog_judges_files_without_processes() -> None:
    """A box whose processes are just gone, and whose files are too many, goes as a whole; the watchdog goes on."""
    assert judge({}, limit=100, ours=frozenset(), files=101) == Verdict(0)
    assert judge({}, limit=100, ours=frozenset(), files=100) is None


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (HostFacts(max_user_namespaces=0), "user.max_user_namespaces"),
        (HostFacts(unprivileged_userns_clone=0), "kernel.unprivileged_userns_clone=1"),
        (HostFacts(apparmor_restrict=1), "apparmor_restrict_unprivileged_userns=0"),
        (HostFacts(in_container=True), "seccomp=unconfined"),
        (HostFacts(), "CONFIG_USER_NS"),
    ],
)
def test_remedy(facts: HostFacts, word: str) -> None:
    """Each cause has one remedy, and it is a command or a setting."""
    assert word in remedy(facts)


def test_host_facts(tmp_path: Path) -> None:
    """Settings are read where they exist; a container is recognised by its marks."""
    assert host_facts(tmp_path, tmp_path) == HostFacts()
    (tmp_path / "sys" / "kernel").mkdir(parents=True)
    (tmp_path / "sys" / "kernel" / "apparmor_restrict_unprivileged_userns").write_text("1\n")
    (tmp_path / ".dockerenv").touch()
    assert host_facts(tmp_path, tmp_path) == HostFacts(apparmor_restrict=1, in_container=True)


def elf(runpath: bytes) -> bytes:
    """The least ELF file that has a library path."""
    strings = b"\0" + runpath + b"\0other\0"
    dynamic = struct.pack("<qQqQqQ", 29, 1, 5, 0x1000, 0, 0)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    )
    at = 64 + 2 * 56
    load = struct.pack("<IIQQQQQQ", 1, 4, at, 0x1000, 0, len(strings), len(strings), 0)
    place = struct.pack("<IIQQQQQQ", 2, 4, at + len(strings), 0, 0, len(dynamic), len(dynamic), 0)
    return header + load + place + strings + dynamic


def test_relocate() -> None:
    """A library path below the prefix becomes relative to the executable; others stay; a too short one is said."""
    image = elf(b"/home/ada/.pyenv/versions/3.11.7/lib")
    done = relocate(image, "/home/ada/.pyenv/versions/3.11.7")
    assert done.image is not None
    assert len(done.image) == len(image)
    assert b"\0$ORIGIN/../lib\0" in done.image
    assert b"/home" not in done.image
    assert b"\0other\0" in done.image
    assert relocate(elf(b"$ORIGIN/../lib"), "/p").image is None
    assert relocate(elf(b"/usr/lib"), "/p").image is None
    assert relocate(elf(b"/p/lib"), "/p") == type(done)(None, fits=False)
    assert relocate(b"#!/bin/sh\n", "/p").image is None


@pytest.mark.parametrize("cut", range(0, 300, 7))
def test_relocate_survives_damage(cut: int) -> None:
    """A damaged file is left as it is."""
    relocate(elf(b"/home/ada/.pyenv/versions/3.11.7/lib")[:cut], "/home/ada/.pyenv/versions/3.11.7")


def test_agent_imports_little() -> None:
    """What runs inside imports the standard library only, and of that neither asyncio nor anything slow."""
    import subprocess

    folder = Path(__file__).parents[3] / "src" / "sandboxkit" / "local"
    code = (
        f"import sys; sys.path.append({str(folder)!r}); before = set(sys.modules)\n"
        "from agent import agent, _loop\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('agent')))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded <= set(sys.stdlib_module_names)
    assert not loaded & {"asyncio", "socket", "selectors", "subprocess", "threading", "json", "ctypes", "typing", "re"}
