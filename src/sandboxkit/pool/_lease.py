"""One hold of a session, and the sandbox as it is used through it: each use is checked, prolonged and watched."""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from time import monotonic
from typing import TypeVar

import anyio

from sandboxkit._types import CommandResult, Execution, ExecutionError, FileInfo, Loss, OutputMessage, Result
from sandboxkit.errors import KernelDied, PoolError, ProviderError, SandboxLost
from sandboxkit.pool._confined import LeasedConfined
from sandboxkit.pool._core import Core
from sandboxkit.pool._journal import Journal
from sandboxkit.pool._prepare import Recipe
from sandboxkit.pool._shell import Hold, Request, Shell
from sandboxkit.provider._base import Confined, Files, OnOutput, OnResult, ProviderSandbox, RunningCommand

T = TypeVar("T")

MOST_LOSSES = 3
"""How many sandboxes one use may lose before its error is raised."""


class Lease:
    """What a hold may do. `use` is the one way to the sandbox, and `carry_out` the one that survives its loss."""

    def __init__(self, shell: Shell, hold: Hold, request: Request) -> None:
        self.shell = shell
        self.core, self._ticket, self.source = hold
        self.is_released = False
        self.losses: tuple[Loss, ...] = ()
        self.request = request
        self._recovering: anyio.Lock | None = None  # made when it is needed, which is next to never
        self._held_since = monotonic()

    def check(self) -> None:
        """Refuse a use after the end: of this hold, of the sandbox, of the pool, or in a forked child.

        Raises:
            ForkedProcess, PoolError, PoolClosed, SandboxNotFound, SandboxExpired: which of them it was.
        """
        self.shell.check()
        gone = self.core.why_gone()
        if gone is not None:
            raise gone
        if self.is_released:
            raise PoolError(
                f"This session was closed, and its sandbox given back. pool.session({self.core.key!r}) opens it again.",
                sandbox_id=self.core.sandbox.sandbox_id,
            )

    def check_usable(self) -> None:
        """The same, but for a sandbox that the next use will replace (`on_loss`)."""
        if self._can_recover(self.core):
            self.shell.check()
        else:
            self.check()

    def _can_recover(self, lost: Core) -> bool:
        is_lost = lost.gone in ("lost", "expired", "retired")
        return is_lost and not self.is_released and self.shell.options.on_loss != "fail"

    def release(self) -> None:
        """Give the hold back; a second time does nothing."""
        if not self.is_released:
            self.is_released = True
            self.shell.release(self.core, self._ticket, held_for=monotonic() - self._held_since)

    async def use(self, work: float, operation: Callable[[ProviderSandbox], Awaitable[T]]) -> T:
        """Do something in the sandbox, which lives for `work` seconds at least. If it turns out to be gone, the pool
        learns it."""
        self.check()
        self.shell.home.check_loop()
        core = self.core
        core.uses += 1
        try:
            await self.shell.life.prolong(core, work)
            self.check()
            return await operation(core.sandbox)
        except SandboxLost as error:
            if await self._is_there(core):
                raise
            raised = self.shell.lost(core, error)
            if raised is error:
                raise
            raise raised from error
        except (KernelDied, ProviderError) as error:
            why = core.why_gone()  # its parts do not end at one moment, when it is killed under a use
            if why is None:
                raise
            raise why from error
        finally:
            core.uses -= 1

    async def carry_out(
        self,
        work: float,
        operation: Callable[[ProviderSandbox], Awaitable[T]],
        *,
        has_begun: Callable[[], bool] = lambda: False,
    ) -> T:
        """Do something in the sandbox, as `use`. What met a sandbox that was paused is done again after it went on;
        what met one that is gone, in a new one, where the pool's `on_loss` says so. What has shown that it ran is never
        done twice."""
        for attempt in range(MOST_LOSSES + 1):
            core = self.core
            try:
                return await self.use(work, operation)
            except SandboxLost as error:
                if attempt == MOST_LOSSES or error.sandbox_id not in (None, core.sandbox.sandbox_id):
                    raise
                if core.gone is not None and not await self._recovered(core, error):
                    raise
                if has_begun():
                    raise
        raise AssertionError("the last attempt raises or returns")

    async def _is_there(self, core: Core) -> bool:
        """Whether a sandbox that could not be used is there all the same: it is paused, or was, or only seemed gone."""
        if core.gone is not None or self.shell.life.is_too_old(core):
            return False
        pauses = self.shell.options.timeouts.at_end == "pause" or core.is_paused or core.lock.locked()
        try:
            return await self.shell.life.is_there(core)
        except ProviderError:
            if pauses:
                raise
            return False  # the use has been told

    async def _recovered(self, lost: Core, error: SandboxLost) -> bool:
        """Get the session a new sandbox, if the pool's `on_loss` says so. False if the loss is to be raised."""
        if not self._can_recover(lost):
            return False
        self._recovering = self._recovering or anyio.Lock()
        async with self._recovering:
            if self.core is not lost:
                return True  # another use of this hold was first
            # The files are the session's, whichever hold of it meets the loss first. The journal has them as they are
            # by now, renamed and removed.
            recipe = Recipe(replayed=lost.journal) if self.shell.options.on_loss == "replay" else Recipe(lost.files)
            request = Request(
                key=self.request.key, spec=lost.spec, timeout=self.shell.options.acquire_timeout, recipe=recipe
            )
            hold = await self.shell.open(request)
            if self.is_released:
                self.shell.release(hold.core, hold.ticket, held_for=0.0)
                return False
            self.shell.release(lost, self._ticket, held_for=0.0)
            self.core, self._ticket, self.source = hold
            self._take_in(lost, hold.core, error)
        return True

    def _take_in(self, lost: Core, core: Core, error: SandboxLost) -> None:
        there = set(core.journal.names)
        loss = Loss(
            sandbox_id=lost.sandbox.sandbox_id,
            error=error.code,
            restored=tuple(name for name in lost.journal.names if name in there),
            lost=tuple(name for name in lost.journal.names if name not in there),
        )
        self.losses = (*self.losses, loss)
        self.shell.counters.recovered += 1
        core.tell(
            "session.recovered",
            error=error.code,
            lost_sandbox_id=loss.sandbox_id,
            files_restored=len(loss.restored),
            files_lost=len(loss.lost),
        )


