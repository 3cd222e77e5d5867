"""Limits by cgroup version 1, where the engine was started by root: memory, processes, CPU.

Root makes one directory per controller below its own cgroup and gives it to the engine's uid (`make_parents`); the
engine makes one below that for each box. A process may be moved by the engine since both have the same uid.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandboxkit.local.isolation._base import Limits

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
PREFIX = "sandboxkit-"
LIFE = "freezer"
BUSY_FOR = 0.05
REMOVED_WITHIN = 10.0
"""Seconds for the removal of all that a dead engine left."""
PERIOD = 100_000
SHARES_PER_CPU = 256
"""Of the 1,024 that everything else on the host has: a busy box gives way, an idle host is used."""
HEADROOM = 16
"""Tasks above the limit of processes, which is held inside by RLIMIT_NPROC: so the agent can always answer."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A directory of one controller (or of several that are mounted together) that belongs to the engine."""

    controllers: tuple[str, ...]
    path: Path


def make_parents(name: str, uid: int) -> tuple[Parent, ...]:
    """As root: make this engine's directories. Controllers that are missing or refuse are left out."""
    _reap_dead()
    parents = []
    # LIFE first: another engine that starts meanwhile must not take the others for a dead one's.
    for controllers, base, _top in sorted(_bases(), key=lambda each: LIFE not in each[0]):
        path = base / directory_name(name)
        try:
            if LIFE in controllers:
                _settle_in(path)
            path.mkdir(exist_ok=True)
            os.chown(path, uid, uid)
        except OSError:
            continue
        parents.append(Parent(controllers, path))
    return tuple(parents)


def _settle_in(path: Path) -> None:
    """Make the directory of LIFE and be in it. Before we are, another engine may remove it as a dead one's."""
    for attempt in range(10):
        try:
            path.mkdir(exist_ok=True)
            (path / "cgroup.procs").write_text(str(os.getpid()))
            return
        except OSError as error:
            if attempt == 9 or error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def _reap_dead() -> None:
    """Remove directories of dead engines whose state directories nobody will look at again. An engine lives as long as
    there is a process in its directory of the `freezer` hierarchy, where it otherwise does nothing."""
    if any(LIFE in controllers for controllers, _base, _top in _bases()):
        for places in _engines().values():
            _remove(places)


def _engines() -> dict[str, list[tuple[Path, bool]]]:
    """The directories of all engines, each with whether it is one of LIFE's. They may lie anywhere: an engine that
    lived in another cgroup of one hierarchy (of another session, say) may have lived in ours of LIFE's."""
    found: dict[str, list[tuple[Path, bool]]] = {}
    for controllers, _base, top in _bases():
        for folder, below, _files in os.walk(top):
            for name in [name for name in below if name.startswith(PREFIX)]:
                below.remove(name)
                found.setdefault(name, []).append((Path(folder, name), LIFE in controllers))
    return found


def _lives(life: Path) -> bool:
    """Whether a process is in an engine's directory of LIFE; also where that cannot be told."""
    try:
        return bool((life / "cgroup.procs").read_text())
    except FileNotFoundError:
        return False
    except OSError:
        return True


def remove_parents(name: str) -> None:
    """Remove a dead engine's directories and those of its boxes."""
    _remove(_engines().get(directory_name(name), []))


def _remove(places: list[tuple[Path, bool]]) -> None:
    """Remove the directories of one engine unless it lives. A busy machine takes its time to let many killed processes
    go; where it takes too long, the directory of LIFE stays, and the next engine goes on."""
    deadline = time.monotonic() + REMOVED_WITHIN
    lives = [path for path, is_life in places if is_life]
    for life in lives:
        with contextlib.suppress(OSError):
            if str(os.getpid()) in (life / "cgroup.procs").read_text().split():
                (life.parent / "cgroup.procs").write_text(str(os.getpid()))
    for path, _is_life in sorted(places, key=lambda each: each[1]):
        for directory in (*subdirectories(path), path):
            if any(map(_lives, lives)):
                return  # it has just been started, and was not there yet when it was looked for
            if not remove_directory(directory, until=deadline):
                return


