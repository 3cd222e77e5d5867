"""Which processes this one started, directly or through others, and whether they have ended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

PATIENCE = 10.0
"""Seconds that processes get to end by themselves."""


class Process(NamedTuple):
    """One process of this machine; its start tells it from a later one with the same id."""

    pid: int
    started: int


class Watch:
    """Remembers the processes that are started after it was made, and says which of them are left."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before = self._descendants()
        self._seen: set[Process] = set()

    def look(self) -> int:
        """Take down what runs now; returns how many were seen so far."""
        self._seen |= self._descendants() - self._before
        return len(self._seen)

    def left(self, *, patience: float = PATIENCE) -> tuple[int, ...]:
        """Wait until all that was seen has ended, at most `patience` seconds, and return the ids of what has not."""
        deadline = time.monotonic() + patience
        while True:
            running = set(self._running())
            # What lost its parent is nobody's descendant any more, so those that were seen are looked for by id.
            left = (self._seen & running) | (self._descendants() - self._before)
            if not left or time.monotonic() > deadline:
                return tuple(sorted(process.pid for process in left))
            time.sleep(0.02)

    def _descendants(self) -> frozenset[Process]:
        parents = self._running()
        by_pid = {process.pid: process for process in parents}
        mine = {os.getpid()}
        found: set[Process] = set()
        growing = True
        while growing:
            more = {by_pid[p.pid] for p, parent in parents.items() if parent in mine and p.pid not in mine}
            growing = bool(more)
            found |= more
            mine |= {process.pid for process in more}
        return frozenset(found)

    def _running(self) -> dict[Process, int]:
        """Every process that is no zombie, with its parent's id."""
        running: dict[Process, int] = {}
        for entry in self._proc.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            if fields[0] not in "ZX":
                running[Process(int(entry.name), int(fields[19]))] = int(fields[1])
        return running
