"""Matches tickets with sandboxes: who gets which, what is made, what has to go for it; the policy's other half, pure.

**The order.** Tickets in the order of their arrival; a caller whose sandbox turned out to be gone when it was handed
over keeps its place. A ticket whose session has a sandbox, or will have one, needs no place. Then a warm one that
fits, live ones first; then a new one, where there is a place, in all and for its template, and the pace allows it. A
ticket that its template's own cap holds back is passed by those of other templates; nobody else is passed by one who
wants the same.

**Making room.** When tickets wait for a place, as many go as are needed and not one more: first warm ones, which hold
nobody's work, then idle sessions, least recently used first. Held ones never go. So do as many as are too many after a
cap was lowered.

**The stock** is filled with what is left: free places, when nobody waits for one. No session goes for it.
"""

from __future__ import annotations

from collections import Counter

from sandboxkit._types import Source
from sandboxkit.pool._moves import (
    Abort,
    Command,
    Create,
    Grant,
    Kill,
    KillReason,
    LetGo,
    Limits,
    News,
    Refusal,
    Refuse,
    Report,
    Spec,
)
from sandboxkit.pool._pace import Pace
from sandboxkit.pool._slots import Slot, Ticket
from sandboxkit.pool._stock import Stock


class Matching:
    """The books, the small moves in them, and the matching."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.max_live = limits.max_live
        self.max_waiting = limits.max_waiting
        self.max_per_template = dict(limits.max_per_template)
        self.stocks = {template: Stock(target) for template, target in limits.min_warm}
        self.closing = False
        self.slots: dict[int, Slot] = {}
        self.tickets: dict[int, Ticket] = {}
        self.bound: dict[str, int] = {}
        self._pace = Pace(limits.max_creating, limits.create_rate)
        self._pace_alarm: float | None = None
        """When the rate allows the create that somebody, or the stock, waits for."""
        self._next_slot = 1
        self._out: list[Command] = []

    # -- reading

    @property
    def queued(self) -> list[Ticket]:
        """Tickets that wait for a sandbox, first come first."""
        return sorted((t for t in self.tickets.values() if t.slot is None), key=lambda t: (t.place, t.id))

    def warm(self, template: str) -> int:
        """How many warm sandboxes of a template are there."""
        return sum(s.is_warm and s.spec.template == template for s in self.slots.values())

    def surplus(self) -> set[int]:
        """The warm slots beyond the targets, oldest first: those that the next callers get."""
        beyond: set[int] = set()
        for template, stock in self.stocks.items():
            if stock.surplus > 0:  # as of the last step; asked twice in each
                warm = sorted(s.id for s in self.slots.values() if s.is_warm and s.spec.template == template)
                beyond.update(warm[: stock.surplus])
        return beyond

    @property
    def is_ready(self) -> bool:
        """Whether every template has the warm sandboxes that it should have."""
        return all(self.warm(template) >= stock.target for template, stock in self.stocks.items())

    @property
    def is_degraded(self) -> bool:
        """Whether creates for the stock of some template fail again and again."""
        return any(stock.stage != "well" for stock in self.stocks.values())

    def _bound_slot(self, key: str | None) -> Slot | None:
        return None if key is None or key not in self.bound else self.slots[self.bound[key]]

    def _creating(self) -> int:
        return sum(s.state == "creating" and s.adopts is None for s in self.slots.values())

    def _has_place(self, template: str) -> bool:
        return len(self.slots) < self.max_live and self._template_room(template) > 0

    def _template_room(self, template: str) -> int:
        """How many more of a template there may be."""
        taken = sum(s.spec.template == template for s in self.slots.values())
        return self.max_per_template.get(template, self.max_live + taken) - taken

    def _capacity(self, template: str | None = None) -> int:
        """How many sandboxes can be had without waiting for a user of one: free places, those that will be, and what
        may be had or go."""
        mine = [s for s in self.slots.values() if template is None or s.spec.template == template]
        cap = self.max_live if template is None else self.max_per_template[template]
        return cap - sum(1 for s in mine if not (s.is_idle or s.is_coming_free or s.is_stocked))

    # -- matching

    def _pump(self, now: float) -> None:
        """Give every queued ticket, in order, what can be had; make room for those that stay; fill the stock."""
        self._pace_alarm = None
        if self.closing:
            return
        wanting = self._serve(now)
        while wanting is None:
            wanting = self._serve(now)
        self._make_room(wanting)
        self._fill(now)

    def _serve(self, now: float) -> dict[object, str | None] | None:
        """Go through the queue once: who stays in it, by the template whose cap they wait for (None: the whole pool's).
        One sandbox serves all waiting tickets of a key.

        None: somebody was refused or replaced on the way, so that others may have what they held; once more."""
        wanting: dict[object, str | None] = {}
        ahead: Counter[str] = Counter()
        """Those who wait for a place of the whole pool, by template: once they have one, fewer may be of theirs."""
        paced: list[Ticket] = []
        for ticket in self.queued:
            slot = self._bound_slot(ticket.key)
            if slot is not None and not ticket.is_met_by(slot):
                if ticket.replace:
                    self._replace(slot, now)
                else:
                    self._refuse(ticket, "conflict", slot.id, now=now)
                return None
            if slot is not None:
                self._attach(ticket, slot)
                if slot.state == "live":
                    self._grant(ticket, slot, "reused")
                continue
            slot = self._warm_one(ticket)
            if slot is not None:
                self._take(ticket, slot)
            elif not self._has_place(ticket.spec.template):
                self._want(ticket, wanting, ahead)
            elif ticket.adopt is not None or self._pace.allows(self._creating(), now):
                self._attach(ticket, self._reserve(ticket, now))
            else:
                self._wait_for_pace(now)
                paced.append(ticket)
        for ticket in paced:  # one that the pace does not hold back may have had the place since
            if not self._has_place(ticket.spec.template):
                self._want(ticket, wanting, ahead)
        return wanting

    def _want(self, ticket: Ticket, wanting: dict[object, str | None], ahead: Counter[str]) -> None:
        template = ticket.spec.template
        if (who := ticket.id if ticket.key is None else ticket.key) not in wanting:
            capped = template in self.max_per_template and self._template_room(template) <= ahead[template]
            wanting[who] = template if capped else None
            ahead[template] += not capped

    def _wait_for_pace(self, now: float) -> None:
        if now < self._pace.free_at:  # else it waits for one under way to end
            self._pace_alarm = self._pace.free_at

    def _warm_one(self, ticket: Ticket) -> Slot | None:
        fitting = (s for s in self.slots.values() if ticket.may_have(s))
        return min(fitting, key=lambda s: (s.state != "live", s.id), default=None)

    def _take(self, ticket: Ticket, slot: Slot) -> None:
        """Promise a blank sandbox to a ticket: from here on it is that session's, unless nobody accepts it."""
        slot.key, slot.spec = ticket.key, ticket.spec.made
        if ticket.key is not None:
            self.bound[ticket.key] = slot.id
        self._attach(ticket, slot)
        if slot.state == "live":
            self._grant(ticket, slot, "warm")

    def _make_room(self, wanting: dict[object, str | None]) -> None:
        wanted = Counter(wanting.values())
        for template in self.max_per_template:
            self._evict(template, wanted[template])
        if wanted[None] or len(self.slots) > self.max_live:  # the latter after a resize
            self._evict(None, wanted[None])

    def _evict(self, template: str | None, wanted: int) -> None:
        """Let as many go as are missing for `wanted` more, of a template or of all."""
        among = [s for s in self.slots.values() if template is None or s.spec.template == template]
        cap = self.max_live if template is None else self.max_per_template[template]
        short = len(among) - sum(s.is_coming_free for s in among) + wanted - cap
        stocked = sorted((s for s in among if s.is_stocked), key=lambda s: (s.state == "live", -s.id))
        idle = sorted((s for s in among if s.is_idle), key=lambda s: (s.idle_since, s.id))
        for slot in [*stocked, *idle][: max(0, short)]:
            self._give_up(slot, "evicted")

    def _fill(self, now: float) -> None:
        """Ask for what the stock lacks, as far as places, pace and earlier failures allow it."""
        for template, stock in self.stocks.items():
            there = sum(s.is_stocked and s.spec.template == template for s in self.slots.values())
            while there < stock.target and self._has_place(template) and stock.may_ask(now):
                if not self._pace.allows(self._creating(), now):
                    self._wait_for_pace(now)
                    break
                self._add(None, Spec(template, (), ()), now, blank=True)
                there += 1
            stock.watch(self.warm(template) - stock.target, now, self.limits.idle_timeout)

    # -- small moves

    def _reserve(self, ticket: Ticket, now: float) -> Slot:
        slot = self._add(ticket.key, ticket.spec.made, now, adopts=ticket.adopt)
        if ticket.key is not None:
            self.bound[ticket.key] = slot.id
        return slot

    def _add(self, key: str | None, spec: Spec, now: float, *, blank: bool = False, adopts: str | None = None) -> Slot:
        slot = Slot(self._next_slot, key, spec, now, blank=blank, adopts=adopts)
        self.slots[slot.id] = slot
        self._next_slot += 1
        if adopts is None:
            self._pace.started(now)
        self._out.append(Create(slot.id, slot.key, slot.spec, adopts))
        return slot

    def _attach(self, ticket: Ticket, slot: Slot) -> None:
        ticket.slot = slot.id
        slot.tickets[ticket.id] = None

    def _grant(self, ticket: Ticket, slot: Slot, source: Source) -> None:
        ticket.granted = True
        self._out.append(Grant(ticket.id, slot.id, source))

    def _refuse(self, ticket: Ticket, why: Refusal, slot: int | None = None, *, now: float) -> None:
        self._out.append(Refuse(ticket.id, why, slot))
        self._leave(ticket.id, now)

    def _leave(self, ticket_id: int, now: float) -> None:
        """What a ticket's end leads to is for the policy, which derives from this, to say."""
        raise NotImplementedError

    def _replace(self, slot: Slot, now: float) -> None:
        for ticket_id in list(slot.tickets):
            ticket = self.tickets[ticket_id]
            if not ticket.holding:
                self._refuse(ticket, "conflict", slot.id, now=now)
        # That may have been the end of its promise to them: it is nobody's again, or let go of.
        if slot.id in self.slots and slot.doomed is None and slot.key is not None:
            self._doom(slot, "replaced")

    def _unbind(self, slot: Slot) -> None:
        if slot.key is not None and self.bound.get(slot.key) == slot.id:
            del self.bound[slot.key]

    def _back_to_stock(self, slot: Slot) -> None:
        """Nobody accepted a blank sandbox: it is nobody's again."""
        self._unbind(slot)
        slot.key, slot.spec = None, slot.spec.blank

    def _give_up(self, slot: Slot, reason: KillReason) -> None:
        """Doom a slot, and do not wait for a sandbox that is still being made."""
        if slot.state == "creating":
            self._out.append(Abort(slot.id))
        self._doom(slot, reason)

    def _doom(self, slot: Slot, reason: KillReason) -> None:
        """Unbind the key at once, so that the session can have a new sandbox; kill what is there."""
        self._unbind(slot)
        if slot.state == "creating":
            slot.doomed = slot.doomed or reason
        elif slot.state == "live" and slot.adopts is not None and not slot.was_held:
            self._out.append(LetGo(slot.id))
            self._forget(slot)
        elif slot.state == "live":
            slot.state = "killing"
            slot.doomed = reason
            self._kill(slot)

    def _kill(self, slot: Slot) -> None:
        slot.attempts += 1
        slot.retry_at = None
        self._out.append(Kill(slot.id, slot.doomed or "asked", slot.attempts))

    def _forget(self, slot: Slot) -> None:
        del self.slots[slot.id]
        self._unbind(slot)

    def _report(self, news: News | None, template: str) -> None:
        if news is not None:
            self._out.append(Report(news, template))
