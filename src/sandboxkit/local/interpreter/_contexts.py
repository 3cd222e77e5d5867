"""Contexts: each is a kernel behind a queue, which is restarted when it dies or does not let go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sandboxkit.local.interpreter._events import END, KEEPALIVE, UNEXPECTED_END, CellLines, Gone, error, line
from sandboxkit.local.interpreter._frames import Ended
from sandboxkit.local.interpreter._kernel import Kernel, KernelFailed
from sandboxkit.local.interpreter._languages import PYTHON, Language
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost

log = logging.getLogger("sandboxkit.local.interpreter")

KEEPALIVE_AFTER = 5.0
LINGER = 0.01
"""How long output waits for more of it before it becomes an event."""

RESTARTING = "ContextRestarting"
"""The name of the error that tells a client that the kernel ended under its code; E2B's own."""

FRESH = "The interpreter had ended since the last code ran; this is a fresh one, without its variables.\n"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try to get a kernel back from a client that has gone."""

    group: bool
    patience: float


ATTEMPTS = (Attempt(False, 1.0), Attempt(True, 2.0), Attempt(True, 2.0))
"""SIGINT to the kernel alone at first, so that servers which earlier cells started go on; then to its children too.
A kernel that does not come back within the sum of these, in seconds, is restarted."""

AT_START_ONLY = ("PYTHON", "LD_", "LC_", "LANG", "TZ", "MALLOC_", "GLIBC_", "GCONV_", "IPYTHON", "MPL")
"""How the names of variables begin that a running interpreter no longer heeds."""

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Context:
    """One context. Its cells run one after another, in the order in which they came."""

    def __init__(self, agent: Agent, *, envs: Mapping[str, str], cwd: str, language: Language, spawn: Spawn) -> None:
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.envs = envs
        self._agent = agent
        self._spawn = spawn
        self._lock = asyncio.Lock()
        self._kernel: asyncio.Task[Kernel] | None = None
        self._removed = self._was_ready = False
        self._awake = asyncio.Event()
        self._awake.set()
        self._pauses = 0

    def describe(self) -> dict[str, str]:
        """What the API says of it."""
        return {"id": self.id, "language": self.language.name, "cwd": self.cwd}

    @property
    def has_started(self) -> bool:
        """Whether its kernel was ever ready: from then on it is the cells that tell of a failure."""
        return self._was_ready or self.language is PYTHON

    def start(self) -> asyncio.Task[Kernel]:
        """Start its kernel, or return the one that runs or starts already."""
        if self._kernel is None or _is_over(self._kernel):
            if (old := _kernel_of(self._kernel)) is not None:
                self._spawn(self._end(old))
            starting = asyncio.create_task(Kernel.start(self._agent, self.language, envs=self.envs, cwd=self.cwd))
            # Nobody may ever ask for what went wrong; asking here keeps asyncio from complaining.
            starting.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._kernel = starting
        return self._kernel

    def pause(self) -> None:
        """The box is being stopped: a cell that runs is not to be ended for want of its client."""
        self._awake.clear()
        self._pauses += 1

    def resume(self) -> None:
        """The box goes on."""
        self._awake.set()

    def adopt(self, envs: Mapping[str, str]) -> None:
        """Have this environment from now on, before any code was run."""
        changed = {name: value for name, value in envs.items() if self.envs.get(name) != value}
        is_less = bool(self.envs.keys() - envs.keys())
        self.envs = envs
        if self._kernel is None or (not changed and not is_less):
            return
        kernel = _kernel_of(self._kernel)
        if kernel is None or is_less or any(name.startswith(AT_START_ONLY) for name in changed):
            old, self._kernel = self._kernel, None
            self.start()
            self._spawn(self._dismiss(old))
        else:
            kernel.adopt(changed)

    # -- running --------------------------------------------------------------------------------------------------

    async def run(self, code: str, envs: Mapping[str, str]) -> AsyncGenerator[tuple[bytes, bool], None]:
        """Run one cell: its events, as lines, with a keepalive where nothing else comes.

        What came together is one piece, since each costs its reader a turn; with each piece comes whether more follow.

        Closing the iterator early interrupts the cell; the next one waits until that is done.

        Raises:
            AgentLost: the sandbox is gone.
        """
        turn = asyncio.create_task(self._lock.acquire())
        try:
            while not (await asyncio.wait({turn}, timeout=KEEPALIVE_AFTER))[0]:
                yield KEEPALIVE, True
        except BaseException:
            if not turn.cancel() and turn.done() and not turn.cancelled():
                self._lock.release()
            raise
        release = True
        try:
            if self._removed:
                yield _failed(RESTARTING, "The context was removed before this code had its turn.")
                return
            died = _kernel_of(self._kernel)
            for is_last in (False, True):  # a kernel that had died before it began has run nothing
                while True:
                    starting = self.start()
                    if not (await asyncio.wait({starting}, timeout=KEEPALIVE_AFTER))[0]:
                        yield KEEPALIVE, True
                    elif self._removed or not starting.cancelled():
                        break
                    # Else somebody restarted the context meanwhile: wait for that one.
                try:
                    kernel = starting.result()
                except asyncio.CancelledError:
                    yield _failed(RESTARTING, "The context was stopped before this code had its turn.")
                    return
                except (KernelFailed, AgentError) as failure:
                    yield _failed("InterpreterUnavailable", str(failure))
                    return
                if died is not None and died is not kernel:
                    yield line("stderr", text=FRESH, timestamp=_now()), True
                cell, events = CellLines(kernel.execute(code, envs)), b""
                try:
                    while True:
                        items = await kernel.take(linger=LINGER, timeout=KEEPALIVE_AFTER)
                        events = b"".join(cell.feed(items, timestamp=_now()))
                        if cell.ended is not None or cell.gone is not None:
                            break
                        if events or not items:
                            yield events or KEEPALIVE, True
                finally:
                    if cell.ended is None and cell.gone is None:
                        release = False
                        # Cut off by a pause, it goes on unheard; else its client has left, and wants it no more.
                        self._spawn(self._take_back(kernel) if self._awake.is_set() else self._let_end(kernel))
                    else:
                        kernel.rest()
                if cell.gone is None:
                    break
                if events:
                    yield events, True
                how = await kernel.ending()
                is_ours = _kernel_of(self._kernel) is kernel
                self._replace(kernel)
                log.warning("kernel died: %s", how, extra={"context": self.id})
                if is_last or cell.has_begun or not is_ours:
                    yield _failed(RESTARTING, f"The interpreter {how}; it was restarted, and its variables are gone.")
                    return
                died = kernel
            if cell.ended is not None and cell.ended.exiting:
                self._replace(kernel)
            yield events + END, False
        finally:
            if release:
                self._lock.release()

    async def _take_back(self, kernel: Kernel) -> None:
        """Interrupt a cell whose client has gone, and let the next one have the kernel, or a new one."""
        try:
            for attempt in ATTEMPTS:
                if await self._interrupted(kernel, attempt):
                    break
            else:
                log.warning("kernel did not stop when interrupted; restarting it", extra={"context": self.id})
                self._replace(kernel)
            if kernel.gone is not None:
                self._replace(kernel)
            else:
                kernel.rest()
        except AgentLost:
            kernel.close()
        finally:
            self._lock.release()

    async def _interrupted(self, kernel: Kernel, attempt: Attempt) -> bool:
        """Whether one interrupt ends the cell in time; the time of a pause does not count."""
        while True:
            pauses = self._pauses
            await kernel.interrupt(self._agent, group=attempt.group)
            if await _is_over_within(kernel, attempt.patience):
                return True
            if pauses == self._pauses:
                return False
            await self._awake.wait()

    async def _let_end(self, kernel: Kernel) -> None:
        """Let a cell whose client was cut off come to its end; its output is lost."""
        try:
            await _is_over_within(kernel, None)
            if kernel.gone is not None:
                self._replace(kernel)
            else:
                kernel.rest()
        finally:
            self._lock.release()

    # -- life -----------------------------------------------------------------------------------------------------

    def _replace(self, kernel: Kernel) -> None:
        """Have another kernel in the place of this one, unless that was seen to already."""
        if _kernel_of(self._kernel) is kernel:
            self._kernel = None
            if not self._removed:
                self.start()
        self._spawn(self._end(kernel))

    async def _end(self, kernel: Kernel) -> None:
        with contextlib.suppress(AgentLost, AgentError):
            await kernel.stop(self._agent)

    async def restart(self) -> None:
        """Start over with a fresh kernel; code that runs ends with an error.

        Raises:
            KernelFailed, AgentError: the new one did not start.
            AgentLost: the sandbox is gone.
        """
        old, self._kernel = self._kernel, None
        starting = self.start()
        await self._dismiss(old)
        await self.started(starting)

    async def started(self, starting: asyncio.Task[Kernel]) -> None:
        """Wait for a kernel that starts; one that another restart or a removal has stopped meanwhile is no failure.

        Raises:
            KernelFailed, AgentError: it did not start.
            AgentLost: the sandbox is gone.
        """
        await asyncio.wait({starting})
        if not starting.cancelled():
            starting.result()
            self._was_ready = True

    async def remove(self) -> None:
        """End the kernel for good; code that runs ends with an error."""
        self._removed = True
        old, self._kernel = self._kernel, None
        await self._dismiss(old)

    async def _dismiss(self, old: asyncio.Task[Kernel] | None) -> None:
        if old is not None and not old.done():
            old.cancel()
            await asyncio.wait({old})
        if (kernel := _kernel_of(old)) is not None:
            await self._end(kernel)

    async def aclose(self) -> None:
        """Let go of the kernel; its process ends with the box."""
        self._removed = True
        old, self._kernel = self._kernel, None
        if old is not None and not old.done():
            old.cancel()
            await asyncio.wait({old})
        if (kernel := _kernel_of(old)) is not None:
            kernel.close()


async def _is_over_within(kernel: Kernel, patience: float | None) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while True:
                for item in await kernel.take():
                    if isinstance(item, Gone) or (isinstance(item, Ended) and item.cell == kernel.cell):
                        return True
    return False


def _failed(name: str, value: str) -> tuple[bytes, bool]:
    """The last piece of a cell that an error which is not its code's own has ended."""
    return error(name, value) + UNEXPECTED_END, False


def _kernel_of(starting: asyncio.Task[Kernel] | None) -> Kernel | None:
    if starting is None or not starting.done() or starting.cancelled() or starting.exception() is not None:
        return None
    return starting.result()


def _is_over(starting: asyncio.Task[Kernel]) -> bool:
    if not starting.done():
        return False
    kernel = _kernel_of(starting)
    return kernel is None or kernel.gone is not None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
