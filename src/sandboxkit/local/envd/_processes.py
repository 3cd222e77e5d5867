"""The processes of one sandbox that clients started: started, listened to, fed, signalled, and remembered for a while.

The life of a process:

    started    its leader runs, its output goes to whoever listens and is discarded while nobody does
    lingering  its leader has ended, but its output has not: a process that it left behind holds the pipe
    ended      the end event is out; it can be connected to for `REMEMBERED` seconds

envd waits for the pipes' end without a bound but the call's deadline. We wait while output keeps coming: after
`SILENCE` seconds without any, or after `LINGER` seconds at most, the end event goes out. A pipe that is still open
then is drained on, so that a server left behind by `server &` does not die of SIGPIPE; only the last `DRAINED` are.

Times are seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._connect import Code, ConnectError, invalid
from sandboxkit.local.envd._rpc import deadline_exceeded
from sandboxkit.local.envd._streams import Input, Output, Pipes
from sandboxkit.local.envd._subscribers import Data, Ended, Kind, Subscription, deliver
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost, Process

_T = TypeVar("_T")

SIGKILL: Final = 9
SILENCE: Final = 5.0
LINGER: Final = 60.0
KILLED_SILENCE: Final = 0.1
REMEMBERED: Final = 30.0
DRAINED: Final = 32
MAX_RUNNING: Final = 256
MAX_REMEMBERED: Final = 1024
MAX_SUBSCRIBERS: Final = 32
CHUNK: Final[Mapping[Kind, int]] = {"stdout": 32 * 1024, "stderr": 32 * 1024, "pty": 16 * 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a client asked to be run. `cwd` is as it was given; `directory` is where that is."""

    cmd: str
    args: tuple[str, ...]
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    directory: str
    tag: str | None = None

    def __str__(self) -> str:
        return " ".join((self.cmd, *self.args))


@dataclass(frozen=True, slots=True)
class TerminalSize:
    cols: int
    rows: int


