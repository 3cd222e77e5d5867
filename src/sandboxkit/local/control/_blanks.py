"""Pre-booted boxes: made ahead of their use, each with its agent and a ready interpreter, claimed by one sandbox each.

A blank has its sandbox's id from the start and nobody's data: no environment but the template's, no token that anybody
knows, no code run. Who claims it makes it theirs (`_sandboxes`); it never comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from sandboxkit.local._descriptors import are_short
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.control._parts import InterpreterLike, Recipe, Services
from sandboxkit.local.control._registry import Wanted
from sandboxkit.local.control._stock import Stock
from sandboxkit.local.isolation._base import Box, BoxSpec, Isolation

MAKE_WITHIN = 60.0
LEAST_RESERVE = 256 * 1024 * 1024
RESERVED_SHARE = 10
"""One in so many bytes of the machine's memory is never used for blanks."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a blank must have in common with the sandbox that claims it: everything but the sandbox's own data."""

    template_id: str
    has_interpreter: bool
    spec: BoxSpec
    """With an empty `box_id`."""
    envs: tuple[tuple[str, str], ...]


def kind_of(wanted: Wanted, recipe: Recipe) -> Kind:
    """Say of which kind a sandbox is."""
    return Kind(
        template_id=wanted.template_id,
        has_interpreter=wanted.has_interpreter,
        spec=box_spec("", wanted, recipe),
        envs=tuple(sorted(recipe.envs.items())),
    )


def box_spec(box_id: str, wanted: Wanted, recipe: Recipe) -> BoxSpec:
    """What the isolation is told about a sandbox's box, pre-booted or not."""
    return BoxSpec(
        box_id=box_id,
        layers=recipe.layers,
        overlays=recipe.overlays,
        volumes=recipe.volumes,
        limits=wanted.limits,
    )


@dataclass(frozen=True, slots=True)
class Blank:
    """A box that waits for its sandbox."""

    sandbox_id: str
    kind: Kind
    box: Box
    interpreter: InterpreterLike | None

    async def aclose(self) -> None:
        """End it; nothing of it is left."""
        await self.box.kill()
        if self.interpreter is not None:
            await self.interpreter.aclose()


class Blanks:
    """All blanks of an engine. `room` says how many more boxes its cap allows."""

    def __init__(
        self,
        *,
        each_kind: int,
        isolation: Isolation,
        services: Services,
        new_id: Callable[[], str],
        room: Callable[[], int],
    ) -> None:
        self._is_on = each_kind > 0
        self._stock: Stock[Kind] = Stock(
            each_kind=each_kind, reserve=max(LEAST_RESERVE, memory_of_machine()[0] // RESERVED_SHARE)
        )
        self._isolation = isolation
        self._services = services
        self._new_id = new_id
        self._room = room
        self._blanks: dict[str, Blank] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to stock."""
        if self._is_on:
            self._keeping = asyncio.create_task(self._keep(), name="blanks")

    def expect(self, kind: Kind) -> None:
        """Stock a kind before its first use."""
        self._stock.expect(kind, time.monotonic())
        self._changed.set()

    def next(self, kind: Kind) -> Blank | None:
        """Return the blank that `claim` would take, and note that this kind is used."""
        if not self._is_on:
            return None
        self._stock.used(kind, time.monotonic())
        self._changed.set()
        blank = self._stock.next(kind)
        return None if blank is None else self._blanks[blank]

    def claim(self, blank: Blank) -> None:
        """Take it out of the stock, for good: it is the caller's now."""
        self._stock.gone(blank.sandbox_id)
        del self._blanks[blank.sandbox_id]
        self._changed.set()

    def discard(self, blank: Blank) -> asyncio.Task[None]:
        """End a blank that was taken out."""
        task = asyncio.create_task(self._end(blank), name=f"end {blank.sandbox_id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def aclose(self) -> None:
        """Make no more and end all. Idempotent."""
        self._is_on = False
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None
        for blank in list(self._blanks.values()):
            self.claim(blank)
            self.discard(blank)
        while self._ending:
            await asyncio.wait(tuple(self._ending))

    def count(self) -> int:
        """How many can be claimed."""
        return len(self._blanks)

    # -- inside ---------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            plan = self._stock.plan(time.monotonic(), free=memory_of_machine()[1], room=self._room())
            for sandbox_id in plan.drop:
                self.discard(self._blanks.pop(sandbox_id))
            if plan.make is not None:
                await self._make(plan.make)
                continue
            delay = None if plan.look_at is None else max(0.0, plan.look_at - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._changed.wait()

    async def _make(self, kind: Kind) -> None:
        started = time.monotonic()
        sandbox_id = self._new_id()
        self._stock.making(kind)
        if are_short():
            # The sandboxes that are there need what is left.
            self._stock.failed(kind, time.monotonic())
            return
        try:
            async with asyncio.timeout(MAKE_WITHIN):
                box = await self._isolation.create(replace(kind.spec, box_id=sandbox_id))
        except Exception as error:
            self._stock.failed(kind, time.monotonic())
            log(logging.WARNING, "blank.failed", template=kind.template_id, error=type(error).__name__, exc_info=True)
            return
        settings = SandboxSettings(
            sandbox_id=sandbox_id,
            template_id=kind.template_id,
            access_token=secrets.token_hex(20),  # until it is claimed; nobody is told
            envs=dict(kind.envs),
            has_interpreter=kind.has_interpreter,
        )
        interpreter = self._services.interpreter(box.agent, settings) if kind.has_interpreter else None
        blank = Blank(sandbox_id, kind, box, interpreter)
        self._blanks[sandbox_id] = blank
        self._stock.made(kind, sandbox_id)
        box.ended.add_done_callback(lambda _: self._lost(blank))
        duration = time.monotonic() - started
        log(logging.DEBUG, "blank.made", sandbox_id=sandbox_id, template=kind.template_id, duration=duration)

    def _lost(self, blank: Blank) -> None:
        """Its box ended; a claimed one is no concern of ours."""
        if self._stock.gone(blank.sandbox_id):
            del self._blanks[blank.sandbox_id]
            self.discard(blank)
            log(logging.WARNING, "blank.lost", sandbox_id=blank.sandbox_id, template=blank.kind.template_id)
            self._changed.set()

    async def _end(self, blank: Blank) -> None:
        try:
            await blank.aclose()
        except Exception as error:
            log(
                logging.ERROR,
                "blank.kill_failed",
                sandbox_id=blank.sandbox_id,
                error=type(error).__name__,
                exc_info=True,
            )


def memory_of_machine() -> tuple[int, int]:
    """The machine's memory and what of it is available, in bytes."""
    fields = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            fields[name] = int(rest.split()[0]) * 1024
            if name == "MemAvailable":
                break
    return fields["MemTotal"], fields["MemAvailable"]
