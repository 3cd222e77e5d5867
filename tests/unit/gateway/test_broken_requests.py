"""A request whose end is malformed, when its answer is already being made."""

from __future__ import annotations

import logging
import socket
from typing import Any

import httpx
import pytest


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
