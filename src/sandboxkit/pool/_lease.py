"""One hold of a session, and the sandbox as it is used through it: each use is checked, prolonged and watched."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

from sandboxkit._types import CommandResult, Execution, FileInfo
from sandboxkit.errors import PoolError, SandboxLost
from sandboxkit.pool._core import Core
from sandboxkit.pool._shell import Shell
from sandboxkit.provider._base import Files, OnOutput, OnResult, ProviderSandbox, RunningCommand


class Lease:
    """What a hold may do. `use` is the one way to the sandbox."""

    def __init__(self, shell: Shell, core: Core, ticket: int) -> None:
        self.shell = shell
        self.core = core
        self.is_released = False
        self._ticket = ticket

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

    def release(self) -> None:
        """Give the hold back; a second time does nothing."""
        if not self.is_released:
            self.is_released = True
            self.shell.release(self.core, self._ticket)

    @asynccontextmanager
    async def use(self, work: float) -> AsyncIterator[ProviderSandbox]:
        """The sandbox, alive for `work` seconds at least. If it turns out to be gone, the pool learns it."""
        self.check()
        try:
            await self.shell.life.prolong(self.core, work)
            self.check()
            yield self.core.sandbox
        except SandboxLost as error:
            raised = self.shell.lost(self.core, error)
            if raised is error:
                raise
            raise raised from error


class LeasedSandbox:
    """A `ProviderSandbox` whose every operation is a use of the lease. Runner and SafeFS get this one."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._files = LeasedFiles(lease)

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

    def host(self, port: int) -> str:
        return self._lease.core.sandbox.host(port)

    def browser_url(self, port: int) -> str:
        return self._lease.core.sandbox.browser_url(port)

    async def url(self, port: int) -> str:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.url(port)

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
        async with self._lease.use(timeout) as sandbox:
            return await sandbox.run_code(
                code,
                language=language,
                context=context,
                timeout=timeout,
                envs=envs,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                on_result=on_result,
                max_output=max_output,
            )

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
        async with self._lease.use(timeout) as sandbox:
            return await sandbox.run_command(
                cmd,
                timeout=timeout,
                cwd=cwd,
                envs=envs,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
                max_output=max_output,
            )

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
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.start_command(
                cmd, cwd=cwd, envs=envs, on_stdout=on_stdout, on_stderr=on_stderr, max_output=max_output, stdin=stdin
            )

    async def restart(self, context: str | None = None) -> None:
        async with self._lease.use(0.0) as sandbox:
            await sandbox.restart(context)

    async def extend(self, lifetime: float) -> datetime:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.extend(lifetime)

    async def is_running(self) -> bool:
        self._lease.check()
        return await self._lease.core.sandbox.is_running()

    async def http_status(self, port: int, path: str = "/", *, timeout: float = 10.0) -> int | None:
        async with self._lease.use(timeout) as sandbox:
            return await sandbox.http_status(port, path, timeout=timeout)

    async def kill(self) -> bool:
        self._lease.check()
        self._lease.shell.discard(self._lease.core)
        await self._lease.core.tried_to_kill.wait()
        return self._lease.core.kill_error is None


class LeasedFiles:
    """`Files` whose every operation is a use of the lease."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    async def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.files.read(path, max_bytes=max_bytes)

    async def write(self, path: str, data: bytes) -> None:
        async with self._lease.use(0.0) as sandbox:
            await sandbox.files.write(path, data)

    async def list(self, path: str, *, depth: int = 1) -> builtins.list[FileInfo]:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.files.list(path, depth=depth)

    async def stat(self, path: str) -> FileInfo:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.files.stat(path)

    async def exists(self, path: str) -> bool:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.files.exists(path)

    async def make_dir(self, path: str) -> bool:
        async with self._lease.use(0.0) as sandbox:
            return await sandbox.files.make_dir(path)

    async def remove(self, path: str) -> None:
        async with self._lease.use(0.0) as sandbox:
            await sandbox.files.remove(path)

    async def rename(self, source: str, target: str) -> None:
        async with self._lease.use(0.0) as sandbox:
            await sandbox.files.rename(source, target)
