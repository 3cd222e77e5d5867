"""What an agent that entered a box must look like from outside, by /proc: read here, decided purely.

The zygote's fork looks at itself, too (`agent/_entry`); this is what the engine believes, since the kernel says it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
NO_CAPABILITY = "0" * 16
FILTERS = 2
"""System-call filters: the zygote's, and the box's own on top of it."""


@dataclass(frozen=True, slots=True)
class Looks:
    """One process as /proc shows it."""

    status: Mapping[str, str]
    namespaces: Mapping[str, str]
    cgroups: str
    oom_score_adj: str
    session: int
    group: int


def look_at(pid: int) -> Looks:
    """Look at a process. OSError when it is gone."""
    with open(f"/proc/{pid}/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    with open(f"/proc/{pid}/cgroup") as file:
        cgroups = file.read()
    with open(f"/proc/{pid}/oom_score_adj") as file:
        adjusted = file.read().strip()
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    namespaces = {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMESPACES}
    return Looks(status, namespaces, cgroups, adjusted, session=int(fields[3]), group=int(fields[2]))


def faults(pid: int, agent: Looks, init: Looks) -> list[str]:
    """Name the steps that are to blame for what is wrong with an agent; `init` is the first process of its box."""
    status = agent.status
    capabilities = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    checks = {
        "cgroup": agent.cgroups == init.cgroups,
        "namespaces": agent.namespaces == init.namespaces
        and status.get("Uid") == init.status.get("Uid")
        and status.get("Gid") == init.status.get("Gid"),
        "session": agent.session == agent.group == pid,
        "first_to_die": agent.oom_score_adj == "1000",
        "bounding": status.get("CapBnd") == NO_CAPABILITY,
        "capabilities": all(status.get(name) == NO_CAPABILITY for name in capabilities),
        "no_new_privileges": status.get("NoNewPrivs") == "1",
        "seccomp": status.get("Seccomp") == "2" and int(status.get("Seccomp_filters", FILTERS)) >= FILTERS,
        "one task": status.get("Threads") == "1",
        "signals": all(int(status.get(name, "0"), 16) == 0 for name in ("SigBlk", "ShdPnd")),
    }
    return [name for name, is_well in checks.items() if not is_well]
