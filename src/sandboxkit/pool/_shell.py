"""Carries out what the policy decides: the pool's tasks, waiters and sandboxes.

All of it runs on one event loop. `step` is synchronous, so no two decisions can overlap; what takes time (create,
kill) runs in tasks of the pool's own group, shielded from the cancellation of any caller, and reports back by `step`.
A caller hands over nothing and gets nothing without a checkpoint that it can be cancelled at: it waits for its offer,
and either accepts it without another wait in between or gives it back.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from sandboxkit._types import Source
from sandboxkit.errors import (
    PoolClosed,
    PoolError,
    PoolFull,
    PoolTimeout,
    ProviderError,
    SandboxExpired,
    SandboxkitError,
    SandboxLost,
    SandboxNotFound,
    SessionBusy,
    SessionConflict,
)
from sandboxkit.events import name_of
from sandboxkit.pool._core import Core
from sandboxkit.pool._emit import Teller
from sandboxkit.pool._home import Home
from sandboxkit.pool._life import Life
from sandboxkit.pool._liveness import open_pools
from sandboxkit.pool._moves import (
    Abort,
    Accept,
    Acquire,
    Close,
    Create,
    Detach,
    Grant,
    Kill,
    Leave,
    LetGo,
    Lost,
    PoolEvent,
    Refuse,
    Renew,
    Report,
    Spec,
    Tick,
)
from sandboxkit.pool._options import PoolOptions
from sandboxkit.pool._policy import PoolPolicy
from sandboxkit.pool._prepare import Preparer, Recipe
from sandboxkit.pool._refusals import refusal
from sandboxkit.pool._stats import Counters
from sandboxkit.pool._upkeep import Upkeep
from sandboxkit.pool._workers import Workers
from sandboxkit.provider._base import Provider

CLOSE_LIMIT = 30.0
"""Seconds that closing may take for killing sandboxes; what is left then is reported."""
REPLACE_PATIENCE = 5.0
"""Seconds that `session(replace=True)` tries to reach an idle sandbox that would fit, before it is replaced."""
GRACE = 5.0
"""Seconds for letting go of the provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller of `session()` or `attach()` wants."""

    key: str | None
    spec: Spec
    timeout: float
    replace: bool = False
    adopt: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """For this hold alone; never part of what the sandbox is made to, or compared by."""


class Hold(NamedTuple):
    """What a call of `session()` got."""

    core: Core
    ticket: int
    """What `release` takes back."""
    source: Source


class _Waiter:
    """A call of `session()` that waits for its answer."""

    def __init__(self) -> None:
        self.answered = anyio.Event()
        self.slot: int | None = None
        self.source: Source = "created"
        self.error: Exception | None = None


class Shell:
    """The doing half of a pool. `run()` is its life, in one task of whoever opened the pool."""

    def __init__(self, options: PoolOptions, provider: Provider, *, owns_provider: bool) -> None:
        self.options = options
        self.provider = provider
        self.policy = PoolPolicy(options.limits)
        self.counters = Counters()
        self.generation = 0
        self.life = Life(options.timeouts, provider, self.counters, self.step)
        self.tell = Teller(options.on_event, pool=options.name)
        self.workers = Workers(options, provider, self.counters, self.tell, self.step)
        self.preparer = Preparer(self.workers.store, self.counters)
        self.upkeep = Upkeep(options, provider, self.policy, self.workers, self.counters, self.tell)
        self.left_over: tuple[str, ...] = ()
        self._owns_provider = owns_provider
        self.home = Home(options.name)
        self._tasks: TaskGroup | None = None
        self._tickets = itertools.count(1)
        self._waiters: dict[int, _Waiter] = {}
        self._alarm = anyio.Event()
        self._alarm_at: float | None = None
        self._reaping: anyio.CancelScope | None = None  # a scope belongs to a loop, and a pool may be made before one
        self.opened = anyio.Event()
        self._close_asked = anyio.Event()
        self._close_limit = CLOSE_LIMIT
        self._is_empty = anyio.Event()
        self._is_wound_up = False
        self._over = anyio.Event()

    # -- the life of the pool

    @property
    def is_open(self) -> bool:
        return self._tasks is not None and not self.policy.closing

    def sandbox_ids(self) -> set[str]:
        """The sandboxes that it has, or is about to take up. May be asked from any thread: `list` copies at once."""
        wanted = {slot.adopts for slot in list(self.policy.slots.values())}
        wanted |= {ticket.adopt for ticket in list(self.policy.tickets.values())}
        there = {core.sandbox.sandbox_id for core in list(self.workers.cores.values())}
        return there | {sandbox_id for sandbox_id in wanted if sandbox_id is not None}

    def check(self) -> None:
        """Refuse a use in a forked child: ForkedProcess."""
        self.home.check_process()

    async def run(self) -> None:
        """Live until `close()`, whoever calls it; nothing is left when this returns."""
        self.home.settle()
        try:
            # A cancellation from outside does not reach in here: the owner's block ends by it, and closes. Were the
            # pool to end first, callers in that block would see PoolClosed instead of their cancellation.
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    tasks.start_soon(self._watch_the_clock)
                    tasks.start_soon(self.life.beat, self.workers.cores.values, tasks)
                    open_pools[self.options.id.hex] = self
                    if self.options.reaps and not self._close_asked.is_set():
                        with anyio.CancelScope() as self._reaping:
                            await self.upkeep.reap_first()
                    self.tell("pool.opened", provider=self.provider.name, max_live=self.policy.max_live)
                    self.opened.set()
                    try:
                        self.step(Tick())  # the warm ones are asked for
                        await self._close_asked.wait()
                    finally:  # also when a loop that is being torn down cancels this task past the shield
                        await self._wind_up()
                        tasks.cancel_scope.cancel()
        finally:
            self._is_wound_up = True
            self.upkeep.stepped.set()
            open_pools.pop(self.options.id.hex, None)
            self.left_over = tuple(core.sandbox.sandbox_id for core in self.workers.cores.values())
            if self._owns_provider:
                with anyio.move_on_after(GRACE, shield=True):
                    await self.provider.aclose()
            self._over.set()
            self.tell("pool.closed", left_over=len(self.left_over))

    async def _wind_up(self) -> None:
        self.step(Close())
        with anyio.move_on_after(self._close_limit):
            await self._is_empty.wait()
        self._is_wound_up = True
        self.workers.stop()

    async def close(self, limit: float) -> tuple[str, ...]:
        """Close, and return the ids of sandboxes that could not be killed within `limit` seconds."""
        if self._tasks is None:  # never opened: there is nothing to let go of but the provider
            if not self._over.is_set():
                self.policy.step(Close(), 0.0)
                self._is_wound_up = True
                self._over.set()
                if self._owns_provider:
                    with anyio.move_on_after(GRACE, shield=True):
                        await self.provider.aclose()
            return ()
        self.home.check_loop()
        self.ask_to_close(limit)
        with anyio.move_on_after(limit + 2 * GRACE, shield=True):
            await self._over.wait()
        return self.left_over

    def ask_to_close(self, limit: float) -> None:
        """Begin to close, without waiting for it; a second time does nothing."""
        if not self._close_asked.is_set():
            self._close_limit = limit
            self._close_asked.set()
            if self._reaping is not None:
                self._reaping.cancel()
            self.step(Close())  # at once: waiters need not wait for the pool's own task to get its turn

    async def _watch_the_clock(self) -> None:
        while True:
            self._alarm, self._alarm_at = anyio.Event(), self.policy.next_alarm()
            with anyio.CancelScope(deadline=float("inf") if self._alarm_at is None else self._alarm_at):
                await self._alarm.wait()
            self.step(Tick())

    # -- deciding

    def step(self, event: PoolEvent) -> None:
        """Tell the policy what happened, and begin what it says."""
        if self._is_wound_up:
            return
        for command in self.policy.step(event, anyio.current_time()):
            match command:
                case Create() | Kill():
                    assert self._tasks is not None, "only an open pool has slots"
                    self.workers.start(command, self._tasks)
                case LetGo(slot):
                    core = self.workers.let_go(slot)
                    core.gone = "detached"
                    core.tell("sandbox.let_go")
                    assert self._tasks is not None, "only an open pool has slots"
                    self._tasks.start_soon(self.workers.store.clear, core.row, core.generation)
                case Renew(slot):
                    assert self._tasks is not None, "only an open pool has slots"
                    self._tasks.start_soon(self.life.renew_warm, self.workers.cores[slot])
                case Report():
                    self.upkeep.report(command)
                case Abort(slot):
                    self.workers.abort(slot)
                case Grant(ticket, slot, source):
                    self._grant(ticket, slot, source)
                case Refuse():
                    self._refuse(command)
        alarm = self.policy.next_alarm()
        # A later one is seen to when the clock has been looked at for this one, which most of the time has just gone.
        if alarm is not None and (self._alarm_at is None or alarm < self._alarm_at):
            self._alarm.set()
        self.upkeep.stepped.set()
        if self.policy.closing and not self.policy.slots:
            self._is_empty.set()

    def _grant(self, ticket: int, slot: int, source: Source) -> None:
        core, waiter = self.workers.cores[slot], self._waiters[ticket]
        known = self.policy.slots[slot]
        if source in ("reused", "warm") and len(known.tickets) == 1:
            core.is_unchecked = True
        if source == "warm":
            core.become(known.key, known.spec, self.tell)
        waiter.slot, waiter.source = slot, source
        waiter.answered.set()

    def _refuse(self, command: Refuse) -> None:
        waiter = self._waiters.get(command.ticket)
        if waiter is not None:
            waiter.error = refusal(command.why, self.options, self.policy, self.workers.failures.get(command.slot or 0))
            waiter.answered.set()

    # -- sessions

    async def open(self, request: Request) -> Hold:
        """Get a sandbox for a session and hold it."""
        self.check()
        self.home.check_loop()
        if self._tasks is None and not self.policy.closing:
            raise PoolError(
                f"Pool {self.options.name!r} is not open. Use `async with AsyncSandboxPool() as pool:` "
                "(or an AsyncExitStack's enter_async_context): its tasks need an owner."
            )
        started_at, place = anyio.current_time(), None
        while True:
            ticket, waiter = next(self._tickets), _Waiter()
            self._waiters[ticket] = waiter
            core: Core | None = None
            try:
                if self._is_wound_up:
                    raise PoolClosed(f"Pool {self.options.name!r} is closed.")
                acquire = Acquire(
                    ticket=ticket,
                    key=request.key,
                    spec=request.spec,
                    deadline=started_at + request.timeout,
                    replace=request.replace,
                    adopt=request.adopt,
                    place=place,
                )
                place = ticket if place is None else place
                self.step(acquire)
                if place == ticket and not waiter.answered.is_set():
                    self.counters.queued += 1
                    self.tell.about(session=request.key, template=request.spec.template)("session.queued")
                await waiter.answered.wait()
                core = await self._offered(waiter, acquire)
                if core is not None:
                    self.step(Accept(ticket))
                    if waiter.error is not None:  # its time was over at that very moment, and another has it now
                        core = None
                        raise waiter.error
                    if await self._prepared(core, request.recipe, acquire.deadline):
                        self._count_opening(core, waiter.source, anyio.current_time() - started_at)
                        return Hold(core, ticket, waiter.source)
                self.step(Leave(ticket))
            except BaseException as error:
                if core is not None and not core.is_prepared and core.gone is None:
                    self.step(Lost(core.slot, "failed"))  # half made for this session, it can be nobody else's
                self.step(Leave(ticket))
                self._count_failure(request, error, anyio.current_time() - started_at)
                raise
            finally:
                del self._waiters[ticket]

    async def _prepared(self, core: Core, recipe: Recipe, deadline: float) -> bool:
        if core.is_prepared:
            return core.gone is None
        with anyio.CancelScope(deadline=deadline) as limit:
            try:
                return await self.preparer.prepare(core, recipe)
            except SandboxLost:
                self.step(Lost(core.slot))
                return False
        assert limit.cancelled_caught
        raise refusal("timeout", self.options, self.policy)

    async def _offered(self, waiter: _Waiter, acquire: Acquire) -> Core | None:
        """Make sure of what was offered; None if it is gone, so that another is to be asked for."""
        if waiter.error is not None:
            raise waiter.error
        core = self.workers.cores.get(waiter.slot or 0)
        if core is None or core.gone is not None:
            return None
        if core.is_unchecked:
            patience = anyio.current_time() + REPLACE_PATIENCE if acquire.replace else acquire.deadline
            try:
                with anyio.CancelScope(deadline=min(patience, acquire.deadline)):
                    await self.life.make_sure(core)
            except ProviderError:
                if not acquire.replace:
                    raise
            if waiter.error is None and core.is_unchecked and core.gone is None:
                if acquire.replace:  # what cannot be reached cannot be kept
                    self.step(Lost(core.slot, "replaced"))
                    return None
                raise refusal("timeout", self.options, self.policy)
        if waiter.error is not None:
            raise waiter.error
        return None if core.gone is not None else core

    def _count_opening(self, core: Core, source: Source, duration: float) -> None:
        self.counters.count_opening(source, duration)
        if source == "reused":
            core.tell("sandbox.reused", duration=duration)
        core.tell("session.opened", source=source, duration=duration)

    def _count_failure(self, request: Request, error: BaseException, duration: float) -> None:
        tell = self.tell.about(session=request.key, template=request.spec.template)
        if isinstance(error, SessionConflict):
            tell("session.conflict")
        else:
            tell("session.refused", error=name_of(error), duration=duration)
        if isinstance(error, PoolTimeout):
            self.counters.timed_out += 1
        elif isinstance(error, PoolFull | PoolClosed | SessionConflict):
            self.counters.refused += 1
        elif not isinstance(error, Exception):
            self.counters.cancelled += 1

    def release(self, core: Core, ticket: int, *, held_for: float) -> None:
        """Take back a hold."""
        self.counters.in_use_seconds += held_for
        if core.gone is None:
            core.tell("session.released", duration=held_for)
        self.step(Leave(ticket))

    def discard(self, core: Core) -> None:
        """Kill a sandbox because its user says so."""
        self.step(Lost(core.slot, "asked"))

    async def detach(self, core: Core) -> None:
        """Take a sandbox out of the pool, with its life prolonged. Errors: as `AsyncSession.detach` says."""
        if core.uses or len(self.policy.slots[core.slot].tickets) > 1:
            raise SessionBusy(
                f"Session {core.key!r} is in use elsewhere in this process, or work runs in it; it cannot be detached.",
                sandbox_id=core.sandbox.sandbox_id,
            )
        await self.life.prolong(core, self.options.timeouts.lifetime)
        if core.gone is not None or core.slot not in self.policy.slots:
            raise core.why_gone() or SandboxNotFound("It is gone.", sandbox_id=core.sandbox.sandbox_id)
        if core.uses or len(self.policy.slots[core.slot].tickets) > 1:
            raise SessionBusy(f"Session {core.key!r} was opened meanwhile.", sandbox_id=core.sandbox.sandbox_id)
        core.tell("session.detached")
        core.gone = "detached"
        self.step(Detach(core.slot))
        self.workers.let_go(core.slot)
        with anyio.CancelScope(shield=True):  # the caller must learn what it has now
            await self.workers.store.clear(core.row, core.generation)

    def lost(self, core: Core, error: SandboxLost) -> SandboxkitError:
        """Take in that a use met no sandbox; what to raise for it."""
        sandbox_id = core.sandbox.sandbox_id
        if error.sandbox_id not in (None, sandbox_id):
            return error  # some other sandbox's, raised by a callback
        why = core.why_gone()
        has_expired = core.end_at is not None and core.end_at <= anyio.current_time()
        if why is None and has_expired and not isinstance(error, SandboxExpired):
            why = SandboxExpired(
                f"Sandbox {sandbox_id} reached the end of its lifetime (TimeoutPolicy.lifetime).",
                sandbox_id=sandbox_id,
            )
        self.step(Lost(core.slot, "expired" if isinstance(why or error, SandboxExpired) else "lost"))
        return why or error
