"""The pool's policy as a state machine on virtual time: what must hold after every event, whatever the order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, consumes, initialize, invariant, precondition, rule
from hypothesis.stateful import RuleBasedStateMachine as Machine
from hypothesis.stateful import run_state_machine_as_test as run_machine

from sandboxkit.pool import _moves
from sandboxkit.pool._policy import UNSURE_ATTEMPTS, PoolPolicy

sys.path.insert(0, str(Path(__file__).parents[1]))
from pool_tools import too_many, went_in_vain

LIFETIME = 60.0
KEYS = st.sampled_from([None, "a", "b", "c", "d"])
SPECS = st.builds(
    _moves.Spec, st.sampled_from(["x", "x", "y"]), st.sampled_from([None, None, (), (("N", "1"),)]),
    st.sampled_from([None, None, None, (("tag", "1"),)]),
)  # fmt: skip
ONE_OF = st.sampled_from
LIMITS = st.builds(
    _moves.Limits, max_live=st.just(3), max_waiting=ONE_OF([4, 4, None]), floor=st.just(1.0),
    max_per_template=ONE_OF([(), (), (("y", 1),), (("x", 2), ("y", 2))]), warm_reserve=ONE_OF([0.0, 20.0]),
    min_warm=ONE_OF([(), (("x", 1),), (("x", 2),), (("x", 1), ("y", 1))]), max_creating=ONE_OF([None, None, 1, 2]),
    create_rate=ONE_OF([None, None, 0.5, 3.0]), idle_timeout=ONE_OF([None, 20.0]), max_uses=ONE_OF([None, None, 1, 2]),
    renew_margin=ONE_OF([None, 30.0]), keeps_idle=ONE_OF([True, True, True, False]),
    pauses=ONE_OF([False, False, True]), give_up_after=st.just(30.0),
)  # fmt: skip


class PoolMachine(Machine):
    """Plays the shell: it keeps its own books from the commands alone, and compares."""

    tickets = Bundle("tickets")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.next_ticket = 1
        self.asked, self.order = dict[int, _moves.Acquire](), list[int]()
        self.answer: dict[int, _moves.Grant | _moves.Refuse] = {}
        self.holding, self.gone = set[int](), set[int]()
        self.creating, self.alive = dict[int, _moves.Create](), dict[int, _moves.Create]()
        self.killing: set[int] = set()
        self.users: dict[int, set[str | None]] = {}
        self.anonymous_users: dict[int, int] = {}
        self.created = self.killed = 0
        self.aborted, self.is_closed = set[int](), False
        self.unsure, self.let_go = dict[int, int](), 0
        self.told_lost: set[int] = set()
        self.renewing, self.ever_held = set[int](), set[int]()
        self.troubled: set[str] = set()

    @initialize(limits=LIMITS)
    def begin(self, limits: _moves.Limits) -> None:
        self.policy = PoolPolicy(limits)
        self.do(_moves.Tick())  # as the shell does when it opens

    def do(self, event: _moves.PoolEvent) -> None:
        """Step, and enter each command into the books."""
        before = {t.id for t in self.policy.queued}
        doomed = {s.id for s in self.policy.slots.values() if s.doomed is not None}
        for command in self.policy.step(event, self.now):
            match command:
                case _moves.Create(slot, key, spec, adopt):
                    assert not self.is_closed
                    assert slot not in self.creating
                    assert slot not in self.alive
                    self.creating[slot] = command
                    assert len(self.creating) + len(self.alive) <= self.policy.max_live, "over the cap"
                    mine = [
                        c for c in [*self.creating.values(), *self.alive.values()] if c.spec.template == spec.template
                    ]
                    assert len(mine) <= self.policy.max_per_template.get(spec.template, 99), "over the template's cap"
                    assert adopt or len(self.creating) - self.adopting() <= (self.policy.limits.max_creating or 99)
                    asked = {(a.key, a.spec.template, a.adopt) for a in self.waiting(before, event)}
                    if (key, spec.template, adopt) not in asked:
                        assert (key, adopt) == (None, None), "a create that nobody asked for"
                        assert spec == spec.blank
                        assert self.policy.stocks[spec.template].target > 0
                case _moves.LetGo(slot):
                    assert self.alive[slot].adopt is not None
                    assert slot not in self.ever_held
                    del self.alive[slot]
                    self.let_go += 1
                case _moves.Renew(slot):
                    assert slot in self.alive
                    assert not self.holders(slot)
                    assert slot not in self.renewing
                    self.renewing.add(slot)
                case _moves.Report(news, template):
                    assert (news == "recovered") == (template in self.troubled) or news == "gave_up"
                    (self.troubled.discard if news == "recovered" else self.troubled.add)(template)
                case _moves.Abort(slot):
                    assert slot in self.creating
                    self.aborted.add(slot)
                case _moves.Kill(slot, reason):
                    assert slot in self.alive
                    assert slot not in self.killing, "a second kill while one is under way"
                    self.killing.add(slot)
                    self.renewing.discard(slot)
                    assert slot in self.ever_held or self.alive[slot].adopt is None, "it was never ours"
                    if reason not in ("closed", "replaced") and slot not in self.told_lost:
                        assert not self.holders(slot), f"{reason}, and in use"
                case _moves.Grant(ticket, slot):
                    assert not self.is_closed
                    assert slot in self.alive
                    assert slot not in self.killing
                    assert ticket not in self.answer, "answered twice"
                    ask, made = self.asked[ticket], self.alive[slot]
                    assert ask.adopt in (None, made.adopt)
                    if made.key is None and made.adopt is None and made.spec == made.spec.blank:
                        assert ask.spec.template == made.spec.template
                        assert not ask.spec.metadata or ask.spec.metadata == made.spec.metadata
                    else:
                        assert ask.key == made.key
                        assert ask.spec.is_met_by(made.spec)
                    self.answer[ticket] = command
                case _moves.Refuse(ticket):
                    assert ticket not in self.holding
                    assert ticket not in self.gone
                    assert not isinstance(self.answer.get(ticket), _moves.Refuse), "refused twice"
                    self.answer[ticket] = command
        assert not went_in_vain(self.policy, doomed)
        assert self.is_closed or not too_many(self.policy)

    def waiting(self, queued: set[int], event: _moves.PoolEvent) -> list[_moves.Acquire]:
        more = [event] if isinstance(event, _moves.Acquire) else []
        return [self.asked[t] for t in queued] + more

    def adopting(self) -> int:
        return sum(c.adopt is not None for c in self.creating.values())

    def holders(self, slot: int) -> set[int]:
        return {t for t in self.holding - self.gone if isinstance(g := self.answer[t], _moves.Grant) and g.slot == slot}

    # -- what callers do

    @rule(target=tickets, key=KEYS, spec=SPECS, patience=ONE_OF([0.5, 5.0, 30.0]), replace=ONE_OF([False] * 3 + [True]))
    def acquire(self, key: str | None, spec: _moves.Spec, patience: float, replace: bool) -> Any:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        ask = _moves.Acquire(ticket=ticket, key=key, spec=spec, deadline=self.now + patience, replace=replace)
        self.asked[ticket] = ask
        self.order.append(ticket)
        self.do(ask)
        return ticket

    @rule(target=tickets, key=KEYS, sandbox=st.sampled_from(["s1", "s2"]))
    def attach(self, key: str | None, sandbox: str) -> Any:
        ticket, self.next_ticket = self.next_ticket, self.next_ticket + 1
        # An id that is there already is another sandbox of the same name: the books only count.
        ask = _moves.Acquire(ticket=ticket, key=key, spec=_moves.Spec("x", ()), deadline=self.now + 5, adopt=sandbox)
        self.asked[ticket] = ask
        self.order.append(ticket)
        self.do(ask)
        return ticket

    @rule(target=tickets, ticket=consumes(tickets))
    def ask_again(self, ticket: int) -> Any:
        """What was offered turned out to be gone: the caller asks once more, and keeps its place."""
        self.gone.add(ticket)
        self.do(_moves.Leave(ticket))
        again, self.next_ticket = self.next_ticket, self.next_ticket + 1
        old = self.asked[ticket]
        place = ticket if old.place is None else old.place
        self.asked[again] = _moves.Acquire(
            ticket=again, key=old.key, spec=old.spec, deadline=max(old.deadline, self.now + 0.1), place=place
        )
        self.order.append(again)
        self.do(self.asked[again])
        return again

    @rule(ticket=tickets)
    def accept(self, ticket: int) -> None:
        granted = self.answer.get(ticket)
        if isinstance(granted, _moves.Grant) and ticket not in self.holding | self.gone:
            self.do(_moves.Accept(ticket))
            if isinstance(self.answer[ticket], _moves.Grant):
                self.holding.add(ticket)
                slot, key = granted.slot, self.asked[ticket].key
                if slot in self.alive and slot not in self.killing:
                    self.ever_held.add(slot)
                    self.users.setdefault(slot, set()).add(key)
                    if key is None:
                        self.anonymous_users[slot] = self.anonymous_users.get(slot, 0) + 1

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: int) -> None:
        self.gone.add(ticket)
        self.do(_moves.Leave(ticket))
        self.do(_moves.Leave(ticket))  # a second one does nothing

    # -- what the provider answers

    @precondition(lambda self: self.creating)
    @rule(data=st.data(), lives=st.sampled_from([5.0, LIFETIME]), ages=st.sampled_from([None, None, 40.0]))
    def create_succeeds(self, data: st.DataObject, lives: float, ages: float | None) -> None:
        slot = data.draw(st.sampled_from(sorted(self.creating)))
        self.alive[slot] = self.creating.pop(slot)
        self.created += 1
        self.do(_moves.Created(slot, self.now + lives, None if ages is None else self.now + ages))

    @precondition(lambda self: self.creating)
    @rule(data=st.data())
    def create_fails(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.creating)))
        del self.creating[slot]
        self.do(_moves.CreateFailed(slot))

    @precondition(lambda self: self.creating)
    @rule(data=st.data())
    def create_ends_unclear(self, data: st.DataObject) -> None:
        """The worst case: a sandbox was made, and nobody was told."""
        made = sorted(slot for slot, create in self.creating.items() if create.adopt is None)
        if not made:
            return
        slot = data.draw(st.sampled_from(made))
        self.alive[slot] = self.creating.pop(slot)
        self.created += 1
        self.unsure[slot] = 0
        self.do(_moves.CreateFailed(slot, True))
        assert slot in self.killing

    @precondition(lambda self: self.killing)
    @rule(data=st.data())
    def kill_succeeds(self, data: st.DataObject) -> None:
        self.killed_at(data.draw(st.sampled_from(sorted(self.killing))))

    def killed_at(self, slot: int) -> None:
        self.killing.remove(slot)
        del self.alive[slot]
        self.killed += 1
        self.do(_moves.Killed(slot))

    @precondition(lambda self: self.killing)
    @rule(data=st.data(), is_there=st.sampled_from([False, False, False, True]))
    def kill_fails(self, data: st.DataObject, is_there: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.killing)))
        self.killing.remove(slot)
        self.unsure[slot] = -100 if is_there else self.unsure.get(slot, -100) + 1
        if self.unsure[slot] == UNSURE_ATTEMPTS:  # given up: there may be none, and its lifetime ends it
            del self.alive[slot]
            self.killed += 1
        self.do(_moves.KillFailed(slot, is_there))

    @precondition(lambda self: self.renewing)
    @rule(data=st.data(), fails=st.booleans())
    def warm_one_is_renewed(self, data: st.DataObject, fails: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.renewing)))
        self.renewing.remove(slot)
        self.do(_moves.RenewFailed(slot) if fails else _moves.Renewed(slot, self.now + LIFETIME))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        """As the shell does it: one holder, who has it and gives it away."""
        for slot in sorted(self.alive):
            known = self.policy.slots[slot]
            if known.state == "live" and len(self.holders(slot)) == 1 == len(known.tickets):
                del self.alive[slot]
                self.let_go += 1
                self.do(_moves.Detach(slot))
                return

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), reason=st.sampled_from(["lost", "asked", "expired", "failed"]))
    def sandbox_is_lost(self, data: st.DataObject, reason: Any) -> None:
        slot = data.draw(st.sampled_from(sorted(self.alive)))
        self.told_lost.add(slot)
        self.do(_moves.Lost(slot, reason))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.alive)))
        self.do(_moves.Renewed(slot, self.now + LIFETIME))
        self.renewing.discard(slot)

    # -- time, and the owner

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        """As the shell's clock does it: never past an alarm without a Tick there."""
        until = self.now + seconds
        while (alarm := self.policy.next_alarm()) is not None and alarm <= until:
            self.now = max(self.now, alarm)
            self.do(_moves.Tick())
            again = self.policy.next_alarm()
            assert again is None or again > self.now, "an alarm that changes nothing"
        self.now = until
        self.do(_moves.Tick())

    @rule(max_live=st.integers(1, 4))
    def resize(self, max_live: int) -> None:
        self.do(_moves.Resize(max_live))

    @rule(warm=st.integers(0, 3), caps=st.sampled_from([None, None, (), (("x", 1),)]))
    def resize_the_stock(self, warm: int, caps: Any) -> None:
        self.troubled.clear()
        self.do(_moves.Resize(None, (("x", warm),), caps))

    @rule(template=st.sampled_from([None, "x", "y"]))
    def drain(self, template: str | None) -> None:
        before = set(self.policy.slots)
        self.troubled -= {template} if template else self.troubled
        self.do(_moves.Drain(template))
        kept = [s for s in self.policy.slots.values() if s.id in before and template in (None, s.spec.template)]
        assert not any(s.is_idle or s.is_stocked for s in kept)

    @precondition(lambda self: len(self.order) > 8)
    @rule()
    def close(self) -> None:
        # The policy must refuse everyone itself: from here on a Grant or a Create is an error.
        self.is_closed = True
        self.do(_moves.Close())
        assert all(t in self.answer or t in self.gone for t in self.asked)
        assert self.aborted >= set(self.creating)

    # -- what must hold

    @invariant()
    def the_books_agree(self) -> None:
        """created = alive + killed, and the policy's slots are exactly what is being created or lives."""
        assert self.created == len(self.alive) + self.killed + self.let_go
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

    def pace_allows(self) -> bool:
        creating = len(self.creating) - self.adopting()
        return creating < (self.policy.limits.max_creating or 99) and self.now >= self.policy._pace.free_at

    @invariant()
    def nobody_waits_without_need(self) -> None:
        """Who is queued waits for a place, in all or of a template, or for the pace; enough idle ones go for it."""
        queued = self.policy.queued
        full = len(self.policy.slots) >= self.policy.max_live
        for ticket in queued:
            same = sum(s.spec.template == ticket.spec.template for s in self.policy.slots.values())
            capped = same >= self.policy.max_per_template.get(ticket.spec.template, 99)
            assert full or capped or (ticket.adopt is None and not self.pace_allows())
            assert not any(ticket.may_have(s) for s in self.policy.slots.values())
        if full:
            wants = {t.id if t.key is None else t.key for t in queued}
            spare = sum(s.is_idle or s.is_stocked for s in self.policy.slots.values())
            coming = sum(s.is_coming_free for s in self.policy.slots.values())
            over = len(self.policy.slots) - self.policy.max_live
            assert spare == 0 or coming >= len(wants) + over or self.policy.max_per_template

    @invariant()
    def the_stock_is_full_if_it_can_be(self) -> None:
        """As many lie warm, or are on their way, as should: unless places, pace, or earlier failures forbid it."""
        for template, stock in {} if self.is_closed else self.policy.stocks.items():
            slots = self.policy.slots.values()
            there = sum(s.is_stocked and s.spec.template == template for s in slots)
            same = sum(s.spec.template == template for s in slots)
            has_place = len(slots) < self.policy.max_live and same < self.policy.max_per_template.get(template, 99)
            assert there >= stock.target or not has_place or not self.pace_allows() or not stock.may_ask(self.now)

    @invariant()
    def the_queue_is_fair(self) -> None:
        """Whoever is queued came before everyone queued behind, and no later one got a new sandbox before it."""
        queued = [t.id for t in self.policy.queued]
        assert queued == sorted(queued, key=lambda t: (self.policy.tickets[t].place, t))
        attached = [t.id for t in self.policy.tickets.values() if t.slot in self.creating]
        for ticket in queued:
            for other in attached:
                slot = self.policy.slots[self.policy.tickets[other].slot or 0]
                first, second = self.policy.tickets[ticket], self.policy.tickets[other]
                if first.spec.template != second.spec.template or first.spec.metadata or second.adopt is not None:
                    continue  # they do not wait for the same
                if first.place > second.place or slot.blank or slot.adopts is not None:
                    continue
                # A later one may join a creation that began for an earlier one of its key, but not start one.
                assert ticket > min([other, *slot.tickets]) or self.started_before(slot.id, ticket)

    def started_before(self, slot: int, ticket: int) -> bool:
        """Whether the slot was taken for a ticket that came earlier (and has left since)."""
        return any(t < ticket and self.asked[t].key == self.creating[slot].key for t in self.order)

    def teardown(self) -> None:
        """However it went: after a close and honest answers, nothing is left."""
        self.is_closed = True
        if not hasattr(self, "policy"):
            return
        self.do(_moves.Close())
        while self.policy.slots:
            assert self.creating or self.alive
            for slot in list(self.creating):
                del self.creating[slot]
                self.do(_moves.CreateFailed(slot))
            if not self.killing and self.alive:
                alarm = self.policy.next_alarm()
                assert alarm is not None, "a sandbox that nobody will ever kill"
                self.now = max(self.now, alarm)
                self.do(_moves.Tick())
            for slot in list(self.killing):
                self.killed_at(slot)
        assert self.created == self.killed + self.let_go
        assert not self.policy.bound


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(stateful_step_count=60, deadline=None)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_steps() -> None:
    """The same for long; that it was long is counted."""
    steps = 0

    class Counted(PoolMachine):
        @invariant()
        def one_more(self) -> None:
            nonlocal steps
            steps += 1

    long = settings(max_examples=1600, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck))
    run_machine(Counted, settings=long)
    assert steps >= 100_000
