"""Decides when a sandbox's life is prolonged, and when it is too old; pure."""

from __future__ import annotations

from sandboxkit._types import TimeoutPolicy

RENEW_SLACK = 30.0
RETIRE_JITTER = 0.05
"""The part of `max_lifetime` by which sandboxes are retired early, at most: so that those of a burst do not all go at
once."""


def renewal(policy: TimeoutPolicy, *, remaining: float | None, work: float, left: float | None = None) -> float | None:
    """Say for how many seconds from now a sandbox should be made to live before a use, None to leave it alone.

    `remaining` is how long it lives as far as is known, None if nothing is; `work` is the time limit of what is about
    to run, which counts for nothing where a heartbeat will prolong it meanwhile; `left` is how long it may live yet
    (`max_lifetime`). A renewal is only ever longer than what remains. It is left out while nearly the whole lifetime
    is left (30 seconds or a tenth of it have not passed yet), unless less than `policy.floor` or than the work may
    take remains.
    """
    if policy.renew == "never":
        return None
    needed = policy.floor if policy.renew == "heartbeat" else max(policy.floor, work)
    wanted = max(policy.lifetime, needed)
    if left is not None:
        wanted, needed = min(wanted, left), min(needed, left)
    if remaining is None:
        return wanted if wanted > 0 else None
    slack = min(RENEW_SLACK, policy.lifetime / 10)
    return None if remaining >= wanted - slack and remaining >= needed else wanted


def retire_after(policy: TimeoutPolicy, *, jitter: float) -> float | None:
    """Seconds from its creation after which a sandbox starts nothing any more, None if it may grow old.

    The floor lies behind it: what starts at the last moment has that much. `jitter` is a random number in [0, 1).
    """
    if policy.max_lifetime is None:
        return None
    return policy.max_lifetime * (1 - RETIRE_JITTER * jitter) - policy.floor


def warm_margin(policy: TimeoutPolicy) -> float | None:
    """Seconds before their end at which warm sandboxes are prolonged, None if they are not."""
    if policy.renew == "never":
        return None
    return min(max(policy.floor, policy.lifetime / 2), policy.lifetime * 0.9)


def beat_every(policy: TimeoutPolicy) -> float | None:
    """Seconds between two heartbeats: two may fail before a life ends. None: there are none."""
    return policy.lifetime / 3 if policy.renew == "heartbeat" else None
