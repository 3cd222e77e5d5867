"""A request whose end is malformed, when its answer is already being made."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from sandboxkit.local.gateway import _listener


def test_one_answer_only(shared_hollow: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A body that breaks the rules of chunks gets one answer, whichever comes first, and the log no exception."""
    url = httpx.URL(shared_hollow.endpoint.api_url)
    head = b"POST /nosuch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    caplog.set_level(logging.WARNING)
    for body in (b"zz\r\n", b"3\r\nabcdef\r\n", b"-1\r\n"):
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            connection.sendall(head + body)
            received = b""
            while piece := connection.recv(65_536):
                received += piece
        assert received.count(b"HTTP/1.1 ") == 1
        assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ", b"HTTP/1.1 404 "))
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_what_came_whole_before_it_is_answered(shared_hollow: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal would be taken for their answer: they get their own, and the connection ends. The log has no exception.
    The same for what is no request at all."""
    url = httpx.URL(shared_hollow.endpoint.api_url)
    whole = b"GET /nosuch HTTP/1.1\r\nHost: localhost\r\n\r\n"
    broken = b"POST /nosuch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    caplog.set_level(logging.WARNING)
    for number, rest in ((1, broken), (3, broken), (1, b"no request\r\n\r\n"), (3, b"no request\r\n\r\n")):
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            connection.sendall(whole * number + rest)
            received = b""
            while piece := connection.recv(65_536):
                received += piece
        assert received.count(b"HTTP/1.1 ") == received.count(b"HTTP/1.1 404 ") == number
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


def test_who_hangs_up_is_missed_by_each_of_their_requests() -> None:
    """Also by the first of two on one connection, which is the one that is being answered."""

    async def scenario() -> list[str]:
        missed: list[str] = []
        over = asyncio.Event()

        async def endless(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            kind = ""
            while kind != "http.disconnect":
                await send({"type": "http.response.body", "body": b"on", "more_body": True})
                with contextlib.suppress(TimeoutError):
                    kind = (await asyncio.wait_for(receive(), 0.05))["type"]
            missed.append(scope["path"])
            over.set()

        listener = _listener.bind("127.0.0.1", 0)
        server = _listener.server(endless)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in (1, 2)))
        await reader.readuntil(b"on")
        writer.close()
        await asyncio.wait_for(over.wait(), 10)
        server.end()
        await serving
        listener.close()
        return missed

    assert asyncio.run(scenario()) == ["/1"]
