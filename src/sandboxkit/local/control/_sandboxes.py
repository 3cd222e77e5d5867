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
from datetime import UTC, datetime

from starlette.datastructures import QueryParams

from sandboxkit.errors import SandboxkitError
from sandboxkit.local._descriptors import are_short, means_exhausted
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.control._app import App
from sandboxkit.local.control._blanks import Blank, Blanks, box_spec, kind_of
from sandboxkit.local.control._network import Network
from sandboxkit.local.control._parts import Live, Recipe, Sample, Services, WayOut
from sandboxkit.local.control._pausing import go_on, stop
from sandboxkit.local.control._refusals import Refused, could_not_be_made, no_such_sandbox
from sandboxkit.local.control._registry import Due, Make, Now, Page, Query, Registry, Sandbox, State, Wanted
from sandboxkit.local.gateway.egress._proxy import Egress
from sandboxkit.local.isolation._base import AgentLost, Box, BoxEnd, Isolation

SERVICE_CLOSE_TIMEOUT = 5.0
PING_TIMEOUT = 2.0


class Sandboxes:
    """All sandboxes of the engine, alive."""

    def __init__(
        self,
        *,
        registry: Registry,
        isolation: Isolation,
        services: Services,
        max_creating: int,
        create_timeout: float,
        way_out: WayOut,
        warm: int = 0,
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
        self._live: dict[str, Live] = {}
        self._making: dict[str, asyncio.Task[Sandbox]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._timer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep time, and a stock of blank boxes."""
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
        blank = self._blanks.next(kind_of(wanted, recipe))
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

    async def pause(self, sandbox_id: str, *, require_healthy: bool = False) -> None:
        """Stop all that runs in it, and return when nothing runs.

        Raises:
            Refused: 404, also where it ends meanwhile; 409 where it is paused already, or where `require_healthy` and
                its agent does not answer.
        """
        if require_healthy:
            await self._check_health(self.running(sandbox_id))
        self._settle(sandbox_id)
        self._registry.pause(sandbox_id, _now())
        await asyncio.shield(self._stop(sandbox_id, "asked"))
        self.get(sandbox_id)

    async def connect(self, sandbox_id: str, seconds: int) -> tuple[Sandbox, bool]:
        """Let it live at least `seconds` from now, and let it go on if it is paused; True if it was. Refused: 404."""
        self._settle(sandbox_id)
        sandbox = self.get(sandbox_id)
        if sandbox.state is State.LIVE:
            return self.extend(sandbox_id, seconds), False
        live = self._live[sandbox_id]
        async with live.turn:
            if self.get(sandbox_id).state is State.LIVE:  # another one has resumed it
                return self.extend(sandbox_id, seconds), False
            try:
                await go_on(live)
            except AgentLost:
                self.lost(sandbox_id)
                raise no_such_sandbox(sandbox_id) from None
            sandbox = self._registry.resumed(sandbox_id, seconds, _now())
        self._changed.set()
        log(logging.INFO, "sandbox.resumed", sandbox_id=sandbox_id, timeout=seconds)
        return sandbox, True

    async def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        """Let it end (or pause, as it was made) `seconds` from now; with 0, before this returns. Refused: 404."""
        self._registry.set_timeout(sandbox_id, seconds, _now())
        self._changed.set()
        if seconds == 0 and (carried_out := self._settle(sandbox_id)) is not None:
            await asyncio.shield(carried_out)

    def extend(self, sandbox_id: str, seconds: int) -> Sandbox:
        """Let it live at least `seconds` from now. Refused: 404."""
        sandbox = self._registry.extend(sandbox_id, seconds, _now())
        self._changed.set()
        return sandbox

    def lost(self, sandbox_id: str) -> None:
        """Note that its agent is gone or talks nonsense: it is killed, and is gone for everybody at once."""
        if self._registry.end(sandbox_id):
            self._end(sandbox_id, "agent lost")

    async def aclose(self) -> None:
        """Make no more and end all. Idempotent; the caller bounds it."""
        if self._timer is not None:
            self._timer.cancel()
        for sandbox_id in self._registry.close():
            self._end(sandbox_id, "engine")
        for making in list(self._making.values()):
            making.cancel()
        await self._blanks.aclose()
        while tasks := [*self._making.values(), *self._ending.values(), *self._stopping]:
            await asyncio.wait(tasks)
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
                sandbox, _ = await self.connect(sandbox_id, sandbox.wanted.timeout)
        except Refused:
            return None
        return self._live.get(sandbox_id) if sandbox.state is State.LIVE else None

    def live(self, sandbox_id: str) -> Live | None:
        """Return the parts of one that is there, paused or not."""
        return self._live.get(sandbox_id)

    def owner_of(self, query_params: QueryParams) -> str | None:
        """Find the sandbox whose signature a URL of /files carries."""
        found = (sandbox_id for sandbox_id, live in self._live.items() if live.envd.owns(query_params))
        return next(found, None)

    async def measure(self, sandbox_id: str) -> list[Sample]:
        """Measure what it uses now, and return that after what was measured before. Refused: 404."""
        live = self._live.get(sandbox_id)
        if live is None:
            raise no_such_sandbox(sandbox_id)
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
        box = blank.box if blank is not None else None
        try:
            live = await self._from_blank(sandbox, recipe, blank) if blank is not None else None
            if live is None:
                box = None
                async with asyncio.timeout(self._create_timeout), self._turns:
                    if are_short():
                        # Before anything is begun: the sandboxes that are there need what is left.
                        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                    box = await self._isolation.create(box_spec(sandbox_id, wanted, recipe))
                live = await self._furnish(sandbox, recipe, box)
        except BaseException as error:
            if blank is not None and box is blank.box:
                await asyncio.shield(self._blanks.discard(blank))
            elif box is not None:
                await asyncio.shield(box.kill())
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
        self._live[sandbox_id] = live
        if live.app is not None:
            live.app.start()
        made = self._registry.made(sandbox_id, _now())
        if made.state is State.ENDING:
            await asyncio.shield(self._end(sandbox_id, "engine"))
            raise Refused(503, "The engine is shutting down", error_code="engine_closing", retry=False)
        live.box.ended.add_done_callback(lambda ended: self._box_ended(sandbox_id, ended))
        self._changed.set()
        log(
            logging.INFO,
            "sandbox.created",
            sandbox_id=sandbox_id,
            template=wanted.template_id,
            timeout=wanted.timeout,
            from_blank=blank is not None and live.box is blank.box,
            duration=time.monotonic() - started,
        )
        return made

    async def _from_blank(self, sandbox: Sandbox, recipe: Recipe, blank: Blank) -> Live | None:
        """Make a claimed blank the sandbox's own; None where it is lost: nothing of it is left then."""
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await blank.box.agent.ping()
        except (AgentLost, TimeoutError):
            await asyncio.shield(self._blanks.discard(blank))
            return None
        return await self._furnish(sandbox, recipe, blank.box, blank)

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

    def _settle(self, sandbox_id: str) -> asyncio.Task[None] | None:
        """Carry out what is due of one sandbox now, rather than when the timer comes to it."""
        return next((self._carry_out(due) for due in self._registry.due_one(sandbox_id, _now())), None)

    def _carry_out(self, due: Due) -> asyncio.Task[None]:
        if due.action == "end":
            return self._end(due.sandbox_id, "expired")
        return self._stop(due.sandbox_id, "expired")

    def _stop(self, sandbox_id: str, reason: str) -> asyncio.Task[None]:
        """Carry out a pause that the registry has granted."""
        task = asyncio.create_task(self._stop_now(sandbox_id, reason), name=f"pause {sandbox_id}")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        return task

    async def _stop_now(self, sandbox_id: str, reason: str) -> None:
        started = time.monotonic()
        live = self._live.get(sandbox_id)
        if live is None:
            return  # killed already
        async with live.turn:
            try:
                if self.get(sandbox_id).state is not State.PAUSED:
                    return  # resumed already
                await stop(live)
            except Refused:
                return  # killed meanwhile
            except (AgentLost, TimeoutError) as error:
                log(logging.ERROR, "sandbox.pause_failed", sandbox_id=sandbox_id, error=type(error).__name__)
                self.lost(sandbox_id)
                return
        log(
            logging.INFO,
            "sandbox.paused",
            sandbox_id=sandbox_id,
            reason=reason,
            duration=time.monotonic() - started,
        )

    async def _check_health(self, sandbox: Sandbox) -> None:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._live[sandbox.sandbox_id].box.agent.ping()
        except (TimeoutError, AgentLost):
            raise Refused(
                409,
                f"The agent of sandbox {sandbox.sandbox_id!r} does not answer, so it was not paused",
                error_code="sandbox_snapshot_guest_agent_unresponsive",
            ) from None

    def _box_ended(self, sandbox_id: str, ended: asyncio.Future[BoxEnd]) -> None:
        if not ended.cancelled() and self._registry.end(sandbox_id):
            end = ended.result()
            self._end(sandbox_id, f"box: {end.reason}", detail=end.detail)

    def _end(self, sandbox_id: str, reason: str, *, detail: str = "") -> asyncio.Task[None]:
        """Carry out an end that the registry has granted."""
        live = self._live.pop(sandbox_id)
        task = asyncio.create_task(self._take_apart(sandbox_id, live, reason, detail), name=f"end {sandbox_id}")
        self._ending[sandbox_id] = task
        task.add_done_callback(lambda _: self._ending.pop(sandbox_id))
        return task

    async def _take_apart(self, sandbox_id: str, live: Live, reason: str, detail: str) -> None:
        started = time.monotonic()
        # The box first: its services then see that their agent is lost, and end what they stream.
        traffic = live.egress.traffic
        steps = [live.doors.aclose, live.egress.aclose, live.box.kill, live.envd.aclose]
        steps += [part.aclose for part in (live.interpreter, live.app) if part is not None]
        failed = None
        for step in steps:
            try:
                async with asyncio.timeout(None if step == live.box.kill else SERVICE_CLOSE_TIMEOUT):
                    await step()
            except Exception as error:
                failed = type(error).__name__
                log(logging.ERROR, "sandbox.kill_failed", sandbox_id=sandbox_id, error=failed, exc_info=True)
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
