"""The gateway over the wire: who gets a request, and what a client sees when something breaks."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest


def to(sandbox: Any, port: int = 49983) -> dict[str, str]:
    """The SDK's headers for a sandbox."""
    return {"E2b-Sandbox-Id": sandbox["sandboxID"], "E2b-Sandbox-Port": str(port)}


def raw(hollow: Any, *pieces: bytes, seconds: float = 5.0) -> bytes:
    """Send bytes as they are, and read until the other side closes."""
    url = httpx.URL(hollow.endpoint.api_url)
    with socket.create_connection((url.host, url.port or 80), timeout=seconds) as connection:
        received = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            while data := connection.recv(65_536):
                received += data
        except (ConnectionError, TimeoutError):
            pass
        return received


def test_ports_lead_to_services(shared_hollow: Any) -> None:
    """49983 is envd, 49999 the interpreter, anything else is not open; `base` has no interpreter."""
    bare, full = shared_hollow.create("base"), shared_hollow.create("code-interpreter-v1")
    get = shared_hollow.client.get
    assert get("/x", headers=to(full)).json() == {"service": "envd", "sandbox": full["sandboxID"]}
    assert get("/x", headers=to(full, 49999)).json()["service"] == "interpreter"
    for sandbox, port in ((bare, 49999), (full, 3000)):
        answer = get("/x", headers=to(sandbox, port))
        assert answer.status_code == 502
        assert answer.json() == {
            "sandboxId": sandbox["sandboxID"],
            "message": "The sandbox is running but port is not open",
            "port": port,
            "code": 502,
        }


def test_the_host_leads_to_the_sandbox(shared_hollow: Any) -> None:
    """`<port>-<id>.localhost:<port>`, which get_host() gives, reaches the same services without headers."""
    sandbox = shared_hollow.create()
    host = f"49983-{sandbox['sandboxID']}.{sandbox['domain']}"
    assert shared_hollow.client.get("/x", headers={"Host": host}).json()["sandbox"] == sandbox["sandboxID"]


@pytest.mark.parametrize("sandbox_id", ["inosuch", "../../etc", "A" * 5000, "é"])
def test_an_unknown_sandbox_gets_the_exact_answer(shared_hollow: Any, sandbox_id: str) -> None:
    """The JSON that E2B's clients match on, on every path."""
    for path in ("/health", "/files", "/process.Process/List", "/"):
        answer = shared_hollow.client.get(path, headers={"E2b-Sandbox-Id": sandbox_id.encode("latin-1")})
        assert answer.status_code == 502
        assert answer.json() == {
            "sandboxId": sandbox_id[:64],
            "message": "The sandbox was not found",
            "code": 502,
        }


def test_a_killed_sandbox_is_not_found_at_once(shared_hollow: Any) -> None:
    """After a kill, envd's /health is the 502 that makes is_running() false."""
    sandbox = shared_hollow.create()
    assert shared_hollow.client.get("/health", headers=to(sandbox)).status_code == 204
    shared_hollow.client.delete(f"/sandboxes/{sandbox['sandboxID']}")
    assert shared_hollow.client.get("/health", headers=to(sandbox)).status_code == 502


def test_signed_urls_are_found_by_their_signature(shared_hollow: Any) -> None:
    """Without an id the sandbox is the one whose signature it is; nobody's signature is a 401."""
    sandbox = shared_hollow.create()
    token = sandbox["envdAccessToken"]
    answer = shared_hollow.client.get(f"/files?path=x&signature={token}")
    assert answer.json()["sandbox"] == sandbox["sandboxID"]
    answer = shared_hollow.client.get("/files?path=x&signature=v1_forged")
    assert (answer.status_code, answer.json()["code"]) == (401, 401)


def test_a_token_alone_finds_its_sandbox(shared_hollow: Any) -> None:
    """Without an id the sandbox is the one whose access token it is; for one that is gone, or nobody's, a 502."""
    sandbox, other = shared_hollow.create(), shared_hollow.create()
    headers = {"X-Access-Token": sandbox["envdAccessToken"]}
    assert shared_hollow.client.get("/files?path=x", headers=headers).json()["sandbox"] == sandbox["sandboxID"]
    shared_hollow.client.delete(f"/sandboxes/{sandbox['sandboxID']}")
    assert shared_hollow.client.get("/health", headers=headers).status_code == 502
    for guess in ("", "x", other["sandboxID"]):
        assert shared_hollow.client.get("/health", headers={"X-Access-Token": guess}).status_code == 502


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unsigned_urls_say_what_they_lack(shared_hollow: Any, method: str) -> None:
    """An upload or download URL without its signature is a 401 in envd's words, not a path that does not exist."""
    answer = shared_hollow.client.request(method, "/files?path=x")
    assert (answer.status_code, answer.json()["message"]) == (401, "missing signature query parameter")


def test_a_lost_agent_is_a_lost_sandbox(hollow: Any) -> None:
    """When a service finds its agent gone before it answered, the client sees `not found`, and the box is killed."""
    sandbox = hollow.create()
    answer = hollow.client.get("/lost", headers=to(sandbox))
    assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")
    assert hollow.client.get(f"/sandboxes/{sandbox['sandboxID']}").status_code == 404


