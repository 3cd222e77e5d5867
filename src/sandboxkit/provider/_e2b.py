"""The one door to the E2B SDK: its asynchronous sandboxes, as the provider's contract wants them.

The cloud and the local engine are the same to it but for the connection's settings. What the SDK leaves open is closed
here: every wait has a limit of our own (the asynchronous SDK does not enforce the deadlines of commands), kept output
has a bound, `debug` is always off (E2B_DEBUG would bypass creation), a timeout is passed on each connect (the service's
default is shorter than most), a create carries an idempotency key, and all exceptions become ours.

The SDK runs on asyncio only. Every public method here may be called on any anyio backend: `_asyncio.on_asyncio` takes
the call over to an asyncio loop where the caller's is not one.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
import e2b
import e2b_code_interpreter as interpreter
import httpx

from sandboxkit._types import (
    CommandResult,
    Endpoint,
    Execution,
    ExecutionError,
    Result,
    SandboxInfo,
)
from sandboxkit.errors import (
    CodeTimeout,
    CommandTimeout,
    ConfigurationError,
    ForkedProcess,
    KernelDied,
    ProviderUnavailable,
    SandboxNotFound,
)
from sandboxkit.provider import _errors
from sandboxkit.provider._asyncio import Here, TrioCall, on_asyncio
from sandboxkit.provider._base import CreateRequest, OnOutput, OnResult
from sandboxkit.provider._e2b_commands import START_LIMIT, E2BCommand, Listener, Stopped, told
from sandboxkit.provider._e2b_files import REQUEST_LIMIT, E2BFiles
from sandboxkit.provider._network import internet_access
from sandboxkit.provider._output import OutputKeeper, result_size

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox
else:
    AsyncSandbox = interpreter.AsyncSandbox

T = TypeVar("T")

CANCEL_GRACE = 10.0
"""Seconds that a cancelled create may take to be answered, so that what it made can be killed."""
KILL_GRACE = 10.0
"""Seconds that such a kill may take."""

# What the interpreters say in an error event when there is no kernel any more: the engine's, then E2B's own two.
_KERNEL_DIED = frozenset({"KernelDied", "ContextRestarting", "WebSocketError"})

_logger = logging.getLogger("sandboxkit.provider")
_first_use_pid: int | None = None


def _cross() -> TrioCall | Here:
    """The way onto asyncio for one call.

    Raises:
        ForkedProcess: the SDK was used before a fork. Its transport's threads stayed in the parent, and any request
            made here would hang for ever (measured with e2b 2.63, also with its connection caches emptied).
    """
    global _first_use_pid
    if _first_use_pid is None:
        _first_use_pid = os.getpid()
    if _first_use_pid != os.getpid():
        raise ForkedProcess(
            "The E2B SDK was used before os.fork(), and cannot make a request in the child. Start worker processes by "
            "`spawn` or `forkserver`, or open the first pool after the fork."
        )
    return on_asyncio()


class E2BProvider:
    """A `Provider` over the SDK. `endpoint` is None for the local engine of this process, started when it is needed."""

    def __init__(self, endpoint: Endpoint | None, name: Literal["e2b", "local", "given"]) -> None:
        if endpoint is None and name != "local":
            raise ConfigurationError(f"The endpoint {name!r} needs an Endpoint(...).")
        self._endpoint = endpoint
        self._name = name
        self._options: dict[str, Any] | None = None if endpoint is None else _connection_options(endpoint)

    @property
    def name(self) -> str:
        return self._name

    async def create(self, request: CreateRequest) -> E2BSandbox:
        allowed = internet_access(request.network)
        sandbox: E2BSandbox = await _cross()(self._create, request, allowed)
        return sandbox

    async def connect(self, sandbox_id: str, *, lifetime: float) -> E2BSandbox:
        sandbox: E2BSandbox = await _cross()(self._connect, sandbox_id, lifetime)
        return sandbox

    async def list(self, *, metadata: Mapping[str, str] | None = None) -> AsyncIterator[SandboxInfo]:
        query = _query(metadata)
        options = await self._connection()
        pages = AsyncSandbox.list(query=query, **options)
        while pages.has_next:
            page = await _cross()(_request, pages.next_items, "listing sandboxes")
            for info in page:
                yield _sandbox_info(info)

    async def kill(self, sandbox_id: str) -> bool:
        options = await self._connection()
        killed: bool = await _cross()(
            _request, lambda: AsyncSandbox.kill(sandbox_id, **options), "killing it", sandbox_id
        )
        return killed

    async def aclose(self) -> None:
        # The SDK's connections belong to the process, and so does the engine, which other pools share.
        await anyio.lowlevel.checkpoint()

    async def _connection(self) -> dict[str, Any]:
        if self._options is not None:
            return self._options
        # Asked for each time: an engine that died is started again for the next sandbox.
        from sandboxkit.local._child import start_engine_async

        engine = await start_engine_async()
        return _connection_options(engine.endpoint)

    async def _create(self, request: CreateRequest, allowed: bool) -> E2BSandbox:
        options = await self._connection()
        lifetime = math.ceil(request.lifetime)
        # The answer does not say when it ends: at the earliest, its lifetime after we asked.
        end_at = datetime.now(UTC) + timedelta(seconds=lifetime)

        async def make() -> AsyncSandbox:
            return await AsyncSandbox.create(
                request.template,
                timeout=lifetime,
                metadata=dict(request.metadata),
                envs=dict(request.envs),
                allow_internet_access=allowed,
                idempotency_key=request.idempotency_key,
                **options,
            )

        try:
            raw = await _made_or_killed(_again_if_the_reply_was_lost(make), request.timeout)
        except TimeoutError as error:
            raise ProviderUnavailable(
                f"No sandbox of {request.template!r} within {request.timeout:g} s (TimeoutPolicy.create).",
                status=None,
                template=request.template,
            ) from error
        except Exception as error:
            if not _errors.is_from_the_sdk(error):
                raise
            raise _errors.create_error(error, template=request.template) from error
        return E2BSandbox(raw, request.template, end_at)

    async def _connect(self, sandbox_id: str, lifetime: float) -> E2BSandbox:
        options = await self._connection()
        seconds = math.ceil(lifetime)

        async def connect() -> E2BSandbox:
            raw: Any = await AsyncSandbox.connect(sandbox_id, timeout=seconds, **options)  # typed as its base class
            info = await raw.get_info()
            return E2BSandbox(raw, info.name or info.template_id, info.end_at)

        return await _request(connect, "connecting to it", sandbox_id)


class E2BSandbox:
    """A `ProviderSandbox` over one of the SDK's asynchronous sandboxes."""

    def __init__(self, raw: AsyncSandbox, template: str, end_at: datetime | None) -> None:
        self._raw = raw
        self._template = template
        self._end_at = end_at
        self._files = E2BFiles(raw, _cross, lambda: self._end_at)

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
        call = _cross()
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
        call = _cross()
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
        call = _cross()
        if isinstance(call, TrioCall) and (on_stdout or on_stderr):
            # The call ends with the start, and there is no task of the caller's that could run them later.
            raise ConfigurationError(
                "Callbacks of a background command need asyncio: on trio, wait for the result, or use run_command."
            )
        listener = Listener(OutputKeeper(max_output), on_stdout, on_stderr)
        command: E2BCommand = await call(self._start, cmd, 0, cwd, envs, listener, stdin, START_LIMIT)
        return command

    async def restart(self, context: str | None = None) -> None:
        await _cross()(_request, lambda: self._restart(context), "restarting its interpreter", self.sandbox_id)

    async def extend(self, lifetime: float) -> datetime:
        end_at: datetime = await _cross()(self._extend, lifetime)
        return end_at

    async def is_running(self) -> bool:
        running: bool = await _cross()(_request, self._raw.is_running, "asking for its health", self.sandbox_id)
        return running

    def host(self, port: int) -> str:
        return self._raw.get_host(port)

    async def kill(self) -> bool:
        killed: bool = await _cross()(_request, self._raw.kill, "killing it", self.sandbox_id)
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
                    raise self._code_error(error, context) from error
        if limit.cancel_called:
            raise CodeTimeout(
                f"The code ran longer than timeout={timeout:g} s (TimeoutPolicy.code) and was interrupted.",
                sandbox_id=self.sandbox_id,
                timeout=timeout,
            )
        failed = done.error
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

    def _code_error(self, error: Exception, context: str | None) -> Exception:
        if not _errors.is_from_the_sdk(error):
            return error
        if isinstance(error, e2b.NotFoundException) and context is not None:
            return ConfigurationError(f"Context {context!r} was not found.", sandbox_id=self.sandbox_id)
        return _errors.translated(error, doing="running code", sandbox_id=self.sandbox_id, end_at=self._end_at)

    async def _run_command(
        self, cmd: str, timeout: float, cwd: str | None, envs: Mapping[str, str] | None, listener: Listener
    ) -> CommandResult:
        # The service's own limit lies just behind ours: it ends the command should this process die meanwhile.
        server_limit = timeout + START_LIMIT
        with anyio.move_on_after(timeout):
            command = await self._start(cmd, server_limit, cwd, envs, listener, False, min(timeout, START_LIMIT))
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
        return E2BCommand(self._raw, handle, listener.keeper, _cross, lambda: self._end_at, takes_stdin=stdin)

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

        await _request(extend, "extending its life", self.sandbox_id)
        self._end_at = at_least if self._end_at is None else max(self._end_at, at_least)
        return self._end_at


