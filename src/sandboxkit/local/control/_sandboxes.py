"""Carries out what the registry decides: makes boxes and their services, ends them, and keeps time.

Each making and each ending is a task of its own, so that neither depends on the client that asked for it: a create
whose client hangs up goes on (its idempotency key finds the sandbox again), an ending always comes to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from sandboxkit.errors import SandboxkitError
from sandboxkit.local._descriptors import are_short, means_exhausted
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.control._app import App
from sandboxkit.local.control._blanks import Blank, Blanks, box_spec, kind_of
from sandboxkit.local.control._giving_back import give_back
from sandboxkit.local.control._journal import Journal
from sandboxkit.local.control._network import Network
from sandboxkit.local.control._parts import Live, Recipe, Sample, Services, WayOut
from sandboxkit.local.control._pauses import Pauses
from sandboxkit.local.control._recipes import Recipes
from sandboxkit.local.control._refusals import Refused, could_not_be_made, no_such_sandbox
from sandboxkit.local.control._registry import Due, Make, Now, Page, Query, Registry, Sandbox, State, Wanted
from sandboxkit.local.control._store import Draft, Store, opened
from sandboxkit.local.gateway.egress._proxy import Egress, Traffic
from sandboxkit.local.isolation._base import AgentLost, Box, BoxEnd, Isolation

PING_TIMEOUT = 2.0


class Sandboxes:
    """All sandboxes of the engine, alive. `copies_within` are the seconds that copies of paused ones get at its end."""

    def __init__(
        self,
        *,
        registry: Registry,
        isolation: Isolation,
        services: Services,
        max_creating: int,
        create_timeout: float,
        way_out: WayOut,
        store: Store,
        recipes: Recipes,
        warm: int = 0,
        copies_within: float = 0.0,
    ) -> None:
        self._registry = registry
        self._isolation = isolation
        self._services = services
        self._way_out = way_out
        self._turns = asyncio.Semaphore(max_creating)
        self._create_timeout = create_timeout
        self._blanks = Blanks(
            each_kind=warm, isolation=isolation, services=services, new_id=registry.unused_id, room=registry.room
        )
        self._store = store
        self._copies_within = copies_within
        self.journal = Journal()
        self._pauses = Pauses(
            self,
            registry=registry,
            store=store,
            recipes=recipes,
            journal=self.journal,
            create_timeout=create_timeout,
        )
        self._live: dict[str, Live] = {}
        self._making: dict[str, asyncio.Task[Sandbox]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._timer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Take in what an engine before this one has kept; begin to keep time, and a stock of blank boxes."""
        give_back(self._store, self._registry, self.journal)
        self._timer = asyncio.create_task(self._keep_time(), name="expiry")
        self._blanks.start()

    def expect(self, wanted: Wanted, recipe: Recipe) -> None:
        """Keep blank boxes for sandboxes like this one from now on, before the first is asked for."""
        self._blanks.expect(kind_of(wanted, recipe))

    def blanks(self) -> int:
        """How many blank boxes are ready."""
        return self._blanks.count()

    # -- lives ----------------------------------------------------------------------------------------------------

    async def create(self, wanted: Wanted, recipe: Recipe) -> Sandbox:
        """Make a sandbox, or return the one that the idempotency key stands for.

        Raises:
            Refused: 409, 429, 503 as the registry says; 503 if it takes longer than `create_timeout` or no descriptors
                are left; 500 if the box could not be made.
        """
        # From here to `claim` nothing else runs: the blank that gives the id is the one that is claimed.
        is_plain = recipe.files is None and not recipe.volumes  # a blank holds nobody's data
        blank = self._blanks.next(kind_of(wanted, recipe)) if is_plain else None
        decision = self._registry.create(wanted, _now(), sandbox_id=blank.sandbox_id if blank is not None else None)
        sandbox_id = decision.sandbox.sandbox_id
        if isinstance(decision, Make):
            if blank is not None:
                self._blanks.claim(blank)
            making = asyncio.create_task(self._make(decision.sandbox, recipe, blank), name=f"make {sandbox_id}")
            self._making[sandbox_id] = making
            making.add_done_callback(lambda done: self._made(sandbox_id, done))
        elif (found := self._making.get(sandbox_id)) is not None:
            making = found
        else:
            return decision.sandbox
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            if making.cancelled():
                raise Refused(503, "The engine is shutting down", error_code="engine_closing", retry=False) from None
            raise

    async def kill(self, sandbox_id: str) -> None:
        """Kill one, paused or not, and return when nothing of it is left. Refused: 404, also for the second of two at
        once."""
        self.get(sandbox_id)
        if self._registry.end(sandbox_id):
            await asyncio.shield(self._end(sandbox_id, "killed"))

    async def pause(self, sandbox_id: str, *, memory: bool = True, require_healthy: bool = False) -> None:
        """Stop all that runs in it, and return when nothing runs; without `memory`, keep its files alone.

        Raises:
            Refused: 404, also where it ends meanwhile; 409 where it is paused already; 503 where `require_healthy`, or
                without `memory`, and its agent does not answer; 507 where its files cannot be kept.
        """
        if require_healthy or not memory:
            await self._check_health(sandbox_id)
        await self._pauses.pause(sandbox_id, memory=memory)

    async def connect(
        self, sandbox_id: str, seconds: int, *, memory: bool = True, strict: bool = False, by_traffic: bool = False
    ) -> tuple[Sandbox, bool]:
        """Let it live at least `seconds` from now, and let it go on if it is paused; True if it was. See
        `Pauses.connect`."""
        return await self._pauses.connect(sandbox_id, seconds, memory=memory, strict=strict, by_traffic=by_traffic)

    async def copy(self, sandbox_id: str) -> Draft:
        """Copy its files to the store, while it stands still. Refused: 404, 507."""
        return await self._pauses.copy(sandbox_id)

    async def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        """Let it end (or pause, as it was made) `seconds` from now; with 0, before this returns. Refused: 404."""
        self._registry.set_timeout(sandbox_id, seconds, _now())
        self._changed.set()
        if seconds == 0 and (carried_out := self.settle(sandbox_id)) is not None:
            await asyncio.shield(carried_out)

    def extend(self, sandbox_id: str, seconds: int) -> Sandbox:
        """Let it live at least `seconds` from now. Refused: 404."""
        sandbox = self._registry.extend(sandbox_id, seconds, _now())
        self._changed.set()
        return sandbox

    def lost(self, sandbox_id: str, reason: str = "agent lost") -> None:
        """Note that its agent is gone or talks nonsense: it is killed, and is gone for everybody at once."""
        if self._registry.end(sandbox_id):
            self._end(sandbox_id, reason)

    async def aclose(self) -> None:
        """Make no more and end all. Idempotent; the caller bounds it."""
        if self._timer is not None:
            self._timer.cancel()
        await self._pauses.finish(within=self._copies_within)
        for sandbox_id in self._registry.close():
            self._end(sandbox_id, "engine")
        for making in list(self._making.values()):
            making.cancel()
        await self._blanks.aclose()
        while tasks := [*self._making.values(), *self._ending.values()]:
            await asyncio.wait(tasks)
        await self._pauses.aclose()
        await self._isolation.aclose()

    # -- looking --------------------------------------------------------------------------------------------------

    def get(self, sandbox_id: str) -> Sandbox:
        """Return one that lives or is paused. Refused: 404."""
        return self._registry.get(sandbox_id, _now())

    def running(self, sandbox_id: str) -> Sandbox:
        """Return one that lives. Refused: 404, also where it is paused."""
        return self._registry.running(sandbox_id, _now())

    def page(self, query: Query) -> Page:
        """List those that live. Refused: 400 for a bad token."""
        return self._registry.page(query, _now())

    async def set_network(self, sandbox_id: str, network: Network) -> None:
        """Let it reach this from now on; connections to anything else are closed before this returns. Refused: 404."""
        self._registry.set_network(sandbox_id, network, _now())
        live = self._live[sandbox_id]
        try:
            await live.egress.set_policy(network.policy)
        except AgentLost:
            self.lost(sandbox_id)
            raise no_such_sandbox(sandbox_id) from None

    async def for_traffic(self, sandbox_id: str, *, wakes: bool = True) -> Live | None:
        """Return the parts of one that lives; resume it first where it is paused and its creator wanted that."""
        try:
            sandbox = self.get(sandbox_id)
            if sandbox.state is State.PAUSED and sandbox.wanted.auto_resume and wakes:
                sandbox, _ = await self.connect(sandbox_id, sandbox.wanted.timeout, by_traffic=True)
        except Refused:
            return None
        return self._live.get(sandbox_id) if sandbox.state is State.LIVE else None

    def live(self, sandbox_id: str) -> Live | None:
        """Return the parts of one that is there, paused or not."""
        return self._live.get(sandbox_id)

    def find(self, is_meant: Callable[[Live], bool]) -> str | None:
        """Find the sandbox that a request means which does not name it, by its secret. None when there is none."""
        found = (sandbox_id for sandbox_id, live in self._live.items() if is_meant(live))
        return next(found, None)

    async def measure(self, sandbox_id: str) -> list[Sample]:
        """Measure what it uses now, and return that after what was measured before. Refused: 404."""
        live = self._live.get(sandbox_id)
        if live is None:
            self.get(sandbox_id)
            return []  # paused, and nothing of it but its files
        try:
            usage = await live.box.usage()
        except AgentLost:
            self.lost(sandbox_id)
            raise no_such_sandbox(sandbox_id) from None
        at, (before, spent) = time.monotonic(), live.last_cpu
        # Of all its CPUs together, as E2B counts: 100 is all of them busy.
        cpus = self.get(sandbox_id).wanted.limits.cpus
        percent = 100.0 * max(0.0, usage.cpu_seconds - spent) / max(at - before, 0.001) / cpus
        live.last_cpu = (at, usage.cpu_seconds)
        live.samples.append(Sample(time.time(), usage, percent))
        return list(live.samples)

    # -- doing ----------------------------------------------------------------------------------------------------

    async def _make(self, sandbox: Sandbox, recipe: Recipe, blank: Blank | None) -> Sandbox:
        started = time.monotonic()
        sandbox_id, wanted = sandbox.sandbox_id, sandbox.wanted
        try:
            live = await self._from_blank(sandbox, recipe, blank) if blank is not None else None
            if live is None:
                live = await self.make_live(sandbox, recipe)
        except BaseException as error:
            self._registry.failed(sandbox_id)
            if isinstance(error, asyncio.CancelledError):
                raise
            log(
                logging.ERROR,
                "sandbox.create_failed",
                sandbox_id=sandbox_id,
                template=wanted.template_id,
                error=type(error).__name__,
                duration=time.monotonic() - started,
                exc_info=not (isinstance(error, TimeoutError | SandboxkitError) or means_exhausted(error)),
            )
            raise could_not_be_made(error, self._create_timeout) from error
        self.take_in(sandbox_id, live)
        made = self._registry.made(sandbox_id, _now())
        if made.state is State.ENDING:
            await asyncio.shield(self._end(sandbox_id, "engine"))
            raise Refused(503, "The engine is shutting down", error_code="engine_closing", retry=False)
        self.look_at_time()
        self.journal.note(
            logging.INFO,
            "sandbox.created",
            sandbox_id=sandbox_id,
            template=wanted.template_id,
            timeout=wanted.timeout,
            from_blank=blank is not None and live.box is blank.box,
            duration=time.monotonic() - started,
        )
        return made

    async def make_live(self, sandbox: Sandbox, recipe: Recipe) -> Live:
        """Make a box for a sandbox, and its services. Whatever is raised, nothing of it is left."""
        spec = box_spec(sandbox.sandbox_id, sandbox.wanted, recipe)
        async with asyncio.timeout(self._create_timeout), self._turns:
            if are_short():
                # Before anything is begun: the sandboxes that are there need what is left.
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            with contextlib.nullcontext() if recipe.files is None else opened(recipe.files) as files:
                box = await self._isolation.create(replace(spec, files=files))
        try:
            return await self._furnish(sandbox, recipe, box)
        except BaseException:
            await asyncio.shield(box.kill())
            raise

    def take_in(self, sandbox_id: str, live: Live) -> None:
        """Note whose parts these are from now on."""
        self._live[sandbox_id] = live
        if live.app is not None:
            live.app.start()
        live.box.ended.add_done_callback(lambda ended: self._box_ended(sandbox_id, live, ended))
        self.look_at_time()

    async def let_out(self, sandbox_id: str) -> None:
        """Take the parts of one apart that is paused, and kept as files."""
        if (live := self._live.pop(sandbox_id, None)) is not None:
            await live.aclose()

    def look_at_time(self) -> None:
        """See when the next one's time is up: that may have changed."""
        self._changed.set()

    async def _from_blank(self, sandbox: Sandbox, recipe: Recipe, blank: Blank) -> Live | None:
        """Make a claimed blank the sandbox's own; None where it is lost: nothing of it is left then."""
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await blank.box.agent.ping()
            return await self._furnish(sandbox, recipe, blank.box, blank)
        except (AgentLost, TimeoutError):
            await asyncio.shield(self._blanks.discard(blank))
            return None
        except BaseException:
            await asyncio.shield(self._blanks.discard(blank))
            raise

    async def _furnish(self, sandbox: Sandbox, recipe: Recipe, box: Box, blank: Blank | None = None) -> Live:
        wanted = sandbox.wanted
        egress = Egress(box.agent, self._way_out.dialler)
        try:
            await egress.set_policy(wanted.network.policy)
        except BaseException:
            await asyncio.shield(egress.aclose())
            raise
        settings = SandboxSettings(
            sandbox_id=sandbox.sandbox_id,
            template_id=wanted.template_id,
            access_token=sandbox.access_token,
            envs={**recipe.envs, **wanted.envs},
            has_interpreter=wanted.has_interpreter,
            has_environment=recipe.has_environment,
            workdir=recipe.workdir,
            network_variables=lambda: self._way_out.variables(egress),
            traffic_token=sandbox.traffic_token,
            mask_host=wanted.mask_host,
        )
        interpreter = blank.interpreter if blank is not None else None
        if interpreter is not None:
            interpreter.adopt(settings)
        elif wanted.has_interpreter:
            interpreter = self._services.interpreter(box.agent, settings)
        return Live(
            settings=settings,
            box=box,
            envd=self._services.envd(box.agent, settings),
            interpreter=interpreter,
            egress=egress,
            app=App(box.agent, settings, recipe.start, recipe.ready) if recipe.start else None,
            last_cpu=(time.monotonic(), 0.0),
        )

    def _made(self, sandbox_id: str, done: asyncio.Task[Sandbox]) -> None:
        del self._making[sandbox_id]
        if not done.cancelled():
            done.exception()  # the client may have gone; it has been logged

    def settle(self, sandbox_id: str) -> asyncio.Task[None] | None:
        """Carry out what is due of one sandbox now, rather than when the timer comes to it."""
        return next((self._carry_out(due) for due in self._registry.due_one(sandbox_id, _now())), None)

    def _carry_out(self, due: Due) -> asyncio.Task[None]:
        if due.action == "end":
            return self._end(due.sandbox_id, "expired")
        memory = self.get(due.sandbox_id).wanted.auto_pause_memory
        return self._pauses.carry_out(due.sandbox_id, "expired", memory=memory)

    async def _check_health(self, sandbox_id: str) -> None:
        if self.get(sandbox_id).is_paused:
            return  # which is said by who pauses it
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._live[sandbox_id].box.agent.ping()
        except (TimeoutError, AgentLost):
            raise Refused(
                503,
                f"The agent of sandbox {sandbox_id!r} does not answer, so it was not paused",
                error_code="sandbox_snapshot_guest_agent_unresponsive",
                retry=False,
            ) from None

    def _box_ended(self, sandbox_id: str, live: Live, ended: asyncio.Future[BoxEnd]) -> None:
        if ended.cancelled() or self._live.get(sandbox_id) is not live:
            return
        if self._registry.end(sandbox_id):
            end = ended.result()
            self._end(sandbox_id, f"box: {end.reason}", detail=end.detail)

    def _end(self, sandbox_id: str, reason: str, *, detail: str = "") -> asyncio.Task[None]:
        """Carry out an end that the registry has granted."""
        live = self._live.pop(sandbox_id, None)
        task = asyncio.create_task(self._take_apart(sandbox_id, live, reason, detail), name=f"end {sandbox_id}")
        self._ending[sandbox_id] = task
        task.add_done_callback(lambda _: self._ending.pop(sandbox_id))
        return task

    async def _take_apart(self, sandbox_id: str, live: Live | None, reason: str, detail: str) -> None:
        started = time.monotonic()
        await self._pauses.leave(sandbox_id, keeps=reason == "engine" and self._store.outlives)
        traffic = Traffic() if live is None else live.egress.traffic
        failed = None if live is None else await live.aclose()
        self.journal.forget(sandbox_id)
        self._registry.gone(sandbox_id, _now())
        log(
            logging.INFO,
            "sandbox.killed",
            sandbox_id=sandbox_id,
            reason=reason,
            detail=detail or None,
            error=failed,
            bytes_out=traffic.sent or None,
            bytes_in=traffic.received or None,
            duration=time.monotonic() - started,
        )

    async def _keep_time(self) -> None:
        while True:
            self._changed.clear()
            for due in self._registry.due(_now()):
                self._carry_out(due)
            deadline = self._registry.next_deadline()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    await self._changed.wait()


def _now() -> Now:
    return Now(time.monotonic(), datetime.now(UTC))
