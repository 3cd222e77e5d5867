"""The pool's pure decisions by exact example: how sandboxes end, change hands, and how long they live."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxkit._types import TimeoutPolicy
from sandboxkit.pool._lifetime import beat_every, renewal, retire_after, warm_margin
from sandboxkit.pool._moves import (
    Abort,
    Accept,
    Acquire,
    Close,
    Create,
    Created,
    CreateFailed,
    Detach,
    Drain,
    Grant,
    Kill,
    Killed,
    KillFailed,
    Leave,
    LetGo,
    Limits,
    Lost,
    Refuse,
    Renewed,
    RenewFailed,
    Spec,
    Tick,
)
from sandboxkit.pool._policy import PoolPolicy

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


# -- the ends -----------------------------------------------------------------------------------------------------


def held(pool: PoolPolicy, *, end_at: float | None = 100.0, retire_at: float | None = None) -> None:
    """Ticket 1 holds slot 1 of session a."""
    pool.step(ask(1, "a"), 0.0)
    pool.step(Created(1, end_at, retire_at), 0.0)
    pool.step(Accept(1), 0.0)


@pytest.mark.parametrize(
    ("limits", "retire_at", "at", "reason"),
    [
        ({}, None, 100.0, "expired"),
        ({}, 80.0, 80.0, "retired"),
        ({"idle_timeout": 30.0}, None, 40.0, "shrunk"),
        ({"idle_timeout": 95.0}, None, 100.0, "expired"),
        ({"pauses": True, "idle_timeout": 200.0}, None, 210.0, "shrunk"),
        ({"pauses": True}, 150.0, 150.0, "retired"),
    ],
)
def test_an_idle_session_ends(limits: dict[str, Any], retire_at: float | None, at: float, reason: Any) -> None:
    """By its lifetime, its age, or lying unused; where the end of a life is a pause, not by that."""
    pool = policy(**limits)
    held(pool, retire_at=retire_at)
    assert pool.next_alarm() is None, "held"
    pool.step(Leave(1), 10.0)
    assert pool.next_alarm() == at
    assert pool.step(Tick(), at - 0.1) == []
    assert pool.step(Tick(), at) == [Kill(1, reason)]


@pytest.mark.parametrize(
    ("limits", "retire_at", "at", "reason"),
    [({"max_uses": 1}, None, 5.0, "worn"), ({"keeps_idle": False}, None, 5.0, "released"), ({}, 5.0, 5.0, "retired")],
)
def test_what_is_not_kept_when_it_is_released(
    limits: dict[str, Any], retire_at: float | None, at: float, reason: Any
) -> None:
    """Worn out, of a null pool, or too old."""
    pool = policy(**limits)
    held(pool, retire_at=retire_at)
    assert pool.step(Leave(1), at) == [Kill(1, reason)]


def test_what_is_gone_before_it_is_taken_is_nobodys() -> None:
    """Lost and killed between the offer and the Accept: that changes nothing, nor does the Leave after it."""
    pool = policy()
    pool.step(ask(1, "a"), 0.0)
    assert pool.step(Created(1), 0.0) == [Grant(1, 1, "created")]
    assert pool.step(Lost(1), 0.0) == [Kill(1, "lost")]
    assert pool.step(Killed(1), 0.0) == []
    assert pool.step(Accept(1), 0.0) == []
    assert pool.step(Leave(1), 0.0) == []
    assert (pool.slots, pool.tickets, pool.bound) == ({}, {}, {})


def test_news_of_what_is_not_there_change_nothing() -> None:
    """Of slots that are forgotten or being killed, of tickets that were never asked, or not answered yet."""
    pool = policy(max_live=1)
    held(pool)
    for news in (Lost(9), Detach(9), Renewed(9, 5.0), RenewFailed(9), Accept(9), Leave(9)):
        assert pool.step(news, 1.0) == []
    pool.step(ask(2, "b"), 1.0)
    assert pool.step(Accept(2), 1.0) == []
    assert pool.next_alarm() == 30.0, "it waits on"
    pool.step(Lost(1, "asked"), 2.0)
    assert pool.step(Detach(1), 2.0) == []
    assert pool.step(Lost(1), 2.0) == []
    assert pool.slots[1].state == "killing"


def test_one_that_is_being_made_waits_for_who_wants_the_same() -> None:
    """Its caller went away; it is promised to nobody before it is there, and then to the first who fits."""
    pool = policy(max_live=1)
    pool.step(ask(1), 0.0)
    pool.step(ask(2), 0.0)
    assert pool.step(Leave(1), 1.0) == []
    assert pool.step(Created(1), 2.0) == [Grant(2, 1, "created")]


def test_uses_are_counted_by_openings() -> None:
    """With two uses the first release keeps it."""
    pool = policy(max_uses=2)
    held(pool)
    assert pool.step(Leave(1), 1.0) == []
    pool.step(ask(2, "a"), 2.0)
    pool.step(Accept(2), 2.0)
    assert pool.step(Leave(2), 3.0) == [Kill(1, "worn")]


def test_kills_are_tried_again() -> None:
    """After 1, 2, 4 ... 60 s, half a second while closing; the place is taken meanwhile; an unsure one is given up."""
    pool = policy()
    held(pool)
    pool.step(Lost(1, "asked"), 0.0)
    now, waits = 0.0, []
    for attempt in range(2, 10):
        pool.step(KillFailed(1), now)
        due = pool.next_alarm() or 0.0
        waits.append(due - now)
        now = due
        assert pool.step(Tick(), now) == [Kill(1, "asked", attempt)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    pool.step(KillFailed(1), now)
    pool.step(Close(), now)
    assert pool.next_alarm() == now + 0.5
    pool.step(Tick(), now + 0.5)
    pool.step(KillFailed(1), now + 0.5)
    assert pool.next_alarm() == now + 1.0
    assert pool.step(Killed(1), now + 0.7) == []
    assert pool.slots == {}

    pool = policy()
    pool.step(ask(1, "a"), 0.0)
    assert pool.step(CreateFailed(1, is_unsure=True), 0.0) == [Refuse(1, "create_failed", 1), Kill(1, "abandoned")]
    now = 0.0
    for _ in range(3):
        pool.step(KillFailed(1), now)
        now = pool.next_alarm() or 0.0
        pool.step(Tick(), now)
    pool.step(KillFailed(1), now)
    assert pool.slots == {}


def test_what_is_known_to_be_there_is_killed_however_long_it_takes() -> None:
    """Once the search has found a sandbox, it is not given up; nor does any number of attempts end in an error."""
    pool = policy()
    pool.step(ask(1, "a"), 0.0)
    pool.step(CreateFailed(1, is_unsure=True), 0.0)
    pool.step(KillFailed(1, is_there=True), 0.0)
    for attempt in range(2, 1200):
        now = pool.next_alarm() or 0.0
        assert pool.step(Tick(), now) == [Kill(1, "abandoned", attempt)]
        pool.step(KillFailed(1), now)
    assert pool.next_alarm() == now + 60.0
    pool.step(Tick(), now + 60.0)
    assert pool.step(Killed(1), now + 61.0) == []
    assert pool.slots == {}


def test_adopting() -> None:
    """A sandbox that is there already is asked for whatever the pace; given up, it is let go of; held, it is ours."""
    pool = policy(create_rate=0.1)
    assert pool.step(ask(8, "d", adopt="u"), 0.0) == [Create(1, "d", X, "u")]
    assert pool.step(ask(1, "a"), 0.0) == [Create(2, "a", X)], "adopting costs the pace nothing"
    assert pool.step(CreateFailed(1), 0.0) == [Refuse(8, "create_failed", 1)]
    assert pool.step(ask(2, "b", adopt="s"), 0.0) == [Create(3, "b", X, "s")]
    assert pool.step(ask(3, "c", adopt="s"), 0.0) == [Refuse(3, "conflict", 3)]
    assert pool.step(ask(4, adopt="s"), 0.0) == [Refuse(4, "conflict", 3)]
    assert pool.step(ask(5, "b", adopt="t"), 0.0) == [Refuse(5, "conflict", 3)]
    assert pool.step(ask(6, "b"), 0.0) == []
    assert pool.step(Created(3), 0.1) == [Grant(2, 3, "attached"), Grant(6, 3, "attached")]
    pool.step(Leave(2), 0.2)
    assert pool.step(Leave(6), 0.2) == [LetGo(3)]
    pool.step(ask(7, "b", adopt="s"), 0.3)
    pool.step(Created(4), 0.3)
    pool.step(Accept(7), 0.3)
    assert pool.step(Leave(7), 0.4) == []
    assert pool.step(Close(), 0.5) == [Refuse(1, "closed"), Abort(2), Kill(4, "closed")]


def test_two_sandboxes_for_one_key_are_a_conflict_also_in_the_queue() -> None:
    """Both wait for a place; when the first takes up its sandbox, the second can no more have its own."""
    pool = policy(max_live=1)
    held(pool)
    assert pool.step(ask(2, "b", adopt="s"), 0.0) == []
    assert pool.step(ask(3, "b", adopt="t"), 0.0) == []
    assert pool.step(Leave(1), 1.0) == [Kill(1, "evicted")]
    assert pool.step(Killed(1), 1.0) == [Create(2, "b", X, "s"), Refuse(3, "conflict", 2)]


def test_closing_tells_those_who_wait_and_no_holder() -> None:
    """A holder finds out at the next use; its place is free once the kill is confirmed."""
    pool = policy()
    held(pool)
    pool.step(ask(2, "b"), 0.0)
    assert pool.step(Close(), 1.0) == [Refuse(2, "closed"), Kill(1, "closed"), Abort(2)]
    assert pool.step(ask(3, "c"), 1.0) == [Refuse(3, "closed")]
    assert pool.step(Leave(1), 1.0) == []
    assert pool.step(Killed(1), 1.0) == []
    assert pool.step(CreateFailed(2), 1.0) == []
    assert pool.slots == {}


def test_closing_offers_nothing_to_those_who_are_refused_last() -> None:
    """What the first was offered is killed, not passed on to the second. (Found by the machine.)"""
    pool = policy(max_live=1)
    pool.step(ask(1), 0.0)
    pool.step(ask(2), 0.0)
    assert pool.step(Created(1), 1.0) == [Grant(1, 1, "created")]
    assert pool.step(Close(), 1.0) == [Refuse(1, "closed"), Kill(1, "closed"), Refuse(2, "closed")]


def test_replacing_refuses_those_who_wait_for_it_and_no_holder() -> None:
    """Who holds the old one finds out at the next use; who was only offered it is told at once."""
    pool = policy()
    held(pool)
    assert pool.step(ask(2, "a"), 1.0) == [Grant(2, 1, "reused")]
    out = pool.step(ask(3, "a", spec=Spec("y"), replace=True), 1.0)
    assert out == [Refuse(2, "conflict", 1), Kill(1, "replaced"), Create(2, "a", Spec("y", (), ()))]
    assert pool.step(Leave(1), 2.0) == []


def test_who_waits_for_the_same_key_as_something_else_is_told_at_once() -> None:
    """Both would wait for a place; the second could never have what the first will."""
    pool = policy(max_live=1)
    held(pool)
    assert pool.step(ask(2, "b"), 1.0) == []
    assert pool.step(ask(3, "b", spec=Spec("y")), 1.0) == [Refuse(3, "conflict")]
    assert pool.step(ask(4, "b", spec=Spec("y"), replace=True), 1.0) == [Refuse(2, "conflict")]
    assert [ticket.id for ticket in pool.queued] == [4]
    assert pool.step(ask(5, "b", spec=Spec("y")), 1.0) == [], "and who wants the same joins it"
    assert pool.step(ask(6, "a", spec=Spec("y"), place=0), 1.0) == [Refuse(6, "conflict", 1)]
    pool = policy(max_live=1, max_waiting=0)
    held(pool)
    assert pool.step(ask(2, "a", spec=Spec("y")), 1.0) == [Refuse(2, "conflict", 1)], "and not that it is full"
    assert pool.step(ask(3, "a", adopt="t"), 1.0) == [Refuse(3, "conflict", 1)]
    assert pool.step(ask(4, adopt="t"), 1.0) == [Refuse(4, "full")]


def test_who_leaves_open_what_another_waits_for_joins_it() -> None:
    """The same key, once with an environment and once with any: neither is refused."""
    pool = policy(max_live=1)
    held(pool)
    assert pool.step(ask(2, "b", spec=Spec("x", (("N", "1"),))), 1.0) == []
    assert pool.step(ask(3, "b"), 1.0) == []
    assert [ticket.id for ticket in pool.queued] == [2, 3]


def test_what_comes_in_spite_of_an_abort_is_killed() -> None:
    """Drained or closed while it was being made."""
    pool = policy(min_warm=(("x", 1),))
    pool.step(Tick(), 0.0)
    assert pool.step(Drain(), 1.0)[0] == Abort(1)
    assert pool.step(Created(1), 2.0) == [Kill(1, "drained")]
    pool.step(ask(1, "a"), 3.0)
    pool.step(ask(2, "b"), 3.0)
    assert Abort(3) in pool.step(Close(), 4.0)
    assert pool.step(Created(3), 5.0) == [Kill(3, "closed")]
    pool = policy(min_warm=(("x", 1),), max_live=1)
    pool.step(Tick(), 0.0)
    assert pool.step(ask(1, "a", spec=Spec("y")), 0.0) == [Abort(1)]
    assert pool.step(Created(1), 1.0) == [Kill(1, "evicted")]


def test_what_nobody_ever_held_goes_to_the_next_who_wants_the_same() -> None:
    """A caller without a key went away while its sandbox was made; who waits for a place gets it, unless for another
    template."""
    pool = policy(max_live=1)
    pool.step(ask(1), 0.0)
    pool.step(ask(2, spec=Spec("y")), 0.0)
    pool.step(ask(3), 0.0)
    assert pool.step(Created(1), 1.0) == [Grant(1, 1, "created")]
    assert pool.step(Leave(1), 1.0) == [Grant(3, 1, "created")]
    assert pool.step(Leave(3), 2.0) == [Kill(1, "abandoned")]
    assert pool.step(Killed(1), 3.0) == [Create(2, None, Spec("y", (), ()))]


def test_detaching() -> None:
    """It is not the pool's any more: no kill, its place is free, its key unbound."""
    pool = policy(max_live=1)
    held(pool)
    pool.step(ask(2, "b"), 0.0)
    assert pool.step(Detach(1), 1.0) == [Create(2, "b", X)]
    assert pool.step(Leave(1), 1.0) == []
    assert "a" not in pool.bound


