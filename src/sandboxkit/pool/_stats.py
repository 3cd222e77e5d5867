"""Counts what the pool does."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

from sandboxkit.pool._policy import PoolPolicy


class PoolStats(TypedDict):
    """What `stats()` and `pop_stats()` return. The first seven are the state now, the rest count since the start (or
    since the last `pop_stats()`)."""

    max_live: int
    """The cap."""
    live: int
    """Sandboxes that count towards the cap: the four below together."""
    creating: int
    in_use: int
    idle: int
    """Released sessions whose sandboxes are kept."""
    killing: int
    """Those whose kill is not confirmed yet."""
    waiting: int
    """Callers that wait for a sandbox to become free."""
    opened: int
    """Calls of `session()` that got one."""
    reused: int
    """Those among them that met a live sandbox of their session."""
    timed_out: int
    refused: int
    """Calls that met PoolFull, PoolClosed or SessionConflict."""
    cancelled: int
    """Calls that went away before they had a session."""
    wait_seconds: float
    """The time that all calls which got a session took for it, added up."""
    created: int
    create_errors: int
    create_seconds: float
    """The time that all successful creates took, added up."""
    renewed: int
    lost: int
    """Sandboxes that were gone, or reached the end of their life as idle sessions."""
    evicted: int
    """Idle sessions that were killed to make room."""
    killed: int
    kill_errors: int


@dataclass(slots=True)
class Counters:
    """The counts of `PoolStats`."""

    opened: int = 0
    reused: int = 0
    timed_out: int = 0
    refused: int = 0
    cancelled: int = 0
    wait_seconds: float = 0.0
    created: int = 0
    create_errors: int = 0
    create_seconds: float = 0.0
    renewed: int = 0
    lost: int = 0
    evicted: int = 0
    killed: int = 0
    kill_errors: int = 0

    def reset(self) -> None:
        """Count from zero again."""
        for name in fields(self):
            setattr(self, name.name, name.default)


def snapshot(policy: PoolPolicy, counters: Counters) -> PoolStats:
    """The statistics at this moment."""
    slots = list(policy.slots.values())
    return PoolStats(
        max_live=policy.max_live,
        live=len(slots),
        creating=sum(s.state == "creating" for s in slots),
        in_use=sum(s.state == "live" and not s.is_idle for s in slots),
        idle=sum(s.is_idle for s in slots),
        killing=sum(s.state == "killing" for s in slots),
        waiting=len(policy.queued),
        opened=counters.opened,
        reused=counters.reused,
        timed_out=counters.timed_out,
        refused=counters.refused,
        cancelled=counters.cancelled,
        wait_seconds=counters.wait_seconds,
        created=counters.created,
        create_errors=counters.create_errors,
        create_seconds=counters.create_seconds,
        renewed=counters.renewed,
        lost=counters.lost,
        evicted=counters.evicted,
        killed=counters.killed,
        kill_errors=counters.kill_errors,
    )


PoolStats.__module__ = "sandboxkit"
