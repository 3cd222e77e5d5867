"""Previews over the wire: what a server in a sandbox gets, and what its client gets."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx
import preview_tools as tools
import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
Open = Callable[..., "contextlib.AbstractContextManager[Any]"]


def test_a_request_arrives_as_it_was_sent(preview: Open) -> None:
    """Method, target byte for byte, Host, cookies and headers reach the server; what is between neighbours does not."""
    with preview(OK) as there:
        answer = there.get(
            "/a%2Fb//c%20d?q=1&q=%2F",
            method="PATCH",
            headers={"Cookie": "a=1", "Authorization": "Basic x", "X-Odd": "caf\u00e9".encode("latin-1"), "TE": "gzip"},
        )
        assert (answer.status_code, answer.text) == (200, "hi")
        server = there.server
        assert server.heads[-1].startswith(b"PATCH /a%2Fb//c%20d?q=1&q=%2F HTTP/1.1\r\n")
        assert server.header("host") == [there.host]
        assert server.header("cookie") == ["a=1"]
        assert server.header("authorization") == ["Basic x"]
        assert server.header("x-odd") == ["caf\u00e9"]
        assert server.header("connection") == ["close"]
        assert server.header("te") == server.header("x-forwarded-host") == []


def test_an_answer_arrives_as_it_was_given(preview: Open) -> None:
    """Status, headers in their order and number, and the body; what is between neighbours does not."""
    raw = (
        b"HTTP/1.1 418 Short And Stout\r\nServer: tea\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Mine: gone\r\n"
        b"Connection: x-mine\r\nKeep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    )
    with preview(raw) as there:
        answer = there.get()
        assert (answer.status_code, answer.text) == (418, "abcde")
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert answer.headers["server"] == "tea"
        assert "x-mine" not in answer.headers
        assert "keep-alive" not in answer.headers


@pytest.mark.parametrize(
    ("method", "raw", "status", "length"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", 200, "1234"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: x\r\n\r\n", 304, None),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "0"),
    ],
)
def test_answers_without_a_body(preview: Open, method: str, raw: bytes, status: int, length: str | None) -> None:
    """They end at once, on a connection that goes on, whatever length is said."""
    with preview(raw) as there:
        for _ in range(3):
            answer = there.get(method=method)
            assert (answer.status_code, answer.content, answer.headers.get("content-length")) == (status, b"", length)


def test_an_answer_may_end_with_its_connection(preview: Open) -> None:
    """HTTP/1.0 servers say no length: their close is the end, and is no error."""
    with preview(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 200_000) as there:
        assert len(there.get().content) == 200_000


def test_bodies_go_up_whole(preview: Open) -> None:
    """Megabytes with a length, and in chunks, arrive as they are."""

    def serve(server: Any, connection: socket.socket) -> None:
        head, rest = server.head(connection)
        is_chunked = b"chunked" in head.lower()
        digest, left = hashlib.sha256(), int((server.header("content-length") or ["0"])[0])
        if is_chunked:
            file = connection.makefile("rb")
            data = rest + file.readline() if b"\r\n" not in rest else rest
            body = b""
            while True:
                while b"\r\n" not in data:
                    data += file.read1(65_536)
                size, _, data = data.partition(b"\r\n")
                number = int(size, 16)
                while len(data) < number + 2:
                    data += file.read1(65_536)
                body, data = data[:number], data[number + 2 :]
                digest.update(body)
                if not number:
                    break
        else:
            digest.update(rest)
            left -= len(rest)
            while left:
                piece = connection.recv(65_536)
                digest.update(piece)
                left -= len(piece)
        body = digest.hexdigest().encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    data = bytes(range(256)) * 20_000
    with preview(serve) as there:
        wanted = hashlib.sha256(data).hexdigest()
        assert there.get(method="POST", content=data).text == wanted
        pieces = (data[at : at + 70_001] for at in range(0, len(data), 70_001))
        assert there.get(method="PUT", content=pieces).text == wanted


def test_a_stream_arrives_piece_by_piece(preview: Open) -> None:
    """An event of a server-sent stream is there before the next one is made."""
    turn = threading.Semaphore(0)

    def serve(server: Any, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(3):
            assert turn.acquire(timeout=20)
            connection.sendall(b"data: %d\n\n" % number)

    with (
        preview(serve) as there,
        there.hollow.client.stream("GET", "/", headers=there.named) as answer,
    ):
        pieces = answer.iter_text()
        for number in range(3):
            turn.release()
            assert next(pieces) == f"data: {number}\n\n"
        assert list(pieces) == []


def test_a_server_may_answer_before_it_has_read_all(preview: Open) -> None:
    """An early refusal reaches the client, though the body was never read."""
    with preview(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig") as there:
        try:
            answer = there.get(method="POST", content=b"x" * 8_000_000)
        except httpx.WriteError:
            pytest.skip("the kernel took the answer away with the connection")
        assert (answer.status_code, answer.text) == (413, "big")
        assert there.get().status_code == 413


@pytest.mark.parametrize("says_continue", [True, False])
def test_expectations_are_the_servers_to_meet(preview: Open, says_continue: bool) -> None:
    """A client that waits for 100 gets it when the server says so, or soon where the server does not know of it."""

    def serve(server: Any, connection: socket.socket) -> None:
        _head, rest = server.head(connection)
        if says_continue:
            assert rest == b""
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(rest) < 5:
            rest += connection.recv(100)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + rest)

    with preview(serve) as there:
        request = b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        with there.raw(request) as connection:
            assert tools.read_until(connection, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"hello")
            assert tools.read_until(connection, b"hello").startswith(b"HTTP/1.1 200 OK")
        assert there.server.header("expect") == ["100-continue"]


def test_a_refused_expectation_ends_the_connection(preview: Open) -> None:
    """Where the server answers instead of asking for the body, the client is told so, and nothing is asked of it."""
    with preview(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n") as there:
        request = b"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        with there.raw(request) as connection:
            answer = tools.read_all(connection).lower()
        assert answer.startswith(b"http/1.1 417 ")
        assert b"connection: close" in answer
        assert b"100 continue" not in answer


def test_provisional_answers_are_left_out(preview: Open) -> None:
    """103 and the like are between neighbours; the answer that counts arrives."""
    with preview(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 5 + OK) as there:
        assert there.get().text == "hi"


def test_a_client_that_goes_ends_the_call(preview: Open) -> None:
    """A browser that closes a silent stream is noticed, and the server's connection is closed."""

    def serve(server: Any, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")
        assert connection.recv(100) == b""

    with preview(serve) as there:
        with there.raw(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n") as connection:
            tools.read_until(connection, b"data: 1")
        assert there.server.over.wait(20)


def test_a_client_that_does_not_read_holds_the_server_back(preview: Open) -> None:
    """An endless answer to a client that has stopped is not read ahead into the engine's memory."""
    sent = 0
    stuck = threading.Event()

    def serve(server: Any, connection: socket.socket) -> None:
        nonlocal sent
        server.head(connection)
        connection.settimeout(1)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while sent < 200_000_000:
                sent += connection.send(b"x" * 65_536)
        except TimeoutError:
            stuck.set()

    with preview(serve) as there, there.raw(b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n") as connection:
        tools.read_until(connection, b"x")
        assert stuck.wait(30)
        assert sent < 60_000_000  # the kernel's buffers on both sides, and little of ours


def test_fifty_at_once(preview: Open) -> None:
    """Fifty requests that are all open at the same time get each its own answer."""
    together = threading.Barrier(50)

    def serve(server: Any, connection: socket.socket) -> None:
        head, _ = server.head(connection)
        together.wait(20)
        path = head.split(b" ")[1]
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path) + path)

    got: dict[int, bytes] = {}
    with preview(serve) as there:

        def ask(number: int) -> None:
            with there.raw(b"GET /%d HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n" % number) as connection:
                got[number] = tools.read_all(connection)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert all(got[number].endswith(b"\r\n\r\n/%d" % number) for number in range(50))


def test_chunks_count_where_a_length_is_said_besides(preview: Open) -> None:
    """A server that says both gets neither the client nor the engine's log to suffer: the chunks are the answer."""
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    with preview(raw) as there:
        answer = there.get()
        assert (answer.status_code, answer.text) == (200, "hello")
