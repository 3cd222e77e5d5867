"""Previews that end otherwise than they should: switched connections, hostile servers, sandboxes that go."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import preview_tools as tools
import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
Open = Callable[..., "contextlib.AbstractContextManager[Any]"]


UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://{host}\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def echo(server: Any, connection: socket.socket) -> None:
    """Switches, says something at once, and gives every byte back."""
    _head, rest = server.head(connection)
    connection.sendall(SWITCHED + b"early" + rest)
    while data := connection.recv(65_536):
        connection.sendall(data)


def test_a_switched_connection_carries_bytes_both_ways(preview: Open) -> None:
    """Handshake and bytes pass as they are, those too that follow either head at once; ends are passed on."""
    with preview(echo) as there, there.raw(UPGRADE + b"first") as connection:
        head, _, rest = tools.read_until(connection, b"earlyfirst").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head.lower().replace(b"s3pplm", b"s3pPLM") or (
            b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        )
        assert rest == b"earlyfirst"
        assert there.server.header("upgrade") == ["websocket"]
        assert there.server.header("sec-websocket-key") == ["dGhlIHNhbXBsZSBub25jZQ=="]
        for piece in (b"\x00\xff" * 10, b"y" * 300_000):
            threading.Thread(target=connection.sendall, args=(piece,)).start()
            received = b""
            while len(received) < len(piece):
                received += connection.recv(65_536)
            assert received == piece
        connection.shutdown(socket.SHUT_WR)
        assert tools.read_all(connection) == b""
    assert there.server.over.wait(20)


def test_a_switched_connection_ends_with_its_client(preview: Open) -> None:
    """A client that is gone takes the server's connection with it."""
    with preview(echo) as there:
        with there.raw(UPGRADE) as connection:
            tools.read_until(connection, b"early")
        assert there.server.over.wait(20)


def test_a_switch_may_be_refused(preview: Open) -> None:
    """A server that does not switch answers as ever, and the connection is closed behind it."""
    with preview(b"HTTP/1.1 426 No\r\nContent-Length: 2\r\n\r\nno") as there, there.raw(UPGRADE) as connection:
        answer = tools.read_all(connection)
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert answer.endswith(b"\r\n\r\nno")


def test_a_switch_that_nobody_asked_for_is_refused(preview: Open) -> None:
    """A server cannot turn a plain request's connection into bytes of its own."""
    with preview(SWITCHED + b"HTTP/1.1 200 OK\r\n\r\nsmuggled") as there:
        assert there.get().status_code == 502
        assert there.get().status_code == 502


def test_a_switched_connection_ends_with_its_sandbox(preview: Open) -> None:
    """Killing a sandbox closes its sockets, at once, with the client's as well."""
    with preview(echo) as there, there.raw(UPGRADE) as connection:
        tools.read_until(connection, b"early")
        there.hollow.client.delete(f"/sandboxes/{there.sandbox['sandboxID']}")
        assert tools.read_all(connection) == b""
        assert there.server.over.wait(20)


# -- what goes wrong ----


def test_a_port_where_nobody_listens(preview: Open) -> None:
    """E2B's own answer, under the name, by headers, and over the loopback form."""
    with preview(OK) as there:
        wanted = {
            "sandboxId": there.sandbox["sandboxID"],
            "message": "The sandbox is running but port is not open",
            "port": tools.PORT,
            "code": 502,
        }
        url = there.loopback()
        there.hollow.isolation.ports.clear()
        by_headers = {"E2b-Sandbox-Id": there.sandbox["sandboxID"], "E2b-Sandbox-Port": str(tools.PORT)}
        for answer in (there.get(), there.hollow.client.get("/", headers=by_headers), httpx.get(url)):
            assert (answer.status_code, answer.json()) == (502, wanted)


def test_a_sandbox_that_is_gone(preview: Open) -> None:
    """502 with the words that clients match on."""
    with preview(OK) as there:
        there.hollow.client.delete(f"/sandboxes/{there.sandbox['sandboxID']}")
        answer = there.get()
        assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")


def test_a_lost_agent_is_not_found(preview: Open) -> None:
    """A box that does not answer the call is a lost sandbox."""
    with preview(OK) as there:
        there.hollow.isolation.boxes[there.sandbox["sandboxID"]].is_silent = True
        assert there.get().json()["message"] == "The sandbox was not found"
        assert there.hollow.client.get(f"/sandboxes/{there.sandbox['sandboxID']}").status_code == 404


