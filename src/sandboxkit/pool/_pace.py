"""Decides whether one more create may be asked for now: so many at once, so many a second; pure."""

from __future__ import annotations


class Pace:
    """At most `most` creates under way; at most `rate` of them a second, after a burst of one second's worth."""

    def __init__(self, most: int | None, rate: float | None) -> None:
        self._most = most
        self._rate = rate
        self._due_at = float("-inf")
        """When all creates so far would have been asked for, had they come evenly."""
        self.free_at = float("-inf")
        """When the rate allows the next one."""

    def allows(self, under_way: int, now: float) -> bool:
        """Whether one more may be asked for."""
        return (self._most is None or under_way < self._most) and now >= self.free_at

    def started(self, now: float) -> None:
        """Take in that one was asked for."""
        if self._rate is None:
            return
        burst = max(1.0, self._rate)
        self._due_at = max(self._due_at, now) + 1 / self._rate
        self.free_at = self._due_at - (burst - 1) / self._rate
