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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sandboxkit.errors import SandboxkitError
from sandboxkit.local.images._bases import Bases
from sandboxkit.local.images._cache import hold_layer, remove_tree
from sandboxkit.local.images._definition import BuiltTemplate
from sandboxkit.local.images._lines import read_lines
from sandboxkit.local.images._packages import missing_packages
from sandboxkit.local.images._steps import ENV_TARGET, Definition, Step, digest
from sandboxkit.local.images._store import Store
from sandboxkit.local.isolation._base import (
    AGENT_PYTHON,
    BASE_PATH,
    HOME,
    PREFIX,
    USER,
    AgentError,
    AgentLost,
    Box,
    BoxEnd,
    BoxSpec,
    Isolation,
    Limits,
    Overlay,
)

CACHE_TARGET = f"{PREFIX}/cache"
"""Where installers keep what they fetch: on the disk, while a step runs."""

MIB = 1024 * 1024
LIMITS = Limits(memory=4096 * MIB, disk=1024 * MIB, processes=512)
"""Of a step's box. Its disk is /dev/shm alone; what it writes elsewhere is bounded by `MAX_WRITTEN`."""

MAX_WRITTEN = 16 * 1024 * MIB
LEAST_FREE = 512 * MIB
LOOK_EVERY = 2.0
STEP_WITHIN = 3600.0
READY_WITHIN = 300.0
READY_POLL = 0.5
STOP_WITHIN = 10.0
MAX_ARCHIVE_BYTES = 4096 * MIB
MAX_ARCHIVE_FILES = 200_000

Level = Literal["debug", "info", "warn", "error"]
Tell = Callable[[str, Level, str], object]
"""Told what happens: text, level, and the step as E2B names it."""


class BuildFailed(Exception):
    """A build came to its end. `step` is E2B's name for what failed: `base`, a number from 1, or `finalize`."""

    def __init__(self, message: str, *, step: str) -> None:
        super().__init__(message)
        self.message = message
        self.step = step


