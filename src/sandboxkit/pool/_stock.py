"""Decides how many warm sandboxes of a template there should be, and when to stop asking for them; pure.

**Shrinking.** More than `target` of a template can be warm, when a caller went away before it took the sandbox that
was made for it, or after `min_warm` was lowered. As many are killed as stayed unused for a whole period, no more: a
sandbox that is needed now and then is not killed and made again each time. Where no period is set, the surplus is not
prolonged, and goes with its lifetime.

**Failures.** Each failed create of a stocked template doubles the wait before the pool asks again for its stock; those
that were under way together count once. From the third on the template is *degraded*, and after `give_up_after`
seconds without one success the pool *gives up* its stock. Callers are not held back by either: each one's create is
a try of its own, and the first that succeeds ends the trouble. So does a new target, and a drain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sandboxkit.pool._moves import News

WAIT_FIRST, WAIT_MOST, WAIT_JITTER = 1.0, 60.0, 0.1
"""Seconds between tries of a stock's create; the jitter is the part of it that chance adds or takes."""
DEGRADED_AFTER = 3


@dataclass(slots=True)
class Stock:
    """The stock of one template."""

    target: int
    stage: Literal["well", "degraded", "given_up"] = "well"
    failures: int = 0
    failing_since: float = 0.0
    failed_at: float = float("-inf")
    wait_until: float | None = None
    period_ends_at: float | None = None
    surplus: int = 0
    """How many more than the target lay warm when last looked at."""
    least: int = 0
    """The smallest surplus of the period."""

    def may_ask(self, now: float) -> bool:
        """Whether a create for the stock may be tried now."""
        return self.stage != "given_up" and (self.wait_until is None or now >= self.wait_until)

    def failed(self, *, asked_at: float, now: float, jitter: float, give_up_after: float) -> News | None:
        """Take in a failed create that was asked for at `asked_at`; what is to be told about it."""
        if self.target == 0 or self.stage == "given_up" or (self.failures and asked_at < self.failed_at):
            return None
        if self.failures == 0:
            self.failing_since = now
        self.failures += 1
        self.failed_at = now
        wait = min(WAIT_FIRST * 2.0 ** min(self.failures - 1, 30), WAIT_MOST)
        self.wait_until = now + wait * (1 - WAIT_JITTER + 2 * WAIT_JITTER * jitter)
        if now - self.failing_since >= give_up_after:
            self.stage, self.wait_until = "given_up", None
            return "gave_up"
        if self.failures == DEGRADED_AFTER:
            self.stage = "degraded"
            return "degraded"
        return None

    def succeeded(self) -> News | None:
        """Take in a create that succeeded."""
        was, self.stage, self.failures, self.wait_until = self.stage, "well", 0, None
        return None if was == "well" else "recovered"

    def watch(self, surplus: int, now: float, period: float | None) -> None:
        """Take in how many more than the target lie warm."""
        self.surplus = surplus
        if period is None or surplus <= 0:
            self.period_ends_at = None
        elif self.period_ends_at is None:
            self.period_ends_at, self.least = now + period, surplus
        else:
            self.least = min(self.least, surplus)

    def shrink_by(self, now: float) -> int:
        """How many of the surplus go now; more than 0 once at the end of each period."""
        if self.period_ends_at is None or now < self.period_ends_at:
            return 0
        self.period_ends_at = None
        return self.least
