"""What a box uses now: from its control group where there is one, from its processes otherwise."""

from __future__ import annotations

from sandboxkit.local.isolation._base import Usage
from sandboxkit.local.isolation.limits._limits import Cgroup
from sandboxkit.local.isolation.processes._processes import processes_of, usage_of


def measure(init: int, disk: int, group: Cgroup | None) -> Usage:
    """Measure the box of this init, whose files take `disk` bytes."""
    found = usage_of(processes_of(init))
    memory, cache = found.memory + disk, disk
    if group is not None and group.has("memory"):
        memory, cache = group.memory(), group.files()
        # What the engine wrote for a client (an upload) is charged to the engine, and is this box's all the same.
        elsewhere = max(0, disk - cache)
        memory, cache = memory + elsewhere, cache + elsewhere
    return Usage(
        cpu_seconds=group.cpu_seconds() if group is not None and group.has("cpuacct") else found.cpu_seconds,
        memory=memory,
        cache=cache,
        disk=disk,
        processes=found.processes,
    )
