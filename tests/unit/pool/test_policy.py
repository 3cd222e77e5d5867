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
    Resize,
    Spec,
    Tick,
)
from sandboxkit.pool._policy import PoolPolicy
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


def test_who_was_not_granted_anything_cannot_accept_it() -> None:
    """An acceptance before the offer changes nothing: its caller still waits, and gets a refusal in time."""
    pool = policy()
    assert pool.step(ask(7, "a", until=5.0), 0.0) == [Create(1, "a", X)]
    assert pool.step(Accept(7), 1.0) == []
    assert pool.next_alarm() == 5.0
    assert pool.step(Tick(), 5.0) == [Refuse(7, "timeout")]


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
    assert pool.next_alarm() == 66.0
    assert pool.step(Tick(), 66.0) == [Renew(1)]
    assert pool.step(Renewed(1, 200.0), 70.0) == []
    assert pool.next_alarm() == 160.0
    pool.step(Tick(), 160.0)
    assert pool.step(Tick(), 200.0) == [Kill(1, "expired"), Create(2, None, X)]


def test_warm_ones_beyond_the_target_are_not_prolonged() -> None:
    """The oldest are those; they go with the floor left, and no others come in their place."""
    pool = policy(max_live=5, min_warm=(("y", 1), ("x", 2)), renew_margin=40.0, floor=10.0)
    pool.step(ask(1, "a", spec=Spec("x", None, (("t", "1"),))), 0.0)
    pool.step(Created(1), 0.0)
    pool.step(Accept(1), 0.0)
    assert [pool.slots[slot].spec.template for slot in (2, 3, 4)] == ["y", "x", "x"]
    for slot in (2, 3, 4):
        pool.step(Created(slot, 500.0 if slot == 2 else 97.0 + slot), 0.0)
    assert pool.surplus() == set()
    assert pool.next_alarm() == 60.0
    pool.step(Resize(min_warm=(("y", 1), ("x", 1))), 0.0)
    assert pool.surplus() == {3}
    assert pool.next_alarm() == 61.0
    assert pool.step(Tick(), 61.0) == [Renew(4)]
    assert pool.step(Renewed(4, 200.0), 61.0) == []
    assert pool.next_alarm() == 90.0
    assert pool.step(Tick(), 90.0) == [Kill(3, "retired")]
    pool.step(Resize(min_warm=(("y", 1),)), 91.0)
    assert pool.surplus() == {4}
    assert pool.next_alarm() == 190.0


def test_warm_ones_that_are_not_renewed_go_with_the_floor_left() -> None:
    """They are retired and replaced while as much is left as work may need."""
    pool = stocked(floor=25.0)
    assert pool.next_alarm() == 75.0
    assert pool.step(Tick(), 75.0) == [Kill(1, "retired"), Create(2, None, X)]


def test_warm_ones_that_are_renewed_live_to_their_end() -> None:
    """The floor is theirs who are not; a renewal is still to come."""
    pool = stocked(floor=25.0, renew_margin=40.0)
    assert pool.step(Tick(), 60.0) == [Renew(1)]
    assert pool.step(Tick(), 99.0) == []


def test_a_warm_one_for_a_caller_without_a_key_binds_none() -> None:
    """Two of them have two sandboxes."""
    pool = policy(min_warm=(("x", 2),))
    pool.step(Tick(), 0.0)
    for slot in (1, 2):
        pool.step(Created(slot), 0.0)
    assert pool.step(ask(1), 1.0)[0] == Grant(1, 1, "warm")
    assert pool.bound == {}
    assert pool.step(ask(2), 1.0) == [Grant(2, 2, "warm")]


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


def test_what_should_lie_warm_is_no_surplus() -> None:
    """idle_timeout concerns what is beyond the target."""
    pool = stocked(idle_timeout=10.0)
    assert pool.step(Tick(), 10.0) == []
    assert pool.step(Tick(), 20.0) == []
    assert pool.warm("x") == 1


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


def test_a_surplus_that_was_needed_begins_a_new_period() -> None:
    """What was used up in between did not lie unused for a whole period."""
    stock = Stock(1)
    stock.watch(0, 0.0, 10.0)
    assert stock.period_ends_at is None
    stock.watch(2, 1.0, 10.0)
    assert stock.period_ends_at == 11.0
    stock.watch(1, 5.0, 10.0)
    stock.watch(0, 6.0, 10.0)
    assert stock.shrink_by(11.0) == 0
    stock.watch(3, 12.0, 10.0)
    assert (stock.shrink_by(21.9), stock.shrink_by(22.0), stock.shrink_by(22.0)) == (0, 3, 0)
    stock.watch(3, 23.0, None)
    assert stock.period_ends_at is None


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


def test_a_lower_cap_makes_idle_sessions_go_though_nobody_waits() -> None:
    """As many as are too many, least recently used first."""
    pool = policy()
    for slot, key in ((1, "a"), (2, "b"), (3, "c")):
        pool.step(ask(slot, key), 0.0)
        pool.step(Created(slot), 0.0)
        pool.step(Accept(slot), 0.0)
    for slot in (2, 1, 3):
        pool.step(Leave(slot), float(slot == 1) + 2.0 * (slot == 3))
    assert pool.step(Resize(max_live=1), 5.0) == [Kill(2, "evicted"), Kill(1, "evicted")]
    assert pool.step(Resize(max_live=1), 6.0) == []


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


def test_a_lower_cap_of_a_template_makes_idle_ones_go_and_warm_ones_first() -> None:
    """As many as are too many; one that is held goes when it is released; those of other templates stay."""
    pool = policy(max_live=5, max_per_template=(("x", 4),), min_warm=(("x", 1),))
    pool.step(Tick(), 0.0)
    pool.step(Created(1), 0.0)
    for slot, key, spec in ((3, "a", Spec("x", None, (("t", "1"),))), (4, "b", Spec("y"))):
        pool.step(ask(slot, key, spec=spec), 0.0)
        pool.step(Created(pool.bound[key]), 0.0)
        pool.step(Accept(slot), 0.0)
    pool.step(Leave(4), 1.0)
    a, b = pool.bound["a"], pool.bound["b"]
    lower = Resize(max_per_template=(("x", 1),), min_warm=())
    assert pool.step(lower, 2.0) == [Kill(1, "evicted")]
    assert pool.step(lower, 3.0) == []
    assert pool.step(Resize(max_per_template=(("x", 0),)), 3.0) == []
    assert pool.step(Leave(3), 4.0) == [Kill(a, "evicted")]
    assert pool.slots[b].is_idle


def test_no_session_goes_for_who_could_not_use_its_place() -> None:
    """Two wait for a template that may have one more: one idle session of another goes, not two."""
    pool = policy(max_per_template=(("x", 2),))
    for slot, key, spec in ((1, "a", X), (2, "i", Spec("y")), (3, "j", Spec("y"))):
        pool.step(ask(slot, key, spec=spec), 0.0)
        pool.step(Created(slot), 0.0)
        pool.step(Accept(slot), 0.0)
    assert pool.step(ask(4, "b"), 1.0) == []
    assert pool.step(ask(5, "b"), 1.0) == [], "the same key waits for the same place"
    assert pool.step(ask(6, "c"), 1.0) == []
    pool.step(Leave(2), 2.0)
    assert pool.slots[2].state == "killing"
    assert pool.step(Leave(3), 3.0) == []
    assert pool.step(Killed(2), 4.0) == [Create(4, "b", X)]
    assert pool.slots[3].is_idle
