"""One live sandbox: an asynchronous one of the SDK's, as the contract wants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import e2b
import e2b_code_interpreter as interpreter

from sandboxkit._types import CommandResult, Execution, ExecutionError, Result
from sandboxkit.errors import (
    CodeTimeout,
    CommandTimeout,
    ConfigurationError,
    KernelDied,
    SandboxNotFound,
)
from sandboxkit.provider import _errors
from sandboxkit.provider._asyncio import Here, TrioCall
from sandboxkit.provider._base import OnOutput, OnResult
from sandboxkit.provider._e2b._commands import KILL_LIMIT, START_LIMIT, E2BCommand, Listener, Stopped, told
from sandboxkit.provider._e2b._confined import EngineConfined, has_confined
from sandboxkit.provider._e2b._files import E2BFiles
from sandboxkit.provider._e2b._loopback import is_on_the_engine, loopback_url
from sandboxkit.provider._e2b._own_engine import CallOnOwnEngine
from sandboxkit.provider._e2b._probe import status_of
from sandboxkit.provider._e2b._request import cross, one_request
from sandboxkit.provider._output import OutputKeeper, result_size

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox
else:
    from e2b_code_interpreter import AsyncSandbox

# What the interpreters say in an error event when there is no kernel any more: the engine's, then E2B's own two.
_KERNEL_DIED = frozenset({"KernelDied", "ContextRestarting", "WebSocketError"})
_KERNEL_CANNOT_START = "InterpreterUnavailable"


class E2BSandbox:
    """A `ProviderSandbox` over one of the SDK's asynchronous sandboxes."""

    def __init__(
        self,
        raw: AsyncSandbox,
        template: str,
        end_at: datetime | None,
        way: Callable[[], TrioCall | Here | CallOnOwnEngine] = cross,
    ) -> None:
        self._raw = raw
        self._way = way
        self._template = template
        self._end_at = end_at
        self._has_confined: bool | None = None
        self._opened: dict[int, str] = {}
        self._files = E2BFiles(raw, way, lambda: self._end_at)

    @property
    def sandbox_id(self) -> str:
        return self._raw.sandbox_id

    @property
    def template(self) -> str:
        return self._template

    @property
    def end_at(self) -> datetime | None:
        return self._end_at

    @property
    def raw(self) -> object:
        return self._raw

    @property
    def files(self) -> E2BFiles:
        return self._files

    async def confined(self, root: str) -> EngineConfined | None:
        if self._has_confined is None:
            self._has_confined = await self._way()(has_confined, self._raw, root)
        return EngineConfined(self._raw, self._way, root) if self._has_confined else None

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
        if context is not None and language is not None:
            raise ConfigurationError("run_code takes a language or a context, not both: a context has its language.")
        call = self._way()
        listener = Listener(OutputKeeper(max_output), call.back(on_stdout), call.back(on_stderr))
        execution: Execution = await call(
            self._run_code, code, language, context, timeout, envs, listener, call.back(on_result)
        )
        return execution

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
        call = self._way()
        listener = Listener(OutputKeeper(max_output), call.back(on_stdout), call.back(on_stderr))
        result: CommandResult = await call(self._run_command, cmd, timeout, cwd, envs, listener)
        return result

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
    ) -> E2BCommand:
        call = self._way()
        if call.is_crossing and (on_stdout or on_stderr):
            # The call ends with the start, and there is no task of the caller's that could run them later.
            raise ConfigurationError(
                "Callbacks of a background command need asyncio: on trio, wait for the result, or use run_command."
            )
        listener = Listener(OutputKeeper(max_output), on_stdout, on_stderr)
        command: E2BCommand = await call(self._start, cmd, 0, cwd, envs, listener, stdin, START_LIMIT)
        return command

    async def restart(self, context: str | None = None) -> None:
        await self._way()(one_request, lambda: self._restart(context), "restarting its interpreter", self.sandbox_id)

    async def extend(self, lifetime: float) -> datetime:
        end_at: datetime = await self._way()(self._extend, lifetime)
        return end_at

    async def is_running(self) -> bool:
        try:
            running: bool = await self._way()(
                one_request, self._raw.is_running, "asking for its health", self.sandbox_id
            )
        except SandboxNotFound:
            return False
        return running

    async def pause(self) -> None:
        await self._way()(one_request, self._raw.pause, "pausing it", self.sandbox_id)
        self._end_at = None  # it has none until it goes on

    def host(self, port: int) -> str:
        return self._raw.get_host(port)

    async def url(self, port: int) -> str:
        if not is_on_the_engine(self._raw):
            await anyio.lowlevel.checkpoint()
            return self.browser_url(port)
        opened: str | None = await self._way()(
            one_request, lambda: loopback_url(self._raw, port), f"opening port {port}", self.sandbox_id
        )
        return opened or self.browser_url(port)

    def browser_url(self, port: int) -> str:
        served = self._raw.connection_config.get_sandbox_url(self.sandbox_id, self._raw.sandbox_domain)
        return f"{served.partition('://')[0]}://{self.host(port)}"

    async def http_status(self, port: int, path: str = "/", *, timeout: float = 10.0) -> int | None:
        # Who waits for a server asks often: a loopback port stays open as long as its sandbox lives.
        known = self._opened.get(port)
        url = known or await self.url(port)
        token = self._raw.traffic_access_token
        headers = {} if token is None else {"e2b-traffic-access-token": token}
        try:
            status: int | None = await self._way()(
                status_of, f"{url}/{path.removeprefix('/')}", headers, timeout, self.sandbox_id
            )
        except ConnectionRefusedError:
            if self._opened.pop(port, None) is None:
                return None
            return await self.http_status(port, path, timeout=timeout)
        self._opened[port] = url
        return status

    async def kill(self) -> bool:
        try:
            killed: bool = await self._way()(one_request, self._raw.kill, "killing it", self.sandbox_id)
        except SandboxNotFound:
            return False
        return killed

    # -- on asyncio ------------------------------------------------------------------------------------------------

    async def _run_code(
        self,
        code: str,
        language: str | None,
        context: str | None,
        timeout: float,
        envs: Mapping[str, str] | None,
        listener: Listener,
        on_result: OnResult | None,
    ) -> Execution:
        results: list[Result] = []

        async def take(theirs: interpreter.Result) -> None:
            result = _result(theirs)
            try:
                listener.keeper.add("result", result.text or "", size=result_size(result))
                results.append(result)
                await told(on_result, result)
            except Exception as error:
                raise Stopped(error) from error

        where: dict[str, Any] = {"language": language}
        if context is not None:
            where = {"context": interpreter.Context(context, language or "", "")}
        with anyio.move_on_after(timeout) as limit:
            try:
                done = await self._raw.run_code(
                    code,
                    envs=dict(envs) if envs else None,
                    on_stdout=lambda message: listener.stdout(message.line),
                    on_stderr=lambda message: listener.stderr(message.line),
                    on_result=take,
                    timeout=0,  # the limit around this is the one that holds; leaving the stream interrupts the code
                    **where,
                )
            except Stopped as stopped:
                raise stopped.reason from None
            except Exception as error:
                if not limit.cancel_called:
                    raise self._code_error(error, context, language) from error
        if limit.cancel_called:
            raise CodeTimeout(
                f"The code ran longer than timeout={timeout:g} s (TimeoutPolicy.code) and was interrupted.",
                sandbox_id=self.sandbox_id,
                timeout=timeout,
            )
        failed = done.error
        if failed is not None and failed.name == _KERNEL_CANNOT_START:
            raise KernelDied(
                f"The interpreter of sandbox {self.sandbox_id} could not be started ({failed.value}); the code was not "
                f"run. The template {self.template!r} may be damaged: for the local engine, "
                f"`sandboxkit templates build {self.template} --force` builds it anew.",
                sandbox_id=self.sandbox_id,
            )
        if failed is not None and failed.name in _KERNEL_DIED:
            raise KernelDied(
                f"The interpreter of sandbox {self.sandbox_id} ended while it ran the code ({failed.value}). Its "
                "variables are gone, its files are not; the next run starts a new one.",
                sandbox_id=self.sandbox_id,
            )
        return Execution(
            stdout=listener.keeper.stdout,
            stderr=listener.keeper.stderr,
            results=tuple(results),
            error=None if failed is None else ExecutionError(failed.name, failed.value, failed.traceback),
            count=done.execution_count,
        )

    def _code_error(self, error: Exception, context: str | None, language: str | None) -> Exception:
        if not _errors.is_from_the_sdk(error):
            return error
        if isinstance(error, e2b.NotFoundException) and context is not None:
            return ConfigurationError(f"Context {context!r} was not found.", sandbox_id=self.sandbox_id)
        if str(error).startswith("413 "):
            return ConfigurationError(
                f"The code and its `envs` are too large for one request: {error}. Write what is large into a file of "
                "the sandbox (files.write).",
                sandbox_id=self.sandbox_id,
            )
        if language is not None and _errors.is_about_the_language(error):
            return _errors.unsupported_language(error, language, sandbox_id=self.sandbox_id)
        return _errors.translated(error, doing="running code", sandbox_id=self.sandbox_id, end_at=self._end_at)

    async def _run_command(
        self, cmd: str, timeout: float, cwd: str | None, envs: Mapping[str, str] | None, listener: Listener
    ) -> CommandResult:
        # The service's own limit lies just behind ours: it ends the command should this process die meanwhile.
        server_limit = timeout + START_LIMIT
        with anyio.move_on_after(timeout):
            # A start that meets the limit is waited for a little longer: who knows no process id can kill nothing.
            start_limit = min(timeout + KILL_LIMIT, START_LIMIT)
            command = await self._start(cmd, server_limit, cwd, envs, listener, False, start_limit)
            try:
                await anyio.lowlevel.checkpoint_if_cancelled()
                return await command.wait_here()
            except anyio.get_cancelled_exc_class():
                await command.abandon()
                raise
        raise CommandTimeout(
            f"The command ran longer than timeout={timeout:g} s (TimeoutPolicy.command) and was killed.",
            sandbox_id=self.sandbox_id,
            timeout=timeout,
        )

    async def _start(
        self,
        cmd: str,
        server_limit: float,
        cwd: str | None,
        envs: Mapping[str, str] | None,
        listener: Listener,
        stdin: bool,
        limit: float,
    ) -> E2BCommand:
        handle: Any = None
        try:
            # Shielded: until its process id is known, a started command could not be killed.
            with anyio.move_on_after(limit, shield=True):
                handle = await self._raw.commands.run(
                    cmd,
                    background=True,
                    envs=dict(envs) if envs else None,
                    cwd=cwd,
                    on_stdout=listener.stdout,
                    on_stderr=listener.stderr,
                    stdin=stdin,
                    timeout=server_limit,
                    retain_output=False,
                )
        except e2b.InvalidArgumentException as error:
            raise ConfigurationError(f"The command was refused: {error}", sandbox_id=self.sandbox_id) from error
        except Exception as error:
            if not _errors.is_from_the_sdk(error):
                raise
            raise _errors.translated(
                error, doing="starting a command", sandbox_id=self.sandbox_id, end_at=self._end_at
            ) from error
        if handle is None:
            raise CommandTimeout(
                f"The command did not start within {limit:g} s.", sandbox_id=self.sandbox_id, timeout=limit
            )
        return E2BCommand(self._raw, handle, listener, self._way, lambda: self._end_at, takes_stdin=stdin)

    async def _restart(self, context: str | None) -> None:
        if context is None:
            contexts = await self._raw.list_code_contexts()
            context = next((c.id for c in contexts if c.language == "python"), None)
        if context is None:
            raise ConfigurationError(
                f"Sandbox {self.sandbox_id} has no Python interpreter.", sandbox_id=self.sandbox_id
            )
        try:
            await self._raw.restart_code_context(context)
        except e2b.NotFoundException as error:
            raise ConfigurationError(f"Context {context!r} was not found.", sandbox_id=self.sandbox_id) from error

    async def _extend(self, lifetime: float) -> datetime:
        seconds = math.ceil(lifetime)
        at_least = datetime.now(UTC) + timedelta(seconds=seconds)

        async def extend() -> None:
            # Not set_timeout, which also shortens: a connect to a running sandbox only ever moves its end later.
            await AsyncSandbox.connect(self.sandbox_id, timeout=seconds, **self._raw.connection_config.get_api_params())

        await one_request(extend, "extending its life", self.sandbox_id)
        self._end_at = at_least if self._end_at is None else max(self._end_at, at_least)
        return self._end_at


def _result(theirs: interpreter.Result) -> Result:
    chart = theirs.chart
    return Result(
        text=theirs.text,
        html=theirs.html,
        markdown=theirs.markdown,
        svg=theirs.svg,
        png=theirs.png,
        jpeg=theirs.jpeg,
        pdf=theirs.pdf,
        latex=theirs.latex,
        json=theirs.json,
        javascript=theirs.javascript,
        data=theirs.data,
        chart=None if chart is None else chart.to_dict(),
        extra=dict(theirs.extra or {}),
        is_main_result=theirs.is_main_result,
    )
