"""One command of one of the SDK's asynchronous sandboxes, with our own limits around it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from sandboxkit._types import CommandResult, OutputMessage
from sandboxkit.errors import ConfigurationError, ProviderUnavailable, SandboxLost
from sandboxkit.provider import _errors
from sandboxkit.provider._base import OnOutput
from sandboxkit.provider._output import OutputKeeper

if TYPE_CHECKING:
    from e2b import AsyncSandbox
    from e2b.sandbox_async.commands.command_handle import AsyncCommandHandle

T = TypeVar("T")

START_LIMIT = 30.0
"""Seconds until a command must have started."""
KILL_LIMIT = 5.0
"""Seconds that killing a command may take, after which its server-side limit is what ends it."""


class Stopped(Exception):
    """Ends a run through the SDK's code; `reason` is what the caller gets."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Listener:
    """What happens with each piece of a run's output: it is kept up to the bound, and the callback is told."""

    def __init__(self, keeper: OutputKeeper, on_stdout: OnOutput | None, on_stderr: OnOutput | None) -> None:
        self.keeper = keeper
        self._on_stdout = on_stdout
        self._on_stderr = on_stderr

    async def stdout(self, text: str) -> None:
        await self.take(OutputMessage(text, "stdout"), self._on_stdout)

    async def stderr(self, text: str) -> None:
        await self.take(OutputMessage(text, "stderr"), self._on_stderr)

    async def take(self, message: OutputMessage, callback: OnOutput | None) -> None:
        try:
            self.keeper.add(message.stream, message.text)
            await told(callback, message)
        except Exception as error:
            # Wrapped, so that nothing on the way takes the caller's exception for one of its own.
            raise Stopped(error) from error


async def told(callback: Callable[[Any], object] | None, message: object) -> None:
    """Call a callback, and await what it returns if it can be."""
    if callback is not None:
        answer = callback(message)
        if inspect.isawaitable(answer):
            await answer


class E2BCommand:
    """A `RunningCommand`. Past its bound of output, or when a callback raises, the command is killed.

    A pause of its sandbox cuts its stream off, and not the command: the next wait asks for the stream anew.
    """

    def __init__(
        self,
        raw: AsyncSandbox,
        handle: AsyncCommandHandle[Any],
        listener: Listener,
        cross: Callable[[], Callable[..., Awaitable[Any]]],
        end_at: Callable[[], datetime | None],
        *,
        takes_stdin: bool,
    ) -> None:
        self.pid: int = handle.pid
        self._raw = raw
        self._handle = handle
        self._listener = listener
        self._is_cut_off = False
        self._connecting = anyio.Lock()
        self._cross = cross
        self._end_at = end_at
        self._takes_stdin = takes_stdin

    async def wait(self) -> CommandResult:
        result: CommandResult = await self._cross()(self.wait_here)
        return result

    async def kill(self) -> bool:
        killed: bool = await self._cross()(self._killed)
        return killed

    async def send_stdin(self, data: str) -> None:
        if not self._takes_stdin:
            raise ConfigurationError("The command was not started with stdin=True.", sandbox_id=self._raw.sandbox_id)
        await self._cross()(self._sent, data)

    async def wait_here(self) -> CommandResult:
        """`wait`, on asyncio. Cancelling it leaves the command as it is."""
        from e2b import CommandExitException

        await self._connect_again()
        handle = self._handle
        try:
            await self._ended(handle)
        except CommandExitException as exited:
            return self._result(exited.exit_code)
        except Stopped as stopped:
            await self.abandon()
            raise stopped.reason from None
        except Exception as error:
            if not _errors.is_from_the_sdk(error):
                raise
            if type(error) is Exception and await is_gone_after(self._raw):
                raised: Exception = _errors.gone(self._raw.sandbox_id, self._end_at(), "a command ran")
            else:
                raised = self._translated(error, "running a command")
            if isinstance(raised, SandboxLost) and self._handle is handle:
                self._is_cut_off = True
            raise raised from error
        return self._result(0)

    async def _connect_again(self) -> None:
        async with self._connecting:
            if self._is_cut_off:
                self._handle = await self._request(
                    lambda: self._raw.commands.connect(
                        self.pid,
                        timeout=0,
                        on_stdout=self._listener.stdout,
                        on_stderr=self._listener.stderr,
                        retain_output=False,
                    ),
                    f"listening to command {self.pid} again, which may have ended meanwhile",
                )
                self._is_cut_off = False

    async def _ended(self, handle: AsyncCommandHandle[Any]) -> None:
        # The handle's own task reads the stream. wait() awaits that very task, so a cancelled wait would cancel it,
        # and a second wait could not be answered: it is therefore watched, not awaited.
        done = anyio.Event()
        task = handle._wait
        task.add_done_callback(lambda _: done.set())
        if not task.done():
            await done.wait()
        await handle.wait()

    async def abandon(self) -> None:
        """Kill it and drop its stream, whatever the caller's own state; bounded."""
        with anyio.move_on_after(KILL_LIMIT, shield=True):
            try:
                await self._handle.kill()
            except Exception as error:
                if not _errors.is_from_the_sdk(error):
                    raise
        with anyio.move_on_after(KILL_LIMIT, shield=True):
            await self._handle.disconnect()

    async def _killed(self) -> bool:
        return await self._request(self._handle.kill, "killing a command")

    async def _sent(self, data: str) -> None:
        await self._request(lambda: self._handle.send_stdin(data), "writing to a command")

    async def _request(self, work: Callable[[], Awaitable[T]], doing: str) -> T:
        try:
            with anyio.move_on_after(START_LIMIT):
                return await work()
        except Exception as error:
            if not _errors.is_from_the_sdk(error):
                raise
            raise self._translated(error, doing) from error
        raise ProviderUnavailable(
            f"No answer within {START_LIMIT:g} s ({doing}).", sandbox_id=self._raw.sandbox_id, status=None
        )

    def _translated(self, error: Exception, doing: str) -> Exception:
        return _errors.translated(error, doing=doing, sandbox_id=self._raw.sandbox_id, end_at=self._end_at())

    def _result(self, exit_code: int) -> CommandResult:
        keeper = self._listener.keeper
        return CommandResult(exit_code=exit_code, stdout=keeper.stdout, stderr=keeper.stderr)


async def is_gone_after(raw: AsyncSandbox) -> bool:
    """Ask for the sandbox's health after a request broke off; True only where the answer is a clear no."""
    try:
        with anyio.move_on_after(KILL_LIMIT):
            return not await raw.is_running()
    except Exception as error:
        if not _errors.is_from_the_sdk(error):
            raise
    return False
