"""Decides what the pool does: (state, event, now) -> commands; no clock, no loop, no sandbox of its own.

The shell (`_pool`) tells the policy what happened and carries out what it answers. Time is whatever monotonic
seconds the shell passes in; sandboxes are *slots*, known by number; callers are *tickets*, known by number.

**A slot** is one place under `max_live`. It is taken before a sandbox is asked for and given back only when its
kill is confirmed or its creation has failed, so that the cap is true at every moment, also under bursts and when
kills fail. Its states:

    creating   asked for, not there yet; tickets that want it are attached to it
    live       there; *held* while tickets hold it, *idle* (a released session) while none does, *warm* while it is
               blank: made for the stock, and nobody has held it yet
    killing    asked to be killed, not confirmed; a failed kill is tried again, and keeps the slot. Also one whose
               create failed in a way that leaves open whether there is a sandbox (a lost reply): the shell looks for
               it by its tags and kills it. Where none is found, that is given up after a few attempts, since there
               may be none

A creating slot may be *doomed*: nobody wants it any more, or the pool closes. It is killed as soon as it is there.
A slot may *adopt* a sandbox that is there already (`attach`). Until somebody holds it, it is let go of, not killed.

**A ticket** is one call of `pool.session()`, from the question to the release:

    queued     waits for capacity, first come first served
    attached   waits for a slot that is being created
    offered    has been granted a live slot and has not said yet that it took it
    holding    took it

A ticket that goes away while queued, attached or offered is a cancel: what it was promised goes to the next ticket
that the sandbox fits, else it is killed. A ticket that goes away while holding is a release.

**A session key** is bound to at most one slot, from creating until that slot starts dying. A sandbox serves one key
in its life: a slot that was made for a key is never given to another; one made for no key (anonymous) goes only to
an anonymous ticket, or to the stock, and only if nobody ever held it; a blank one becomes the first holder's.

**Events.** Acquire: a ticket asks. Accept: it took the offer. Leave: it is gone, for whatever reason. Created,
CreateFailed: how a Create ended. Renewed: the sandbox lives until then. Lost: the provider said that the sandbox is
gone, its owner wants it dead, it could not be prepared, or replace=True met one that cannot be reached. Killed,
KillFailed: how a Kill ended. RenewFailed: how a Renew ended that did not end by Renewed or Lost. Detach: its holder
takes it out of the pool. Tick: time has passed. Resize, Drain, Close.

**Commands.** Create, Abort (give up a Create under way; answered by Created or CreateFailed), Kill, Grant (offer a
live slot to a ticket), Refuse (end a ticket with an error), Renew (prolong a warm one), LetGo (an adopted one that
nobody held), Report (how the stock of a template fares).

**Who gets what** is `_matching`'s part; how many lie warm, `_stock`'s; how fast new ones are asked for, `_pace`'s.

    event          queued      attached          offered            holding       slot without tickets
    Leave          forget      forget            as below           release       -
    deadline       Refuse      Refuse, forget    Refuse, as below   -             -
    Created        -           Grant             -                  -             made for nobody: kill it
    CreateFailed   -           Refuse            -                  -             free the slot; unsure: kill it
    Lost           -           -                 stays as it is; its next use tells      kill it
    end of life    -           -                 -                  -             idle or warm: kill it (an idle one
                                                                                  whose end is a pause stays)
    Close          Refuse      Refuse            Refuse             forget        kill it

    the last ticket of a live slot goes:  anonymous, draining, worn out, too old, or never held by anybody -> kill (an
    anonymous one that nobody held goes to a waiting anonymous ticket of the same spec, or to the stock; a blank one is
    warm again); else -> idle
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from sandboxkit._types import Source
from sandboxkit.pool._matching import Matching
from sandboxkit.pool._moves import (
    Accept,
    Acquire,
    Close,
    Command,
    Created,
    CreateFailed,
    Detach,
    Drain,
    Killed,
    KillFailed,
    Leave,
    Lost,
    PoolEvent,
    Refuse,
    Renew,
    Renewed,
    RenewFailed,
    Resize,
    Tick,
)
from sandboxkit.pool._slots import Slot, Ticket
from sandboxkit.pool._stock import Stock

KILL_RETRY_FIRST, KILL_RETRY_MOST, KILL_RETRY_CLOSING = 1.0, 60.0, 0.5
"""Seconds between attempts: doubled each time up to the most; while closing always the short one."""
UNSURE_ATTEMPTS = 4
"""How often a sandbox that may not exist is looked for, where looking fails."""
RENEW_RETRY = 5.0
"""Seconds until a warm sandbox that could not be prolonged is tried again."""


class PoolPolicy(Matching):
    """The pool's state machine. `step` is the only way in; everything else reads."""

    def next_alarm(self) -> float | None:
        """When a Tick is due at the latest, None if nothing depends on time."""
        return min(self._alarms(), default=None)

    def _alarms(self) -> Iterator[float]:
        yield from (t.deadline for t in self.tickets.values() if not t.holding)
        if self.closing:
            yield from (s.retry_at for s in self.slots.values() if s.retry_at is not None)
            return
        surplus = self.surplus()
        for slot in self.slots.values():
            if slot.retry_at is not None:
                yield slot.retry_at
            yield from self._ends(slot, surplus)
            if (renew_at := self._renew_at(slot, surplus)) is not None:
                yield renew_at
        if self._pace_alarm is not None:
            yield self._pace_alarm
        for stock in self.stocks.values():
            if stock.wait_until is not None:
                yield stock.wait_until
            if stock.period_ends_at is not None:
                yield stock.period_ends_at

    def _ends(self, slot: Slot, surplus: Container[int]) -> Iterator[float]:
        """When a slot that nobody holds is given up."""
        # A held one is not judged by our own bookkeeping: its user may have prolonged it through `.sandbox`.
        if slot.is_idle:
            if slot.end_at is not None and not self.limits.pauses:
                yield slot.end_at
            if slot.retire_at is not None:
                yield slot.retire_at
            if self.limits.idle_timeout is not None:
                yield slot.idle_since + self.limits.idle_timeout
        elif slot.is_warm:
            if slot.end_at is not None:
                is_renewed = self.limits.renew_margin is not None and slot.id not in surplus
                yield slot.end_at - (0.0 if is_renewed else self.limits.floor)
            if slot.retire_at is not None:
                yield slot.retire_at - self.limits.warm_reserve

    def _renew_at(self, slot: Slot, surplus: Container[int]) -> float | None:
        """When a warm one is prolonged; what lies there beyond the target is not."""
        margin = self.limits.renew_margin
        if margin is None or not slot.is_warm or slot.is_renewing or slot.end_at is None or slot.id in surplus:
            return None
        return max(slot.end_at - margin, slot.renew_not_before)

    # -- deciding

    def step(self, event: PoolEvent, now: float) -> list[Command]:
        """Take in what happened and say what to do about it, in this order."""
        self._expire(now)
        match event:
            case Acquire():
                self._acquire(event, now)
            case Accept(ticket):
                self._accept(ticket)
            case Leave(ticket):
                self._leave(ticket, now)
            case Created(slot_id, end_at, retire_at):
                self._created(self.slots[slot_id], end_at, retire_at, now)
            case CreateFailed(slot_id):
                self._create_failed(self.slots[slot_id], event, now)
            case Renewed(slot_id, end_at):
                if (slot := self.slots.get(slot_id)) is not None:
                    slot.end_at, slot.is_renewing = end_at, False
            case RenewFailed(slot_id):
                if (slot := self.slots.get(slot_id)) is not None:
                    slot.is_renewing, slot.renew_not_before = False, now + RENEW_RETRY
            case Lost(slot_id, reason):
                if (slot := self.slots.get(slot_id)) is not None and slot.state == "live":
                    self._doom(slot, reason)
            case Detach(slot_id):
                if (slot := self.slots.get(slot_id)) is not None and slot.state == "live":
                    self._forget(slot)
            case Killed(slot_id):
                self._forget(self.slots[slot_id])
            case KillFailed(slot_id, is_there):
                self._kill_failed(self.slots[slot_id], is_there, now)
            case Tick():
                pass
            case Resize():
                self._resize(event)
            case Drain(template):
                self._drain(template)
            case Close():
                self._close(now)
        self._pump(now)
        out, self._out = self._out, []
        return out

    def _expire(self, now: float) -> None:
        for ticket in list(self.tickets.values()):
            if not ticket.holding and ticket.deadline <= now:
                self._refuse(ticket, "timeout", now=now)
        surplus = self.surplus()
        for slot in list(self.slots.values()):
            if slot.retry_at is not None and slot.retry_at <= now:
                self._kill(slot)
            elif not self.closing and min(self._ends(slot, surplus), default=now + 1) <= now:
                self._end(slot, now)
            elif (renew_at := self._renew_at(slot, surplus)) is not None and renew_at <= now:
                slot.is_renewing = True
                self._out.append(Renew(slot.id))
        for template, stock in self.stocks.items():
            if stock.wait_until is not None and stock.wait_until <= now:
                stock.wait_until = None  # the pump asks again
            warm = sorted((s for s in self.slots.values() if s.is_warm and s.spec.template == template), key=_by_id)
            for slot in warm[: stock.shrink_by(now)]:
                self._doom(slot, "shrunk")

    def _end(self, slot: Slot, now: float) -> None:
        has_ended = slot.end_at is not None and slot.end_at <= now and not (slot.is_idle and self.limits.pauses)
        if has_ended:
            self._doom(slot, "expired")
        elif slot.is_warm or (slot.retire_at is not None and slot.retire_at <= now):
            self._doom(slot, "retired")
        else:
            self._doom(slot, "shrunk")

    def _acquire(self, event: Acquire, now: float) -> None:
        place = event.ticket if event.place is None else event.place
        ticket = Ticket(event.ticket, event.key, event.spec, event.deadline, event.replace, place, event.adopt)
        if self.closing:
            self._out.append(Refuse(ticket.id, "closed"))
            return
        rival = self._rival(ticket)
        if rival is not None:
            self._out.append(Refuse(ticket.id, "conflict", rival.slot if isinstance(rival, Ticket) else rival.id))
            return
        if event.place is None and self._is_full(ticket):
            self._out.append(Refuse(ticket.id, "full"))
            return
        if ticket.replace:
            for other in self.queued:
                if other.key == ticket.key and ticket.key is not None and not other.spec.is_met_by(ticket.spec):
                    self._refuse(other, "conflict", now=now)
        self.tickets[ticket.id] = ticket  # the pump gives it what there is

    def _rival(self, ticket: Ticket) -> Slot | Ticket | None:
        """Find what holds, or earlier asked for, the same session as something else."""
        if ticket.adopt is not None:
            twin = next((s for s in self.slots.values() if s.adopts == ticket.adopt and s.key != ticket.key), None)
            if twin is not None or ticket.key is None:
                return twin
        if ticket.key is None or ticket.replace:
            return None
        slot = self._bound_slot(ticket.key)
        if slot is not None:
            return None if ticket.is_met_by(slot) else slot
        first = next((t for t in self.queued if t.key == ticket.key), None)
        return None if first is None or ticket.spec.is_met_by(first.spec) else first

    def _is_full(self, ticket: Ticket) -> bool:
        if self.max_waiting is None:
            return False
        slot = self._bound_slot(ticket.key)
        if slot is not None and ticket.is_met_by(slot):
            return False
        template = ticket.spec.template
        if len(self.queued) + 1 - self._capacity() > self.max_waiting:
            return True
        same = sum(t.spec.template == template for t in self.queued)
        return template in self.max_per_template and same + 1 - self._capacity(template) > self.max_waiting

    def _accept(self, ticket_id: int) -> None:
        ticket = self.tickets.get(ticket_id)
        if ticket is None or not ticket.granted or ticket.slot is None:
            return
        ticket.holding = True
        if ticket.slot in self.slots:
            slot = self.slots[ticket.slot]
            slot.was_held, slot.blank = True, False
            slot.uses += 1

    def _leave(self, ticket_id: int, now: float) -> None:
        ticket = self.tickets.pop(ticket_id, None)
        slot = None if ticket is None or ticket.slot is None else self.slots.get(ticket.slot)
        if slot is None:
            return
        slot.tickets.pop(ticket_id, None)
        if slot.tickets or slot.doomed is not None:
            return
        if slot.blank:
            self._back_to_stock(slot)
        if slot.state == "live":
            self._settle(slot, now)

    def _settle(self, slot: Slot, now: float) -> None:
        """A live slot is without tickets: pass it on, keep it as an idle session or in the stock, or kill it."""
        stock = self.stocks.get(slot.spec.template)
        if self.closing:  # its tickets are refused one by one, and it must not go to the next of them
            self._doom(slot, "closed")
        elif not slot.was_held and slot.draining:
            self._doom(slot, "drained")
        elif slot.blank:
            pass  # the pump finds it
        elif not slot.was_held:
            heir = self._heir(slot)
            if heir is not None:
                self._attach(heir, slot)
                self._grant(heir, slot, "created")
            elif stock is not None and stock.target and slot.is_like_new:
                slot.blank = True
            else:
                self._doom(slot, "abandoned")
        elif slot.key is None or not self.limits.keeps_idle:
            self._doom(slot, "released")
        elif slot.draining:
            self._doom(slot, "drained")
        elif self.limits.max_uses is not None and slot.uses >= self.limits.max_uses:
            self._doom(slot, "worn")
        elif slot.retire_at is not None and slot.retire_at <= now:
            self._doom(slot, "retired")
        else:
            slot.idle_since = now

    def _heir(self, slot: Slot) -> Ticket | None:
        """The first waiting ticket that a sandbox nobody ever held was as good as made for."""
        return next(
            (t for t in self.queued if (t.key, t.adopt) == (slot.key, slot.adopts) and t.spec.is_met_by(slot.spec)),
            None,
        )

    def _created(self, slot: Slot, end_at: float | None, retire_at: float | None, now: float) -> None:
        slot.state = "live"
        slot.end_at, slot.retire_at = end_at, retire_at
        if slot.adopts is None and (stock := self.stocks.get(slot.spec.template)) is not None:
            self._report(stock.succeeded(), slot.spec.template)
        if slot.doomed is not None:
            self._doom(slot, slot.doomed)
            return
        # One that was begun for the stock is blank, whoever has been promised it meanwhile.
        source: Source = "attached" if slot.adopts is not None else "warm" if slot.blank else "created"
        for ticket_id in slot.tickets:
            self._grant(self.tickets[ticket_id], slot, source)
        if not slot.tickets:
            self._settle(slot, now)

    def _create_failed(self, slot: Slot, event: CreateFailed, now: float) -> None:
        stock = self.stocks.get(slot.spec.template)
        if stock is not None and slot.adopts is None and slot.doomed is None:
            news = stock.failed(
                asked_at=slot.asked_at, now=now, jitter=event.jitter, give_up_after=self.limits.give_up_after
            )
            self._report(news, slot.spec.template)
        for ticket_id in list(slot.tickets):
            if self.tickets.pop(ticket_id, None) is not None:
                self._out.append(Refuse(ticket_id, "create_failed", slot.id))
        slot.tickets.clear()
        slot.is_unsure = event.is_unsure
        if event.is_unsure:
            slot.state = "live"  # for all that is known
            self._doom(slot, slot.doomed or "abandoned")
        else:
            self._forget(slot)

    def _kill_failed(self, slot: Slot, is_there: bool, now: float) -> None:
        slot.is_unsure = slot.is_unsure and not is_there
        if slot.is_unsure and slot.attempts >= UNSURE_ATTEMPTS:
            self._forget(slot)
            return
        wait = min(KILL_RETRY_FIRST * 2.0 ** min(slot.attempts - 1, 30), KILL_RETRY_MOST)
        slot.retry_at = now + (min(wait, KILL_RETRY_CLOSING) if self.closing else wait)

    # -- the owner

    def _resize(self, event: Resize) -> None:
        if event.max_live is not None:
            self.max_live = event.max_live
        if event.max_per_template is not None:
            self.max_per_template = dict(event.max_per_template)
        if event.min_warm is not None:
            targets = dict(event.min_warm)
            for template in [*self.stocks, *targets]:
                self.stocks[template] = Stock(targets.get(template, 0))

    def _drain(self, template: str | None) -> None:
        for name, stock in self.stocks.items():
            if template in (None, name):
                self.stocks[name] = Stock(stock.target)
        for slot in list(self.slots.values()):
            if template in (None, slot.spec.template):
                slot.draining = True
                if slot.is_idle:
                    self._doom(slot, "drained")
                elif slot.is_stocked:
                    self._give_up(slot, "drained")

    def _close(self, now: float) -> None:
        self.closing = True
        for ticket in list(self.tickets.values()):
            if not ticket.holding:
                self._refuse(ticket, "closed", now=now)
        for slot in list(self.slots.values()):
            if slot.retry_at is not None:
                slot.retry_at = min(slot.retry_at, now + KILL_RETRY_CLOSING)
            self._give_up(slot, "closed")


def _by_id(slot: Slot) -> int:
    return slot.id
