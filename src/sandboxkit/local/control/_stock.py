"""How many blank boxes to keep, of which kind, and when to make or drop one: decided here, carried out by `_blanks`.

Pure: the time, the free memory and what has happened come in; one decision at a time goes out.

A kind is everything that blanks of it have in common; a sandbox of another kind cannot use them. A kind is stocked from
its first use on (or from the engine's start, where its owner says so) until nobody has used it for a while:

    unknown ──used──> stocked: up to `each_kind` blanks ──unused for IDLE_AFTER──> empty, until used again

- One blank is made at a time, and not in the middle of a burst of claims: those who wait for their sandbox come first.
  After PATIENCE of burst one is made all the same.
- A blank is made only where memory is left over, and dropped where it is short; where sandboxes and blanks together
  would pass the engine's cap, blanks give way.
- A kind whose blank could not be made is left alone for a while.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

BLANK_NEEDS = 96 * 1024 * 1024
"""Bytes that one more blank is expected to take at most: a ready Python kernel, and its agent."""

QUIET = 0.05
PATIENCE = 0.5
IDLE_AFTER = 600.0
NEW_PAUSE = 1.0
"""Seconds after a kind's first use in which its blanks are not begun: that sandbox is starting its own interpreter, and
a program that needs but one never pays for others."""

FAILED_PAUSE = 30.0
LOOK_EVERY = 5.0
"""Seconds between looks at the free memory while there are blanks."""

Kind = TypeVar("Kind", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Plan(Generic[Kind]):
    """What to do now: drop these, then make one of this kind; look again at `look_at` or when something happens."""

    drop: tuple[str, ...] = ()
    make: Kind | None = None
    look_at: float | None = None


@dataclass(slots=True)
class _Shelf:
    """The blanks of one kind, the oldest first."""

    used_at: float
    blanks: list[str] = field(default_factory=list)
    making: int = 0
    missing_since: float | None = None
    not_before: float = 0.0


class Stock(Generic[Kind]):
    """The blanks of one engine. `reserve` is what must stay free on the machine, in bytes."""

    def __init__(self, *, each_kind: int, reserve: int) -> None:
        self._each_kind = each_kind
        self._reserve = reserve
        self._shelves: dict[Kind, _Shelf] = {}
        self._last_used = float("-inf")

    # -- what happens ---------------------------------------------------------------------------------------------

    def used(self, kind: Kind, now: float) -> None:
        """Note that somebody creates a sandbox of this kind."""
        self._last_used = now
        is_new = kind not in self._shelves
        self.expect(kind, now)
        if is_new:
            self._shelves[kind].not_before = now + NEW_PAUSE

    def expect(self, kind: Kind, now: float) -> None:
        """Stock a kind before its first use."""
        if kind in self._shelves:
            self._shelves[kind].used_at = now
        else:
            self._shelves[kind] = _Shelf(used_at=now)

    def next(self, kind: Kind) -> str | None:
        """Say which blank would be claimed next."""
        shelf = self._shelves.get(kind)
        return shelf.blanks[0] if shelf is not None and shelf.blanks else None

    def making(self, kind: Kind) -> None:
        """Note that a planned blank is being made."""
        self._shelves[kind].making += 1

    def made(self, kind: Kind, blank: str) -> None:
        """Note that it is made and can be claimed."""
        shelf = self._shelves[kind]
        shelf.making -= 1
        shelf.blanks.append(blank)

    def failed(self, kind: Kind, now: float) -> None:
        """Note that it could not be made."""
        shelf = self._shelves[kind]
        shelf.making -= 1
        shelf.not_before = now + FAILED_PAUSE

    def gone(self, blank: str) -> bool:
        """Note that a blank was claimed or ended; False if it was none any more."""
        for shelf in self._shelves.values():
            if blank in shelf.blanks:
                shelf.blanks.remove(blank)
                return True
        return False

    # -- what to do -----------------------------------------------------------------------------------------------

    def plan(self, now: float, *, free: int, room: int) -> Plan[Kind]:
        """Decide. `free` is the machine's free memory in bytes, `room` how many boxes the engine's cap still allows."""
        drop: list[str] = []
        for shelf in self._shelves.values():
            if now >= shelf.used_at + IDLE_AFTER:
                drop += shelf.blanks
                shelf.blanks = []
        excess = max(self._count() - max(room, 0), 0)
        if free < self._reserve:
            # One at a time: what dropping one gives back shows at the next look.
            excess = max(excess, 1)
        for shelf in sorted(self._shelves.values(), key=lambda one: one.used_at):
            while excess and shelf.blanks:
                drop.append(shelf.blanks.pop())
                excess -= 1
        if drop:
            return Plan(tuple(drop), None, now)
        wakes: list[float] = []
        wanting = None
        for kind, shelf in sorted(self._shelves.items(), key=lambda item: -item[1].used_at):
            if now >= shelf.used_at + IDLE_AFTER:
                shelf.missing_since = None
                continue
            wakes.append(shelf.used_at + IDLE_AFTER)
            if len(shelf.blanks) + shelf.making >= self._each_kind or self._count() >= room:
                shelf.missing_since = None
                continue
            if shelf.missing_since is None:
                shelf.missing_since = now
            at = max(shelf.not_before, min(self._last_used + QUIET, shelf.missing_since + PATIENCE))
            if at > now:
                wakes.append(at)
            elif free - BLANK_NEEDS >= self._reserve:
                wanting = wanting or kind
            else:
                wakes.append(now + LOOK_EVERY)
        if self._count():
            wakes.append(now + LOOK_EVERY)
        return Plan((), wanting, min(wakes, default=None))

    def blanks(self) -> list[str]:
        """Name all that can be claimed."""
        return [blank for shelf in self._shelves.values() for blank in shelf.blanks]

    def _count(self) -> int:
        return sum(len(shelf.blanks) + shelf.making for shelf in self._shelves.values())