class Running:
    """One process."""

    def __init__(
        self,
        command: Command,
        process: Process,
        agent: Agent,
        *,
        outputs: Mapping[Kind, Output],
        stdin: Input | None,
        terminal: Input | None,
    ) -> None:
        self.command = command
        self.pid = process.pid
        self.ended: Ended | None = None
        self._process = process
        self._agent = agent
        self._outputs = outputs
        self._stdin = stdin
        self._terminal = terminal
        self._subscriptions: set[Subscription] = set()
        self._leader_ended = False
        self._killed = False

    # -- listening --

    def subscribe(self, subscription: Subscription) -> None:
        """Add a listener; it hears what comes from now on. ConnectError when there are too many."""
        self._subscriptions = {each for each in self._subscriptions if not each.closed}
        if self.ended is not None:
            subscription.finish(self.ended)
        elif len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise ConnectError(
                "resource_exhausted", f"process with pid {self.pid} has {MAX_SUBSCRIBERS} subscribers already"
            )
        else:
            self._subscriptions.add(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        subscription.close()
        self._subscriptions.discard(subscription)

    # -- acting on it --

    async def write(self, data: bytes) -> None:
        """Write to stdin. ConnectError when there is none, or nobody reads it any more."""
        if self._terminal is not None:
            raise _input_error("stdin", "tty assigned to process — input should be written to the pty, not the stdin")
        if self._stdin is None or self._stdin.closed:
            raise _input_error("stdin", "stdin not enabled or closed")
        try:
            await self._stdin.write(data)
        except OSError:
            raise _input_error("stdin", f"error writing to stdin of process '{self.pid}': broken pipe") from None

    async def write_terminal(self, data: bytes) -> None:
        """Write to the terminal, as if typed. ConnectError when there is none, or it is gone."""
        if self._terminal is None:
            raise _input_error("tty", "tty not assigned to process — input should be written to the stdin, not the tty")
        try:
            await self._terminal.write(data)
        except OSError:
            raise _input_error("tty", f"error writing to tty of process '{self.pid}': input/output error") from None

    async def close_stdin(self) -> None:
        """Let the process read end-of-file, after all that was written before. Does nothing a second time."""
        if self._terminal is not None:
            raise ConnectError(
                "failed_precondition",
                "error closing stdin: cannot close stdin for PTY process — send Ctrl+D (0x04) instead",
            )
        if self._stdin is not None:
            await self._stdin.finish()

    async def resize(self, size: TerminalSize) -> None:
        """Set the terminal's size. ConnectError when there is none."""
        if self._terminal is None or self._terminal.closed:
            raise ConnectError("internal", "error resizing tty: tty not assigned to process")
        try:
            await self._agent.resize(self.pid, self._terminal.fileno(), cols=size.cols, rows=size.rows)
        except AgentError as error:
            raise ConnectError("internal", f"error resizing tty: {error.message}") from None

    async def signal(self, signum: int) -> None:
        """Signal its process group. AgentLost."""
        if signum == SIGKILL:
            self._killed = True
            if self._leader_ended:
                self._hurry()
        await self._agent.signal(self.pid, signum, group=True)

    # -- its life --

    async def live(self) -> None:
        """Carry its output until it has ended, its descriptors are closed and every listener knows."""
        pumps = {kind: asyncio.ensure_future(self._pump(kind, output)) for kind, output in self._outputs.items()}
        try:
            status = await self._process.wait()
            self._leader_ended = True
            self._hurry()
            for pump in pumps.values():
                await pump  # of one that has ended by now this takes no turn of the loop
            self._finish(Ended.of(status))
        except AgentLost as lost:
            self._finish(lost)
        finally:
            left = [pump for pump in pumps.values() if not pump.done()]
            for pump in left:
                pump.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self._close_inputs()

    @property
    def is_over(self) -> bool:
        """Nobody can print to it any more."""
        return all(output.is_over for output in self._outputs.values())

    async def drain(self) -> None:
        """Take and discard what processes left behind still write, until the last of them has closed the pipe."""
        try:
            if self._terminal is None:
                await asyncio.gather(*(_discard(output) for output in self._outputs.values()))
        finally:
            self.close()

    def close(self) -> None:
        """Close every descriptor. Idempotent."""
        self._close_inputs()
        for output in self._outputs.values():
            output.close()

    def abandon(self, error: Exception) -> None:
        """End every listener's stream with an error."""
        for subscription in self._subscriptions:
            subscription.finish(error)

    async def _pump(self, kind: Kind, output: Output) -> None:
        while data := await output.read():
            if self._subscriptions:
                await deliver(Data(kind, data), tuple(self._subscriptions))

    def _hurry(self) -> None:
        silence, total = (KILLED_SILENCE, KILLED_SILENCE) if self._killed else (SILENCE, LINGER)
        for output in self._outputs.values():
            output.hurry(silence=silence, total=total)

    def _finish(self, last: Ended | AgentLost) -> None:
        if isinstance(last, Ended):
            self.ended = last
        for subscription in self._subscriptions:
            subscription.finish(last)
        self._subscriptions = set()

    def _close_inputs(self) -> None:
        for near in (self._stdin, self._terminal):
            if near is not None:
                near.close()


async def _discard(output: Output) -> None:
    output.relax()
    while await output.read():
        pass


def _input_error(where: str, message: str) -> ConnectError:
    return ConnectError("failed_precondition", f"error writing to {where}: {message}")


class Processes:
    """All processes of a sandbox."""

    def __init__(self, agent: Agent, settings: SandboxSettings) -> None:
        self._agent = agent
        self._settings = settings
        self._starting = 0
        self._running: dict[int, Running] = {}
        self._ended: OrderedDict[int, tuple[float, Running]] = OrderedDict()
        self._drained: OrderedDict[Running, asyncio.Task[None]] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def all(self) -> list[Running]:
        """The processes that have not ended."""
        return list(self._running.values())

    def find(self, *, pid: int | None = None, tag: str | None = None, ended: bool = False) -> Running:
        """A process by pid, or else by tag; with `ended`, also one that ended a moment ago.

        Raises:
            ConnectError: not_found.
        """
        self._forget()
        candidates = self.all()
        if ended:
            candidates += [running for _, running in reversed(self._ended.values())]
        for each in candidates:
            if each.pid == pid if pid is not None else each.command.tag == tag:
                return each
        selector = f"pid {pid}" if pid is not None else f"tag {tag}"
        raise ConnectError("not_found", f"process with {selector} not found")

    async def start(
        self,
        command: Command,
        *,
        stdin: bool,
        terminal: TerminalSize | None,
        timeout: float | None,
        subscription: Subscription,
    ) -> Running:
        """Start a process that `subscription` listens to from its first byte on.

        The process lives on when the caller is cancelled. When `timeout` has passed, the subscription ends with
        deadline_exceeded and the whole process group is killed.

        Raises:
            ConnectError: what envd says when it cannot be started.
            AgentLost: the sandbox is gone.
        """
        if self._closed:
            raise AgentLost
        if len(self._running) + self._starting >= MAX_RUNNING:
            raise ConnectError("resource_exhausted", f"{MAX_RUNNING} processes run in this sandbox already")
        self._starting += 1
        deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
        task = self._own(self._start(command, stdin, terminal, deadline, subscription))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # the caller may have left
        return await asyncio.shield(task)

    async def aclose(self) -> None:
        """End every stream as lost and close every descriptor. Ends no process: the sandbox's end does. Idempotent."""
        self._closed = True
        for running in self.all():
            running.abandon(AgentLost())
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for running in self.all():
            running.close()
        self._running.clear()
        self._ended.clear()

    async def _start(
        self,
        command: Command,
        stdin: bool,
        terminal: TerminalSize | None,
        deadline: float | None,
        subscription: Subscription,
    ) -> Running:
        try:
            running = await self._spawn(command, stdin, terminal)
        except AgentError as error:
            raise _start_error(command, error) from None
        except OSError as error:  # of the engine's own: no descriptors left
            raise ConnectError(
                "resource_exhausted", f"error starting process '{command}': the engine: {error.strerror}"
            ) from None
        finally:
            self._starting -= 1
        running.subscribe(subscription)
        # A pid can come again while processes that its last owner left behind still hold that one's pipes.
        self._running[running.pid] = running
        self._own(self._live(running, deadline, subscription))
        return running

    async def _spawn(self, command: Command, stdin: bool, terminal: TerminalSize | None) -> Running:
        argv = (command.cmd, *command.args)
        base = self._settings.base_environment()
        if terminal is not None:
            envs = base | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | dict(command.envs)
            process, master = await self._agent.spawn_pty(
                argv, envs=envs, cwd=command.directory, cols=terminal.cols & 0xFFFF, rows=terminal.rows & 0xFFFF
            )
            try:
                keys = Input(os.dup(master))
            except OSError:
                os.close(master)  # its program ends of the hang-up
                raise
            outputs: dict[Kind, Output] = {"pty": Output(master, chunk=CHUNK["pty"])}
            return Running(command, process, self._agent, outputs=outputs, stdin=None, terminal=keys)
        pipes = Pipes(stdin=stdin)
        try:
            # As under E2B's envd it leads no group: setsid(1) would fork there, and report the end of nothing.
            process = await self._agent.spawn(
                argv, envs=base | dict(command.envs), cwd=command.directory, fds=pipes.far, leads=False
            )
            outputs = {
                "stdout": Output(pipes.take(1), chunk=CHUNK["stdout"]),
                "stderr": Output(pipes.take(2), chunk=CHUNK["stderr"]),
            }
            near = Input(pipes.take(0)) if stdin else None
        finally:
            pipes.close()
        return Running(command, process, self._agent, outputs=outputs, stdin=near, terminal=None)

    async def _live(self, running: Running, deadline: float | None, subscription: Subscription) -> None:
        loop = asyncio.get_running_loop()
        timer = None if deadline is None else loop.call_at(deadline, self._expire, running, subscription)
        try:
            await running.live()
        finally:
            if timer is not None:
                timer.cancel()
            if self._running.get(running.pid) is running:
                del self._running[running.pid]
            if running.ended is None:
                running.close()
        if running.ended is None:
            return
        self._forget()
        self._ended.pop(running.pid, None)
        self._ended[running.pid] = (loop.time() + REMEMBERED, running)
        if running.is_over:
            running.close()
            return
        self._drained[running] = drain = self._own(running.drain())
        drain.add_done_callback(lambda _: self._drained.pop(running, None))
        if len(self._drained) > DRAINED:
            next(iter(self._drained.values())).cancel()

    def _expire(self, running: Running, subscription: Subscription) -> None:
        subscription.finish(deadline_exceeded())
        self._own(self._kill(running))

    async def _kill(self, running: Running) -> None:
        # Nobody waits for the answer; whatever went wrong shows in the process's own end.
        with contextlib.suppress(AgentLost, AgentError):
            await running.signal(SIGKILL)

    def _forget(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._ended:
            until, _ = next(iter(self._ended.values()))
            if until > now and len(self._ended) <= MAX_REMEMBERED:
                return
            self._ended.popitem(last=False)

    def _own(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _start_error(command: Command, error: AgentError) -> ConnectError:
    if error.path == command.directory and error.errno == errno.ENOENT:
        return invalid(f"cwd '{command.directory}' does not exist")
    code: Code = "resource_exhausted" if error.errno in _EXHAUSTED else "invalid_argument"
    return ConnectError(code, f"error starting process '{command}': {error}")


# What a later try may get past; everything else is wrong with the request.
_EXHAUSTED: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC})
