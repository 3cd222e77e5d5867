"""One sandbox of the fake provider."""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.from_thread
import anyio.lowlevel

from sandboxkit._types import CommandResult, Execution, OutputMessage, SandboxInfo
from sandboxkit.errors import (
    CodeTimeout,
    CommandTimeout,
    ConfigurationError,
    KernelDied,
    SandboxExpired,
    SandboxLost,
    SandboxNotFound,
    UnsupportedOption,
)
from sandboxkit.provider._base import CreateRequest, OnOutput, OnResult
from sandboxkit.provider._output import OutputKeeper
from sandboxkit.testing._confined import FakeConfined
from sandboxkit.testing._files import FakeFiles, Tree
from sandboxkit.testing._python import FakePython
from sandboxkit.testing._shell import FakeShell

if TYPE_CHECKING:
    from sandboxkit.testing._fake import FakeProvider, Operation


class FakeSandbox:
    """A `ProviderSandbox` in memory."""

    def __init__(self, provider: FakeProvider, sandbox_id: str, request: CreateRequest) -> None:
        self._provider = provider
        self._id = sandbox_id
        self._request = request
        self._started_at = datetime.fromtimestamp(provider.clock(), UTC)
        self._end_at = self._started_at + timedelta(seconds=request.lifetime)
        self._running: dict[anyio.CancelScope, tuple[int, object]] = {}
        self._pids = 100
        self.is_paused = False
        self.answers: dict[int, int] = {}
        """What listens here: port, and the status that it answers with. A test says so."""
        self.tree = Tree(capacity=provider.disk)
        self._python = FakePython(self.tree, request.envs)
        self._files = FakeFiles(self.tree, self._gate)

    # -- what is known without a request ---------------------------------------------------------------------------

    @property
    def sandbox_id(self) -> str:
        return self._id

    @property
    def template(self) -> str:
        return self._request.template

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._request.metadata

    @property
    def end_at(self) -> datetime:
        return self._end_at

    @property
    def pauses_at_end(self) -> bool:
        return self._request.at_end == "pause"

    @property
    def raw(self) -> object:
        return self

    @property
    def files(self) -> FakeFiles:
        return self._files

    async def confined(self, root: str) -> FakeConfined:
        return FakeConfined(self.tree, self._gate, root)

    def host(self, port: int) -> str:
        return f"{port}-{self._id}.fake.invalid"

    def browser_url(self, port: int) -> str:
        return f"https://{self.host(port)}"

    async def url(self, port: int) -> str:
        await anyio.lowlevel.checkpoint()
        return self.browser_url(port)

    def info(self) -> SandboxInfo:
        return SandboxInfo(
            sandbox_id=self._id,
            template=self.template,
            state="paused" if self.is_paused else "running",
            started_at=self._started_at,
            end_at=self._end_at,
            metadata=dict(self.metadata),
        )

    # -- running ---------------------------------------------------------------------------------------------------

    async def http_status(self, port: int, path: str = "/", *, timeout: float = 10.0) -> int | None:
        async with self._provider.faults("is_running"):
            self._check(expired_is_not_found=True)
            return self.answers.get(port)

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
        if language not in (None, "python"):
            raise UnsupportedOption(f"language={language!r}: the fake runs Python only.", option="language")
        _refuse_context(context)
        keeper = OutputKeeper(max_output)
        with anyio.move_on_after(timeout):
            async with self._operation("run_code"):
                return await self._python.run(
                    code, envs or {}, keeper=keeper, on_stdout=on_stdout, on_stderr=on_stderr, on_result=on_result
                )
        raise CodeTimeout(
            f"The code ran longer than timeout={timeout:g} s (TimeoutPolicy.code) and was interrupted.",
            sandbox_id=self._id,
            timeout=timeout,
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
        command = self._command(cmd, cwd, envs, on_stdout, on_stderr, max_output, stdin=False)
        with anyio.move_on_after(timeout):
            return await command.wait()
        raise CommandTimeout(
            f"The command ran longer than timeout={timeout:g} s (TimeoutPolicy.command) and was killed.",
            sandbox_id=self._id,
            timeout=timeout,
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
    ) -> FakeCommand:
        async with self._operation("run_command"):
            return self._command(cmd, cwd, envs, on_stdout, on_stderr, max_output, stdin=stdin)

    async def restart(self, context: str | None = None) -> None:
        _refuse_context(context)
        async with self._operation("run_code"):
            self._python.restart()

    # -- life ------------------------------------------------------------------------------------------------------

    async def extend(self, lifetime: float) -> datetime:
        async with self._provider.faults("extend"):
            self._check(expired_is_not_found=True, paused_is_there=True)
            self.lengthen(lifetime)
        return self._end_at

    async def is_running(self) -> bool:
        async with self._provider.faults("is_running"):
            return self._id in self._provider.live and not self.is_paused

    async def pause(self) -> None:
        async with self._provider.faults("pause"):
            self._check(expired_is_not_found=True, paused_is_there=True)
            if not self.is_paused:
                self.stop()

    async def kill(self) -> bool:
        return await self._provider.kill(self._id)

    def lengthen(self, lifetime: float) -> None:
        """Move the end, only ever later; a paused one, which has none, goes on."""
        later = datetime.fromtimestamp(self._provider.clock(), UTC) + timedelta(seconds=lifetime)
        if later > self._end_at or self.is_paused:
            self.is_paused = False
            self._end_at = later
            for scope in self._running:
                scope.deadline = anyio.current_time() + lifetime

    def stop(self) -> None:
        """Pause: whoever waits for an answer from here is cut off."""
        self.is_paused = True
        self.vanish()

    def vanish(self) -> None:
        """Cut off what runs here, since this sandbox is not there any more."""
        for scope, (thread, token) in list(self._running.items()):
            if thread == threading.get_ident():
                scope.cancel()
            else:
                anyio.from_thread.run_sync(scope.cancel, token=token)  # type: ignore[arg-type]  # anyio's own token

    # -- within ----------------------------------------------------------------------------------------------------

    def _command(
        self,
        cmd: str,
        cwd: str | None,
        envs: Mapping[str, str] | None,
        on_stdout: OnOutput | None,
        on_stderr: OnOutput | None,
        max_output: int,
        *,
        stdin: bool,
    ) -> FakeCommand:
        if cwd is not None and not self.tree.is_dir(cwd):
            raise ConfigurationError(f"cwd={cwd!r}: no such directory.", sandbox_id=self._id)
        self._pids += 1
        environment = {**self._request.envs, **(envs or {})}
        return FakeCommand(self, self._pids, cmd, cwd, environment, on_stdout, on_stderr, max_output, stdin=stdin)

    def _check(self, *, expired_is_not_found: bool = False, paused_is_there: bool = False) -> None:
        if self._id in self._provider.live:
            if self.is_paused and not paused_is_there:
                raise SandboxNotFound(f"Sandbox {self._id} is paused.", sandbox_id=self._id)
            return
        reason = self._provider.ended.get(self._id)
        kind: type[SandboxLost] = SandboxNotFound
        if reason == "expired" and not expired_is_not_found:
            kind = SandboxExpired
        raise kind(f"Sandbox {self._id} is gone: it {_ENDS[reason]}.", sandbox_id=self._id)

    async def _gate(self) -> None:
        async with self._provider.faults("files"):
            self._check(expired_is_not_found=True)

    @asynccontextmanager
    async def _operation(self, name: Operation) -> AsyncIterator[None]:
        """What runs within ends with SandboxLost when the sandbox goes."""
        async with self._provider.faults(name):
            self._check()
            left = (self._end_at - datetime.fromtimestamp(self._provider.clock(), UTC)).total_seconds()
            with anyio.CancelScope(deadline=anyio.current_time() + left) as scope:
                self._running[scope] = (threading.get_ident(), anyio.lowlevel.current_token())
                try:
                    yield
                except KernelDied as died:
                    died.sandbox_id = self._id
                    raise
                finally:
                    del self._running[scope]
            if scope.cancelled_caught:
                # The loop's clock and the provider's may differ by a hair; whoever is first says that it is over.
                if self._id in self._provider.live and not self.is_paused:
                    self._provider.end_of_life(self)
                self._check()


_ENDS = {
    "killed": "was killed",
    "expired": "reached the end of its lifetime",
    "crashed": "vanished",
    None: "was never there",
}


def _refuse_context(context: str | None) -> None:
    if context is not None:
        raise ConfigurationError(f"Context {context!r} was not found; the fake has the default one only.")


class FakeCommand:
    """A `RunningCommand` of the fake: it gets on while somebody waits for it, and otherwise stands still.

    There is no background task behind it (none would have an owner); the command line is carried out by `wait()`. One
    that was cancelled, or cut off by a pause, is gone on with by the next.
    """

    def __init__(
        self,
        sandbox: FakeSandbox,
        pid: int,
        cmd: str,
        cwd: str | None,
        envs: Mapping[str, str],
        on_stdout: OnOutput | None,
        on_stderr: OnOutput | None,
        max_output: int,
        *,
        stdin: bool,
    ) -> None:
        self.pid = pid
        self._sandbox = sandbox
        self._cmd = cmd
        self._keeper = OutputKeeper(max_output)
        self._handlers = {"stdout": on_stdout, "stderr": on_stderr}
        self._shell = FakeShell(sandbox.tree, envs, cwd, self._write, self._read_line)
        self._takes_stdin = stdin
        self._lines: list[str] = []
        self._fed = anyio.Event()
        self._result: CommandResult | None = None
        self._scope: anyio.CancelScope | None = None
        self._killed = False

    async def wait(self) -> CommandResult:
        if self._result is not None or self._killed:
            return self._result or self._after_kill()
        async with self._sandbox._operation("run_command"):
            with anyio.CancelScope() as self._scope:
                code = await self._shell.run(self._cmd)
                self._result = CommandResult(exit_code=code, stdout=self._keeper.stdout, stderr=self._keeper.stderr)
                return self._result
        return self._after_kill()

    async def kill(self) -> bool:
        await anyio.lowlevel.checkpoint()
        if self._result is not None or self._killed:
            return False
        self._killed = True
        if self._scope is not None:
            self._scope.cancel()
        return True

    async def send_stdin(self, data: str) -> None:
        if not self._takes_stdin:
            raise ConfigurationError("The command was not started with stdin=True.")
        await anyio.lowlevel.checkpoint()
        self._lines += data.splitlines(keepends=True)
        self._fed.set()

    def _after_kill(self) -> CommandResult:
        self._result = CommandResult(exit_code=-1, stdout=self._keeper.stdout, stderr=self._keeper.stderr)
        return self._result

    async def _read_line(self) -> str:
        if not self._takes_stdin:
            return ""
        while not self._lines:
            self._fed = anyio.Event()
            await self._fed.wait()
        return self._lines.pop(0)

    async def _write(self, stream: Literal["stdout", "stderr"], text: str) -> None:
        self._keeper.add(stream, text)
        handler = self._handlers[stream]
        if handler is not None:
            answer = handler(OutputMessage(text, stream))
            if inspect.isawaitable(answer):
                await answer
