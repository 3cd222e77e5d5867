"""The box that one step of a build runs in: what it may use, how its programs are run, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from sandboxkit.errors import SandboxkitError
from sandboxkit.local._log import log
from sandboxkit.local._trees import remove_tree
from sandboxkit.local.images._disk import TooDeep, written_below
from sandboxkit.local.images._lines import read_lines
from sandboxkit.local.images._steps import BEGINNING, ENV_TARGET
from sandboxkit.local.isolation._base import (
    PREFIX,
    USER,
    AgentError,
    AgentLost,
    Box,
    BoxSpec,
    Isolation,
    Limits,
    Overlay,
)
from sandboxkit.local.isolation.processes._processes import nameless_bytes

CACHE = ".cache"
CACHE_TARGET = f"{PREFIX}/cache"
"""Where installers keep what they fetch: on the disk, while a step runs."""

MIB = 1024 * 1024
LIMITS = Limits(memory=4096 * MIB, disk=1024 * MIB, processes=512)
"""Of a step's box. Its disk is /dev/shm alone; what it writes elsewhere is bounded by `MAX_WRITTEN`."""

MAX_WRITTEN = 16 * 1024 * MIB
LEAST_FREE = 512 * MIB
MOST_ENTRIES = 3_000_000
LEAST_ENTRIES = 100_000
"""Files and directories that a step may make, and that must be left to the file system."""
LOOK_EVERY = 2.0
TOO_MUCH = (
    f"The step wrote more than {MAX_WRITTEN // MIB} MiB or {MOST_ENTRIES:,} entries, nested them too deeply, or left "
    f"less than {LEAST_FREE // MIB} MiB free on the disk of the cache (SANDBOXKIT_HOME); `sandboxkit cache prune` "
    "makes room."
)

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
class Network:
    """A box's way out during a build, and how it is ended."""

    variables: Mapping[str, str]
    close: Callable[[], Awaitable[None]]


Connect = Callable[[Box], Awaitable[Network]]


def environment(variables: Mapping[str, str], envs: Mapping[str, str]) -> dict[str, str]:
    """What a step's programs start from: ours, what leads them to the package indexes, the template's own."""
    ours = {
        **BEGINNING,
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


@dataclass(slots=True)
class StepBox:
    """A live box of a build. Its programs' lines are told; what fails raises BuildFailed."""

    box: Box
    variables: Mapping[str, str]
    tell: Tell
    step: str

    async def run(self, command: str, envs: Mapping[str, str], cwd: str, *, within: float, quiet: bool = False) -> int:
        """Run a shell command in a directory, which is made if it is missing; returns its status."""
        await self.make_dir(cwd)
        return await self.spawn(["/bin/bash", "-l", "-c", command], envs, cwd, within=within, quiet=quiet)

    async def make_dir(self, path: str) -> None:
        """Make a directory, and those above it."""
        try:
            await self.box.agent.make_dir(path)
        except AgentError as error:
            raise BuildFailed(f"The directory {path} could not be made: {error.message}.", step=self.step) from error

    async def spawn(
        self,
        argv: list[str],
        envs: Mapping[str, str],
        cwd: str,
        *,
        within: float,
        stdin: int | None = None,
        quiet: bool = False,
        started: Callable[[int], object] = lambda pid: None,
    ) -> int:
        """Run a program to its end, and return its status as a shell would."""
        read, write = os.pipe()
        try:
            fds = {1: write, 2: write} | ({} if stdin is None else {0: stdin})
            process = await self.box.agent.spawn(argv, envs=envs, cwd=cwd, fds=fds)
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        started(process.pid)

        def tell(line: str) -> None:
            if not quiet:
                self.tell(line, "info", self.step)

        reading = asyncio.create_task(read_lines(read, tell))
        try:
            async with asyncio.timeout(within):
                status = await process.wait()
            # Who is left behind with the pipe does not hold the build up.
            await asyncio.wait([reading], timeout=1.0)
        except TimeoutError:
            raise BuildFailed(f"It took longer than {within:g} seconds.", step=self.step) from None
        finally:
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reading
        return status.code if status.code is not None else 128 + (status.signal or 0)


@contextlib.asynccontextmanager
async def step_box(
    isolation: Isolation,
    connect: Connect,
    *,
    box_id: str,
    overlays: tuple[Overlay, ...],
    working: Path,
    tell: Tell,
    step: str,
) -> AsyncIterator[StepBox]:
    """A box that writes to `working`, where the overlays name an `upper`; gone when this ends.

    Raises:
        BuildFailed: it could not be made, was lost, or wrote too much.
    """
    cache = Overlay(target=CACHE_TARGET, upper=CACHE)
    spec = BoxSpec(box_id=box_id, overlays=(*overlays, cache), kept=str(working), limits=LIMITS)
    try:
        box = await isolation.create(spec)
    except SandboxkitError as error:
        raise BuildFailed(str(error), step=step) from error
    watch = asyncio.create_task(_watch(box, working), name="build's disk")
    network = None
    try:
        network = await connect(box)
        yield StepBox(box, network.variables, tell, step)
    except (AgentLost, AgentError) as error:
        raise BuildFailed(await _why_lost(box, watch) or f"The step's box failed: {error}", step=step) from error
    finally:
        is_full = watch.done() and not watch.cancelled()
        watch.cancel()
        try:
            if network is not None:
                await asyncio.shield(network.close())
        finally:
            await asyncio.shield(box.kill())
    if is_full:
        raise BuildFailed(TOO_MUCH, step=step)


async def _watch(box: Box, working: Path) -> None:
    """End a box that fills the disk; returns once it has done so."""
    try:
        while await asyncio.to_thread(lambda: room_left(working, nameless_bytes(box.init_pid))) > 0:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY)  # a disk sets no event
    except (OSError, TooDeep) as error:  # what cannot be watched does not go on
        log(logging.WARNING, "build.unwatched", error=type(error).__name__)
    await box.kill()


async def _why_lost(box: Box, watch: asyncio.Task[None]) -> str:
    if watch.done() and not watch.cancelled():
        return TOO_MUCH
    await asyncio.wait([box.ended], timeout=5.0)
    if box.ended.done() and box.ended.result().reason == "memory":
        return f"The step needed more than {LIMITS.memory // MIB} MiB of memory."
    return ""


def room_left(working: Path, nameless: int) -> int:
    """Bytes that a step may still write, which has written these and has so many in files without a name. Blocks."""
    space = os.statvfs(working)
    free = space.f_bavail * space.f_frsize - LEAST_FREE
    written, entries = written_below(working, most_entries=MOST_ENTRIES)
    if entries > MOST_ENTRIES or (space.f_files > 0 and space.f_favail < LEAST_ENTRIES):
        return 0
    return min(free, MAX_WRITTEN - written - nameless)


def keep(working: Path, *, dropped: tuple[str, ...] = ()) -> None:
    """Make the layer's own shape of what the overlays have kept: a directory for each place that was written to."""
    for name in (CACHE, *(quote(place, safe="") for place in dropped)):
        remove_tree(working / "up" / name)
    for tree in (working / "up").iterdir():
        if any(tree.iterdir()):
            tree.rename(working / tree.name)
    remove_tree(working / "up")
    remove_tree(working / "work")
