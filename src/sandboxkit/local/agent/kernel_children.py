"""What a cell has started and left behind: found by the session that it shares with the kernel, and ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass

ROUNDS = 50
"""How often to look again. Each round stops what it finds, and what is stopped starts nothing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One process of /proc; `started` is in clock ticks since the machine's start."""

    parent: int
    session: int
    state: str
    started: int


def now() -> int:
    """This moment, as /proc tells the start of a process."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def started_since(seen: Mapping[int, Seen], *, kernel: int, since: int) -> set[int]:
    """Which processes of the kernel's session were started since then; a child of an older one belongs to that."""

    def has_older_parent(pid: int) -> bool:
        parent = seen[pid].parent
        while parent != kernel and parent in seen and seen[parent].session == kernel:
            if seen[parent].started < since:
                return True
            parent = seen[parent].parent
        return False

    ours = {pid for pid, process in seen.items() if process.session == kernel and pid != kernel}
    return {pid for pid in ours if seen[pid].started >= since and not has_older_parent(pid)}


def end_since(since: int) -> None:
    """Kill what was started in this session since then, also where it goes on forking. What left the session stays."""
    stopped: set[int] = set()
    for _ in range(ROUNDS):
        seen = _look()
        found = started_since(seen, kernel=os.getpid(), since=since)
        new = {pid for pid in found - stopped if seen[pid].state != "Z"}
        if not new:
            break
        # Stopped first: to kill one at a time would make room for the next fork.
        _signal(new, signal.SIGSTOP)
        stopped |= new
    _signal(stopped, signal.SIGKILL)
    for pid in stopped:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            continue  # a grandchild: the box's first process reaps it


def _look() -> dict[int, Seen]:
    seen = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            seen[int(name)] = Seen(int(fields[1]), int(fields[3]), fields[0].decode(), int(fields[19]))
    return seen


def _signal(pids: set[int], signum: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, signum)
        except (ProcessLookupError, PermissionError):
            continue
