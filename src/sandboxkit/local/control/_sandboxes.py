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
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from starlette.datastructures import QueryParams

from sandboxkit.errors import SandboxkitError
from sandboxkit.local._descriptors import are_short, means_exhausted
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.control._network import Network
from sandboxkit.local.control._refusals import Refused, no_such_sandbox
from sandboxkit.local.control._registry import Make, Now, Page, Query, Registry, Sandbox, State, Wanted
from sandboxkit.local.gateway.egress._dialler import Dialler
from sandboxkit.local.gateway.egress._proxy import Egress
from sandboxkit.local.indexes import KnownIndexes
from sandboxkit.local.isolation._base import Agent, AgentLost, Box, BoxEnd, BoxSpec, Isolation, Layer, Usage

SERVICE_CLOSE_TIMEOUT = 5.0
SAMPLES_KEPT = 720

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Service(Protocol):
    """An ASGI application for one sandbox."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None: ...

    async def aclose(self) -> None:
        """End its streams and processes. Idempotent."""


class EnvdLike(Service, Protocol):
    """The service of port 49983."""

    def owns(self, query_params: QueryParams) -> bool:
        """Say whether a signed URL of /files carries this sandbox's signature."""


@dataclass(frozen=True, slots=True)
class Services:
    """How to make the services of a sandbox."""

    envd: Callable[[Agent, SandboxSettings], EnvdLike]
    interpreter: Callable[[Agent, SandboxSettings], Service]


@dataclass(frozen=True, slots=True)
class WayOut:
    """What all sandboxes share to reach what they may."""

    dialler: Dialler
    indexes: KnownIndexes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a template contributes to a box."""

    layers: tuple[Layer, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sandbox used at one moment (Unix seconds)."""

    at: float
    usage: Usage
    cpu_percent: float