def test_what_is_held_during_a_drain_goes_when_it_is_released() -> None:
    """Held, promised or under way: whoever has it keeps it, and nobody gets it afterwards."""
    pool = policy()
    held(pool)
    pool.step(ask(2), 0.0)
    assert pool.step(Drain(), 1.0) == []
    assert pool.step(Leave(1), 2.0) == [Kill(1, "drained")]
    assert pool.step(Created(2), 2.0) == [Grant(2, 2, "created")]
    assert pool.step(Leave(2), 3.0) == [Kill(2, "drained")]


def test_a_drain_kills_idle_sessions_at_once() -> None:
    """Those of its template; the key starts anew."""
    pool = policy()
    held(pool)
    pool.step(Leave(1), 1.0)
    assert pool.step(Drain("y"), 2.0) == []
    assert pool.step(Drain("x"), 2.0) == [Kill(1, "drained")]
    assert pool.step(ask(2, "a"), 3.0) == [Create(2, "a", X)]


# -- lives --------------------------------------------------------------------------------------------------------


def test_renewals_by_example() -> None:
    """On use: the lifetime, or the work's limit; by heartbeat: the lifetime; never beyond what is left."""
    on_use = TimeoutPolicy(lifetime=100, floor=20)
    assert renewal(on_use, remaining=95, work=10) is None
    assert renewal(on_use, remaining=90, work=10) is None
    assert renewal(on_use, remaining=89, work=10) == 100
    assert renewal(on_use, remaining=95, work=99) == 100
    assert renewal(on_use, remaining=100, work=300) == 300
    assert renewal(on_use, remaining=None, work=0) == 100
    assert renewal(on_use, remaining=500, work=0) is None
    assert renewal(on_use, remaining=10, work=300, left=50) == 50
    assert renewal(on_use, remaining=50, work=300, left=50) is None
    assert renewal(on_use, remaining=None, work=0, left=-1) is None
    assert renewal(on_use, remaining=None, work=0, left=0) is None
    assert renewal(TimeoutPolicy(lifetime=1000, floor=20), remaining=969, work=0) == 1000
    assert renewal(TimeoutPolicy(lifetime=1000, floor=20), remaining=970, work=0) is None
    assert renewal(TimeoutPolicy(lifetime=100, floor=95), remaining=95, work=0) is None
    assert renewal(TimeoutPolicy(lifetime=100, floor=95), remaining=94, work=0) == 100
    beat = TimeoutPolicy(lifetime=100, floor=20, renew="heartbeat")
    assert renewal(beat, remaining=95, work=300) is None
    assert renewal(beat, remaining=60, work=300) == 100
    assert renewal(TimeoutPolicy(renew="never"), remaining=None, work=5) is None


def test_retirement_margins_and_beats() -> None:
    """5 % early at most, less the floor; warm ones at half their life; three beats a life."""
    capped = TimeoutPolicy(lifetime=600, floor=60, max_lifetime=1000)
    assert retire_after(capped, jitter=0.0) == 940
    assert retire_after(capped, jitter=1.0) == pytest.approx(890)
    assert retire_after(TimeoutPolicy(), jitter=0.0) is None
    assert warm_margin(TimeoutPolicy(lifetime=600, floor=60)) == 300
    assert warm_margin(TimeoutPolicy(lifetime=100, floor=100)) == 90
    assert warm_margin(TimeoutPolicy(lifetime=100, floor=60)) == 60
    assert warm_margin(TimeoutPolicy(renew="never")) is None
    assert beat_every(TimeoutPolicy(lifetime=90, renew="heartbeat")) == 30
    assert beat_every(TimeoutPolicy()) is None
