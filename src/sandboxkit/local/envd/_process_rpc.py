"""The Connect service process.Process: what its messages mean, in terms of `Processes`."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Final

from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._connect import ConnectError, dump, invalid
from sandboxkit.local.envd._paths import BadPath, resolve
from sandboxkit.local.envd._processes import Command, Processes, Running, TerminalSize
from sandboxkit.local.envd._proto_json import Message
from sandboxkit.local.envd._rpc import Answer, Call, Emit, Method
from sandboxkit.local.envd._subscribers import Data, Ended, Subscription

_SIGNALS: Final = {"SIGNAL_UNSPECIFIED": 0, "SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9}


class ProcessService:
    """Answers the methods of one sandbox's process.Process."""

    def __init__(self, processes: Processes, settings: SandboxSettings) -> None:
        self._processes = processes
        self._settings = settings

    def methods(self) -> Mapping[str, Method]:
        """The methods by path."""
        return {
            "/process.Process/Start": Method(server_stream=self._start, own_deadline=True),
            "/process.Process/Connect": Method(server_stream=self._connect),
            "/process.Process/List": Method(unary=self._list),
            "/process.Process/SendInput": Method(unary=self._send_input),
            "/process.Process/StreamInput": Method(client_stream=self._stream_input),
            "/process.Process/CloseStdin": Method(unary=self._close_stdin),
            "/process.Process/SendSignal": Method(unary=self._send_signal),
            "/process.Process/Update": Method(unary=self._update),
        }

    async def _start(self, message: Message, call: Call, emit: Emit) -> bytes:
        command = self._command(message)
        size = message.optional_message("pty")
        stdin = message.optional_flag("stdin")
        subscription = Subscription()
        try:
            running = await self._processes.start(
                command,
                stdin=stdin is not False,
                terminal=None if size is None else _terminal_size(size),
                timeout=call.timeout,
                subscription=subscription,
            )
            return await _follow(running, subscription, call, emit)
        finally:
            # A client that has gone must not hold the process back.
            subscription.close()

    async def _connect(self, message: Message, call: Call, emit: Emit) -> bytes:
        running = self._select(message, ended=True)
        subscription = Subscription()
        running.subscribe(subscription)
        try:
            return await _follow(running, subscription, call, emit)
        finally:
            running.unsubscribe(subscription)

    async def _list(self, message: Message, call: Call) -> Answer:
        return {"processes": [_process_info(running) for running in self._processes.all()]}

    async def _send_input(self, message: Message, call: Call) -> Answer:
        await _feed(self._select(message), message.message("input"))
        return {}

    async def _stream_input(self, messages: AsyncIterator[Message], call: Call) -> Answer:
        running: Running | None = None
        async for message in messages:
            match message.one_of("start", "data", "keepalive"):
                case "start":
                    running = self._select(message.message("start"))
                case "data":
                    if running is None:
                        raise invalid("the start event, which names the process, must come first")
                    await _feed(running, message.message("data").message("input"))
                case "keepalive":
                    pass
                case _:
                    raise ConnectError("unimplemented", "invalid event type <nil>")
        return {}

    async def _close_stdin(self, message: Message, call: Call) -> Answer:
        await self._select(message).close_stdin()
        return {}

    async def _send_signal(self, message: Message, call: Call) -> Answer:
        running = self._select(message)
        signum = message.enum("signal", _SIGNALS)
        if signum not in (9, 15):
            raise ConnectError("unimplemented", f"invalid signal: {signum}; SIGNAL_SIGTERM and SIGNAL_SIGKILL exist")
        await running.signal(signum)
        return {}

    async def _update(self, message: Message, call: Call) -> Answer:
        running = self._select(message)
        size = message.optional_message("pty")
        if size is not None:
            await running.resize(_terminal_size(size))
        return {}

    def _command(self, message: Message) -> Command:
        process = message.message("process")
        cwd = process.optional_text("cwd")
        settings = self._settings
        try:
            directory = resolve(cwd or "", home=settings.home, workdir=settings.workdir, user=settings.user)
        except BadPath as problem:
            raise invalid(str(problem)) from None
        command = Command(
            cmd=process.text("cmd"),
            args=process.texts("args"),
            envs=process.text_map("envs"),
            cwd=cwd,
            directory=directory,
            tag=message.optional_text("tag"),
        )
        _check(command)
        return command

    def _select(self, message: Message, *, ended: bool = False) -> Running:
        selector = message.message("process")
        match selector.one_of("pid", "tag"):
            case "pid":
                return self._processes.find(pid=selector.uint32("pid"), ended=ended)
            case "tag":
                return self._processes.find(tag=selector.text("tag"), ended=ended)
            case _:
                raise ConnectError("unimplemented", "invalid input type: a selector by pid or by tag is expected")


def _check(command: Command) -> None:
    """Refuse what no program can be started with."""
    if not command.cmd:
        raise invalid("error starting process '': exec: no command")
    if any("\0" in text for text in (command.cmd, *command.args)):
        raise invalid("error starting process: the command contains a NUL byte")
    for name, value in command.envs.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise invalid(f"error starting process: {name!r} cannot be set as an environment variable")


async def _feed(running: Running, what: Message) -> None:
    match what.one_of("stdin", "pty"):
        case "stdin":
            await running.write(what.octets("stdin"))
        case "pty":
            await running.write_terminal(what.octets("pty"))
        case _:
            raise ConnectError("unimplemented", "invalid input type <nil>")


async def _follow(running: Running, subscription: Subscription, call: Call, emit: Emit) -> bytes:
    """Send a process's events until its end, which is returned, with a keepalive whenever it is silent for long."""
    await emit(_event({"start": {"pid": running.pid}}))
    while True:
        event = await subscription.next(timeout=call.keepalive)
        match event:
            case None:
                await emit(_event({"keepalive": {}}))
            case Data(kind, data):
                # Made by hand: this is where a command's whole output passes, and base64 needs no escapes.
                await emit(b'{"event":{"data":{"%b":"%b"}}}' % (kind.encode(), base64.b64encode(data)))
            case Ended():
                return _event({"end": _end(event)})


def _event(event: Mapping[str, object]) -> bytes:
    return dump({"event": event})


def _end(ended: Ended) -> dict[str, object]:
    """Zero values are left out, as proto3 JSON does."""
    end: dict[str, object] = {"status": ended.status}
    if ended.exit_code:
        end["exitCode"] = ended.exit_code
    if ended.exited:
        end["exited"] = True
    if ended.error is not None:
        end["error"] = ended.error
    return end


def _process_info(running: Running) -> dict[str, object]:
    command = running.command
    config: dict[str, object] = {"cmd": command.cmd}
    if command.args:
        config["args"] = list(command.args)
    if command.envs:
        config["envs"] = dict(command.envs)
    if command.cwd is not None:
        config["cwd"] = command.cwd
    info: dict[str, object] = {"config": config, "pid": running.pid}
    if command.tag is not None:
        info["tag"] = command.tag
    return info


def _terminal_size(pty: Message) -> TerminalSize:
    size = pty.message("size")
    return TerminalSize(cols=size.uint32("cols"), rows=size.uint32("rows"))
