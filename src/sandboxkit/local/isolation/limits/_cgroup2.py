"""Limits by cgroup version 2, where a subtree is ours: made by a root start, or delegated to an ordinary user.

Version 2 wants processes in leaves only. So the engine moves into a leaf of its own (`ENGINE`), and each box gets
another one beside it, below a directory that hands the controllers down.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from sandboxkit.local.isolation._base import Limits
from sandboxkit.local.isolation.limits._cgroup1 import (
    HEADROOM,
    PERIOD,
    REMOVED_WITHIN,
    directory_name,
    open_all,
    remove_directory,
    subdirectories,
)

CONTROLLERS = ("memory", "pids", "cpu")
ENGINE = "engine"
WEIGHT = 25
"""Of the 100 that everything else has: a busy box gives way, an idle host is used."""


def own_group(proc: Path = Path("/proc/self"), mount: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """This process's cgroup, where version 2 is mounted in its usual place with controllers to give."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
        path = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    group = mount / path.lstrip("/")
    return group if (group / "cgroup.controllers").is_file() else None


def make_parent(name: str, uid: int, group: Path | None, top: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """As root: make a directory for this engine below the nearest ancestor that hands down what is needed, give it to
    `uid`, and move this process in. None where there is no such ancestor."""
    while group is not None and not _wanted(group / "cgroup.subtree_control"):
        group = group.parent if group != top else None
    if group is None:
        return None
    parent = group / directory_name(name)
    try:
        parent.mkdir(exist_ok=True)
        _divide(parent)
        for path in (parent, parent / "cgroup.procs", parent / "cgroup.subtree_control"):
            os.chown(path, uid, uid)
    except OSError:
        remove_parent(name, group, within=0.0)
        return None
    return parent


def take_delegated(group: Path | None) -> Path | None:
    """As an ordinary user: make the cgroup that this process is alone in the parent of boxes. None where it is not
    delegated to us, or where others are in it."""
    if group is None or not _wanted(group / "cgroup.controllers"):
        return None
    try:
        alone = (group / "cgroup.procs").read_text().split() == [str(os.getpid())]
        if not alone or not os.access(group / "cgroup.subtree_control", os.W_OK):
            return None
        _divide(group)
    except OSError:
        return None
    return group


def remove_parent(
    name: str, group: Path | None = None, top: Path = Path("/sys/fs/cgroup"), *, within: float = REMOVED_WITHIN
) -> None:
    """Remove a dead engine's directory and those below it, wherever above us it was made. What takes longer than
    `within` seconds to become empty stays."""
    deadline = time.monotonic() + within
    at = own_group() if group is None else group
    while at is not None:
        parent = at / directory_name(name)
        for directory in (*subdirectories(parent), parent):
            remove_directory(directory, until=deadline)
        at = at.parent if at not in (top, at.parent) else None


class BoxCgroup2:
    """The directory of one box; see `_limits.Cgroup`."""

    def __init__(self, parent: Path, box_id: str) -> None:
        self._path = parent / box_id

    def make(self, limits: Limits) -> None:
        """Make it and write the limits. OSError where the kernel refuses one."""
        self._path.mkdir()
        self._write("memory.max", str(limits.memory))
        with contextlib.suppress(OSError):  # only where swap is accounted
            self._write("memory.swap.max", "0")
        self._write("pids.max", str(limits.processes + HEADROOM))
        cpus = min(limits.cpus, os.cpu_count() or 1)
        self._write("cpu.max", f"{max(1000, int(cpus * PERIOD))} {PERIOD}")
        self._write("cpu.weight", str(max(1, min(10_000, int(cpus * WEIGHT)))))

    def join(self, pid: int) -> None:
        """Move a process in."""
        self._write("cgroup.procs", str(pid))

    def open_to_join(self) -> list[int]:
        """See `_limits.Cgroup`."""
        return open_all([self._path / "cgroup.procs"])

    def has(self, controller: str) -> bool:
        """Whether a controller is in force: all of them, or there would be no such cgroup, but swap accounting."""
        if controller == "swap":
            return (self._path.parent / "memory.swap.current").exists()
        return controller in (*CONTROLLERS, "cpuacct")

    def memory(self) -> int:
        """Bytes in use."""
        return int((self._path / "memory.current").read_text())

    def files(self) -> int:
        """Those of them that are files in memory."""
        return self._field("memory.stat", "file")

    def cpu_seconds(self) -> float:
        """CPU time used."""
        return self._field("cpu.stat", "usage_usec") / 1e6

    def memory_kills(self) -> int:
        """How often the kernel had to kill in here for want of memory."""
        try:
            return self._field("memory.events", "oom_kill")
        except OSError:
            return 0

    def remove(self) -> None:
        """Remove it, once the last process is gone."""
        remove_directory(self._path)

    def _write(self, name: str, text: str) -> None:
        (self._path / name).write_text(text)

    def _field(self, name: str, field: str) -> int:
        lines = (self._path / name).read_text().splitlines()
        return int(dict(line.split() for line in lines).get(field, 0))


def _wanted(file: Path) -> bool:
    try:
        return set(CONTROLLERS) <= set(file.read_text().split())
    except OSError:
        return False


def _divide(parent: Path) -> None:
    """Move this process into a leaf, then hand the controllers down."""
    leaf = parent / ENGINE
    leaf.mkdir(exist_ok=True)
    (leaf / "cgroup.procs").write_text(str(os.getpid()))
    (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
