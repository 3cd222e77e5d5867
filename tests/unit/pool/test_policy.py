"""The pool's pure decisions by exact example: what is answered to which event, and when the next look is due."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxkit.pool._moves import (
    Abort,
    Accept,
    Acquire,
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
    Refuse,
    Renew,
    Renewed,
    RenewFailed,
    Report,
    Resize,
    Spec,
    Tick,
)
from sandboxkit.pool._pace import Pace
from sandboxkit.pool._policy import RENEW_RETRY, PoolPolicy
from sandboxkit.pool._stock import Stock

X = Spec("x", (), ())


def policy(**limits: Any) -> PoolPolicy:
    return PoolPolicy(Limits(**{"max_live": 3, **limits}))


def ask(ticket: int, key: str | None = None, *, until: float = 30.0, **more: Any) -> Acquire:
    return Acquire(ticket=ticket, key=key, spec=more.pop("spec", Spec("x")), deadline=until, **more)


def stocked(**limits: Any) -> PoolPolicy:
    """A policy with one warm sandbox, slot 1, that ends at 100."""
    pool = policy(min_warm=(("x", 1),), **limits)
    assert pool.step(Tick(), 0.0) == [Create(1, None, X)]
    assert pool.step(Created(1, 100.0), 0.0) == []
    return pool


# -- the stock ----------------------------------------------------------------------------------------------------


def test_the_stock_is_asked_for_once() -> None:
    """One create for each that is missing; none while they are under way, or there."""
    pool = policy(min_warm=(("x", 2), ("y", 1)))
    assert pool.step(Tick(), 0.0) == [Create(1, None, X), Create(2, None, X), Create(3, None, Spec("y", (), ()))]
    assert pool.step(Tick(), 1.0) == []
    assert not pool.is_ready
    for slot in (1, 2, 3):
        pool.step(Created(slot), 1.0)
    assert pool.is_ready
    assert (pool.warm("x"), pool.warm("y")) == (2, 1)


def test_a_warm_one_is_granted_and_replaced() -> None:
    """It becomes the asker's; another is made for the stock; released, it is that session's and not warm."""
    pool = stocked()
    assert pool.step(ask(7, "a"), 1.0) == [Grant(7, 1, "warm"), Create(2, None, X)]
    assert pool.slots[1].key == "a"
    assert pool.step(Accept(7), 1.0) == []
    pool.step(Leave(7), 2.0)
    assert pool.slots[1].is_idle
    assert pool.step(ask(8, "a"), 3.0) == [Grant(8, 1, "reused")]
    assert pool.slots[1].uses == 1


def test_a_warm_one_that_nobody_accepted_is_warm_again() -> None:
    """Its key is unbound, and whoever comes next may have it."""
    pool = stocked()
    pool.step(ask(7, "a", spec=Spec("x", (("N", "1"),))), 1.0)
    assert pool.slots[1].spec == Spec("x", (("N", "1"),), ())
    pool.step(Leave(7), 1.5)
    assert pool.bound == {}
    assert (pool.slots[1].key, pool.slots[1].spec) == (None, X)
    assert pool.step(ask(8, "b"), 2.0)[0] == Grant(8, 1, "warm")


def test_one_that_is_being_made_for_the_stock_serves_who_comes_first() -> None:
    """The ticket waits for it and gets it as warm, for it is blank; the stock asks for one more."""
    pool = policy(min_warm=(("x", 1),))
    pool.step(Tick(), 0.0)
    assert pool.step(ask(7, "a"), 0.5) == [Create(2, None, X)]
    assert pool.step(Created(1), 1.0) == [Grant(7, 1, "warm")]


def test_the_oldest_warm_one_that_is_there_goes_first() -> None:
    """Live before under way, and the one that was made first."""
    pool = policy(min_warm=(("x", 3),), max_live=5)
    pool.step(Tick(), 0.0)
    pool.step(Created(2), 0.1)
    pool.step(Created(3), 0.2)
    assert pool.step(ask(7), 1.0)[0] == Grant(7, 2, "warm")


@pytest.mark.parametrize(
    ("spec", "adopt"), [(Spec("y"), None), (Spec("x", None, (("t", "1"),)), None), (Spec("x"), "sbx")]
)
def test_who_cannot_have_a_warm_one(spec: Spec, adopt: str | None) -> None:
    """Another template, tags of its own, or a sandbox that is there already: one is asked for."""
    pool = stocked()
    assert pool.step(ask(7, "a", spec=spec, adopt=adopt), 1.0) == [Create(2, "a", spec.made, adopt)]


def test_warm_ones_are_renewed_before_their_end() -> None:
    """At the margin, once at a time; a failure is tried again later; the end is the end."""
    pool = stocked(renew_margin=40.0)
    assert pool.next_alarm() == 60.0
    assert pool.step(Tick(), 59.9) == []
    assert pool.step(Tick(), 60.0) == [Renew(1)]
    assert pool.next_alarm() == 100.0
    assert pool.step(RenewFailed(1), 61.0) == []
    assert pool.next_alarm() == 61.0 + RENEW_RETRY
    assert pool.step(Tick(), 61.0 + RENEW_RETRY) == [Renew(1)]
    assert pool.step(Renewed(1, 200.0), 70.0) == []
    assert pool.next_alarm() == 160.0
    pool.step(Tick(), 160.0)
    assert pool.step(Tick(), 200.0) == [Kill(1, "expired"), Create(2, None, X)]


def test_warm_ones_that_are_not_renewed_go_with_the_floor_left() -> None:
    """They are retired and replaced while as much is left as work may need."""
    pool = stocked(floor=25.0)
    assert pool.next_alarm() == 75.0
    assert pool.step(Tick(), 75.0) == [Kill(1, "retired"), Create(2, None, X)]


def test_warm_ones_that_are_too_old_for_a_session_go() -> None:
    """The reserve before their retirement is left to whoever gets one."""
    pool = policy(min_warm=(("x", 1),), warm_reserve=30.0, renew_margin=1.0)
    pool.step(Tick(), 0.0)
    pool.step(Created(1, 100.0, 90.0), 0.0)
    assert pool.next_alarm() == 60.0
    assert pool.step(Tick(), 60.0) == [Kill(1, "retired"), Create(2, None, X)]


def test_a_lower_target_keeps_what_is_there_and_a_drain_does_not() -> None:
    """resize makes no more; drain kills the warm, and aborts those under way."""
    pool = stocked()
    assert pool.step(Resize(min_warm=()), 1.0) == []
    assert pool.warm("x") == 1
    assert pool.step(Resize(min_warm=(("x", 2),)), 1.0) == [Create(2, None, X)]
    assert pool.step(Drain("y"), 2.0) == []
    assert pool.step(Drain("x"), 2.0) == [Kill(1, "drained"), Abort(2), Create(3, None, X)]
    assert pool.step(Killed(1), 2.0) == [Create(4, None, X)]
    assert pool.step(CreateFailed(2), 2.0) == []


def test_an_anonymous_sandbox_like_new_joins_the_stock() -> None:
    """One that nobody took is warm, if its template has a stock; one with an environment is killed."""
    pool = stocked(max_live=6)
    pool.step(ask(7), 1.0)
    pool.step(Accept(7), 1.0)
    pool.step(ask(8), 1.0)  # takes 2, which is under way
    pool.step(ask(9), 1.0)  # takes 3
    for slot in (2, 3, 4):
        pool.step(Created(slot), 2.0)
    pool.step(Leave(9), 3.0)
    assert pool.slots[3].is_warm
    pool.step(ask(10, spec=Spec("x", None, (("t", "1"),))), 3.0)
    pool.step(Created(5), 3.0)
    assert pool.step(Leave(10), 3.0) == [Kill(5, "abandoned")]


def test_what_was_made_for_an_anonymous_caller_joins_a_stock_and_a_sessions_does_not() -> None:
    """Both callers went away; the stock was asked for meanwhile."""
    pool = policy(max_live=2)
    pool.step(ask(1), 0.0)
    pool.step(ask(2, "a"), 0.0)
    pool.step(Resize(min_warm=(("x", 1),)), 0.0)
    pool.step(Created(1), 1.0)
    pool.step(Created(2), 1.0)
    assert pool.step(Leave(1), 2.0) == []
    assert pool.slots[1].is_warm
    assert pool.step(Leave(2), 2.0) == [Kill(2, "abandoned")]


def test_only_the_surplus_of_a_whole_period_is_shrunk() -> None:
    """The least surplus of the period goes at its end; the next period begins with what is left."""
    pool = policy(min_warm=(("x", 3),), idle_timeout=10.0)
    pool.step(Tick(), 0.0)
    for slot in (1, 2, 3):
        pool.step(Created(slot), 0.0)
    pool.step(Resize(min_warm=()), 1.0)
    assert pool.next_alarm() == 11.0
    pool.step(ask(7), 5.0)
    pool.step(Leave(7), 6.0)
    assert pool.step(Tick(), 11.0) == [Kill(1, "shrunk"), Kill(2, "shrunk")]
    assert pool.next_alarm() == 21.0
    assert pool.step(Tick(), 21.0) == [Kill(3, "shrunk")]


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


# -- places -------------------------------------------------------------------------------------------------------


def test_a_templates_cap_holds_only_its_own_back() -> None:
    """Who waits for a template's place is passed by others, and makes only an idle one of its own template go."""
    pool = policy(max_per_template=(("y", 1),))
    y = Spec("y")
    pool.step(ask(1, "a", spec=y), 0.0)
    pool.step(Created(1), 0.0)
    pool.step(Accept(1), 0.0)
    pool.step(ask(2, "i"), 0.0)
    pool.step(Created(2), 0.0)
    pool.step(Accept(2), 0.0)
    pool.step(Leave(2), 0.0)
    assert pool.step(ask(3, "b", spec=y), 0.0) == []
    assert pool.step(ask(4, "c"), 0.0) == [Create(3, "c", X)]
    assert pool.step(Leave(1), 1.0) == [Kill(1, "evicted")]
    assert pool.step(Killed(1), 2.0) == [Create(4, "b", y.made)]
    assert pool.slots[2].is_idle