# -- one request, and creation --------------------------------------------------------------------------------------


async def _request(work: Callable[[], Awaitable[T]], doing: str, sandbox_id: str | None = None) -> T:
    """Carry out SDK calls that only ask or tell, within REQUEST_LIMIT, and translate what they raise."""
    try:
        with anyio.move_on_after(REQUEST_LIMIT):
            return await work()
    except Exception as error:
        if not _errors.is_from_the_sdk(error):
            raise
        if sandbox_id is not None and _errors.is_gone(error):
            raise SandboxNotFound(f"Sandbox {sandbox_id} was not found ({doing}).", sandbox_id=sandbox_id) from error
        raise _errors.translated(error, doing=doing, sandbox_id=sandbox_id) from error
    raise ProviderUnavailable(f"No answer within {REQUEST_LIMIT:g} s ({doing}).", sandbox_id=sandbox_id, status=None)


def _again_if_the_reply_was_lost(
    make: Callable[[], Awaitable[AsyncSandbox]],
) -> Callable[[], Awaitable[AsyncSandbox]]:
    """Ask a second time where the first answer was lost on its way: the idempotency key makes that safe, and only so
    is it known which sandbox to use, or to kill."""

    async def make_again() -> AsyncSandbox:
        try:
            return await make()
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            _logger.info("the reply to a create was lost (%s); asking again", type(error).__name__)
            return await make()

    return make_again


