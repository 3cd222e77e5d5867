"""An engine without descriptors: it refuses by name, and goes on with what it has."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]


LIMITED_ON_DEMAND = """
import os, resource, signal, sys
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def lower(*_):
    allowed = int(Path({path!r}).read_text())
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))

def restore(*_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

signal.signal(signal.SIGUSR1, lower)
signal.signal(signal.SIGUSR2, restore)
from sandboxkit.local.__main__ import main
sys.exit(main())
"""
"""Another process's limit is not ours to set everywhere (it takes CAP_SYS_RESOURCE), so the engine sets its own."""


@pytest.fixture
def start_limited(start: Any) -> Iterator[Callable[..., Any]]:
    """Start an engine whose limit `limited` can set."""
    wish = Path(f"/tmp/sandboxkit-limit-{os.getpid()}-{time.monotonic_ns()}")

    def start_one(**options: Any) -> Any:
        wish.write_text("0")
        run = start(wrapper=LIMITED_ON_DEMAND.format(path=str(wish)), **options)
        run.wish = wish
        return run

    yield start_one
    wish.unlink(missing_ok=True)


def soft_limit(pid: int) -> int:
    """The soft limit of open files that is in force."""
    (line,) = (each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if each.startswith("Max open"))
    return int(line.split()[3])


@contextlib.contextmanager
def limited(run: Any, tools: Any, *, more: int) -> Iterator[int]:
    """Leave an engine that runs only so many more descriptors than it has; gives back the rest at the end."""
    pid = run.pid
    before = soft_limit(pid)
    # The limit is on numbers, and a number that was given back is had again: so count the gaps, too.
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    gaps = (number for number in itertools.count() if number not in used)
    allowed = next(itertools.islice(gaps, more, None))
    run.wish.write_text(str(allowed))
    os.kill(pid, signal.SIGUSR1)
    tools.wait_until(lambda: soft_limit(pid) == allowed)
    try:
        yield allowed
    finally:
        os.kill(pid, signal.SIGUSR2)
        tools.wait_until(lambda: soft_limit(pid) == before)


def test_the_limit_is_raised_at_the_start(start: Any) -> None:
    """A shell's soft limit of 256 does not bind the engine: it takes what the hard one allows."""
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
    run = start(wrapper=code + "import sys; from sandboxkit.local.__main__ import main; sys.exit(main())")
    assert soft_limit(run.pid) == hard


def test_creates_are_refused_and_sandboxes_go_on(start_limited: Any, tools: Any, who: str) -> None:
    """With few descriptors left, a create gets a 503 in JSON that names the cause, the sandbox that is there goes on
    working, and creates work again once there are more."""
    run = start_limited(who=who)
    with run.client() as client:
        old = run.create(client)
        with limited(run, tools, more=40):
            for _ in range(3):
                answer = client.post("/v2/sandboxes", json={"templateID": run.template})
                assert (answer.status_code, answer.json()["error_code"]) == (503, "no_descriptors")
                assert answer.headers["Should-Retry"] == "false"
            assert "data" in run.run(client, old, "echo still here")
            assert len(client.get("/v2/sandboxes").json()) == 1
        assert "data" in run.run(client, run.create(client), "echo again")
        assert len(client.get("/v2/sandboxes").json()) == 2
    tools.no_tracebacks(run)


def test_none_left_at_all(start_limited: Any, tools: Any) -> None:
    """With none left, each call on a sandbox gets a typed answer in JSON and harms nothing: the sandbox lives, and
    afterwards every kind of call works and the engine has no more descriptors than before."""
    run = start_limited()
    one_connection = httpx.Limits(max_connections=1)  # a second one could not be accepted
    with run.client(limits=one_connection) as client:
        sandbox = run.create(client)
        envd, kernel = run.to(sandbox), run.to(sandbox, 49999)

        def stream(process: dict[str, Any]) -> httpx.Response:
            message = json.dumps(process).encode()
            headers = {**envd, "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
            framed = b"\0" + len(message).to_bytes(4, "big") + message
            return client.post("/process.Process/Start", content=framed, headers=headers)

        calls: dict[str, Callable[[], httpx.Response]] = {
            "command": lambda: stream({"process": {"cmd": "/bin/true"}}),
            "terminal": lambda: stream({"process": {"cmd": "/bin/true"}, "pty": {"size": {"rows": 9, "cols": 9}}}),
            "write": lambda: client.post(
                "/files?path=f", content=b"kept", headers={**envd, "Content-Type": "application/octet-stream"}
            ),
            "read": lambda: client.get("/files?path=f", headers=envd),
            "list": lambda: client.post("/filesystem.Filesystem/ListDir", json={"path": "/home/user"}, headers=envd),
            "context": lambda: client.post("/contexts", json={}, headers=kernel),
            "cell": lambda: client.post("/execute", json={"code": "6 * 7"}, headers=kernel),
        }
        for name, call in calls.items():
            assert call().status_code == 200, name
        with contextlib.suppress(httpx.TransportError):
            client.get("/health")
        before = run.size()
        refused = set()
        # What each of them may need, from nothing to almost enough: each shortage meets another line of code.
        for more in range(8):
            with limited(run, tools, more=more):
                for name, call in calls.items():
                    answer = call()
                    failed = (
                        answer.status_code != 200 or "resource_exhausted" in answer.text or "Unavail" in answer.text
                    )
                    if failed:
                        refused.add(name)
                        assert answer.status_code in (200, 429, 500, 503), (name, more, answer.text)
                        assert "descriptors" in answer.text or "open files" in answer.text, (name, more, answer.text)
                assert len(client.get("/v2/sandboxes").json()) == 1
        # gVisor's files are read and written by requests, which need none.
        of_files = set() if os.environ["SANDBOXKIT_ISOLATION"] == "gvisor" else {"write", "read"}
        assert {"command", "terminal", "context"} | of_files <= refused
        for context in client.get("/contexts", headers=kernel).json()[1:]:
            client.delete(f"/contexts/{context['id']}", headers=kernel)
        for name, call in calls.items():
            if name != "context":
                assert call().status_code == 200, name
        assert "42" in calls["cell"]().text
        tools.no_tracebacks(run)
        tools.wait_until(lambda: run.size().descriptors <= before.descriptors, what=f"{run.size()} after {before}")


def test_connections_are_bounded(start_limited: Any, tools: Any) -> None:
    """Whoever opens connections without end gets a 503 on the surplus ones, before any descriptor is missing to
    others: a sandbox is made meanwhile."""
    run = start_limited()
    host, port = httpx.URL(run.url).host, httpx.URL(run.url).port
    with contextlib.ExitStack() as stack, limited(run, tools, more=300) as allowed:
        opened = [stack.enter_context(socket.create_connection((host, port), timeout=10)) for _ in range(allowed)]
        refused = 0
        for connection in opened[-20:]:
            connection.settimeout(20)
            refused += connection.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert refused == 20
        for connection in opened[-40:]:
            connection.close()
        opened[0].sendall(
            b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %s\r\nContent-Length: 21\r\n\r\n"
            b'{"templateID":"base"}' % run.headers["X-API-KEY"].encode()
        )
        opened[0].settimeout(20)
        assert opened[0].recv(1000).startswith(b"HTTP/1.1 201 ")
    with run.client() as client:
        assert client.get("/health").status_code == 200
    tools.no_tracebacks(run)


def test_accepting_goes_on_after_a_shortage(start_limited: Any, tools: Any) -> None:
    """Where not even a connection can be accepted, the engine waits, and accepts again when it can."""
    run = start_limited()
    with limited(run, tools, more=0), contextlib.suppress(httpx.TransportError), run.client(timeout=0.5) as client:
        client.get("/health")
    with run.client() as client:
        assert client.get("/health").status_code == 200
    assert "engine.no_descriptors" in run.log()
    tools.no_tracebacks(run)