@pytest.mark.parametrize("keys", [(None, None), ("c", "d")])
def test_as_many_idle_sessions_go_as_are_waited_for(keys: tuple[str | None, str | None]) -> None:
    """One for each caller without a key; one for all callers of a key."""
    pool = policy(max_live=2)
    for slot, key in ((1, "a"), (2, "b")):
        pool.step(ask(slot, key), 0.0)
        pool.step(Created(slot), 0.0)
        pool.step(Accept(slot), 0.0)
        pool.step(Leave(slot), 0.0)
    assert pool.step(ask(3, keys[0]), 1.0) == [Kill(1, "evicted")]
    if keys[0] is not None:
        assert pool.step(ask(4, keys[0]), 1.0) == []
    assert pool.step(ask(5, keys[1]), 1.0) == [Kill(2, "evicted")]


def test_a_templates_cap_changes_at_run_time() -> None:
    """Who waited for it is served by a higher one; None leaves it as it is."""
    pool = policy(max_per_template=(("x", 1),))
    pool.step(ask(1, "a"), 0.0)
    assert pool.step(ask(2, "b"), 0.0) == []
    assert pool.step(Resize(max_live=5), 0.0) == []
    assert pool.step(Resize(max_per_template=(("x", 2),)), 0.0) == [Create(2, "b", X)]
    assert pool.step(ask(3, "c"), 0.0) == []