@dataclass(frozen=True, slots=True)
class Result:
    """What a build has made: names of layers, the topmost first."""

    layers: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Network:
    """A box's way out during a build, and how it is ended."""

    variables: Mapping[str, str]
    close: Callable[[], Awaitable[None]]


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

    def __init__(self, store: Store, isolation: Isolation, connect: Callable[[Box], Awaitable[Network]]) -> None:
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
            raise BuildFailed("A layer was removed while it was being used; build again.", step=step)
        run.held.enter_context(hold_layer(layer))

    async def _carry_out(self, run: _Run, step: Step, working: Path, name: str) -> None:
        """Run a step's command, or unpack its files, in a box whose writing goes to `working`."""
        async with self._box(run, working, name) as (box, variables):
            envs = self._environment(variables, step.envs)
            if step.files:
                await self._copy(run, box, step, envs, name)
            else:
                status = await self._run(run, box, step.command, envs, step.workdir, name, within=STEP_WITHIN)
                if status != 0:
                    hint = " It asked for root, and there is none here." if step.root else ""
                    raise BuildFailed(f"{step.shown[:500]}: ended with status {status}.{hint}", step=name)
        await asyncio.to_thread(_keep, working, set())

    async def _copy(self, run: _Run, box: Box, step: Step, envs: Mapping[str, str], name: str) -> None:
        place = os.path.dirname(step.target) if step.target.count("/") > 1 else step.target
        place = HOME if step.target == HOME or step.target.startswith(HOME + "/") else place
        into = "1" if step.into else ""
        argv = [AGENT_PYTHON, "-I", "-S", f"{PREFIX}/agent/unpack.py", step.source, step.target, into, step.mode]
        argv += [place, str(MAX_ARCHIVE_BYTES), str(MAX_ARCHIVE_FILES)]
        archive = os.open(self._store.file(step.files), os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = await self._spawn(run, box, argv, envs, HOME, name, within=STEP_WITHIN, stdin=archive)
        finally:
            os.close(archive)
        if status != 0:
            raise BuildFailed(f"{step.shown[:500]}: the files could not be placed; the log says why.", step=name)

    # -- starting it once -----------------------------------------------------------------------------------------

    async def _start(self, run: _Run, key: str, *, force: bool) -> None:
        """Start the app once, as E2B does at the end of a build, and keep the caches that it has filled."""
        shown = f"START {run.definition.start}"
        await self._layer(run, key, lambda working: self._try_start(run, working), "finalize", shown=shown, force=force)

    async def _try_start(self, run: _Run, working: Path) -> None:
        definition = run.definition
        async with self._box(run, working, "finalize") as (box, _):
            envs = self._environment({}, definition.envs)
            argv = ["/bin/bash", "-l", "-c", definition.start]
            pids: list[int] = []
            await self._make_workdir(run, box, definition.workdir, "finalize")
            starting = asyncio.create_task(
                self._spawn(
                    run,
                    box,
                    argv,
                    envs,
                    definition.workdir,
                    "finalize",
                    within=READY_WITHIN + 60,
                    started=pids.append,
                )
            )
            try:
                await self._until_ready(run, box, envs, starting)
            finally:
                await _end(starting, box, pids[0] if pids else 0)
        await asyncio.to_thread(_keep, working, {"/tmp"})

    async def _until_ready(self, run: _Run, box: Box, envs: Mapping[str, str], starting: asyncio.Task[int]) -> None:
        definition = run.definition
        started = time.monotonic()
        quiet = _Run(definition, lambda text, level, step: None)
        while time.monotonic() < started + READY_WITHIN:
            if starting.done() and starting.result() != 0:
                raise BuildFailed(
                    f"The start command ended with status {starting.result()} before the ready command succeeded; "
                    "the log has its last lines.",
                    step="finalize",
                )
            status = await self._run(quiet, box, definition.ready, envs, definition.workdir, "finalize", within=60)
            if status == 0:
                run.tell(f"It is ready after {time.monotonic() - started:.1f} s.", "info", "finalize")
                return
            await asyncio.sleep(READY_POLL)
        raise BuildFailed(
            f"The ready command did not succeed within {READY_WITHIN:g} seconds of the start.", step="finalize"
        )

    # -- boxes ----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _box(self, run: _Run, working: Path, step: str) -> AsyncIterator[tuple[Box, Mapping[str, str]]]:
        """A box over the layers so far, which writes to `working`; gone when this ends."""
        self._number += 1
        places = (HOME, ENV_TARGET, "/tmp", *run.definition.places)
        overlays = []
        for place in places:
            lowers = self._store.trees(run.layers, place)
            if lowers is None:
                raise BuildFailed("A layer was removed while it was being used; build again.", step=step)
            overlays.append(Overlay(target=place, lowers=lowers, upper=quote(place, safe="")))
        overlays.append(Overlay(target=CACHE_TARGET, upper=".cache"))
        spec = BoxSpec(
            box_id=f"build-{os.getpid()}-{self._number}", overlays=tuple(overlays), kept=str(working), limits=LIMITS
        )
        try:
            box = await self._isolation.create(spec)
        except SandboxkitError as error:
            raise BuildFailed(str(error), step=step) from error
        watch = asyncio.create_task(self._watch(box, working), name="build's disk")
        network = None
        try:
            network = await self._connect(box)
            yield box, network.variables
        except (AgentLost, AgentError) as error:
            end = box.ended.result() if box.ended.done() else None
            raise BuildFailed(_why_lost(end, watch) or f"The step's box failed: {error}", step=step) from error
        finally:
            full = watch.done() and not watch.cancelled()
            watch.cancel()
            if network is not None:
                await asyncio.shield(network.close())
            await asyncio.shield(box.kill())
        if full:
            raise BuildFailed(TOO_MUCH, step=step)

    async def _watch(self, box: Box, working: Path) -> None:
        """End a box that fills the disk; returns once it has done so."""
        while await asyncio.to_thread(_room, working) > 0:  # noqa: ASYNC110  (a disk sets no event)
            await asyncio.sleep(LOOK_EVERY)
        await box.kill()

    def _environment(self, variables: Mapping[str, str], envs: Mapping[str, str]) -> dict[str, str]:
        ours = {
            "PATH": f"{HOME}/.local/bin:{ENV_TARGET}/bin:{BASE_PATH}",
            "HOME": HOME,
            "USER": USER,
            "LOGNAME": USER,
            "LANG": "C.UTF-8",
            "XDG_CACHE_HOME": CACHE_TARGET,
            "PIP_CACHE_DIR": f"{CACHE_TARGET}/pip",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_PROGRESS_BAR": "off",
            "UV_CACHE_DIR": f"{CACHE_TARGET}/uv",
            "npm_config_cache": f"{CACHE_TARGET}/npm",
            "npm_config_prefix": ENV_TARGET,
            "npm_config_update_notifier": "false",
            "npm_config_audit": "false",
            "npm_config_fund": "false",
            "NO_COLOR": "1",
        }
        return ours | dict(variables) | dict(envs)

    async def _run(
        self, run: _Run, box: Box, command: str, envs: Mapping[str, str], cwd: str, step: str, *, within: float
    ) -> int:
        await self._make_workdir(run, box, cwd, step)
        return await self._spawn(run, box, ["/bin/bash", "-l", "-c", command], envs, cwd, step, within=within)

    async def _make_workdir(self, run: _Run, box: Box, cwd: str, step: str) -> None:
        try:
            await box.agent.make_dir(cwd)
        except AgentError as error:
            raise BuildFailed(f"The working directory {cwd} could not be made: {error.message}.", step=step) from error

    async def _spawn(
        self,
        run: _Run,
        box: Box,
        argv: list[str],
        envs: Mapping[str, str],
        cwd: str,
        step: str,
        *,
        within: float,
        stdin: int | None = None,
        started: Callable[[int], object] = lambda pid: None,
    ) -> int:
        read, write = os.pipe()
        try:
            fds = {1: write, 2: write} | ({} if stdin is None else {0: stdin})
            process = await box.agent.spawn(argv, envs=envs, cwd=cwd, fds=fds)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        started(process.pid)
        reading = asyncio.create_task(read_lines(read, lambda line: run.tell(line, "info", step)))
        try:
            async with asyncio.timeout(within):
                status = await process.wait()
            # Who is left behind with the pipe does not hold the build up.
            await asyncio.wait([reading], timeout=1.0)
        except TimeoutError:
            raise BuildFailed(f"It took longer than {within:g} seconds.", step=step) from None
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        return status.code if status.code is not None else 128 + (status.signal or 0)


TOO_MUCH = (
    f"The step wrote more than {MAX_WRITTEN // MIB} MiB, or left less than {LEAST_FREE // MIB} MiB free on the disk of "
    "the cache (SANDBOXKIT_HOME); `sandboxkit cache prune` makes room."
)


def _why_lost(end: BoxEnd | None, watch: asyncio.Task[None]) -> str:
    if watch.done() and not watch.cancelled():
        return TOO_MUCH
    if end is not None and end.reason == "memory":
        return f"The step needed more than {LIMITS.memory // MIB} MiB of memory."
    return ""


async def _end(starting: asyncio.Task[int], box: Box, pid: int) -> None:
    """Let the app end by itself if it will; its box ends it in any case."""
    if not starting.done() and pid:
        with contextlib.suppress(AgentLost, AgentError):
            await box.agent.signal(pid, signal.SIGTERM)
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


def _room(working: Path) -> int:
    """Bytes that a step may still write."""
    free = shutil.disk_usage(working).free - LEAST_FREE
    written = 0
    for folder, _, files in os.walk(working, onerror=None):
        for name in files:
            with contextlib.suppress(OSError):
                written += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return min(free, MAX_WRITTEN - written)


def _keep(working: Path, dropped: set[str]) -> None:
    """Make the layer's own shape of what the overlays have kept: a directory for each place that was written to."""
    for name in [".cache", *(quote(place, safe="") for place in dropped)]:
        remove_tree(working / "up" / name)
    for tree in (working / "up").iterdir():
        if any(tree.iterdir()):
            tree.rename(working / tree.name)
    remove_tree(working / "up")
    for closed in (working / "work").glob("*/work"):
        closed.chmod(0o700)
    remove_tree(working / "work")
