"""Which mechanism holds which limit here: the best rung of the ladder, and a report that says so per resource.

    1  cgroup version 2, delegated to us         2  cgroup version 1, from a root start
    3  resource limits inside, the watchdog outside

Disk and inodes are always held by the box's own tmpfs, processes inside always by RLIMIT_NPROC as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sandboxkit.local.isolation._base import LimitInForce, Limits


class Cgroup(Protocol):
    """The cgroup of one box, of either version."""

    def make(self, limits: Limits) -> None:
        """Make it and write the limits; OSError where the kernel refuses."""

    def join(self, pid: int) -> None:
        """Move a process in, and with it what it will start."""

    def has(self, controller: str) -> bool:
        """Whether `memory`, `pids`, `cpu` or `cpuacct` is in force."""

    def memory(self) -> int:
        """Bytes in use."""

    def cpu_seconds(self) -> float:
        """CPU time used."""

    def tasks(self) -> int:
        """Tasks alive."""

    def memory_kills(self) -> int:
        """How often the kernel had to kill for want of memory."""

    def remove(self) -> None:
        """Remove it once it is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideLimits:
    """What the agent sets on every program that it starts; 0 means unset."""

    processes: int
    open_files: int
    data: int
    nice: int


OUR_PROCESSES = 2
"""bubblewrap's init and the agent: they count among the box's processes."""
NICE = 10


def inside_limits(limits: Limits, cgroup: Cgroup | None) -> InsideLimits:
    """What remains to be held inside."""
    return InsideLimits(
        processes=limits.processes + OUR_PROCESSES,
        open_files=limits.open_files,
        data=0 if cgroup is not None and cgroup.has("memory") else limits.memory,
        nice=0 if cgroup is not None and cgroup.has("cpu") else NICE,
    )


def report(limits: Limits, cgroup: Cgroup | None, version: int) -> tuple[LimitInForce, ...]:
    """Say how each limit is held."""
    by = "cgroup2" if version == 2 else "cgroup1"

    def held(controller: str) -> bool:
        return cgroup is not None and cgroup.has(controller)

    return (
        LimitInForce("memory", limits.memory, by)  # type: ignore[arg-type]
        if held("memory")
        else LimitInForce(
            "memory",
            limits.memory,
            "watchdog",
            "looked at every 50 ms: fast growth passes the limit for a moment; what lies in /tmp, /dev/shm and the "
            "home counts only against the disk limit",
        ),
        LimitInForce("cpus", limits.cpus, by)  # type: ignore[arg-type]
        if held("cpu")
        else LimitInForce("cpus", limits.cpus, "none", "programs run at a lower priority, without a fixed share"),
        LimitInForce("processes", limits.processes, by if held("pids") else "rlimit"),  # type: ignore[arg-type]
        LimitInForce("open_files", limits.open_files, "rlimit", "for each process"),
        LimitInForce("disk", limits.disk, "tmpfs"),
        LimitInForce("inodes", limits.inodes, "tmpfs"),
    )
