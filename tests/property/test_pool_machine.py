"""The pool's policy as a state machine on virtual time: what must hold after every event, whatever the order."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

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
    KillFailed,
    Leave,
    Limits,
    Lost,
    PoolEvent,
    Refuse,
    Renewed,
    Resize,
    Spec,
    Tick,
)
from sandboxkit.pool._policy import UNSURE_ATTEMPTS, PoolPolicy

LIFETIME = 60.0
KEYS = st.sampled_from([None, "a", "b", "c", "d"])
SPECS = st.builds(Spec, st.sampled_from(["x", "x", "y"]), st.sampled_from([None, None, (), (("N", "1"),)]))


class PoolMachine(RuleBasedStateMachine):
    """Plays the shell: it keeps its own books from the commands alone, and compares."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.policy = PoolPolicy(Limits(max_live=3, max_waiting=4))
        self.next_ticket = 1
        self.asked: dict[int, Acquire] = {}
        self.order: list[int] = []
        self.answer: dict[int, Grant | Refuse] = {}
        self.holding: set[int] = set()
        self.gone: set[int] = set()
        self.creating: dict[int, Create] = {}
        self.alive: dict[int, Create] = {}
        self.killing: set[int] = set()
        self.users: dict[int, set[str | None]] = {}
        self.anonymous_users: dict[int, int] = {}
        self.created = self.killed = 0
        self.aborted: set[int] = set()
        self.is_closed = False
        self.unsure: dict[int, int] = {}

    def do(self, event: PoolEvent) -> None:
        """Step, and enter each command into the books."""
        before = {t.id for t in self.policy.queued}
        for command in self.policy.step(event, self.now):
            match command:
                case Create(slot, key, spec):
                    assert not self.is_closed
                    assert slot not in self.creating
                    assert slot not in self.alive
                    self.creating[slot] = command
                    assert len(self.creating) + len(self.alive) <= self.policy.max_live, "over the cap"
                    assert (key, spec.template) in {(a.key, a.spec.template) for a in self.waiting(before, event)}
                case Abort(slot):
                    assert slot in self.creating
                    self.aborted.add(slot)
                case Kill(slot, reason):
                    assert slot in self.alive
                    assert slot not in self.killing, "a second kill while one is under way"
                    self.killing.add(slot)
                    if reason in ("evicted", "expired", "released", "abandoned", "drained"):
                        assert not self.holders(slot), f"{reason}, and in use"
                case Grant(ticket, slot):
                    assert not self.is_closed
                    assert slot in self.alive
                    assert slot not in self.killing
                    assert ticket not in self.answer, "answered twice"
                    ask, made = self.asked[ticket], self.alive[slot]
                    assert ask.key == made.key
                    assert ask.spec.is_met_by(made.spec)
                    self.answer[ticket] = command
                    self.users.setdefault(slot, set()).add(ask.key)
                case Refuse(ticket):
                    assert ticket not in self.holding
                    assert ticket not in self.gone
                    assert not isinstance(self.answer.get(ticket), Refuse), "refused twice"
                    self.answer[ticket] = command

    def waiting(self, queued: set[int], event: PoolEvent) -> list[Acquire]:
        more = [event] if isinstance(event, Acquire) else []
        return [self.asked[t] for t in queued] + more

    def holders(self, slot: int) -> set[int]:
        return {t for t in self.holding - self.gone if isinstance(g := self.answer[t], Grant) and g.slot == slot}

    # -- what callers do

    @rule(
        target=tickets,
        key=KEYS,
        spec=SPECS,
        patience=st.sampled_from([0.5, 5.0, 30.0]),
        replace=st.sampled_from([False, False, False, True]),
    )
    def acquire(self, key: str | None, spec: Spec, patience: float, replace: bool) -> Any:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        ask = Acquire(ticket=ticket, key=key, spec=spec, deadline=self.now + patience, replace=replace)
        self.asked[ticket] = ask
        self.order.append(ticket)
        self.do(ask)
        return ticket

    @rule(ticket=tickets)
    def accept(self, ticket: int) -> None:
        granted = self.answer.get(ticket)
        if isinstance(granted, Grant) and ticket not in self.holding | self.gone:
            if granted.slot in self.alive and self.alive[granted.slot].key is None and granted.slot not in self.killing:
                self.anonymous_users[granted.slot] = self.anonymous_users.get(granted.slot, 0) + 1
            self.do(Accept(ticket))
            if isinstance(self.answer[ticket], Grant):
                self.holding.add(ticket)

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: int) -> None:
        self.gone.add(ticket)
        self.do(Leave(ticket))

    @rule(ticket=tickets)
    def leave_twice(self, ticket: int) -> None:
        self.gone.add(ticket)
        self.do(Leave(ticket))
        self.do(Leave(ticket))

    # -- what the provider answers

    @precondition(lambda self: self.creating)
    @rule(data=st.data(), lives=st.sampled_from([5.0, LIFETIME]))
    def create_succeeds(self, data: st.DataObject, lives: float) -> None:
        slot = data.draw(st.sampled_from(sorted(self.creating)))
        self.alive[slot] = self.creating.pop(slot)
        self.created += 1
        self.do(Created(slot, self.now + lives))

    @precondition(lambda self: self.creating)
    @rule(data=st.data())
    def create_fails(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.creating)))
        del self.creating[slot]
        self.do(CreateFailed(slot))

    @precondition(lambda self: self.creating)
    @rule(data=st.data())
    def create_ends_unclear(self, data: st.DataObject) -> None:
        """The worst case: a sandbox was made, and nobody was told."""
        slot = data.draw(st.sampled_from(sorted(self.creating)))
        self.alive[slot] = self.creating.pop(slot)
        self.created += 1
        self.unsure[slot] = 0
        self.do(CreateFailed(slot, True))
        assert slot in self.killing

    @precondition(lambda self: self.killing)
    @rule(data=st.data())
    def kill_succeeds(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.killing)))
        self.killing.remove(slot)
        del self.alive[slot]
        self.killed += 1
        self.do(Killed(slot))

    @precondition(lambda self: self.killing)
    @rule(data=st.data())
    def kill_fails(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.killing)))
        self.killing.remove(slot)
        self.unsure[slot] = self.unsure.get(slot, -100) + 1
        if self.unsure[slot] == UNSURE_ATTEMPTS:  # given up: there may be none, and its lifetime ends it
            del self.alive[slot]
            self.killed += 1
        self.do(KillFailed(slot))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), reason=st.sampled_from(["lost", "asked"]))
    def sandbox_is_lost(self, data: st.DataObject, reason: Any) -> None:
        self.do(Lost(data.draw(st.sampled_from(sorted(self.alive))), reason))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        self.do(Renewed(data.draw(st.sampled_from(sorted(self.alive))), self.now + LIFETIME))

    # -- time, and the owner

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        """As the shell's clock does it: never past an alarm without a Tick there."""
        until = self.now + seconds
        while (alarm := self.policy.next_alarm()) is not None and alarm <= until:
            assert alarm > self.now or self.policy.step(Tick(), self.now) == [], "an alarm that changes nothing"
            self.now = max(self.now, alarm)
            self.do(Tick())
        self.now = until
        self.do(Tick())

    @rule(max_live=st.integers(1, 4))
    def resize(self, max_live: int) -> None:
        self.do(Resize(max_live))

    @rule()
    def drain(self) -> None:
        self.do(Drain())
        assert not any(s.is_idle for s in self.policy.slots.values())

    @precondition(lambda self: len(self.order) > 8)
    @rule()
    def close(self) -> None:
        # The policy must refuse everyone itself: from here on a Grant or a Create is an error.
        self.is_closed = True
        self.do(Close())
        assert all(t in self.answer or t in self.gone for t in self.asked)
        assert self.aborted >= set(self.creating)

    # -- what must hold

    @invariant()
    def the_books_agree(self) -> None:
        """created = alive + killed, and the policy's slots are exactly what is being created or lives."""
        assert self.created == len(self.alive) + self.killed
        states = {slot.id: slot.state for slot in self.policy.slots.values()}
        assert set(states) == set(self.creating) | set(self.alive)
        assert all(states[slot] == "creating" for slot in self.creating)
        assert all(states[slot] == "killing" for slot in self.killing)

    @invariant()
    def a_sandbox_serves_one_session(self) -> None:
        """No sandbox is ever given to two keys; an anonymous one has one user in its life."""
        assert all(len(keys) == 1 for keys in self.users.values())
        assert all(times == 1 for times in self.anonymous_users.values())

    @invariant()
    def a_session_has_one_sandbox(self) -> None:
        """No key has two sandboxes that are not on their way out."""
        keys = [s.key for s in self.policy.slots.values() if s.key is not None and s.doomed is None]
        assert len(keys) == len(set(keys))

    @invariant()
    def everyone_is_answered_in_time(self) -> None:
        """Nobody waits past the deadline, and nobody waits in a closed pool."""
        for ticket, ask in self.asked.items():
            if ticket not in self.answer and ticket not in self.gone:
                assert not self.is_closed
                assert self.now < ask.deadline or self.policy.next_alarm() == ask.deadline

    @invariant()
    def nobody_waits_without_need(self) -> None:
        """While somebody is queued, every place is taken, and enough of the idle ones are being freed."""
        queued = self.policy.queued
        assert len(queued) == 0 or len(self.policy.slots) >= self.policy.max_live
        wants = {t.id if t.key is None else t.key for t in queued}
        idle = sum(s.is_idle for s in self.policy.slots.values())
        coming = sum(s.is_coming_free for s in self.policy.slots.values())
        over = len(self.policy.slots) - self.policy.max_live
        assert idle == 0 or coming >= len(wants) + over

    @invariant()
    def the_queue_is_fair(self) -> None:
        """Whoever is queued came before everyone queued behind, and no later one got a new sandbox before it."""
        queued = [t.id for t in self.policy.queued]
        assert queued == sorted(queued)
        attached = [t.id for t in self.policy.tickets.values() if t.slot in self.creating]
        for ticket in queued:
            for other in attached:
                slot = self.policy.slots[self.policy.tickets[other].slot or 0]
                # A later one may join a creation that began for an earlier one of its key, but not start one.
                assert ticket > min([other, *slot.tickets]) or self.started_before(slot.id, ticket)

    def started_before(self, slot: int, ticket: int) -> bool:
        """Whether the slot was taken for a ticket that came earlier (and has left since)."""
        key = self.creating[slot].key
        return any(t < ticket and self.asked[t].key == key for t in self.order)

    def teardown(self) -> None:
        """However it went: after a close and honest answers, nothing is left."""
        self.is_closed = True
        self.do(Close())
        while self.policy.slots:
            assert self.creating or self.alive
            for slot in list(self.creating):
                del self.creating[slot]
                self.do(CreateFailed(slot))
            if not self.killing and self.alive:
                alarm = self.policy.next_alarm()
                assert alarm is not None, "a sandbox that nobody will ever kill"
                self.now = max(self.now, alarm)
                self.do(Tick())
            for slot in list(self.killing):
                self.kill_succeeds_at(slot)
        assert self.created == self.killed
        assert not self.policy.bound

    def kill_succeeds_at(self, slot: int) -> None:
        self.killing.remove(slot)
        del self.alive[slot]
        self.killed += 1
        self.do(Killed(slot))


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(stateful_step_count=60, deadline=None)
