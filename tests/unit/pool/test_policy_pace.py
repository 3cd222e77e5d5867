"""The pool's pure decisions by exact example: what failures cost, and how fast creates follow each other."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxkit.pool._moves import (
    Abort,
    Accept,
    Acquire,
    Close,
    Create,
    Created,
    CreateFailed,
    Drain,
    Grant,
    Kill,
    Killed,
    Leave,
    Limits,
    Lost,
    Report,
    Spec,
    Tick,
)
from sandboxkit.pool._pace import Pace
from sandboxkit.pool._policy import PoolPolicy
from sandboxkit.pool._stock import Stock

X = Spec("x", (), ())


def policy(**limits: Any) -> PoolPolicy:
    return PoolPolicy(Limits(**{"max_live": 3, **limits}))


def ask(ticket: int, key: str | None = None, *, until: float = 30.0, **more: Any) -> Acquire:
    return Acquire(ticket=ticket, key=key, spec=more.pop("spec", Spec("x")), deadline=until, **more)


# -- failures -----------------------------------------------------------------------------------------------------


def test_a_stocks_failures_double_its_wait() -> None:
    """1, 2, 4 ... 60 s; degraded at the third; given up in time; a success ends it, and is told."""
    stock = Stock(1)
    now, waits = 0.0, []
    news = []
    for _ in range(9):
        news.append(stock.failed(asked_at=now, now=now, jitter=0.5, give_up_after=300.0))
        assert not stock.may_ask(now)
        waits.append((stock.wait_until or 0.0) - now)
        now = stock.wait_until or 0.0
        assert stock.may_ask(now)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert news == [None, None, "degraded", *[None] * 6]
    now = 300.0
    assert stock.failed(asked_at=now, now=now, jitter=0.5, give_up_after=300.0) == "gave_up"
    assert not stock.may_ask(1e9)
    assert stock.failed(asked_at=now, now=now, jitter=0.5, give_up_after=300.0) is None
    assert stock.succeeded() == "recovered"
    assert stock.succeeded() is None
    assert stock.may_ask(now)
    assert stock.failures == 0


def test_a_stock_is_given_up_so_long_after_its_first_failure() -> None:
    """Not so long after the pool was opened; a success begins anew."""
    stock = Stock(1)
    for begins_at in (1000.0, 5000.0):
        assert stock.failed(asked_at=begins_at, now=begins_at, jitter=0.5, give_up_after=30.0) is None
        later = begins_at + 29.0
        assert stock.failed(asked_at=later, now=later, jitter=0.5, give_up_after=30.0) is None
        stock.succeeded()
    for now, news in ((9000.0, None), (9030.0, "gave_up")):
        assert stock.failed(asked_at=now, now=now, jitter=0.5, give_up_after=30.0) == news


def test_a_closing_pool_waits_for_no_stock() -> None:
    """Its next look is due when a kill is tried again, and for nothing else."""
    pool = policy(min_warm=(("x", 1),))
    pool.step(Tick(), 0.0)
    pool.step(CreateFailed(1), 0.0)
    assert pool.next_alarm() == 1.0
    pool.step(Close(), 0.5)
    assert pool.next_alarm() is None


def test_a_wait_that_is_over_is_no_alarm() -> None:
    """When there is no place then, nothing is due until there is one."""
    pool = policy(min_warm=(("x", 1),), max_live=1)
    pool.step(Tick(), 0.0)
    pool.step(CreateFailed(1), 0.0)
    pool.step(ask(1, "a"), 0.5)
    pool.step(Created(2), 0.5)  # callers are served, and that ends the trouble
    pool.step(Accept(1), 0.5)
    assert pool.next_alarm() is None
    pool = policy(min_warm=(("x", 1),), max_live=1)
    pool.step(Tick(), 0.0)
    pool.step(CreateFailed(1), 0.0)
    pool.step(ask(1, "a", spec=Spec("y")), 0.5)
    pool.step(Created(2), 0.5)
    pool.step(Accept(1), 0.5)
    assert pool.next_alarm() == 1.0
    assert pool.step(Tick(), 1.0) == []
    assert pool.next_alarm() is None
    assert pool.step(Leave(1), 2.0) == []
    pool.step(Lost(2, "asked"), 3.0)
    assert pool.step(Killed(2), 4.0) == [Create(3, None, X)]


def test_a_drain_lets_a_template_that_failed_try_again() -> None:
    """Its own stock, or all; the others wait on."""
    pool = policy(min_warm=(("x", 1), ("y", 1)), give_up_after=0.0)
    pool.step(Tick(), 0.0)
    for slot in (1, 2):
        pool.step(CreateFailed(slot), 0.0)
    assert pool.step(Tick(), 100.0) == []
    assert pool.step(Drain("y"), 100.0) == [Create(3, None, Spec("y", (), ()))]
    assert pool.step(Drain(), 101.0) == [Abort(3), Create(4, None, X), Create(5, None, Spec("y", (), ()))]


def test_failures_that_were_under_way_together_count_once() -> None:
    """What was asked for before the last failure tells nothing new."""
    stock = Stock(2)
    stock.failed(asked_at=0.0, now=1.0, jitter=0.5, give_up_after=300.0)
    stock.failed(asked_at=0.5, now=1.1, jitter=0.5, give_up_after=300.0)
    assert stock.failures == 1
    stock.failed(asked_at=1.0, now=1.2, jitter=0.5, give_up_after=300.0)
    assert stock.failures == 2
    assert Stock(0).failed(asked_at=0.0, now=0.0, jitter=0.5, give_up_after=0.0) is None


@pytest.mark.parametrize(("jitter", "wait"), [(0.0, 0.9), (0.5, 1.0), (1.0, 1.1)])
def test_chance_spreads_the_waits(jitter: float, wait: float) -> None:
    """A tenth more or less, so that many pools do not ask at one moment."""
    stock = Stock(1)
    stock.failed(asked_at=0.0, now=0.0, jitter=jitter, give_up_after=300.0)
    assert stock.wait_until == pytest.approx(wait)


def test_a_failed_stock_waits_and_callers_do_not() -> None:
    """The policy asks again when the wait is over; a caller's create is asked for at once, and its success tells."""
    pool = policy(min_warm=(("x", 1),), give_up_after=5.0)
    pool.step(Tick(), 0.0)
    assert pool.step(CreateFailed(1), 0.0) == []
    assert pool.next_alarm() == 1.0
    assert pool.step(ask(7, "a"), 0.5) == [Create(2, "a", X)]
    assert pool.step(Tick(), 1.0) == [Create(3, None, X)]
    pool.step(CreateFailed(3), 1.0)
    assert pool.step(Tick(), 3.0) == [Create(4, None, X)]
    assert pool.step(CreateFailed(4), 3.0) == [Report("degraded", "x")]
    assert pool.is_degraded
    assert pool.step(Tick(), 7.0) == [Create(5, None, X)]
    assert pool.step(CreateFailed(5), 7.0) == [Report("gave_up", "x")]
    assert pool.next_alarm() == 30.0  # the caller's deadline, and nothing else
    assert pool.step(Created(2), 8.0) == [Report("recovered", "x"), Grant(7, 2, "created"), Create(6, None, X)]
    assert not pool.is_degraded