class LeasedSandbox:
    """A `ProviderSandbox` whose every operation is a use of the lease. Runner and SafeFS get this one."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._files = LeasedFiles(lease)

    def _environment(self, envs: Mapping[str, str] | None) -> dict[str, str] | None:
        """The variables of one run: the session's where its sandbox does not have them, its secrets, its own."""
        return {**self._lease.core.late_envs, **self._lease.request.secrets, **(envs or {})} or None

    @property
    def sandbox_id(self) -> str:
        return self._lease.core.sandbox.sandbox_id

    @property
    def template(self) -> str:
        return self._lease.core.spec.template

    @property
    def end_at(self) -> datetime | None:
        return self._lease.core.sandbox.end_at

    @property
    def raw(self) -> object:
        return self._lease.core.sandbox.raw

    @property
    def files(self) -> Files:
        return self._files

    async def confined(self, root: str) -> Confined | None:
        return await LeasedConfined.of(self._lease, root)

    def host(self, port: int) -> str:
        return self._lease.core.sandbox.host(port)

    def browser_url(self, port: int) -> str:
        return self._lease.core.sandbox.browser_url(port)

    async def url(self, port: int) -> str:
        return await self._lease.use(0.0, lambda sandbox: sandbox.url(port))

    async def run_code(
        self,
        code: str,
        *,
        language: str | None = None,
        context: str | None = None,
        timeout: float = 300.0,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        on_result: OnResult | None = None,
        max_output: int = 10 * 1024 * 1024,
    ) -> Execution:
        watch = _Watch(self._lease)

        async def run(sandbox: ProviderSandbox) -> Execution:
            runs = self._lease.core.runs
            with anyio.CancelScope() as scope:
                runs.add(scope)
                try:
                    return await sandbox.run_code(
                        code,
                        language=language,
                        context=context,
                        timeout=timeout,
                        envs=self._environment(envs),
                        on_stdout=watch.output(on_stdout),
                        on_stderr=watch.output(on_stderr),
                        on_result=watch.result(on_result),
                        max_output=max_output,
                    )
                finally:
                    runs.discard(scope)
            return Execution(error=ExecutionError("KeyboardInterrupt", "interrupted by session.interrupt()", ""))

        return await self._lease.carry_out(timeout, run, has_begun=watch.has_seen)

    async def run_command(
        self,
        cmd: str,
        *,
        timeout: float = 60.0,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandResult:
        watch = _Watch(self._lease)

        async def run(sandbox: ProviderSandbox) -> CommandResult:
            return await sandbox.run_command(
                cmd,
                timeout=timeout,
                cwd=cwd,
                envs=self._environment(envs),
                on_stdout=watch.output(on_stdout),
                on_stderr=watch.output(on_stderr),
                max_output=max_output,
            )

        return await self._lease.carry_out(timeout, run, has_begun=watch.has_seen)

    async def start_command(
        self,
        cmd: str,
        *,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        max_output: int = 10 * 1024 * 1024,
        stdin: bool = False,
    ) -> RunningCommand:
        async def start(sandbox: ProviderSandbox) -> RunningCommand:
            return await sandbox.start_command(
                cmd,
                cwd=cwd,
                envs=self._environment(envs),
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                max_output=max_output,
                stdin=stdin,
            )

        return await self._lease.carry_out(0.0, start)

    async def restart(self, context: str | None = None) -> None:
        await self._lease.carry_out(0.0, lambda sandbox: sandbox.restart(context))

    async def extend(self, lifetime: float) -> datetime:
        return await self._lease.carry_out(0.0, lambda sandbox: sandbox.extend(lifetime))

    async def is_running(self) -> bool:
        self._lease.check()
        return await self._lease.core.sandbox.is_running()

    async def http_status(self, port: int, path: str = "/", *, timeout: float = 10.0) -> int | None:
        return await self._lease.use(timeout, lambda sandbox: sandbox.http_status(port, path, timeout=timeout))

    async def pause(self) -> None:
        self._lease.check()
        await self._lease.shell.life.pause(self._lease.core)

    async def kill(self) -> bool:
        self._lease.check()
        self._lease.shell.discard(self._lease.core)
        await self._lease.core.tried_to_kill.wait()
        return self._lease.core.kill_error is None


class LeasedFiles:
    """`Files` whose every operation is a use of the lease, and which remember what was written."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    @property
    def _journal(self) -> Journal:
        return self._lease.core.journal

    async def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        return await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.read(path, max_bytes=max_bytes))

    async def write(self, path: str, data: bytes) -> None:
        await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.write(path, data))
        self._journal.wrote(path, data)

    async def list(self, path: str, *, depth: int = 1) -> builtins.list[FileInfo]:
        return await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.list(path, depth=depth))

    async def stat(self, path: str) -> FileInfo:
        return await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.stat(path))

    async def exists(self, path: str) -> bool:
        return await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.exists(path))

    async def make_dir(self, path: str) -> bool:
        is_new = await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.make_dir(path))
        self._journal.made(path)
        return is_new

    async def remove(self, path: str) -> None:
        await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.remove(path))
        self._journal.removed(path)

    async def rename(self, source: str, target: str) -> None:
        await self._lease.carry_out(0.0, lambda sandbox: sandbox.files.rename(source, target))
        self._journal.renamed(source, target)


class _Watch:
    """Notices whether a run has shown anything, where that decides whether it may be done again."""

    def __init__(self, lease: Lease) -> None:
        self._is_needed = lease.shell.options.on_loss != "fail" or lease.shell.options.timeouts.at_end == "pause"
        self._seen = False

    def has_seen(self) -> bool:
        return self._seen

    def output(self, func: OnOutput | None) -> OnOutput | None:
        if not self._is_needed:
            return func

        def take(message: OutputMessage) -> object:
            self._seen = True
            return None if func is None else func(message)

        return take

    def result(self, func: OnResult | None) -> OnResult | None:
        if not self._is_needed:
            return func

        def take(result: Result) -> object:
            self._seen = True
            return None if func is None else func(result)

        return take