HOSTILE = {
    "nothing": b"",
    "no http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a tls alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "an endless line": b"HTTP/1.1 200 " + b"O" * 200_000,
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "a header that is none": b"HTTP/1.1 200 OK\r\nBad Header: x\r\n\r\n",
    "a header with a NUL": b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhi",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi",
    "a status beyond": b"HTTP/1.1 999 OK\r\nContent-Length: 2\r\n\r\nhi",
    "provisional without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 500,
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_an_answer_that_is_none_is_a_502(preview: Open, kind: str) -> None:
    """What cannot be passed on is told as such, in JSON, and the engine and its connection go on."""
    with preview(HOSTILE[kind]) as there:
        for _ in range(2):
            answer = there.get()
            assert answer.status_code == 502, answer.text
            assert "no answer that can be passed on" in answer.json()["message"]
        assert there.hollow.client.get("/health").status_code == 200


BROKEN = {
    "too short": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
    "a chunk that breaks off": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    "a chunk that is none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    "an endless chunk head": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 200_000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_answer_that_breaks_off_looks_broken(preview: Open, kind: str) -> None:
    """No client takes half an answer for a whole one."""
    with preview(BROKEN[kind]) as there, pytest.raises(httpx.RemoteProtocolError):
        there.get()


def test_more_than_was_announced_is_nobodys_answer(preview: Open) -> None:
    """What a server sends behind its answer does not become the answer to the next request."""
    with preview(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil") as there:
        assert [there.get().text for _ in range(3)] == ["hi", "hi", "hi"]


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n"]
)
def test_a_sandbox_that_is_killed_cuts_its_answers_off(preview: Open, head: bytes) -> None:
    """In the middle of a stream the client sees a broken answer, not its end."""

    def serve(server: Any, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(head + b"hello")
        assert connection.recv(100) == b""

    with preview(serve) as there:
        with (
            pytest.raises(httpx.RemoteProtocolError),
            there.hollow.client.stream("GET", "/", headers=there.named) as answer,
        ):
            for piece in answer.iter_text():
                assert piece == "hello"
                with httpx.Client(headers=there.hollow.client.headers) as other:
                    other.delete(f"{there.hollow.endpoint.api_url}/sandboxes/{there.sandbox['sandboxID']}")
        assert there.server.over.wait(20)


def test_a_sandbox_that_is_killed_before_it_answers_is_not_found(preview: Open) -> None:
    """A request that waits for its answer is told what happened."""
    asked = threading.Event()

    def serve(server: Any, connection: socket.socket) -> None:
        server.head(connection)
        asked.set()
        assert connection.recv(100) == b""

    with preview(serve) as there:
        killer = threading.Thread(
            target=lambda: (
                asked.wait(20),
                httpx.delete(
                    f"{there.hollow.endpoint.api_url}/sandboxes/{there.sandbox['sandboxID']}",
                    headers=there.hollow.client.headers,
                ),
            )
        )
        killer.start()
        answer = there.get()
        killer.join(20)
        assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox was not found")


def test_a_paused_sandbox_is_not_found_and_wakes_where_it_may(preview: Open) -> None:
    """Traffic wakes a sandbox with autoResume; another one answers as if it were gone. What was open is cut off."""

    def serve(server: Any, connection: socket.socket) -> None:
        head, _ = server.head(connection)
        if b"/stream" in head:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhello")
            connection.recv(100)
        else:
            connection.sendall(OK)

    for resumes in (False, True):
        with preview(serve, autoResume={"enabled": resumes}) as there:
            with there.raw(b"GET /stream HTTP/1.1\r\nHost: {host}\r\n\r\n") as connection:
                tools.read_until(connection, b"hello")
                pause = there.hollow.client.post(f"/sandboxes/{there.sandbox['sandboxID']}/pause", json={})
                assert pause.status_code == 204
                assert not tools.read_all(connection).endswith(b"0\r\n\r\n")
            answer = there.get()
            assert answer.status_code == (200 if resumes else 502)
            if not resumes:
                assert answer.json()["message"] == "The sandbox was not found"


@pytest.mark.slow
def test_the_end_of_the_engine_ends_previews(start_hollow: Callable[..., Any]) -> None:
    """Open streams and sockets do not hold up the engine's end, and loopback ports are free after it."""
    hollow = start_hollow()
    with tools.upstream(echo) as server:
        hollow.isolation.ports[tools.PORT] = server.port
        there = tools.Preview(hollow, hollow.create(), server)
        port = httpx.URL(there.loopback()).port
        with there.raw(UPGRADE) as one, there.raw(UPGRADE.replace(b"{host}", b"127.0.0.1:%d" % port), port=port) as two:
            for connection in (one, two):
                tools.read_until(connection, b"early")
            started = time.monotonic()
            hollow.stop()
            assert time.monotonic() - started < 15
            assert tools.read_all(one) == tools.read_all(two) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


def test_the_answer_is_json_that_clients_read(preview: Open) -> None:
    """Refusals of the proxy are JSON with the sandbox's id."""
    with preview(b"") as there:
        assert json.loads(there.get().text)["sandboxId"] == there.sandbox["sandboxID"]