class BoxCgroups:
    """The directories of one box."""

    def __init__(self, parents: Sequence[Parent], box_id: str) -> None:
        self._paths = {name: parent.path / box_id for parent in parents for name in parent.controllers}
        self._distinct = sorted(set(self._paths.values()))

    def make(self, limits: Limits) -> None:
        """Make the directories and write the limits. OSError where the kernel refuses one."""
        for path in self._distinct:
            path.mkdir()
        if "memory" in self._paths:
            self._write("memory", "memory.limit_in_bytes", limits.memory)
            with contextlib.suppress(OSError):  # only where swap is accounted
                self._write("memory", "memory.memsw.limit_in_bytes", limits.memory)
        if "pids" in self._paths:
            self._write("pids", "pids.max", limits.processes + HEADROOM)
        if "cpu" in self._paths:
            cpus = min(limits.cpus, os.cpu_count() or 1)
            self._write("cpu", "cpu.cfs_quota_us", max(1000, int(cpus * PERIOD)))
            self._write("cpu", "cpu.shares", max(2, int(cpus * SHARES_PER_CPU)))

    def join(self, pid: int) -> None:
        """Move a process in; what it starts from now on is in, too."""
        for path in self._distinct:
            (path / "cgroup.procs").write_text(str(pid))

    def open_to_join(self) -> list[int]:
        """See `_limits.Cgroup`. For a process with one task: where that moves itself, alone, the kernel takes no lock
        of the whole machine, which costs a grace period, a hundredth of a second, whenever nobody has just had it."""
        return open_all(path / "tasks" for path in self._distinct)

    def has(self, controller: str) -> bool:
        """Whether a controller is in force; `swap` is memory's, where the kernel accounts it."""
        if controller == "swap":
            return self.has("memory") and (self._paths["memory"].parent / "memory.memsw.limit_in_bytes").exists()
        return controller in self._paths

    def memory(self) -> int:
        """Bytes in use."""
        return self._read("memory", "memory.usage_in_bytes")

    def files(self) -> int:
        """Those of them that are files in memory."""
        lines = (self._paths["memory"] / "memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("cache", 0))

    def cpu_seconds(self) -> float:
        """CPU time used."""
        return self._read("cpuacct", "cpuacct.usage") / 1e9

    def memory_kills(self) -> int:
        """How often the kernel had to kill in here for want of memory."""
        try:
            text = (self._paths["memory"] / "memory.oom_control").read_text()
        except (KeyError, OSError):
            return 0
        fields = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
        return int(fields.get("oom_kill", 0))

    def remove(self) -> None:
        """Remove the directories, once the last process is gone."""
        for path in self._distinct:
            remove_directory(path)

    def _write(self, controller: str, name: str, value: int) -> None:
        (self._paths[controller] / name).write_text(str(value))

    def _read(self, controller: str, name: str) -> int:
        return int((self._paths[controller] / name).read_text())


def _bases() -> list[tuple[tuple[str, ...], Path, Path]]:
    """Our own cgroup of each wanted version 1 hierarchy, and the top of what is shown of it."""
    ours: dict[str, str] = {}
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _number, names, path = line.split(":", 2)
        for name in names.split(","):
            ours[name] = path
    bases = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        if kind != "cgroup":
            continue
        root, point = before.split()[3:5]
        wanted = tuple(name for name in CONTROLLERS if name in options.split(","))
        if wanted and wanted[0] in ours:
            # In a container the mount may show a part of the tree, whose root our path begins with.
            relative = os.path.relpath(ours[wanted[0]], root) if root != "/" else ours[wanted[0]].lstrip("/")
            top = Path(point)
            bases.append((wanted, top if relative.startswith("..") else Path(top, relative), top))
    return bases


def open_all(paths: Iterable[Path]) -> list[int]:
    """Open files for writing, all or none."""
    found: list[int] = []
    try:
        for path in paths:
            found.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        for fd in found:
            os.close(fd)
        raise
    return found


def directory_name(name: str) -> str:
    """What an engine's directory is called."""
    return PREFIX + name


def subdirectories(path: Path) -> list[Path]:
    """The directories in a cgroup; none when it is not there."""
    try:
        return [Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def remove_directory(path: Path, *, until: float | None = None) -> bool:
    """rmdir; False where that fails. The kernel says busy for a moment after the last process was reaped: it is tried
    for that moment, or `until` then by the monotonic clock."""
    deadline = time.monotonic() + BUSY_FOR if until is None else until
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        else:
            return True