@dataclass(slots=True)
class Live:
    """A live sandbox's parts."""

    settings: SandboxSettings
    box: Box
    envd: EnvdLike
    interpreter: Service | None
    egress: Egress
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    last_cpu: tuple[float, float] = (0.0, 0.0)
    """Monotonic time and CPU seconds at the last measurement."""


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
    ) -> None:
        self._registry = registry
        self._isolation = isolation
        self._services = services
        self._way_out = way_out
        self._turns = asyncio.Semaphore(max_creating)
        self._create_timeout = create_timeout
        self._live: dict[str, Live] = {}
        self._making: dict[str, asyncio.Task[Sandbox]] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._timer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep time."""
        self._timer = asyncio.create_task(self._keep_time(), name="expiry")

    # -- lives ----------------------------------------------------------------------------------------------------

    async def create(self, wanted: Wanted, recipe: Recipe) -> Sandbox:
        """Make a sandbox, or return the one that the idempotency key stands for.

        Raises:
            Refused: 409, 429, 503 as the registry says; 503 if it takes longer than `create_timeout` or no descriptors
                are left; 500 if the box could not be made.
        """
        decision = self._registry.create(wanted, _now())
        sandbox_id = decision.sandbox.sandbox_id
        if isinstance(decision, Make):
            making = asyncio.create_task(self._make(decision.sandbox, recipe), name=f"make {sandbox_id}")
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
        """Kill one, and return when nothing of it is left. Refused: 404, also for the second of two at once."""
        self.get(sandbox_id)
        if self._registry.end(sandbox_id):
            await asyncio.shield(self._end(sandbox_id, "killed"))

    async def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        """Let it end `seconds` from now; 0 kills it before this returns. Refused: 404."""
        self._registry.set_timeout(sandbox_id, seconds, _now())
        self._changed.set()
        if seconds == 0 and self._registry.end(sandbox_id):
            await asyncio.shield(self._end(sandbox_id, "expired"))

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
        while tasks := [*self._making.values(), *self._ending.values()]:
            await asyncio.wait(tasks)
        await self._isolation.aclose()

    # -- looking --------------------------------------------------------------------------------------------------

    def get(self, sandbox_id: str) -> Sandbox:
        """Return one that lives. Refused: 404."""
        return self._registry.get(sandbox_id, _now())

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

    def live(self, sandbox_id: str) -> Live | None:
        """Return a live one's parts."""
        return self._live.get(sandbox_id)

    def owner_of(self, query_params: QueryParams) -> Live | None:
        """Find the sandbox whose signature a URL of /files carries."""
        return next((live for live in self._live.values() if live.envd.owns(query_params)), None)

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

    async def _make(self, sandbox: Sandbox, recipe: Recipe) -> Sandbox:
        started = time.monotonic()
        sandbox_id, wanted = sandbox.sandbox_id, sandbox.wanted
        spec = BoxSpec(box_id=sandbox_id, layers=recipe.layers, limits=wanted.limits)
        box: Box | None = None
        egress: Egress | None = None
        try:
            async with asyncio.timeout(self._create_timeout), self._turns:
                if are_short():
                    # Before anything is begun: the sandboxes that are there need what is left.
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                box = await self._isolation.create(spec)
            egress = Egress(box.agent, self._way_out.dialler)
            await egress.set_policy(wanted.network.policy)
            live = self._furnish(sandbox, recipe, box, egress)
        except BaseException as error:
            if egress is not None:
                await egress.aclose()
            if box is not None:
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
            raise _create_refusal(error, self._create_timeout) from error
        self._live[sandbox_id] = live
        made = self._registry.made(sandbox_id, _now())
        if made.state is State.ENDING:
            await asyncio.shield(self._end(sandbox_id, "engine"))
            raise Refused(503, "The engine is shutting down", error_code="engine_closing", retry=False)
        box.ended.add_done_callback(lambda ended: self._box_ended(sandbox_id, ended))
        self._changed.set()
        log(
            logging.INFO,
            "sandbox.created",
            sandbox_id=sandbox_id,
            template=wanted.template_id,
            timeout=wanted.timeout,
            duration=time.monotonic() - started,
        )
        return made

    def _furnish(self, sandbox: Sandbox, recipe: Recipe, box: Box, egress: Egress) -> Live:
        wanted = sandbox.wanted
        settings = SandboxSettings(
            sandbox_id=sandbox.sandbox_id,
            template_id=wanted.template_id,
            access_token=sandbox.access_token,
            envs={**recipe.envs, **wanted.envs},
            has_interpreter=wanted.has_interpreter,
            network_variables=lambda: self._network_variables(egress),
        )
        return Live(
            settings=settings,
            box=box,
            envd=self._services.envd(box.agent, settings),
            interpreter=self._services.interpreter(box.agent, settings) if wanted.has_interpreter else None,
            egress=egress,
            last_cpu=(time.monotonic(), 0.0),
        )

    def _network_variables(self, egress: Egress) -> dict[str, str]:
        """What programs of a sandbox need now to get out: nothing where they cannot."""
        found = dict(egress.variables())
        if found:
            found |= self._way_out.indexes.certificate_variables()
            if egress.policy.packages:
                found |= self._way_out.indexes.variables()
        return found

    def _made(self, sandbox_id: str, done: asyncio.Task[Sandbox]) -> None:
        del self._making[sandbox_id]
        if not done.cancelled():
            done.exception()  # the client may have gone; it has been logged

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
        steps = [live.egress.aclose, live.box.kill, live.envd.aclose]
        steps += [live.interpreter.aclose] if live.interpreter else []
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
            for sandbox_id in self._registry.due(_now()):
                self._end(sandbox_id, "expired")
            deadline = self._registry.next_deadline()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    await self._changed.wait()


def _now() -> Now:
    return Now(time.monotonic(), datetime.now(UTC))


def _create_refusal(error: BaseException, limit: float) -> Refused:
    if isinstance(error, TimeoutError):
        return Refused(
            503,
            f"The sandbox could not be made within {limit:g} seconds: the machine is too busy",
            error_code="create_timeout",
            retry=False,
        )
    if means_exhausted(error):
        return Refused(
            503,
            "The sandbox could not be made: the engine has no descriptors left; kill some sandboxes or close "
            "connections, or raise the engine's limit of open files",
            error_code="no_descriptors",
            retry=False,
        )
    if isinstance(error, SandboxkitError):
        return Refused(500, f"The sandbox could not be made: {error}", error_code=error.code, retry=False)
    return Refused(
        500, "The sandbox could not be made; the engine's log says why", error_code="create_failed", retry=False
    )
