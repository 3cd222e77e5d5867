"""Decides when a sandbox's life is prolonged; pure."""

from __future__ import annotations

from sandboxkit._types import TimeoutPolicy

RENEW_SLACK = 30.0


def renewal(policy: TimeoutPolicy, *, remaining: float | None, work: float) -> float | None:
    """Say for how many seconds from now a sandbox should be made to live before a use, None to leave it alone.

    `remaining` is how long it lives as far as is known, None if nothing is; `work` is the time limit of what is about
    to run. A renewal is only ever longer than what remains. It is left out while nearly the whole lifetime is left
    (30 seconds or a tenth of it have not passed yet), unless less than `policy.floor` or than the work may take
    remains.
    """
    if policy.renew == "never":
        return None
    wanted = max(policy.lifetime, policy.floor, work)
    if remaining is None:
        return wanted
    slack = min(RENEW_SLACK, policy.lifetime / 10)
    if remaining >= wanted - slack and remaining >= max(policy.floor, work):
        return None
    return wanted if wanted > remaining else None