async def _made_or_killed(make: Callable[[], Awaitable[AsyncSandbox]], timeout: float) -> AsyncSandbox:
    """Make a sandbox within `timeout` seconds. When cancelled, wait CANCEL_GRACE more for the answer and kill it.

    Raises:
        TimeoutError: there was no answer in time. A sandbox that the service makes all the same ends with its lifetime.
    """
    made: list[AsyncSandbox] = []
    failed: list[Exception] = []
    answered = anyio.Event()
    limit = anyio.CancelScope(deadline=anyio.current_time() + timeout, shield=True)

    async def ask() -> None:
        with limit:
            try:
                made.append(await make())
            except Exception as error:
                failed.append(error)
        answered.set()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            try:
                await answered.wait()
            except BaseException:
                limit.deadline = min(limit.deadline, anyio.current_time() + CANCEL_GRACE)
                raise
    except BaseException:
        with anyio.move_on_after(KILL_GRACE, shield=True):
            for sandbox in made:
                await _request(sandbox.kill, "killing a sandbox whose creation was cancelled", sandbox.sandbox_id)
        raise
    if made:
        return made[0]
    raise failed[0] if failed and not limit.cancel_called else TimeoutError


def _connection_options(endpoint: Endpoint) -> dict[str, Any]:
    """The SDK's connection parameters. What an endpoint leaves open must not be filled from the environment with a
    part of another one, which would get its key."""
    api_url, sandbox_url = endpoint.api_url, endpoint.sandbox_url
    if endpoint.domain is not None and api_url is None:
        api_url = f"https://api.{endpoint.domain}"
    if sandbox_url is None and api_url is not None and os.environ.get("E2B_SANDBOX_URL"):
        raise ConfigurationError(
            "E2B_SANDBOX_URL is set, but the endpoint in use names no sandbox_url: the SDK would send this endpoint's "
            "requests there. Unset it, or pass Endpoint(sandbox_url=...)."
        )
    return {
        "api_key": endpoint.api_key,
        "api_url": api_url,
        "sandbox_url": sandbox_url,
        "domain": endpoint.domain,
        "debug": False,
        "request_timeout": REQUEST_LIMIT,
    }


