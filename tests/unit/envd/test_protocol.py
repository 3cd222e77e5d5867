"""The edges of the protocol: wrong requests, missing tokens, broken bodies, many calls at once."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest


def test_wrong_requests_have_their_status(envd: Any) -> None:
    """Unknown methods, verbs and codecs, and bad JSON, each get the protocol's answer."""
    with envd.client() as client:
        json_type = {"Content-Type": "application/json"}
        assert client.post("/process.Process/Nothing", headers=json_type).status_code == 404
        assert client.get("/process.Process/List").status_code == 405
        proto = client.post("/process.Process/List", headers={"Content-Type": "application/proto"})
        assert (proto.status_code, proto.headers["accept-post"]) == (415, "application/json")
        wrong = client.post("/process.Process/Start", headers=json_type, content=b"{}")
        assert (wrong.status_code, wrong.headers["accept-post"]) == (415, "application/connect+json")
        bad = client.post("/process.Process/List", headers=json_type, content=b"{")
        assert (bad.status_code, bad.json()["code"]) == (400, "invalid_argument")
        zipped = client.post("/process.Process/List", headers={**json_type, "Content-Encoding": "gzip"}, content=b"{}")
        assert (zipped.status_code, zipped.json()["code"]) == (501, "unimplemented")
        assert "gzip" in zipped.json()["message"]


@pytest.mark.parametrize("messages", [[], [{"process": {"cmd": "true"}}] * 2])
def test_a_server_stream_has_one_request(envd: Any, messages: list[Any]) -> None:
    """No message, or two, is a protocol error."""
    (only,) = envd.stream("Process/Start", *messages)
    assert only["error"]["code"] == "invalid_argument"


def test_everything_needs_the_token(envd: Any) -> None:
    """Without the token, or with another, every call is a 401 in envd's words; /health alone is open."""
    for token in ({}, {"X-Access-Token": "wrong"}):
        with envd.client() as client:
            del client.headers["X-Access-Token"]
            client.headers.update(token)
            for path in ("/process.Process/List", "/filesystem.Filesystem/Stat", "/envs", "/metrics"):
                answer = client.post(path, headers={"Content-Type": "application/json"}, content=b"{}")
                assert answer.status_code == 401
                assert answer.json() == {
                    "code": 401,
                    "message": "unauthorized access, please provide a valid access token "
                    "or method signing if supported",
                }
            health = client.get("/health")
            assert (health.status_code, health.content) == (204, b"")
    with envd.client() as client:
        assert client.get("/envs").json() == {"FROM_SANDBOX": "yes"}
        refused = client.get("/metrics")
        assert (refused.status_code, refused.json()["message"]) == (400, "GET /metrics is not supported here.")


@pytest.mark.slow
def test_a_broken_body_starts_nothing(envd: Any) -> None:
    """A connection that breaks inside the request leaves no process and no error of ours."""
    host, _, port = envd.base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nX-Access-Token: "
            + envd.token.encode()
            + b"\r\nContent-Type: application/connect+json\r\nContent-Length: 1000\r\n\r\n\0\0"
        )
    assert envd.call("Process/List", {}).json() == {"processes": []}


@pytest.mark.slow
def test_many_at_once(envd: Any) -> None:
    """Forty commands at the same time each get their own output."""
    results: dict[int, bytes] = {}

    def run(number: int) -> None:
        results[number] = envd.output(envd.bash(f"echo {number}"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: f"{number}\n".encode() for number in range(40)}