def test_what_was_given_up_on_purpose_is_no_failure() -> None:
    """An aborted create of the stock does not hold the next one back."""
    pool = policy(min_warm=(("x", 1),))
    pool.step(Tick(), 0.0)
    pool.step(Drain(), 0.0)
    pool.step(CreateFailed(1), 0.0)
    assert pool.stocks["x"].failures == 0


# -- pace ---------------------------------------------------------------------------------------------------------


def test_the_pace_allows_a_burst_and_then_the_rate() -> None:
    """Two a second: two at once, then one each half second; half a one a second: one each two."""
    pace, allowed = Pace(None, 2.0), []
    for tenth in range(31):
        while pace.allows(0, tenth / 10):
            pace.started(tenth / 10)
            allowed.append(tenth / 10)
    assert allowed[:2] == [0.0, 0.0]
    assert len(allowed) in (7, 8)
    slow = Pace(None, 0.5)
    assert slow.allows(99, 0.0)
    slow.started(0.0)
    assert not slow.allows(0, 1.9)
    assert slow.allows(0, 2.0)
    assert slow.free_at == 2.0


def test_the_pace_counts_those_under_way() -> None:
    """At most so many at once, whatever the time."""
    pace = Pace(2, None)
    pace.started(0.0)
    assert pace.allows(1, 0.0)
    assert not pace.allows(2, 0.0)
    assert pace.free_at == float("-inf")


def test_who_waits_for_the_pace_is_served_in_order() -> None:
    """The alarm is when the rate allows the next; the end of one under way lets the next in at once."""
    pool = policy(create_rate=1.0)
    assert pool.step(ask(1, "a"), 0.0) == [Create(1, "a", X)]
    assert pool.step(ask(2, "b"), 0.0) == []
    assert pool.step(ask(3, "c"), 0.0) == []
    assert pool.next_alarm() == 1.0
    assert pool.step(Tick(), 1.0) == [Create(2, "b", X)]
    assert pool.next_alarm() == 2.0
    assert pool.step(Tick(), 2.0) == [Create(3, "c", X)]
    assert pool.next_alarm() == 30.0
    pool = policy(max_creating=1, create_rate=1.0)
    pool.step(ask(1, "a"), 0.0)
    assert pool.step(ask(2, "b"), 1.0) == []
    assert pool.next_alarm() == 30.0, "the rate would allow it now"
    pool = policy(max_creating=1)
    pool.step(ask(1, "a"), 0.0)
    assert pool.step(ask(2, "b"), 0.0) == []
    assert pool.next_alarm() == 30.0
    assert pool.step(Created(1), 0.5) == [Grant(1, 1, "created"), Create(2, "b", X)]


def test_the_stock_waits_for_the_pace_too() -> None:
    """It asks for one at a time where only one may be made at a time, and after callers."""
    pool = policy(min_warm=(("x", 2),), max_creating=1)
    assert pool.step(Tick(), 0.0) == [Create(1, None, X)]
    assert pool.step(Created(1), 1.0) == [Create(2, None, X)]
    pool = policy(min_warm=(("x", 2),), create_rate=1.0)
    assert pool.step(Tick(), 0.0) == [Create(1, None, X)]
    assert pool.next_alarm() == 1.0
    assert pool.step(ask(5, spec=Spec("y")), 0.5) == []
    assert pool.step(Tick(), 1.0) == [Create(2, None, Spec("y", (), ()))]


def test_who_waits_for_the_pace_and_loses_the_place_has_another_made() -> None:
    """The last place goes to one whom the pace does not hold back (attach): a warm one goes for who waits."""
    pool = PoolPolicy(Limits(max_live=2, min_warm=(("y", 1),), create_rate=0.5))
    assert pool.step(Tick(), 0.0) == [Create(1, None, Spec("y", (), ()))]
    pool.step(Created(1), 0.0)
    x = Spec("x", (), ())
    assert pool.step(Acquire(ticket=1, key="a", spec=x, deadline=30.0), 0.1) == []
    adopted = Acquire(ticket=2, key="b", spec=x, deadline=30.0, adopt="sbx")
    assert pool.step(adopted, 0.2) == [Create(2, "b", x, "sbx"), Kill(1, "evicted")]
