"""runsc's processes as the host sees them: what they use, and how they are stopped.

A program inside is, on the host, a traced process whose pages lie in one memory file of its kernel's (the sentry), as
the files of the box do. So the memory of a box is that file and what runsc's own processes hold.
"""

from __future__ import annotations

import contextlib
import os
import signal

from sandboxkit.local.isolation.processes._processes import (
    is_within,
    place_of,
    resident,
    shared,
    signal_within,
    tasks_of,
)
from sandboxkit.local.isolation.processes._stopping import AT_REST

MEMORY_FILE = "runsc-memory"
LOOK_UP_EVERY = 20


def tree(*roots: int) -> list[int]:
    """Processes and all that are below them, parents first."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in tasks_of(pid):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                waiting += map(int, file.read().split())
    return found


class MemoryMeter:
    """Measures what a box uses. Which processes are runsc's own is looked up now and then only: that costs a walk
    through all of them, and they hardly change."""

    def __init__(self) -> None:
        self._own: list[int] = []
        self._files: list[str] = []
        self._looks = 0

    def measure(self, init: int) -> int:
        """Bytes that the box uses: its memory file, and the pages that are its own processes' alone."""
        if self._looks % LOOK_UP_EVERY == 0 or not self._files:
            self._look_up(init)
        self._looks += 1
        if not self._files:  # of another name in this version: rather too much than too little
            return sum(resident(pid) + shared(pid) for pid in tree(init))
        files: dict[int, int] = {}
        for path in self._files:
            with contextlib.suppress(OSError):
                info = os.stat(path)
                files[info.st_ino] = info.st_blocks * 512
        return sum(map(resident, self._own)) + sum(files.values())

    def _look_up(self, init: int) -> None:
        self._own = [pid for pid in tree(init) if not _tracer(pid)]
        self._files = []
        for pid in self._own:
            with contextlib.suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        if MEMORY_FILE in os.readlink(entry.path):
                            self._files.append(entry.path)


class SentryStopper:
    """Stops the processes of one box, and lets those go on that it has stopped; see `_stopping.Stopper`.

    A traced process that is told to stop waits for its tracer, the sentry, which passes it on when both go on. So it is
    not told to continue: that would be a signal for the program inside.
    """

    def __init__(self) -> None:
        self._stopped: list[int] = []
        self._clean_looks = 0

    def stop(self, init_fd: int, *roots: int) -> bool:
        """Stop what runs; True once nothing does. To be called until it is."""
        place = place_of(init_fd)
        clean = True
        for pid in tree(*roots):
            if _is_at_rest(pid) or not is_within(pid, place):
                continue
            clean = False
            signal_within(pid, place, signal.SIGSTOP)
            if not _tracer(pid) and pid not in self._stopped:
                self._stopped.append(pid)
        self._clean_looks = self._clean_looks + 1 if clean else 0
        return self._clean_looks >= 2

    def go_on(self, init_fd: int) -> None:
        """Let what was stopped go on, children before their parents."""
        place = place_of(init_fd)
        for pid in reversed(self._stopped):
            signal_within(pid, place, signal.SIGCONT)
        self._stopped.clear()
        self._clean_looks = 0


def _is_at_rest(pid: int) -> bool:
    """Whether none of its threads runs; also of one that is gone."""
    for task in tasks_of(pid):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0][0] not in AT_REST:
                return False
    return True


def _tracer(pid: int) -> bool:
    """Whether it is traced."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(b"TracerPid:"):
                return int(line.split()[1]) != 0
    return False
