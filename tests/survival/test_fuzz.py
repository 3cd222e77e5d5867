"""Nonsense on every door of the engine: each client gets an answer in time, the log has no traceback, and it goes on.

The doors: the REST API (JSON of the right shape with wrong things in it, and of no shape), the Connect services
(mutated messages and envelopes), the interpreter (/execute and /contexts), the socket itself (mutated HTTP), and the
kernel's side of its socket, on which user code can write. `steady` looks into the log in the end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_tools import ANSWER_WITHIN, JSON, again, as_bytes, bounded, mutated, objects

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def box(steady: Any) -> dict[str, Any]:
    """A sandbox to shoot at; `again` makes another where an example was right to kill it."""
    with steady.client() as client:
        return {"now": steady.create(client, timeout=3000)}


# -- REST ---------------------------------------------------------------------------------------------------------

CREATE = objects(
    {
        "templateID": st.sampled_from(["base", "base:default", "nosuch", "a/b:c"]),
        "timeout": st.integers(-1, 5000),
        "metadata": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        "envVars": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        "network": objects({"allowOut": st.lists(st.text()), "denyOut": st.lists(st.text()), "rules": JSON}),
        "allow_internet_access": st.booleans(),
        "secure": st.booleans(),
        "autoPause": st.booleans(),
        "autoResume": JSON,
        "mcp": JSON,
        "iam": JSON,
        "volumeMounts": JSON,
    }
)
PATHS = [
    ("POST", "/v2/sandboxes"),
    ("POST", "/sandboxes"),
    ("GET", "/v2/sandboxes"),
    ("GET", "/sandboxes"),
    ("GET", "/sandboxes/metrics"),
    ("GET", "/sandboxes/ID"),
    ("GET", "/sandboxes/ID/metrics"),
    ("DELETE", "/sandboxes/ID"),
    ("POST", "/sandboxes/ID/connect"),
    ("POST", "/v2/sandboxes/ID/connect"),
    ("POST", "/sandboxes/ID/timeout"),
    ("POST", "/sandboxes/ID/refreshes"),
    ("PUT", "/sandboxes/ID/network"),
    ("POST", "/sandboxes/ID/pause"),
    ("POST", "/sandboxes/ID/snapshots"),
    ("GET", "/templates/aliases/ID"),
    ("DELETE", "/templates/ID"),
    ("POST", "/v3/templates"),
    ("POST", "/v2/templates/ID/builds/ID"),
    ("GET", "/templates/ID/builds/ID/status"),
    ("GET", "/templates/ID/builds/ID/logs"),
    ("GET", "/templates/ID/files/ID"),
    ("PUT", "/templates/ID/files/ID/ID"),
    ("POST", "/templates/tags"),
    ("DELETE", "/templates/tags"),
    ("GET", "/templates/ID/tags/exists"),
    ("GET", "/v2/templates"),
    ("GET", "/snapshots"),
    ("POST", "/sandboxes/ID/fork"),
    ("POST", "/sandboxes/ID/resume"),
    ("GET", "/sandboxes/ID/logs"),
    ("GET", "/v2/sandboxes/ID/logs"),
    ("POST", "/sandboxes/ID/ports/80"),
    ("POST", "/volumes"),
    ("GET", "/volumes"),
    ("GET", "/volumes/ID"),
    ("DELETE", "/volumes/ID"),
    ("PATCH", "/nosuch/ID"),
]
CHANGES = objects(
    {
        "timeout": st.integers(1, 5000),
        "duration": st.integers(0, 4000),
        "memory": st.booleans(),
        "count": st.integers(0, 3),
        "name": st.text(max_size=6) | st.sampled_from(["a", "a:b", "../x"]),
        "target": st.text(max_size=6),
        "tags": st.lists(st.text(max_size=4), max_size=2),
    }
)
BUILD = objects(
    {
        "alias": st.text(max_size=6),
        "name": st.sampled_from(["a", "a:b", "base", "../x", "-"]),
        "tags": st.lists(st.text(max_size=4), max_size=2),
        "cpuCount": st.integers(-1, 99),
        "memoryMB": st.integers(-1, 2**40),
        "fromImage": st.sampled_from(["python:3.11", "nosuch", "x" * 3000, "/../x"]),
        "fromTemplate": st.sampled_from(["base", "nosuch"]),
        "startCmd": st.text(max_size=5),
        "force": st.booleans(),
        "steps": st.lists(
            objects(
                {
                    "type": st.sampled_from(["RUN", "COPY", "ENV", "WORKDIR", "USER", "NOSUCH"]),
                    "args": st.lists(st.text(max_size=5), max_size=3),
                    "filesHash": st.text(max_size=5),
                    "force": st.booleans(),
                }
            ),
            max_size=3,
        ),
    }
)
QUERY = st.dictionaries(
    st.sampled_from(
        ["state", "order", "limit", "nextToken", "metadata", "template", "start", "end", "sandbox_ids", "x"]
    ),
    st.text(max_size=12) | st.sampled_from(["running", "asc", "1", "0", "99999999999999999999", "YXNjOjE=", "a=b&c"]),
    max_size=3,
)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["Idempotency-Key", "package_version", "Content-Type", "Authorization", "E2b-Sandbox-Id", "Cookie"]
    ),
    # Without spaces around, which no client sends.
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20).map(str.strip) | st.just("2.0.0"),
    max_size=2,
)


@given(
    route=st.sampled_from(PATHS),
    name=st.none() | st.text(min_size=1, max_size=12),
    query=QUERY,
    headers=HEADERS,
    body=CREATE.map(as_bytes)
    | CHANGES.map(as_bytes)
    | BUILD.map(as_bytes)
    | JSON.map(as_bytes)
    | st.binary(max_size=50),
)
@example(route=("POST", "/v2/sandboxes"), name=None, query={}, headers={}, body=b"[" * 100_000)
@example(route=("GET", "/sandboxes/ID"), name="\0\r\n", query={}, headers={}, body=b"")
@example(route=("GET", "/sandboxes/metrics"), name=None, query={"sandbox_ids": "," * 5000}, headers={}, body=b"")
@example(route=("POST", "/v2/sandboxes"), name=None, query={}, headers={}, body=b'{"timeout": ' + b"9" * 5000 + b"}")
@bounded(60)
def test_rest(
    steady: Any,
    box: dict[str, Any],
    route: tuple[str, str],
    name: str | None,
    query: dict[str, str],
    headers: dict[str, str],
    body: bytes,
) -> None:
    """Whatever is asked of the REST API, the answer is JSON (or nothing) of the documented form, and never a 500."""
    method, path = route
    with steady.client(timeout=ANSWER_WITHIN) as client:
        sandbox = again(steady, box, client)
        path = path.replace("ID", quote(name, safe="", errors="replace") if name else sandbox["sandboxID"])
        answer = client.request(method, path, params=query, headers=headers, content=body)
        if answer.status_code == 201:
            for taken in re.findall(r'"snapshotID":\s*"([^"]+)"', answer.text):
                assert client.delete(f"/templates/{quote(taken, safe='')}").status_code == 204
            made = re.findall(r'"sandboxID":\s*"(\w+)"', answer.text)
            assert made or not path.endswith(("sandboxes", "connect"))
            for one in {*made} - {sandbox["sandboxID"]}:
                assert client.delete(f"/sandboxes/{one}").status_code == 204
        elif answer.status_code >= 400:
            assert answer.status_code not in (500, 501, 504), answer.text
            assert answer.json()["code"] == answer.status_code
            assert answer.json()["message"]


# -- Connect ------------------------------------------------------------------------------------------------------

PROCESS = objects(
    {
        "cmd": st.sampled_from(["/bin/true", "/bin/cat", "/bin/sh", "nosuch", ""]),
        "args": st.lists(st.sampled_from(["-c", "echo x", "exit 3", "\0"]), max_size=3),
        "envs": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
        "cwd": st.sampled_from(["/", "/home/user", "nosuch", "~", "\0"]),
    }
)
SELECTOR = objects({"pid": st.integers(-1, 2**33), "tag": st.text(max_size=3)})
MESSAGES = objects(
    {
        "process": PROCESS | SELECTOR,
        "pty": objects({"size": objects({"rows": st.integers(-1, 2**33), "cols": st.integers(-1, 2**33)})}),
        "tag": st.text(max_size=3),
        "stdin": st.booleans(),
        "input": objects({"stdin": st.sampled_from(["eA==", "?", "", "x" * 9]), "pty": st.just("eA==")}),
        "signal": st.sampled_from(["SIGNAL_SIGTERM", "SIGNAL_SIGKILL", 9, "SIGNAL_NOSUCH"]),
        "start": objects({"process": SELECTOR}),
        "data": JSON,
        "keepalive": JSON,
        "path": st.sampled_from(["/home/user", "/home/user/f", "~/x", "/nosuch/y", "/proc/1/mem", "/dev/zero", "\0"]),
        "source": st.sampled_from(["/home/user/f", "/nosuch"]),
        "destination": st.sampled_from(["/home/user/g", "/proc/x"]),
        "depth": st.integers(-1, 3),
        "recursive": st.booleans(),
        "watcherId": st.text(max_size=5),
    }
)
METHODS = {
    "process.Process": "List Connect Start Update StreamInput SendInput SendSignal CloseStdin GetLogs Nosuch",
    "filesystem.Filesystem": "Stat MakeDir Move ListDir Remove WatchDir CreateWatcher GetWatcherEvents RemoveWatcher",
}
CALLS = [f"/{service}/{method}" for service, methods in METHODS.items() for method in methods.split()]


def enveloped(message: Any) -> bytes:
    """A message in its envelope."""
    data = as_bytes(message)
    return b"\0" + len(data).to_bytes(4, "big") + data


@given(
    call=st.sampled_from(CALLS),
    content=MESSAGES.map(as_bytes)
    | MESSAGES.map(enveloped)
    | st.lists(MESSAGES.map(enveloped), max_size=3).map(b"".join)
    | MESSAGES.map(enveloped).flatmap(mutated)
    | st.binary(max_size=30),
    streamed=st.booleans(),
    version=st.sampled_from(["1", "2", ""]),
    timeout=st.sampled_from(["300", "300", "0", "-1", "x", "99999999999"]),
    user=st.sampled_from(["", "Basic dXNlcjo=", "Basic cm9vdDo=", "Basic ?", "Bearer x"]),
)
@bounded(60)
def test_connect(
    steady: Any,
    box: dict[str, Any],
    call: str,
    content: bytes,
    streamed: bool,
    version: str,
    timeout: str,
    user: str,
) -> None:
    """Whatever is sent to envd's services, the answer is the protocol's own, in time: an error with a code in a unary
    call, a last envelope in a stream."""
    kind = "application/connect+json" if streamed else "application/json"
    headers = {"Content-Type": kind, "Connect-Protocol-Version": version, "Connect-Timeout-Ms": timeout}
    if user:
        headers["Authorization"] = user
    is_endless = streamed and timeout in ("0", "99999999999")
    with steady.client(timeout=ANSWER_WITHIN) as client:
        sandbox = again(steady, box, client)
        headers |= steady.to(sandbox)
        received = b""
        try:
            with client.stream("POST", call, content=content, headers=headers) as answer:
                for piece in answer.iter_raw():
                    received += piece
                    if is_endless:
                        break  # a stream that we have asked for, without an end
        except httpx.ReadTimeout:
            # A stream without a deadline that has said nothing is no hung call: its process or its watch goes on.
            if not is_endless:
                raise
        else:
            if answer.status_code == 200 and streamed and not is_endless:
                assert flags_of(received)[-1] == 2, received
            elif answer.status_code >= 400 and received:
                code = json.loads(received)["code"]
                assert isinstance(code, str) or code in (401, 502), received


def flags_of(data: bytes) -> list[int]:
    """The flags of the envelopes in a stream, which must be whole."""
    flags = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        assert len(data) >= 5 + size
        flags.append(data[0])
        data = data[5 + size :]
    return flags


# -- the interpreter ----------------------------------------------------------------------------------------------

EXECUTE = objects(
    {
        "code": st.sampled_from(
            ["1", "x =", "1/0", "print('y')", "\0", "\ud800", "raise SystemExit", "%nosuch", "!true"]
        ),
        "language": st.sampled_from(["python", "r", "", "Python3"]),
        "context_id": st.text(max_size=5),
        "env_vars": st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
        "cwd": st.sampled_from(["/home/user", "/nosuch", "\0", "x"]),
    }
)


@given(
    route=st.sampled_from(
        [("POST", "/execute")] * 3
        + [("GET", "/contexts"), ("POST", "/contexts/ID/restart"), ("DELETE", "/contexts/ID"), ("GET", "/x")]
    ),
    name=st.text(min_size=1, max_size=6),
    content=EXECUTE.map(as_bytes) | EXECUTE.map(as_bytes).flatmap(mutated) | st.binary(max_size=30),
)
@bounded(30)
def test_interpreter(steady: Any, box: dict[str, Any], route: tuple[str, str], name: str, content: bytes) -> None:
    """Whatever is sent to the interpreter is answered in time: events line by line with an end, or a refusal."""
    method, path = route[0], route[1].replace("ID", quote(name, safe="", errors="replace"))
    with steady.client(timeout=40) as client:
        headers = steady.to(again(steady, box, client), 49999)
        answer = client.request(method, path, content=content, headers=headers)
        assert answer.status_code not in (500, 502, 503), answer.text
        if path == "/execute" and answer.status_code == 200:
            events = [json.loads(line) for line in answer.text.splitlines()]
            assert events[-1]["type"] in ("end_of_execution", "unexpected_end_of_execution")


NONSENSE = st.lists(
    st.binary(min_size=1, max_size=40)
    | st.builds(
        lambda head, body, more: len(head).to_bytes(4, "big") + (len(body) + more).to_bytes(4, "big") + head + body,
        objects(
            {"op": st.sampled_from(["ready", "began", "result", "error", "ended"]), "cell": st.integers(-1, 3)}
        ).map(as_bytes),
        JSON.map(as_bytes) | st.binary(max_size=20),
        st.integers(0, 2) | st.just(2**31),
    ),
    min_size=1,
    max_size=3,
).map(b"".join)


@given(data=NONSENSE)
@example(data=b"\xff" * 8)
@example(data=(2).to_bytes(4, "big") + (0).to_bytes(4, "big") + b"{}")
@example(data=(0).to_bytes(4, "big") + (64 << 20).to_bytes(4, "big"))
@bounded(6)
def test_a_kernel_that_talks_nonsense(steady: Any, box: dict[str, Any], data: bytes) -> None:
    """User code that writes on the kernel's own socket harms its cell only: the cell ends, forged or with an error,
    and the next one works, in a fresh kernel where the wire was broken."""
    code = (
        "import os, socket\n"
        "for fd in range(3, 64):\n"
        "    try: os.fstat(fd), socket.socket(fileno=os.dup(fd)).send(bytes.fromhex('%s'))\n"
        "    except OSError: pass\n"
    )
    with steady.client(timeout=60) as client:
        headers = steady.to(again(steady, box, client), 49999)
        context = client.post("/contexts", json={}, headers=headers).json()["id"]
        with client.stream(
            "POST", "/execute", json={"code": code % data.hex(), "context_id": context}, headers=headers
        ) as it:
            last = b""
            with contextlib.suppress(httpx.ReadTimeout):
                for line in it.iter_lines():
                    last = line.encode()
                    if json.loads(line)["type"] == "keepalive":
                        break  # it waits for the rest of a frame: ours to give up, as a client would
        assert json.loads(last)["type"] in ("end_of_execution", "unexpected_end_of_execution", "keepalive")
        assert client.delete(f"/contexts/{context}", headers=headers).status_code == 200
        done = client.post("/execute", json={"code": "6 * 7"}, headers=headers)
        assert '"42"' in done.text


# -- HTTP ---------------------------------------------------------------------------------------------------------

REQUESTS = [
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: KEY\r\nContent-Length: 23\r\n\r\n"
    b'{"templateID":"nosuch"}',
    b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: KEY\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'17\r\n{"templateID":"nosuch"}\r\n0\r\n\r\n',
    b"GET /files?path=x HTTP/1.1\r\nHost: 49983-ID.localhost\r\nX-Access-Token: TOKEN\r\nRange: bytes=0-1\r\n\r\n",
    b"GET /x HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    b"POST /files?path=f HTTP/1.1\r\nHost: localhost\r\nE2b-Sandbox-Id: ID\r\nX-Access-Token: TOKEN\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 91\r\n\r\n"
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ncontent of the file\r\n--b--\r\n',
]


@contextlib.contextmanager
def reset_by_the_engine() -> Iterator[None]:
    """Let pass that the other end is gone already, however the system call says it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
            raise


@given(data=st.sampled_from(REQUESTS).flatmap(mutated), pieces=st.integers(1, 3))
@bounded(80)
def test_http(steady: Any, box: dict[str, Any], data: bytes, pieces: int) -> None:
    """Whatever bytes come, the connection ends soon after its client has said all, and the engine answers others."""
    url = httpx.URL(steady.url)
    with steady.client(timeout=ANSWER_WITHIN) as client:
        sandbox = again(steady, box, client)
    for name, value in (("ID", sandbox["sandboxID"]), ("TOKEN", sandbox["envdAccessToken"])):
        data = data.replace(name.encode(), value.encode())
    data = data.replace(b"KEY", steady.headers["X-API-KEY"].encode())
    with (
        socket.create_connection((url.host, url.port), timeout=ANSWER_WITHIN) as connection,
        reset_by_the_engine(),
    ):
        step = len(data) // pieces + 1
        for at in range(0, len(data), step):
            connection.sendall(data[at : at + step])
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65_536):
            pass
    with steady.client(timeout=ANSWER_WITHIN) as client:
        assert client.get("/health").status_code == 200
