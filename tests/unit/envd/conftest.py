"""An envd over the real agent, served on loopback. The agent runs as a plain process: isolation is not what is
tested here, and so these tests run where namespaces are forbidden too."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]
else:
    import uvicorn

    import sandboxkit.local.agent.agent as agent_module
    from sandboxkit.local._sandbox import SandboxSettings
    from sandboxkit.local.envd import EnvdService
    from sandboxkit.local.isolation.link._framed import FramedPort
    from sandboxkit.local.isolation.link._link import AgentLink

TOKEN = "token-of-the-test"


class Envd:
    """One served envd: its address, its home directory, and what breaks it. `program` plays its agent, if given: a
    Python text that gets the number of its socket."""

    def __init__(self, home: Path, *, framed: bool = False, program: str | None = None) -> None:
        self.home = home
        self.framed = framed
        self._program = ["-I", "-S", str(agent_module.__file__)] if program is None else ["-I", "-S", "-c", program]
        self.base = ""
        self.token = TOKEN
        self.service: EnvdService
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._agent: subprocess.Popen[bytes]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Envd:
        self._thread.start()
        assert self._ready.wait(20), "envd did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "envd did not stop"

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on envd's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def kill_agent(self) -> None:
        """Lose the sandbox."""
        self._agent.kill()

    def client(self, **headers: str) -> httpx.Client:
        """An HTTP client with the token."""
        return httpx.Client(base_url=self.base, headers={"X-Access-Token": TOKEN, **headers}, timeout=20)

    def call(self, method: str, message: object, **headers: str) -> httpx.Response:
        """One unary Connect call, `Process/List` or `Filesystem/Stat`."""
        service = method.partition("/")[0].lower()
        with self.client(**headers) as client:
            return client.post(
                f"/{service}.{method}", content=json.dumps(message), headers={"Content-Type": "application/json"}
            )

    def stream(self, method: str, *messages: object, **headers: str) -> list[dict[str, Any]]:
        """One streaming Connect call, to its end: all messages, the end-stream message last."""
        body = b"".join(frame(json.dumps(message).encode()) for message in messages)
        service = method.partition("/")[0].lower()
        with self.client(**headers) as client:
            answer = client.post(
                f"/{service}.{method}", content=body, headers={"Content-Type": "application/connect+json"}
            )
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return frames(answer.content)

    def bash(self, script: str, **options: Any) -> list[dict[str, Any]]:
        """Run a script as the SDK does; all events and the end of the stream."""
        headers = options.pop("headers", {})
        process = {**self.script(script)["process"], **options.pop("process", {})}
        return self.stream("Process/Start", {"process": process, **options}, **headers)

    @staticmethod
    def script(script: str, **more: Any) -> dict[str, Any]:
        """The request that runs a script."""
        return {"process": {"cmd": "/bin/bash", "args": ["-c", script]}, **more}

    @staticmethod
    def output(events: list[dict[str, Any]], kind: str = "stdout") -> bytes:
        """All output of one kind, joined."""
        chunks = [event.get("event", {}).get("data", {}).get(kind) for event in events]
        return b"".join(base64.b64decode(chunk) for chunk in chunks if chunk)

    @staticmethod
    def end(events: list[dict[str, Any]]) -> dict[str, Any]:
        """The end event; it must be the last but the end of the stream."""
        assert events[-1] == {}, events[-1]
        found: dict[str, Any] = events[-2]["event"]["end"]
        return found

    def _start_agent(self) -> socket.socket:
        kind, words = (socket.SOCK_STREAM, ["framed"]) if self.framed else (socket.SOCK_SEQPACKET, [])
        near, far = socket.socketpair(socket.AF_UNIX, kind)
        with far:
            self._agent = subprocess.Popen(
                [sys.executable, *self._program, str(far.fileno()), *words],
                pass_fds=[far.fileno()],
                stdin=subprocess.DEVNULL,
            )
        return near

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        near = await asyncio.to_thread(self._start_agent)
        link = AgentLink(FramedPort(near) if self.framed else near, on_lost=lambda reason: None)
        await link.hello(processes=4096, open_files=1024)
        settings = SandboxSettings(
            sandbox_id="sbxtest",
            template_id="base",
            access_token=TOKEN,
            envs={"FROM_SANDBOX": "yes"},
            home=str(self.home),
            workdir=str(self.home),
        )
        self.service = EnvdService(link, settings)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(self.service, lifespan="off", log_config=None, http="httptools", ws="none")
        )
        self.base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.ensure_future(server._serve([listener]))
        self._ready.set()
        await self._stop.wait()
        await self.service.aclose()
        server.should_exit = True
        await serving
        link.close()
        self._agent.kill()
        await asyncio.to_thread(self._agent.wait)


def frame(payload: bytes, flags: int = 0) -> bytes:
    """One envelope."""
    return bytes([flags]) + len(payload).to_bytes(4, "big") + payload


def frames(body: bytes) -> list[dict[str, Any]]:
    """The messages of a response; it must end with exactly one end-of-stream."""
    found = []
    flags = 0
    while body:
        flags, length = body[0], int.from_bytes(body[1:5], "big")
        found.append(json.loads(body[5 : 5 + length]))
        body = body[5 + length :]
        assert flags in (0, 2)
        assert (flags == 2) == (not body)
    assert flags == 2
    return found


class Live:
    """A streaming call that is read event by event."""

    def __init__(self, envd: Envd, method: str, message: object) -> None:
        self._client = envd.client()
        request = self._client.build_request(
            "POST",
            f"/process.{method}",
            content=frame(json.dumps(message).encode()),
            headers={"Content-Type": "application/connect+json"},
        )
        self._response = self._client.send(request, stream=True)
        self._bytes = self._response.iter_raw()
        self._buffer = b""

    def __next__(self) -> dict[str, Any]:
        while len(self._buffer) < 5 or len(self._buffer) < 5 + int.from_bytes(self._buffer[1:5], "big"):
            self._buffer += next(self._bytes)
        size = int.from_bytes(self._buffer[1:5], "big")
        payload, self._buffer = self._buffer[5 : 5 + size], self._buffer[5 + size :]
        found: dict[str, Any] = json.loads(payload)
        return found

    def rest(self) -> list[dict[str, Any]]:
        """Everything up to the end of the stream."""
        found = [next(self)]
        while "event" in found[-1]:
            found.append(next(self))
        return found

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._client.close()


@pytest.fixture(params=["descriptors", pytest.param("frames", marks=pytest.mark.full)])
def envd(request: pytest.FixtureRequest, tmp_path: Path, no_leaks: None) -> Iterator[Envd]:
    """A fresh envd whose home is an empty directory, over either transport of its agent's."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    with Envd(home, framed=request.param == "frames") as served:
        yield served


@pytest.fixture
def lying_envd(tmp_path: Path, no_leaks: None) -> Callable[[str], Envd]:
    """An envd whose agent is played by a Python text."""
    return lambda program: Envd(tmp_path, program=program)


@pytest.fixture
def live(envd: Envd) -> Iterator[Callable[..., Live]]:
    """Open streams that are closed after the test."""
    opened = []

    def open_stream(method: str, message: object) -> Live:
        opened.append(Live(envd, method, message))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.close()