# -- the SDK's values, as ours --------------------------------------------------------------------------------------


def _query(metadata: Mapping[str, str] | None) -> e2b.SandboxQuery | None:
    """The SDK's filter for listing by metadata."""
    return e2b.SandboxQuery(metadata=dict(metadata)) if metadata else None


def _sandbox_info(info: e2b.SandboxInfo) -> SandboxInfo:
    return SandboxInfo(
        sandbox_id=info.sandbox_id,
        template=info.name or info.template_id,
        state="paused" if info.state == e2b.SandboxState.PAUSED else "running",
        started_at=info.started_at,
        end_at=info.end_at,
        metadata=dict(info.metadata or {}),
    )


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


# -- the SDK's objects of the other colour --------------------------------------------------------------------------


def file_access(sandbox: object) -> E2BFiles:
    """`Files` for one of the SDK's own asynchronous sandboxes.

    Raises:
        ConfigurationError: it is a synchronous one (which SafeFS takes), or no sandbox at all.
    """
    if isinstance(sandbox, e2b.Sandbox):
        raise ConfigurationError("AsyncSafeFS takes an AsyncSandbox; this is a synchronous Sandbox: use SafeFS.")
    if not isinstance(sandbox, e2b.AsyncSandbox):
        raise ConfigurationError(f"A sandbox is needed (the SDK's AsyncSandbox), not {type(sandbox).__name__}.")
    return E2BFiles(sandbox, _cross, lambda: None)


def async_twin(sandbox: object) -> AsyncSandbox:
    """The asynchronous object for the same sandbox as a synchronous one; no request is made.

    Raises:
        ConfigurationError: it is an asynchronous one (which AsyncSafeFS takes), or no sandbox at all.
    """
    if isinstance(sandbox, e2b.AsyncSandbox):
        raise ConfigurationError("SafeFS takes a synchronous Sandbox; this is an AsyncSandbox: use AsyncSafeFS.")
    if not isinstance(sandbox, e2b.Sandbox):
        raise ConfigurationError(f"A sandbox is needed (the SDK's Sandbox), not {type(sandbox).__name__}.")
    return AsyncSandbox(**_identity(sandbox))


def sync_twin(sandbox: object) -> object:
    """The synchronous object for the same sandbox as an asynchronous one; no request is made, so its life is neither
    shortened nor lengthened. What is not the SDK's (the fake's object) is returned as it is."""
    if not isinstance(sandbox, e2b.AsyncSandbox):
        return sandbox
    return interpreter.Sandbox(**_identity(sandbox))


def _identity(sandbox: e2b.Sandbox | e2b.AsyncSandbox) -> Any:
    # The constructors are kept for compatibility, and are the one way to such an object without a request.
    return {
        "sandbox_id": sandbox.sandbox_id,
        "sandbox_domain": sandbox.sandbox_domain,
        "envd_version": sandbox._envd_version,
        "envd_access_token": sandbox._envd_access_token,
        "traffic_access_token": sandbox.traffic_access_token,
        "connection_config": sandbox.connection_config,
    }
