"""Which mechanism holds which limit here: the best rung of the ladder, and a report that says so per resource.

    1  cgroup version 2, delegated to us         2  cgroup version 1, from a root start
    3  resource limits inside, the watchdog outside

Disk and inodes are always held by the box's own tmpfs, processes inside always by RLIMIT_NPROC as well. On rung 3
memory is what the watchdog can see: what it cannot (segments and files that no process has mapped) is refused by the
system-call filter, and a process may have fewer files open, since each may hold memory of the kernel's.
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

    def open_to_join(self) -> list[int]:
        """Descriptors to which a process writes "0" to move itself in; they are the caller's."""

    def has(self, controller: str) -> bool:
        """Whether `memory`, `swap`, `pids`, `cpu` or `cpuacct` is in force."""

    def memory(self) -> int:
        """Bytes in use."""

    def files(self) -> int:
        """Those of them that are files in memory."""

    def cpu_seconds(self) -> float:
        """CPU time used."""

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
"""The box's first process and the agent: they count among the box's processes."""
NICE = 10
OPEN_FILES_UNCOUNTED = 1024
"""Of one process, where no cgroup counts what pipes and sockets hold."""
LOCKED = 8 * 1024 * 1024
"""Bytes that one process may keep from being swapped out. The agent sets it, always."""


def inside_limits(limits: Limits, cgroup: Cgroup | None) -> InsideLimits:
    """What remains to be held inside."""
    return InsideLimits(
        processes=limits.processes + OUR_PROCESSES,
        open_files=_open_files(limits, cgroup),
        data=0 if cgroup is not None and cgroup.has("memory") else limits.memory,
        nice=0 if cgroup is not None and cgroup.has("cpu") else NICE,
    )


def _open_files(limits: Limits, cgroup: Cgroup | None) -> int:
    counted = cgroup is not None and cgroup.has("memory")
    return limits.open_files if counted else min(limits.open_files, OPEN_FILES_UNCOUNTED)


def allows_uncounted(limits: Limits, cgroup: Cgroup | None) -> bool:
    """Whether programs may make memory that belongs to no process: where it is counted, or the template wants it."""
    return limits.shared_memory or (cgroup is not None and cgroup.has("memory"))


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
            "looked at every 20 ms: fast growth passes the limit for a moment; files in /tmp, /dev/shm and the home "
            "count; buffers of pipes and sockets do not",
        ),
        LimitInForce("swap", 0, by)  # type: ignore[arg-type]
        if held("swap")
        else LimitInForce("swap", 0, "none", "what the host swaps out of it is not bounded"),
        LimitInForce("shared_memory", limits.memory, by)  # type: ignore[arg-type]
        if held("memory")
        else LimitInForce("shared_memory", 0, "seccomp", "memfd_create and System V segments are refused")
        if not limits.shared_memory
        else LimitInForce("shared_memory", 0, "none", "the template asked for segments that nothing counts"),
        LimitInForce("locked_memory", LOCKED, "rlimit", "for each process; less where the host allows less"),
        LimitInForce("cpus", limits.cpus, by)  # type: ignore[arg-type]
        if held("cpu")
        else LimitInForce("cpus", limits.cpus, "none", "programs run at a lower priority, without a fixed share"),
        LimitInForce("processes", limits.processes, by if held("pids") else "rlimit"),  # type: ignore[arg-type]
        LimitInForce("open_files", _open_files(limits, cgroup), "rlimit", "for each process"),
        LimitInForce("disk", limits.disk, "tmpfs"),
        LimitInForce("inodes", limits.inodes, "tmpfs"),
    )
