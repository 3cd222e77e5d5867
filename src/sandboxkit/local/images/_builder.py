"""Carries out a build: each step in a box of its own, what it writes becoming a layer over those of the steps before.

A step that was done before, in whatever build, is not done again: its layer is found by its name. So a build that
failed goes on, the next time, at the step that failed. Everything that a template's author or its packages bring runs
inside a box, whose network is the package indexes and nothing else; the engine itself only mounts and renames.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from sandboxkit.errors import SandboxkitError
from sandboxkit.local.images._bases import Bases
from sandboxkit.local.images._build_box import BuildFailed, Connect, StepBox, Tell, environment, keep, step_box
from sandboxkit.local.images._cache import hold_layer
from sandboxkit.local.images._definition import BuiltTemplate
from sandboxkit.local.images._packages import missing_packages
from sandboxkit.local.images._steps import ENV_TARGET, Definition, Step, digest, place_of
from sandboxkit.local.images._store import Store
from sandboxkit.local.isolation._base import AGENT_PYTHON, HOME, PREFIX, AgentError, AgentLost, Isolation, Overlay

STEP_WITHIN = 3600.0
READY_WITHIN = 300.0
READY_POLL = 0.5
STOP_WITHIN = 10.0
MAX_ARCHIVE_BYTES = 4 * 1024 * 1024 * 1024
MAX_ARCHIVE_FILES = 200_000
REMOVED = "A layer was removed while it was being used; build again."


@dataclass(frozen=True, slots=True)
class Result:
    """What a build has made: names of layers, the topmost first."""

    layers: tuple[str, ...]
    seconds: float


@dataclass(slots=True)
class _Run:
    """One build on its way."""

    definition: Definition
    tell: Tell
    layers: tuple[str, ...] = ()
    held: ExitStack = field(default_factory=ExitStack)


class Builder:
    """Builds, one step after the other.

    Args:
        store: where layers are kept.
        isolation: what makes the boxes.
        connect: gives a box its way out.
    """

    def __init__(self, store: Store, isolation: Isolation, connect: Connect) -> None:
        self._store = store
        self._isolation = isolation
        self._connect = connect
        self._bases = Bases(store)
        self._number = 0

    async def build(self, definition: Definition, *, below: tuple[str, ...], key: str, tell: Tell) -> Result:
        """Build over what a base template has.

        Args:
            below: the layers of the base template; empty for an image.
            key: its name for what is built over it; empty for an image.

        Raises:
            BuildFailed: a step did not succeed; the layers of those before it stay, for the next attempt.
        """
        started = time.monotonic()
        run = _Run(definition, tell, below)
        with run.held:
            for name in below:
                self._hold(run, name, "base")
            if not key:
                key = await self._base(run)
            forced = definition.force
            for step in definition.steps:
                forced = forced or step.force
                key = step.key(key)
                await self._step(run, step, key, force=forced)
            if (last := _unmade(definition)) is not None:
                key = last.key(key)
                await self._step(run, last, key, force=forced)
            if definition.start and definition.ready:
                await self._start(run, definition.final_key(key), force=forced)
            return Result(run.layers, time.monotonic() - started)

    async def adopt(self, template: BuiltTemplate) -> tuple[tuple[str, ...], str]:
        """Make a template of the engine's own the base of others: its environment as a layer of this store, owned by
        this user, and the name for what is built over it. Copies only what belongs to somebody else."""
        source = Path(template.layers[0].source)
        key = digest("adopted", source.name)

        async def fill(working: Path) -> None:
            await asyncio.to_thread(_adopt, source, working / quote(ENV_TARGET, safe=""))

        await self._store.make(key, fill)
        return (key,), key

    # -- the base -------------------------------------------------------------------------------------------------

    async def _base(self, run: _Run) -> str:
        base = run.definition.base
        if base.note:
            run.tell(base.note, "warn", "base")
        try:
            plan = await asyncio.to_thread(self._bases.plan, base.kind)
        except SandboxkitError as error:
            raise BuildFailed(str(error), step="base") from error

        async def fill_python(working: Path) -> None:
            await asyncio.to_thread(self._bases.fill_python, working / quote(ENV_TARGET, safe=""))

        await self._layer(run, plan.python, fill_python, "base", shown=f"FROM {base.kind}", force=False)
        if plan.node_command:
            step = Step(number=0, shown=f"FROM node ({plan.node})", command=plan.node_command)
            await self._layer(
                run, plan.key, lambda working: self._carry_out(run, step, working, "base"), "base", shown=step.shown
            )
        elif plan.node:
            run.tell(f"Node is this machine's own, {plan.node}.", "info", "base")
        return plan.key

    # -- steps ----------------------------------------------------------------------------------------------------

    async def _step(self, run: _Run, step: Step, key: str, *, force: bool) -> None:
        name = str(step.number)
        if step.packages:
            missing = await asyncio.to_thread(missing_packages, step.packages)
            if missing:
                raise BuildFailed(
                    f"Not on this machine: {', '.join(missing)}. A build here installs no system packages, and a "
                    f"sandbox has those of the machine: install them first (apt-get install {' '.join(missing)}).",
                    step=name,
                )
            run.tell(f"On this machine already: {', '.join(step.packages)}.", "info", name)
        if not step.command and not step.files:
            return
        if step.files and not self._store.file(step.files).is_file() and (force or self._store.layer(key) is None):
            raise BuildFailed(f"{step.shown}: its files were not uploaded.", step=name)
        await self._layer(
            run, key, lambda working: self._carry_out(run, step, working, name), name, shown=step.shown, force=force
        )

    async def _layer(
        self,
        run: _Run,
        key: str,
        fill: Callable[[Path], Awaitable[None]],
        step: str,
        *,
        shown: str,
        force: bool = False,
    ) -> None:
        made = False

        async def filling(working: Path) -> None:
            nonlocal made
            made = True
            run.tell(f"[{step}] {shown}", "info", step)
            await fill(working)

        started = time.monotonic()
        try:
            await self._store.make(
                key,
                filling,
                on_wait=lambda: run.tell("Another build makes this layer; waiting for it.", "info", step),
                force=force,
            )
        except OSError as error:
            raise BuildFailed(f"{shown}: {error}", step=step) from error
        if made:
            run.tell(f"[{step}] done in {time.monotonic() - started:.1f} s", "debug", step)
        else:
            run.tell(f"CACHED [{step}] {shown}", "info", step)
        self._hold(run, key, step)
        run.layers = (key, *run.layers)

    def _hold(self, run: _Run, name: str, step: str) -> None:
        layer = self._store.layer(name)
        if layer is None:
            raise BuildFailed(REMOVED, step=step)
        run.held.enter_context(hold_layer(layer))

    async def _carry_out(self, run: _Run, step: Step, working: Path, name: str) -> None:
        """Run a step's command, or unpack its files, in a box whose writing goes to `working`."""
        async with self._box(run, working, name) as box:
            envs = environment(box.variables, step.envs)
            if step.files:
                argv = _unpack(step)
                archive = os.open(self._store.file(step.files), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    status = await box.spawn(argv, envs, "/", within=STEP_WITHIN, stdin=archive)
                finally:
                    os.close(archive)
            else:
                status = await box.run(step.command, envs, step.workdir, within=STEP_WITHIN)
            if status != 0:
                hint = " It asked for root, and there is none here." if step.root else ""
                raise BuildFailed(f"{step.shown[:500]}: ended with status {status}.{hint}", step=name)
        await asyncio.to_thread(keep, working)

    # -- starting it once -----------------------------------------------------------------------------------------

    async def _start(self, run: _Run, key: str, *, force: bool) -> None:
        """Start the app once, as E2B does at the end of a build, and keep the caches that it has filled."""
        shown = f"START {run.definition.start}"
        await self._layer(run, key, lambda working: self._try_start(run, working), "finalize", shown=shown, force=force)

    async def _try_start(self, run: _Run, working: Path) -> None:
        definition = run.definition
        async with self._box(run, working, "finalize") as box:
            envs = environment({}, definition.envs)
            await box.make_dir(definition.workdir)
            pids: list[int] = []
            argv = ["/bin/bash", "-l", "-c", definition.start]
            starting = asyncio.create_task(
                box.spawn(argv, envs, definition.workdir, within=READY_WITHIN + 60, started=pids.append)
            )
            try:
                await _until_ready(run, box, starting)
            finally:
                await _end(starting, box, pids)
        await asyncio.to_thread(keep, working, dropped=("/tmp",))

    def _box(self, run: _Run, working: Path, step: str) -> AbstractAsyncContextManager[StepBox]:
        """A box over the layers so far."""
        self._number += 1
        overlays = []
        for place in (HOME, ENV_TARGET, "/tmp", *run.definition.places):
            lowers = self._store.trees(run.layers, place)
            if lowers is None:
                raise BuildFailed(REMOVED, step=step)
            overlays.append(Overlay(target=place, lowers=lowers, upper=quote(place, safe="")))
        return step_box(
            self._isolation,
            self._connect,
            box_id=f"build-{self._number}",
            overlays=tuple(overlays),
            working=working,
            tell=run.tell,
            step=step,
        )


def _unmade(definition: Definition) -> Step | None:
    """A step in the last WORKDIR, which makes it, where no command has run there before."""
    place = definition.workdir
    if place in (HOME, "/") or any(step.command and step.workdir == place for step in definition.steps):
        return None
    number = definition.steps[-1].number + 1 if definition.steps else 1
    return Step(number=number, shown=f"WORKDIR {place}", command="true", workdir=place)


def _unpack(step: Step) -> list[str]:
    """The program that unpacks a step's archive inside, where a hostile one can do no harm."""
    place = place_of(step.target)
    words = [step.source, step.target, "1" if step.into else "", step.mode, place]
    bounds = [str(MAX_ARCHIVE_BYTES), str(MAX_ARCHIVE_FILES)]
    return [AGENT_PYTHON, "-I", "-S", f"{PREFIX}/agent/unpack.py", *words, *bounds]


async def _until_ready(run: _Run, box: StepBox, starting: asyncio.Task[int]) -> None:
    definition = run.definition
    started = time.monotonic()
    envs = environment({}, definition.envs)
    while time.monotonic() < started + READY_WITHIN:
        is_ready = await box.run(definition.ready, envs, definition.workdir, within=60, quiet=True) == 0
        if starting.done() and starting.result() != 0:  # also while a ready command that only waits has waited
            raise BuildFailed(
                f"The start command ended with status {starting.result()} before the ready command succeeded; the log "
                "has its last lines.",
                step="finalize",
            )
        if is_ready:
            run.tell(f"It is ready after {time.monotonic() - started:.1f} s.", "info", "finalize")
            return
        await asyncio.sleep(READY_POLL)
    raise BuildFailed(
        f"The ready command did not succeed within {READY_WITHIN:g} seconds of the start.", step="finalize"
    )


async def _end(starting: asyncio.Task[int], box: StepBox, pids: list[int]) -> None:
    """Let the app end by itself if it will; its box ends it in any case."""
    if not starting.done() and pids:
        with contextlib.suppress(AgentLost, AgentError):
            await box.box.agent.signal(pids[0], signal.SIGTERM)
        await asyncio.wait([starting], timeout=STOP_WITHIN)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError, BuildFailed, AgentLost, AgentError):
        await starting


def _adopt(source: Path, target: Path) -> None:
    """Link files that are ours, copy others: an overlay cannot take over what an unknown user owns."""
    is_ours = source.stat().st_uid == os.geteuid()

    def take(path: str, place: str) -> None:
        if is_ours:
            os.link(path, place, follow_symlinks=False)
        else:
            shutil.copy2(path, place, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=take)