def test_health_asks_the_agent(hollow: Any) -> None:
    """A sandbox whose agent is gone is not healthy, even before its box has ended."""
    sandbox = hollow.create()
    hollow.isolation.boxes[sandbox["sandboxID"]].is_silent = True
    assert hollow.client.get("/health", headers=to(sandbox)).status_code == 502
    assert hollow.client.get(f"/sandboxes/{sandbox['sandboxID']}").status_code == 404


def test_a_response_that_breaks_off_looks_broken(hollow: Any) -> None:
    """A sandbox that is lost in the middle of a response cuts it: the client sees a protocol error, no short body."""
    sandbox = hollow.create()
    with pytest.raises(httpx.RemoteProtocolError):
        hollow.client.get("/cut", headers=to(sandbox))


def test_a_bug_is_a_500_in_json_and_the_engine_goes_on(shared_hollow: Any) -> None:
    """An unexpected exception in a service is answered and stays in the log."""
    sandbox = shared_hollow.create()
    answer = shared_hollow.client.get("/bug", headers=to(sandbox))
    assert (answer.status_code, answer.json()["error_code"]) == (500, "internal")
    assert shared_hollow.client.get("/x", headers=to(sandbox)).status_code == 200


def test_a_page_of_another_origin_is_refused_everywhere(shared_hollow: Any) -> None:
    """REST, envd and interpreter alike: 403 in JSON, before a key or a token is looked at."""
    sandbox = shared_hollow.create("code-interpreter-v1")
    for headers in ({}, to(sandbox), to(sandbox, 49999)):
        answer = shared_hollow.client.post("/execute", headers={**headers, "Origin": "http://evil.example"})
        assert (answer.status_code, answer.json()["error_code"]) == (403, "origin_not_allowed")
    answer = shared_hollow.client.get("/v2/sandboxes", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error_code"]) == (403, "host_not_allowed")


# -- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_malformed_requests_are_answered_in_json(shared_hollow: Any, request_bytes: bytes) -> None:
    """What is not HTTP is a 400 with a JSON body, the connection is closed, and the engine goes on."""
    answer = raw(shared_hollow, request_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.match(rb"HTTP/1\.1 4\d\d ", head), answer
    assert json.loads(body)["code"] in (400, 404, 405)
    assert shared_hollow.client.get("/health").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: aaaaaaaaaaaaaaaa\r\n" * 200),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a" * 4000),
        (b"GET /", b"a" * 4000),
    ],
)
def test_endless_headers_are_cut_off(shared_hollow: Any, beginning: bytes, more: bytes) -> None:
    """Many headers, one that never ends, a request line that never ends: 431 in JSON, not a growing engine."""
    head, _, body = raw(shared_hollow, beginning, *[more] * 40).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["code"] == 431
    assert shared_hollow.client.get("/health").status_code == 200


def test_a_long_body_is_no_long_header(shared_hollow: Any) -> None:
    """A body far longer than the bound on headers, sent together with them, is read in full."""
    body = json.dumps({"templateID": "base", "metadata": {"a": "x" * 500_000}}).encode()
    head = b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"X-API-KEY: %s\r\nContent-Length: %d\r\n\r\n" % (shared_hollow.endpoint.api_key.encode(), len(body))
    assert raw(shared_hollow, head + body).startswith(b"HTTP/1.1 201")


def test_connections_are_kept_longer_than_clients_keep_them(shared_hollow: Any) -> None:
    """Many requests use one connection, and a websocket is turned away without an error."""
    with httpx.Client(base_url=shared_hollow.endpoint.api_url) as client:
        for _ in range(20):
            assert client.get("/health").status_code == 200
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x" * 22,
        "Sec-WebSocket-Version": "13",
    }
    assert shared_hollow.client.get("/health", headers=upgrade).status_code in (200, 400, 426)


def test_a_second_engine_on_the_port_is_told(start_hollow: Callable[..., Any]) -> None:
    """A taken port is a ConfigurationError that names it."""
    from sandboxkit.errors import ConfigurationError

    port = httpx.URL(start_hollow().endpoint.api_url).port
    with pytest.raises(ConfigurationError, match=str(port)):
        start_hollow(port=port)


@pytest.mark.slow
def test_the_end_is_bounded_by_open_requests(hollow: Any) -> None:
    """A client that holds a request open does not hold up the end of the engine."""
    url = httpx.URL(hollow.endpoint.api_url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(_half_a_request(hollow))
        started = time.monotonic()
        hollow.stop()
        assert time.monotonic() - started < 30
        assert connection.recv(4096).startswith(b"HTTP/1.1 503 ")


def _half_a_request(hollow: Any) -> bytes:
    head = b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nX-API-KEY: %s\r\n\r\n{"
    return head % hollow.endpoint.api_key.encode()


def test_a_client_that_hangs_up_is_no_error(hollow: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Half a request and then nothing: the engine neither answers nor complains, and goes on."""
    url = httpx.URL(hollow.endpoint.api_url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        connection.sendall(_half_a_request(hollow))
    assert hollow.client.get("/health").status_code == 200
    hollow.stop()
    assert not [
        record for record in caplog.records if record.name == "sandboxkit.local" and record.levelname == "ERROR"
    ]
