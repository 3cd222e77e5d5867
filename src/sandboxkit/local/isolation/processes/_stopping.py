"""Stop every process of a box by signals, until none is left that runs.

Not by a cgroup: version 1 lets no frozen process die, so that a paused box would outlive an engine that was killed; an
ordinary user has none. What is stopped by a signal dies by SIGKILL at once, and nobody inside runs who could undo it.

A process that is being stopped may fork at that moment, so we look again until two looks in a row find nothing that
moves. All of a box's processes are below its init (orphans become init's children) or below an agent that entered.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from sandboxkit.local.isolation.processes._processes import is_within, place_of, signal_within, tasks_of

AT_REST = frozenset(b"TtZX")


@dataclass(frozen=True, slots=True)
class _Seen:
    """One process at one moment."""

    pid: int
    started: int
    """In ticks since the machine's start; tells a process from a later one of the same number."""
    is_at_rest: bool


class Stopper:
    """Stops the processes of one box, and lets those go on that it has stopped."""

    def __init__(self) -> None:
        self._stopped: dict[int, int] = {}
        self._others: set[tuple[int, int]] = set()
        self._clean_looks = 0
        self._has_begun = False

    def stop(self, init_fd: int, *roots: int) -> bool:
        """Stop what runs; True once nothing does. To be called until it is.

        Args:
            init_fd: a pidfd of the box's init. Who is not in its pid namespace is none of the box's, whatever number
                it has.
            roots: all others are below of these.
        """
        place = place_of(init_fd)
        seen = [one for one in _tree(roots) if is_within(one.pid, place)]
        if not self._has_begun:
            # Stopped by somebody inside: they stay so when we let the others go on.
            self._others = {(one.pid, one.started) for one in seen if one.is_at_rest}
            self._has_begun = True
        for one in seen:
            if not one.is_at_rest:
                signal_within(one.pid, place, signal.SIGSTOP)
            if (one.pid, one.started) not in self._others:
                self._stopped[one.pid] = one.started
        self._clean_looks = self._clean_looks + 1 if all(one.is_at_rest for one in seen) else 0
        return self._clean_looks >= 2

    def go_on(self, init_fd: int) -> None:
        """Let what was stopped go on: the youngest first, so that no parent wakes to find a child stopped."""
        place = place_of(init_fd)
        for pid, started in sorted(self._stopped.items(), key=lambda item: (item[1], item[0]), reverse=True):
            one = _look(pid)
            if one is not None and one.started == started:
                signal_within(pid, place, signal.SIGCONT)
        self._stopped.clear()
        self._others.clear()
        self._clean_looks = 0
        self._has_begun = False


def _tree(roots: Iterable[int]) -> list[_Seen]:
    """Processes and all that are below them. Each is looked at before its children are listed: one that was at rest
    then has no others."""
    found: list[_Seen] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        one = _look(pid)
        if one is None:
            continue
        found.append(one)
        waiting += _children(pid)
    return found


def _look(pid: int) -> _Seen | None:
    started = 0
    is_at_rest = True
    for task in tasks_of(pid):
        try:
            with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        is_at_rest = is_at_rest and fields[0][0] in AT_REST
        if task == str(pid):
            started = int(fields[19])
    return _Seen(pid, started, is_at_rest) if started else None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in tasks_of(pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as file:
            found += map(int, file.read().split())
    return found
