"""The program that holds a box open: it runs, it waits for good, and it takes next to nothing."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandboxkit.local.isolation.host._holder import MACHINES, holder
from sandboxkit.local.isolation.seccomp import _filter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")


def test_each_machine_that_boxes_are_made_on_has_one() -> None:
    assert set(MACHINES) == set(_filter.ARCHITECTURES)


@contextmanager
def running(path: Path, machine: str, *before: str) -> Iterator[int]:
    """Write the program and start it, with nothing in its environment."""
    path.write_bytes(holder(machine))
    path.chmod(0o755)
    with subprocess.Popen([*before, str(path)], env={}) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def state(pid: int) -> str:
    """A process's state, as one letter."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def until(pid: int, wanted: str) -> None:
    """Wait until a process is in a state."""
    deadline = time.monotonic() + 10
    while state(pid) != wanted:
        assert time.monotonic() < deadline, f"{state(pid)}, not {wanted}"
        time.sleep(0.005)


def test_it_waits_and_takes_next_to_nothing(tmp_path: Path) -> None:
    """It sleeps, sleeps again after it was stopped, uses no time, and has no memory of its own but a stack."""
    with running(tmp_path / "holder", platform.machine()) as pid:
        until(pid, "S")
        for _ in range(3):
            os.kill(pid, signal.SIGSTOP)
            until(pid, "T")
            os.kill(pid, signal.SIGCONT)
            until(pid, "S")
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        assert ticks == ["0", "0"]
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        own = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
        assert own <= 16, "kilobytes; a program of the system's has a hundred"
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        assert [line for line in maps if "rwx" in line] == []
        assert len([line for line in maps if str(tmp_path) in line]) == 1


@pytest.mark.parametrize("machine", sorted(set(MACHINES) - {platform.machine()}))
def test_that_of_another_machine(tmp_path: Path, machine: str) -> None:
    """It does the same call there, seen by an emulator."""
    emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if emulator is None:
        pytest.skip(f"no emulator of {machine}: apt-get install qemu-user-static")
    with running(tmp_path / "holder", machine, emulator, "-D", str(tmp_path / "log"), "-strace") as pid:
        deadline = time.monotonic() + 10
        while "ppoll(0,0,0,0,0,0)" not in (tmp_path / "log").read_text() if (tmp_path / "log").exists() else True:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        until(pid, "S")
