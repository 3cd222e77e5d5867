"""Counts what the pool does."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict, cast

from sandboxkit._types import Source
from sandboxkit.pool._policy import PoolPolicy
from sandboxkit.pool._slots import Slot


class PoolStats(TypedDict):
    """What `stats()` and `pop_stats()` return: a plain dictionary of numbers, ready for any exporter.

    The first eleven are the state now, the rest count since the start (or since the last `pop_stats()`).
    """

    max_live: int
    """The cap."""
    live: int
    """Sandboxes that count towards the cap: the five below together."""
    creating: int
    in_use: int
    idle: int
    """Released sessions whose sandboxes are kept."""
    warm: int
    """Blank ones that wait for a caller."""
    killing: int
    """Those whose kill is not confirmed yet."""
    paused: int
    """Those among `in_use` and `idle` that are known to be paused."""
    waiting: int
    """Callers that wait for a sandbox to become free."""
    degraded: int
    """1 while creates for the warm stock of some template fail again and again, else 0."""
    generation: int
    """How often the pool was drained."""
    opened: int
    """Calls of `session()` and `attach()` that got one."""
    reused: int
    """Those among them that met a live sandbox of their session."""
    from_warm: int
    """Those among them that got a warm one."""
    from_created: int
    """Those among them whose sandbox was created for them, or was being created."""
    attached: int
    """Those among them that took up a sandbox by `attach()`."""
    queued: int
    """Calls that could not be served at once: they waited for a place, for a create, or both."""
    timed_out: int
    refused: int
    """Calls that met PoolFull, PoolClosed or SessionConflict."""
    cancelled: int
    """Calls that went away before they had a session."""
    wait_seconds: float
    """The time that all calls which got a session took for it, added up."""
    wait_seconds_max: float
    """The longest of them."""
    in_use_seconds: float
    """The time for which sessions were held, added up over all holds that were given back."""
    created: int
    create_errors: int
    create_seconds: float
    """The time that all successful creates took, added up."""
    create_seconds_max: float
    """The longest of them."""
    ready_seconds: float
    """The time that it took to make new sandboxes their sessions' own (`files`), added up."""
    renewed: int
    paused_total: int
    """How often a sandbox was paused through this pool, or was found paused."""
    lost: int
    """Sandboxes that were gone, or reached the end of their life as idle sessions."""
    recovered: int
    """Lost ones that their sessions replaced, by `on_loss`."""
    evicted: int
    """Idle sessions, and warm ones, that were killed to make room."""
    wasted: int
    """Sandboxes that were killed, or ended, and that nobody ever held."""
    reaped: int
    """Sandboxes of processes that died, killed by `reap()`."""
    killed: int
    kill_errors: int


@dataclass(slots=True)
class Counters:
    """The counts of `PoolStats`."""

    opened: int = 0
    reused: int = 0
    from_warm: int = 0
    from_created: int = 0
    attached: int = 0
    queued: int = 0
    timed_out: int = 0
    refused: int = 0
    cancelled: int = 0
    wait_seconds: float = 0.0
    wait_seconds_max: float = 0.0
    in_use_seconds: float = 0.0
    created: int = 0
    create_errors: int = 0
    create_seconds: float = 0.0
    create_seconds_max: float = 0.0
    ready_seconds: float = 0.0
    renewed: int = 0
    paused_total: int = 0
    lost: int = 0
    recovered: int = 0
    evicted: int = 0
    wasted: int = 0
    reaped: int = 0
    killed: int = 0
    kill_errors: int = 0

    def count_opening(self, source: Source, duration: float) -> None:
        """Take in that a call of `session()` got one."""
        self.opened += 1
        self.reused += source == "reused"
        self.from_warm += source == "warm"
        self.from_created += source == "created"
        self.attached += source == "attached"
        self.wait_seconds += duration
        self.wait_seconds_max = max(self.wait_seconds_max, duration)

    def count_create(self, duration: float) -> None:
        """Take in that a create succeeded."""
        self.created += 1
        self.create_seconds += duration
        self.create_seconds_max = max(self.create_seconds_max, duration)

    def reset(self) -> None:
        """Count from zero again."""
        for name in fields(self):
            setattr(self, name.name, name.default)


def snapshot(policy: PoolPolicy, counters: Counters, *, paused: int, generation: int) -> PoolStats:
    """The statistics at this moment."""
    slots = list(policy.slots.values())
    now = {
        "max_live": policy.max_live,
        "live": len(slots),
        "creating": sum(s.state == "creating" for s in slots),
        "in_use": sum(s.state == "live" and not s.is_idle and not s.is_warm for s in slots),
        "idle": sum(s.is_idle for s in slots),
        "warm": sum(s.is_warm for s in slots),
        "killing": sum(s.state == "killing" for s in slots),
        "paused": paused,
        "waiting": len(policy.queued),
        "degraded": int(policy.is_degraded),
        "generation": generation,
    }
    stats: Any = {**now, **asdict(counters)}  # the fields of `Counters` are the rest of `PoolStats`: a test compares
    return cast(PoolStats, stats)


PICTURE = "# in use  = idle  o warm  + being made  x being killed  . free"
"""What the signs of `picture` mean."""
MOST_SIGNS = 60


def picture(policy: PoolPolicy) -> str:
    """The places of a pool, one sign each, such as `##=o+..`."""
    signs = sorted(_sign(slot) for slot in policy.slots.values())
    drawn = "".join(sorted(signs, key="#=o+x".index)) + "." * max(0, policy.max_live - len(signs))
    return drawn if len(drawn) <= MOST_SIGNS else f"{drawn[:MOST_SIGNS]}…"


def _sign(slot: Slot) -> str:
    if slot.state != "live":
        return "+" if slot.state == "creating" else "x"
    return "=" if slot.is_idle else "o" if slot.is_warm else "#"


PoolStats.__module__ = "sandboxkit"
