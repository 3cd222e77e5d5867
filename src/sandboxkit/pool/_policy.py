"""Decides what the pool does: (state, event, now) -> commands; no clock, no loop, no sandbox of its own.

The shell (`_pool`) tells the policy what happened and carries out what it answers. Time is whatever monotonic
seconds the shell passes in; sandboxes are *slots*, known by number; callers are *tickets*, known by number.

**A slot** is one place under `max_live`. It is taken before a sandbox is asked for and given back only when its
kill is confirmed or its creation has failed, so that the cap is true at every moment, also under bursts and when
kills fail. Its states:

    creating   asked for, not there yet; tickets that want it are attached to it
    live       there; *held* while tickets hold it, *idle* (a released session) while none does
    killing    asked to be killed, not confirmed; a failed kill is tried again, and keeps the slot. Also one whose
               create failed in a way that leaves open whether there is a sandbox (a lost reply): the shell looks for
               it by its tags and kills it. That is given up after a few attempts, since there may be none

A creating slot may be *doomed*: nobody wants it any more, or the pool closes. It is killed as soon as it is there.

**A ticket** is one call of `pool.session()`, from the question to the release:

    queued     waits for capacity, first come first served
    attached   waits for a slot that is being created
    offered    has been granted a live slot and has not said yet that it took it
    holding    took it

A ticket that goes away while queued, attached or offered is a cancel: what it was promised goes to the next ticket
that the sandbox fits, else it is killed. A ticket that goes away while holding is a release.

**A session key** is bound to at most one slot, from creating until that slot starts dying. A sandbox serves one key
in its life: a slot that was made for a key is never given to another; one made for no key (anonymous) goes only to
an anonymous ticket, and only if nobody ever held it.

**Events.** Acquire: a ticket asks. Accept: it took the offer. Leave: it is gone, for whatever reason. Created,
CreateFailed: how a Create ended. Renewed: the sandbox lives until then. Lost: the provider said that the sandbox is
gone, its owner wants it dead, or replace=True met one that cannot be reached. Killed, KillFailed: how a Kill ended.
Tick: time has passed. Resize, Drain, Close.

**Commands.** Create, Abort (give up a Create under way; answered by Created or CreateFailed), Kill, Grant (offer a
live slot to a ticket), Refuse (end a ticket with an error).

**Who gets capacity.** Tickets in the order of their arrival. A ticket whose session is live or being created needs no
capacity and does not wait. When tickets wait, idle sessions are killed, least recently used first, as many as are
needed and not one more; held ones never.

    event          queued      attached          offered            holding       slot without tickets
    Leave          forget      forget            as below           release       -
    deadline       Refuse      Refuse, forget    Refuse, as below   -             -
    Created        -           Grant             -                  -             made for nobody: kill it
    CreateFailed   -           Refuse            -                  -             free the slot; unsure: kill it
    Lost           -           -                 stays as it is; its next use tells      kill it
    end of life    -           -                 -                  -             idle: kill it
    Close          Refuse      Refuse            Refuse             forget        kill it

    the last ticket of a live slot goes:  anonymous, draining, or never held by anybody -> kill (an anonymous one that
    nobody held goes to a waiting anonymous ticket of the same spec); else -> idle
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sandboxkit.pool._moves import (
    Abort,
    Accept,
    Acquire,
    Close,
    Command,
    Create,
    Created,
    CreateFailed,
    Drain,
    Grant,
    Kill,
    Killed,
    KillFailed,
    KillReason,
    Leave,
    Lost,
    PoolEvent,
    Refusal,
    Refuse,
    Renewed,
    Resize,
    SlotState,
    Source,
    Spec,
    Tick,
)

# -- state --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Slot:
    """One place under the cap, and what is known of the sandbox in it."""

    id: int
    key: str | None
    spec: Spec
    state: SlotState = "creating"
    tickets: dict[int, None] = field(default_factory=dict)
    """Attached, offered or holding, in the order in which they came."""
    was_held: bool = False
    end_at: float | None = None
    idle_since: float = 0.0
    draining: bool = False
    doomed: KillReason | None = None
    is_unsure: bool = False
    """Whether there is a sandbox at all is not known."""
    attempts: int = 0
    retry_at: float | None = None

    @property
    def is_idle(self) -> bool:
        return self.state == "live" and not self.tickets

    @property
    def is_coming_free(self) -> bool:
        """Whether its place is about to be given back, if nobody who wants this very session comes first."""
        return self.doomed is not None or (self.state == "creating" and not self.tickets)


@dataclass(slots=True)
class Ticket:
    """One call of `pool.session()`."""

    id: int
    key: str | None
    spec: Spec
    deadline: float
    replace: bool
    slot: int | None = None
    """None while queued."""
    granted: bool = False
    holding: bool = False


KILL_RETRY_FIRST, KILL_RETRY_MOST, KILL_RETRY_CLOSING = 1.0, 60.0, 0.5
"""Seconds between attempts: doubled each time up to the most; while closing always the short one."""
UNSURE_ATTEMPTS = 4
"""How often a sandbox that may not exist is looked for, where looking fails."""


class PoolPolicy:
    """The pool's state machine. `step` is the only way in; everything else reads."""

    def __init__(self, *, max_live: int, max_waiting: int | None = None) -> None:
        self.max_live = max_live
        self.max_waiting = max_waiting
        self.closing = False
        self.slots: dict[int, Slot] = {}
        self.tickets: dict[int, Ticket] = {}
        self.bound: dict[str, int] = {}
        self._next_slot = 1
        self._out: list[Command] = []

    # -- reading

    @property
    def queued(self) -> list[Ticket]:
        """Tickets that wait for capacity, first come first (a dict keeps the order of arrival)."""
        return [t for t in self.tickets.values() if t.slot is None]

    def next_alarm(self) -> float | None:
        """When a Tick is due at the latest, None if nothing depends on time."""
        return min(self._alarms(), default=None)

    def _alarms(self) -> Iterator[float]:
        yield from (t.deadline for t in self.tickets.values() if not t.holding)
        for slot in self.slots.values():
            if slot.retry_at is not None:
                yield slot.retry_at
            if slot.is_idle and slot.end_at is not None:
                yield slot.end_at

    # -- deciding

    def step(self, event: PoolEvent, now: float) -> list[Command]:
        """Take in what happened and say what to do about it, in this order."""
        self._out = []
        self._expire(now)
        match event:
            case Acquire():
                self._acquire(event, now)
            case Accept(ticket):
                self._accept(ticket)
            case Leave(ticket):
                self._leave(ticket, now)
            case Created(slot_id, end_at):
                self._created(self.slots[slot_id], end_at, now)
            case CreateFailed(slot_id, is_unsure):
                self._create_failed(self.slots[slot_id], is_unsure)
            case Renewed(slot_id, end_at):
                if (slot := self.slots.get(slot_id)) is not None:
                    slot.end_at = end_at
            case Lost(slot_id, reason):
                if (slot := self.slots.get(slot_id)) is not None and slot.state == "live":
                    self._doom(slot, reason)
            case Killed(slot_id):
                self._forget(self.slots[slot_id])
            case KillFailed(slot_id):
                self._kill_failed(self.slots[slot_id], now)
            case Tick():
                pass
            case Resize(max_live):
                self.max_live = max_live
            case Drain():
                self._drain()
            case Close():
                self._close(now)
        self._pump(now)
        out, self._out = self._out, []
        return out

    def _expire(self, now: float) -> None:
        for ticket in list(self.tickets.values()):
            if not ticket.holding and ticket.deadline <= now:
                self._refuse(ticket, "timeout", now=now)
        for slot in list(self.slots.values()):
            # A held one is not judged by our own bookkeeping: its user may have prolonged it through `.sandbox`.
            if slot.is_idle and slot.end_at is not None and slot.end_at <= now:
                self._doom(slot, "expired")
            elif slot.retry_at is not None and slot.retry_at <= now:
                self._kill(slot)

    def _acquire(self, event: Acquire, now: float) -> None:
        ticket = Ticket(event.ticket, event.key, event.spec, event.deadline, event.replace)
        if self.closing:
            self._out.append(Refuse(ticket.id, "closed"))
            return
        rival = self._rival(ticket)
        if rival is not None:
            self._out.append(Refuse(ticket.id, "conflict", rival.slot if isinstance(rival, Ticket) else rival.id))
            return
        if self.max_waiting is not None and self._needs_capacity(ticket):
            short = len(self.queued) + 1 - self._capacity()
            if short > self.max_waiting:
                self._out.append(Refuse(ticket.id, "full"))
                return
        if ticket.replace:
            for other in self.queued:
                if other.key == ticket.key and ticket.key is not None and not other.spec.is_met_by(ticket.spec):
                    self._refuse(other, "conflict", now=now)
        self.tickets[ticket.id] = ticket  # the pump gives it what there is

    def _rival(self, ticket: Ticket) -> Slot | Ticket | None:
        """Find what holds, or earlier asked for, the same session as something else."""
        if ticket.key is None or ticket.replace:
            return None
        slot = self._bound_slot(ticket.key)
        if slot is not None:
            return None if ticket.spec.is_met_by(slot.spec) else slot
        first = next((t for t in self.queued if t.key == ticket.key), None)
        return None if first is None or ticket.spec.is_met_by(first.spec) else first

    def _needs_capacity(self, ticket: Ticket) -> bool:
        slot = self._bound_slot(ticket.key)
        return slot is None or not ticket.spec.is_met_by(slot.spec)

    def _capacity(self) -> int:
        """How many sandboxes can be had without waiting for a user of one: free places, and those that will be."""
        return self.max_live - sum(1 for s in self.slots.values() if not s.is_idle and not s.is_coming_free)

    def _accept(self, ticket_id: int) -> None:
        ticket = self.tickets.get(ticket_id)
        if ticket is None or not ticket.granted or ticket.slot is None:
            return
        ticket.holding = True
        if ticket.slot in self.slots:
            self.slots[ticket.slot].was_held = True

    def _leave(self, ticket_id: int, now: float) -> None:
        ticket = self.tickets.pop(ticket_id, None)
        slot = None if ticket is None or ticket.slot is None else self.slots.get(ticket.slot)
        if slot is None:
            return
        slot.tickets.pop(ticket_id, None)
        if slot.is_idle:
            self._settle(slot, now)

    def _settle(self, slot: Slot, now: float) -> None:
        """A live slot is without tickets: pass it on, keep it as an idle session, or kill it."""
        if self.closing:
            self._doom(slot, "closed")
        elif not slot.was_held:
            heir = self._heir(slot)
            if heir is not None:
                self._attach(heir, slot)
                self._grant(heir, slot, "created")
            else:
                self._doom(slot, "abandoned")
        elif slot.key is None:
            self._doom(slot, "released")
        elif slot.draining:
            self._doom(slot, "drained")
        else:
            slot.idle_since = now

    def _heir(self, slot: Slot) -> Ticket | None:
        """The first waiting ticket that a sandbox nobody ever held was as good as made for."""
        return next((t for t in self.queued if t.key == slot.key and t.spec.is_met_by(slot.spec)), None)

    def _created(self, slot: Slot, end_at: float | None, now: float) -> None:
        slot.state = "live"
        slot.end_at = end_at
        if slot.doomed is not None:
            self._doom(slot, slot.doomed)
            return
        for ticket_id in slot.tickets:
            self._grant(self.tickets[ticket_id], slot, "created")
        if not slot.tickets:
            self._settle(slot, now)

    def _create_failed(self, slot: Slot, is_unsure: bool) -> None:
        for ticket_id in list(slot.tickets):
            if self.tickets.pop(ticket_id, None) is not None:
                self._out.append(Refuse(ticket_id, "create_failed", slot.id))
        slot.tickets.clear()
        slot.is_unsure = is_unsure
        if is_unsure:
            slot.state = "live"  # for all that is known
            self._doom(slot, slot.doomed or "abandoned")
        else:
            self._forget(slot)

    def _kill_failed(self, slot: Slot, now: float) -> None:
        if slot.is_unsure and slot.attempts >= UNSURE_ATTEMPTS:
            self._forget(slot)
            return
        wait = min(KILL_RETRY_FIRST * 2 ** (slot.attempts - 1), KILL_RETRY_MOST)
        slot.retry_at = now + (min(wait, KILL_RETRY_CLOSING) if self.closing else wait)

    def _drain(self) -> None:
        for slot in list(self.slots.values()):
            slot.draining = True
            if slot.is_idle:
                self._doom(slot, "drained")

    def _close(self, now: float) -> None:
        self.closing = True
        for ticket in list(self.tickets.values()):
            if not ticket.holding:
                self._refuse(ticket, "closed", now=now)
        for slot in list(self.slots.values()):
            if slot.state == "creating":
                self._out.append(Abort(slot.id))
            if slot.retry_at is not None:
                slot.retry_at = min(slot.retry_at, now + KILL_RETRY_CLOSING)
            self._doom(slot, "closed")

    # -- matching capacity and tickets

    def _pump(self, now: float) -> None:
        """Give every queued ticket, in order, what can be had; make room for those that stay."""
        if self.closing:
            return
        wanting: dict[object, None] = {}  # one sandbox serves all waiting tickets of a key
        for ticket in self.queued:
            slot = self._bound_slot(ticket.key)
            if slot is not None and not ticket.spec.is_met_by(slot.spec):
                if not ticket.replace:
                    self._refuse(ticket, "conflict", slot.id, now=now)
                    continue
                self._replace(slot, now)
                slot = None
            if slot is None and len(self.slots) < self.max_live:
                slot = self._reserve(ticket)
            if slot is None:
                wanting[ticket.id if ticket.key is None else ticket.key] = None
                continue
            self._attach(ticket, slot)
            if slot.state == "live":
                self._grant(ticket, slot, "reused")
        self._make_room(len(wanting))

    def _make_room(self, wanted: int) -> None:
        coming = sum(1 for s in self.slots.values() if s.is_coming_free)
        short = len(self.slots) - coming + wanted - self.max_live
        idle = sorted((s for s in self.slots.values() if s.is_idle), key=lambda s: (s.idle_since, s.id))
        for slot in idle[: max(0, short)]:
            self._doom(slot, "evicted")

    def _replace(self, slot: Slot, now: float) -> None:
        for ticket_id in list(slot.tickets):
            ticket = self.tickets.get(ticket_id)
            if ticket is not None and not ticket.holding:
                self._refuse(ticket, "conflict", slot.id, now=now)
        if slot.doomed is None and slot.state != "killing":
            self._doom(slot, "replaced")

    def _reserve(self, ticket: Ticket) -> Slot:
        made = Spec(ticket.spec.template, ticket.spec.envs or (), ticket.spec.metadata or ())
        slot = self.slots[self._next_slot] = Slot(self._next_slot, ticket.key, made)
        self._next_slot += 1
        if ticket.key is not None:
            self.bound[ticket.key] = slot.id
        self._out.append(Create(slot.id, slot.key, slot.spec))
        return slot

    # -- small moves

    def _bound_slot(self, key: str | None) -> Slot | None:
        return None if key is None or key not in self.bound else self.slots[self.bound[key]]

    def _attach(self, ticket: Ticket, slot: Slot) -> None:
        ticket.slot = slot.id
        slot.tickets[ticket.id] = None

    def _grant(self, ticket: Ticket, slot: Slot, source: Source) -> None:
        ticket.granted = True
        self._out.append(Grant(ticket.id, slot.id, source))

    def _refuse(self, ticket: Ticket, why: Refusal, slot: int | None = None, *, now: float) -> None:
        self._out.append(Refuse(ticket.id, why, slot))
        self._leave(ticket.id, now)

    def _doom(self, slot: Slot, reason: KillReason) -> None:
        """Unbind the key at once, so that the session can have a new sandbox; kill what is there."""
        if slot.key is not None and self.bound.get(slot.key) == slot.id:
            del self.bound[slot.key]
        if slot.state == "creating":
            slot.doomed = slot.doomed or reason
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
        if slot.key is not None and self.bound.get(slot.key) == slot.id:
            del self.bound[slot.key]
