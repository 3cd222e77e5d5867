"""A real kernel without a box: the agent's `spawn` on this host, and a client that speaks ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local import images
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.agent import kernel as kernel_program
from sandboxkit.local.images._install import base_python
from sandboxkit.local.interpreter import InterpreterService
from sandboxkit.local.isolation._base import ENV_PYTHON, AgentError, AgentLost, ExitStatus

TOKEN = "secret"


class HostProcess:
    """A process of this host, as the agent would show one of a box."""

    def __init__(self, popen: subprocess.Popen[bytes], agent: HostAgent) -> None:
        self.popen = popen
        self.pid = popen.pid
        self._agent = agent
        self._ended = asyncio.Event()
        self._watch = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._watch, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._watch)
        os.close(self._watch)
        self.popen.wait()
        self._ended.set()

    async def wait(self) -> ExitStatus:
        await self._ended.wait()
        if self._agent.lost:
            raise AgentLost
        code = self.popen.returncode
        return ExitStatus(signal=-code) if code < 0 else ExitStatus(code=code)


class HostAgent:
    """The two verbs of the agent that the interpreter uses."""

    def __init__(self, packages: str) -> None:
        self._packages = packages
        self.lost = False
        self.processes: list[HostProcess] = []

    async def spawn(
        self, argv: Sequence[str], *, envs: Mapping[str, str], cwd: str, fds: Mapping[int, int]
    ) -> HostProcess:
        if self.lost:
            raise AgentLost
        if not os.path.isdir(cwd):
            raise AgentError(2, "No such file or directory", cwd)
        assert argv[0] == ENV_PYTHON
        assert set(fds) == {1, 2, 3}
        # The box has the environment's own interpreter; here it is this one, with the environment's packages.
        program = [base_python(), os.path.abspath(kernel_program.__file__), *argv[2:]]
        environment = {**envs, "PYTHONPATH": self._packages, "HOME": cwd}
        # Copies out of the way of 1 to 3, which `pass_fds` cannot renumber.
        shell = 'exec "$0" "$@" 1>&"$OUT" 2>&"$ERR" 3>&"$WIRE"'
        copies = {name: os.dup(fds[number]) for name, number in (("OUT", 1), ("ERR", 2), ("WIRE", 3))}
        environment |= {name: str(copy) for name, copy in copies.items()}
        try:
            popen = subprocess.Popen(
                ["/bin/bash", "-c", shell, *program],
                stdin=subprocess.DEVNULL,
                pass_fds=list(copies.values()),
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        finally:
            for copy in copies.values():
                os.close(copy)
        process = HostProcess(popen, self)
        self.processes.append(process)
        return process

    async def signal(self, pid: int, signum: int, *, group: bool = True) -> bool:
        if self.lost:
            raise AgentLost
        try:
            (os.killpg if group else os.kill)(pid, signum)
        except ProcessLookupError:
            return False
        return True

    async def end_box(self) -> None:
        """What the end of a box looks like: all processes are gone, and so is the agent."""
        self.lost = True
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            await process._ended.wait()


class Events(list[dict[str, Any]]):
    """All events of one cell, as a client read them."""

    @property
    def kinds(self) -> list[str]:
        """Their types, without those that only keep the connection alive."""
        return [event["type"] for event in self if event["type"] != "keepalive"]

    @property
    def stdout(self) -> str:
        """All that was printed."""
        return "".join(event["text"] for event in self if event["type"] == "stdout")

    @property
    def stderr(self) -> str:
        """All that was printed to standard error."""
        return "".join(event["text"] for event in self if event["type"] == "stderr")

    @property
    def main(self) -> dict[str, Any]:
        """The value of the cell."""
        (found,) = [event for event in self if event["type"] == "result" and event["is_main_result"]]
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The one error of the cell."""
        (found,) = [event for event in self if event["type"] == "error"]
        return found


class Response:
    """One request's answer, event by event."""

    def __init__(self, app: Any, method: str, path: str, body: Any, headers: Mapping[str, str]) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.pieces: list[tuple[bytes, bool]] = []
        """What came together, and whether more was to follow."""
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._leave = asyncio.Event()
        self._body = json.dumps(body).encode() if body is not None else b""
        self._sent = False
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "scheme": "http",
            "server": ("127.0.0.1", 49999),
        }
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: Any, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            if not self._leave.is_set():
                await self._chunks.put(None)

    async def _receive(self) -> dict[str, Any]:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status.set_result(message["status"])
            return
        self.pieces.append((message["body"], message.get("more_body", False)))
        if message["body"]:
            await self._chunks.put(message["body"])

    async def leave(self) -> None:
        """Close the connection from the client's side."""
        self._leave.set()
        await asyncio.wait({self.task})

    async def text(self) -> str:
        body = b""
        while (chunk := await self._chunks.get()) is not None:
            body += chunk
        await self.task
        return body.decode()

    async def rest(self) -> Events:
        """All events that were not read yet."""
        return Events([event async for event in self.events()])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        while (chunk := await self._chunks.get()) is not None:
            for line in chunk.decode().splitlines():
                yield json.loads(line)
        await self.task


class Client:
    """A client of one sandbox's interpreter."""

    def __init__(self, service: InterpreterService, agent: HostAgent) -> None:
        self.service = service
        self.agent = agent

    def request(self, method: str, path: str, body: Any = None, *, token: str = TOKEN) -> Response:
        return Response(self.service, method, path, body, {"X-Access-Token": token})

    def start(self, code: str, **fields: Any) -> Response:
        return self.request("POST", "/execute", {"code": code, **fields})

    async def run(self, code: str, **fields: Any) -> Events:
        return await self.start(code, **fields).rest()

    async def context(self, **fields: Any) -> str:
        return str(json.loads(await self.request("POST", "/contexts", fields).text())["id"])


OpenClient = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def interpreter_template() -> images.BuiltTemplate:
    """The interpreter's environment, built once."""
    return images.build("code-interpreter-v1")


@pytest.fixture
def open_client(interpreter_template: images.BuiltTemplate, tmp_path: Path) -> OpenClient:
    """Opens a service with a default kernel in a directory of its own."""
    packages = f"{interpreter_template.layers[0].source}/lib/python{interpreter_template.python}/site-packages"

    @asynccontextmanager
    async def open_it(**envs: str) -> AsyncIterator[Client]:
        agent = HostAgent(packages)
        settings = SandboxSettings(
            sandbox_id="sbx",
            template_id="code-interpreter-v1",
            access_token=TOKEN,
            workdir=str(tmp_path),
            envs=envs,
            has_interpreter=True,
        )
        client = Client(InterpreterService(agent, settings), agent)  # type: ignore[arg-type]
        try:
            yield client
        finally:
            await client.service.aclose()
            await agent.end_box()

    return open_it


Scenario = Callable[[Client], Awaitable[None]]


@pytest.fixture
def play(open_client: OpenClient) -> Callable[[Scenario], None]:
    """Plays one scenario against a fresh service, on a loop of its own."""

    def play_it(scenario: Scenario) -> None:
        async def whole() -> None:
            async with open_client() as client:
                await scenario(client)

        asyncio.run(whole())

    return play_it
