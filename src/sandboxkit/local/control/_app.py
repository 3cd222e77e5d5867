"""What a template's start command starts in a sandbox: run from the creation on, its output kept in a bounded file.

A create does not wait for it: the sandbox answers at once, and its app some seconds later, when the ready command
succeeds. At E2B a sandbox starts with its app running, from a snapshot of the machine's memory; there is none here.
Requests that come by its name meanwhile wait for it, which `is_starting` is for.
What the command writes goes to LOG inside, which holds its last part only: the sandbox's disk is not the app's to fill.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time

from sandboxkit.local._log import log
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost, File, Process

LOG = "/tmp/.sandboxkit/app.log"
KEPT = 512 * 1024
"""The log's most bytes; past them, only the last half is kept."""

PIECE = 64 * 1024
PACE = 0.01
"""Seconds of rest after a full piece: a program that prints without end does not keep the engine busy."""

READY_POLL = 2.0
"""Only the log waits for it: each question is a shell and a program more for a machine that starts a server."""
READY_WITHIN = 600.0
READY_AFTER = 20.0
"""Where there is no ready command, as at E2B."""


class App:
    """One sandbox's app. `start` begins, `aclose` ends what the engine does for it; its processes end with the box."""

    def __init__(self, agent: Agent, settings: SandboxSettings, command: str, ready: str) -> None:
        self._agent = agent
        self._settings = settings
        self._command = command
        self._ready = ready
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_starting = False
        """It runs, and has not been ready yet."""

    def start(self) -> None:
        """Begin, in the background. What fails is logged, and seen by who waits for the port."""
        self.is_starting = True
        self._spawn(self._live(), "app")

    async def aclose(self) -> None:
        """Stop listening to it. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _spawn(self, work: asyncio.Future[None] | object, name: str) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self) -> None:
        try:
            await self._run_app()
        finally:
            self.is_starting = False

    async def _run_app(self) -> None:
        started = time.monotonic()
        sandbox_id = self._settings.sandbox_id
        try:
            await self._agent.make_dir(self._settings.workdir)
            # A shell that stays shows the whole command as long as it runs, which is how it is found: programs rename
            # themselves, npm does so twice before it starts anything.
            process, output = await self._run(f"{self._command}\nexit $?")
        except (AgentError, AgentLost, OSError) as error:
            log(logging.WARNING, "app.failed", sandbox_id=sandbox_id, error=str(error))
            return
        self._spawn(self._keep_log(output), "app's log")
        self._spawn(self._wait_until_ready(started), "app's readiness")
        with contextlib.suppress(AgentLost):
            status = await process.wait()
            is_asked_for = status.code == 0 or status.signal == signal.SIGTERM
            level = logging.INFO if is_asked_for else logging.WARNING
            log(level, "app.ended", sandbox_id=sandbox_id, status=status.code, signal=status.signal)

    async def _run(self, command: str, *, quiet: bool = False) -> tuple[Process, int]:
        """Run a command as a client's would run; the second value is the near end of its output, or -1."""
        argv = ["/bin/bash", "-l", "-c", command]
        envs, cwd = self._settings.base_environment(), self._settings.workdir
        if quiet:
            return await self._agent.spawn(argv, envs=envs, cwd=cwd, fds={}), -1
        read, write = os.pipe()
        try:
            process = await self._agent.spawn(argv, envs=envs, cwd=cwd, fds={1: write, 2: write})
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        return process, read

    async def _wait_until_ready(self, started: float) -> None:
        if not self._ready:
            await asyncio.sleep(READY_AFTER)
            self.is_starting = False
            return
        with contextlib.suppress(AgentLost, AgentError):
            while time.monotonic() < started + READY_WITHIN:
                asked, _ = await self._run(self._ready, quiet=True)
                if (await asked.wait()).code == 0:
                    duration = time.monotonic() - started
                    log(logging.INFO, "app.ready", sandbox_id=self._settings.sandbox_id, duration=duration)
                    break
                await asyncio.sleep(READY_POLL)
        self.is_starting = False

    async def _keep_log(self, output: int) -> None:
        """Write what it prints to its log, until the last of its processes has closed it."""
        loop = asyncio.get_running_loop()
        file: File | None = None
        try:
            await self._agent.make_dir(os.path.dirname(LOG))
            file = await self._agent.open_file(LOG, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            os.set_blocking(output, False)
            size = 0
            while True:
                ready: asyncio.Future[None] = loop.create_future()
                loop.add_reader(output, _note, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(output)
                try:
                    piece = os.read(output, PIECE)
                except BlockingIOError:
                    continue
                if not piece:
                    return
                with contextlib.suppress(OSError, AgentError):  # its disk is full, for one; it goes on without a log
                    if size + len(piece) > KEPT:
                        size = await _halve(file)
                    await file.write(piece)
                    size += len(piece)
                if len(piece) == PIECE:
                    await asyncio.sleep(PACE)
        except (AgentError, AgentLost) as error:
            log(logging.WARNING, "app.log_failed", sandbox_id=self._settings.sandbox_id, error=str(error))
        finally:
            os.close(output)
            if file is not None:
                file.close()


async def _halve(file: File) -> int:
    """Keep the last half of what may be kept; returns the new size. The file is the sandbox's, and may be anything."""
    end = (await file.facts()).size
    kept = await file.read(KEPT // 2, max(0, end - KEPT // 2))
    await file.empty()
    await file.write(kept)
    return len(kept)


def _note(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
