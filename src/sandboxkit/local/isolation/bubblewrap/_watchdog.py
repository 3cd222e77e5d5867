"""Hold the memory limit of boxes where no cgroup does: look every 20 ms, kill the largest process of what is over.

While a box grows quickly, it looks every 10 ms: what writes memory on all CPUs writes 100 MiB in 30 ms.

As a cgroup would, it kills one process and leaves the box alone; what is half again over its limit, or whose largest
process is the agent, goes as a whole. Memory means resident pages that are a process's own, its part of what it shares
with others, and the box's files, which lie in memory. The sharing costs the kernel a walk through page tables: it is
looked at only where it could matter, and not in every round.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandboxkit.local.isolation._base import BoxEnd
from sandboxkit.local.isolation.bubblewrap._box import BubblewrapBox
from sandboxkit.local.isolation.processes._processes import (
    all_pids,
    namespace_of,
    place_of,
    resident,
    shared,
    shared_memory,
    signal_within,
)

EVERY = 0.02
EVERY_WHILE_GROWING = 0.01
GROWN = 1.1
"""How much more than at the last look means that a box grows, once it has a quarter of its limit."""
FORGET_AFTER = 100
"""Rounds after which it is looked up again which process is in which box: a pid may have been reused."""
ALL_AT = 1.5
SHARED_EVERY = 5
"""Rounds between two looks at what the processes of one box share, while it does not grow."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do about a box that is over its limit: kill one process, or everything (pid 0)."""

    pid: int


def judge(memory: dict[int, int], *, limit: int, ours: frozenset[int], files: int = 0) -> Verdict | None:
    """Decide, purely: `memory` is bytes by pid, `ours` are init and the agent, `files` bytes that belong to no
    process. None while the limit holds."""
    total = sum(memory.values()) + files
    if total <= limit:
        return None
    if not memory:  # its files alone; its processes have just ended, or are another's to see
        return Verdict(0)
    largest = max(memory, key=lambda pid: (memory[pid], pid))
    if total > limit * ALL_AT or largest in ours:
        return Verdict(0)
    return Verdict(largest)


class Watchdog:
    """Runs as one task while there are boxes that need it."""

    def __init__(self, boxes: Callable[[], Iterable[BubblewrapBox]]) -> None:
        self._boxes = boxes
        self._task: asyncio.Task[None] | None = None
        self._places: dict[int, str | None] = {}
        self._most: dict[str, int] = {}
        """What each box could have had at the last look, were nothing shared."""
        self._is_growing = False
        self._rounds = 0

    def wake(self) -> None:
        """Make sure that it runs."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="memory watchdog")

    async def _run(self) -> None:
        while True:
            boxes = [box for box in self._boxes() if box.watched and box.init_pid]
            if not boxes:
                self._places.clear()
                self._most.clear()
                return
            self._is_growing = False
            with contextlib.suppress(OSError):  # no descriptors left for /proc: look again when there are
                self._look(boxes)
            await asyncio.sleep(EVERY_WHILE_GROWING if self._is_growing else EVERY)

    def _look(self, boxes: list[BubblewrapBox]) -> None:
        self._rounds += 1
        if self._rounds % FORGET_AFTER == 0:
            self._places.clear()
        alive = all_pids()
        known = self._places
        self._places = {pid: known[pid] if pid in known else namespace_of(pid) for pid in alive}
        by_place: dict[str | None, list[int]] = {}
        for pid, place in self._places.items():
            by_place.setdefault(place, []).append(pid)
        for box in boxes:
            whole = box.memory_outside()
            if whole is not None:
                if whole > box.memory_limit:
                    box.begin_end(BoxEnd("memory", f"over its limit of {box.memory_limit} bytes"))
                continue
            pids = by_place.get(namespace_of(box.init_pid) or "", [])
            memory = {pid: resident(pid) for pid in pids}
            files = box.disk_used()
            self._add_shared(box, memory, files)
            verdict = judge(memory, limit=box.memory_limit, ours=frozenset(box.roots()), files=files)
            if verdict is None:
                continue
            if verdict.pid == 0:
                box.begin_end(BoxEnd("memory", f"over its limit of {box.memory_limit} bytes"))
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(box.init_fd, signal.SIGKILL)  # at once, not at the loop's next turn
            else:
                signal_within(verdict.pid, place_of(box.init_fd), signal.SIGKILL)

    def _add_shared(self, box: BubblewrapBox, memory: dict[int, int], files: int) -> None:
        """Add what processes share, where that could be what breaks the limit."""
        together = {pid: shared(pid) for pid in memory}
        most = sum(memory.values()) + files + sum(together.values())
        grows = most > box.memory_limit / 4 and most > GROWN * self._most.get(box.box_id, 0)
        self._most[box.box_id] = most
        self._is_growing |= grows
        if most <= box.memory_limit or (self._rounds % SHARED_EVERY and not grows):
            return
        for pid, size in together.items():
            if size:
                memory[pid] += shared_memory(pid)

    async def aclose(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