def test_full_counts_callers_beyond_what_can_be_had() -> None:
    """max_waiting is about callers who wait for users; warm and idle ones can be had; a retry is never turned away."""
    pool = stocked(max_waiting=0, max_live=1)
    assert pool.step(ask(1, "a"), 0.0) == [Grant(1, 1, "warm")]
    pool.step(Accept(1), 0.0)
    assert pool.step(ask(2, "b"), 0.0) == [Refuse(2, "full")]
    assert pool.step(ask(3, "a"), 0.0) == [Grant(3, 1, "reused")]
    assert pool.step(ask(4, "b", place=2), 0.0) == []
    pool = policy(max_waiting=1, max_per_template=(("x", 1),))
    pool.step(ask(1), 0.0)
    assert pool.step(ask(2), 0.0) == []
    assert pool.step(ask(3), 0.0) == [Refuse(3, "full")]
    assert pool.step(ask(4, spec=Spec("y")), 0.0) == [Create(2, None, Spec("y", (), ()))]


def test_warm_ones_go_before_sessions_and_those_under_way_first() -> None:
    """The stock holds nobody's work."""
    pool = policy(min_warm=(("x", 2),))
    pool.step(Tick(), 0.0)
    pool.step(Created(1), 0.0)
    pool.step(ask(1, "i", spec=Spec("y")), 0.0)
    pool.step(Created(3), 0.0)
    pool.step(Accept(1), 0.0)
    pool.step(Leave(1), 0.0)
    assert pool.step(ask(2, "b", spec=Spec("y")), 1.0) == [Abort(2)]
    assert pool.step(ask(3, "c", spec=Spec("y")), 1.0) == [Kill(1, "evicted")]
    assert pool.step(ask(4, "d", spec=Spec("y")), 1.0) == [Kill(3, "evicted")]


def test_a_retry_keeps_its_place() -> None:
    """Whoever met a dead sandbox at its hand-over is not sent to the end of the queue."""
    pool = policy(max_live=1)
    pool.step(ask(1, "a"), 0.0)
    pool.step(ask(2, "b"), 0.0)
    pool.step(Created(1), 0.0)
    pool.step(Lost(1), 0.0)
    pool.step(Leave(1), 0.0)
    pool.step(ask(3, "a", place=1), 0.0)
    assert [t.id for t in pool.queued] == [3, 2]
    assert pool.step(Killed(1), 1.0) == [Create(2, "a", X)]


def test_a_refusal_frees_what_it_was_promised_for_those_before_it() -> None:
    """A warm one that a replaced ticket was waiting for goes to who is first in the queue."""
    pool = policy(min_warm=(("x", 1),), max_creating=1)
    pool.step(Tick(), 0.0)
    pool.step(ask(1, "b"), 0.0)
    pool.step(ask(2), 0.0)
    out = pool.step(ask(3, "b", spec=Spec("y"), replace=True), 0.0)
    assert Refuse(1, "conflict", 1) in out
    assert pool.tickets[2].slot == 1
