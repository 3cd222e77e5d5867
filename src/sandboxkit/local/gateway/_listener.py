"""The HTTP/1.1 listener: uvicorn, with bounds on what a client may send before anybody looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandboxkit.errors import ConfigurationError
from sandboxkit.local._descriptors import MAX_CONNECTIONS_SHARE, limit

HEADER_LIMIT = 64 * 1024
"""Bytes of a request line and its headers together; signed URLs and trace headers stay far below."""

KEEP_ALIVE = 330
"""Seconds that an idle connection is kept. E2B's clients keep theirs for 300, and must be the ones to close."""

CLOSE_TIMEOUT = 2
"""Seconds that open responses get when the engine ends; their sandboxes are gone by then."""

LINGER = 1.0
"""Seconds that a refused client may go on sending, unread, before its connection is closed."""

TOO_LONG = "The request's headers are too long"
TOO_MANY = "The engine has as many connections as its limit of open files allows; close some"

BACKLOG = 1024


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, except that endless headers are cut off and that refusals are JSON."""

    _in_head = False
    _head = 0
    """Bytes of this request's head that the parser has understood."""
    _received = 0
    """Bytes that came for it; the parser keeps an unfinished header to itself, so that `_head` misses that."""
    _piece = 0
    """Bytes that a request which begins in this piece has of it; none after the end of another one, to be lenient."""
    _is_too_long = False
    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > limit() * MAX_CONNECTIONS_SHARE:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._piece = len(data)
        self._received += len(data)
        super().data_received(data)
        if self._in_head and self._received > HEADER_LIMIT:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LONG)

    def on_message_begin(self) -> None:
        self._in_head, self._head, self._received = True, 0, self._piece
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._piece = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._is_too_long:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LONG)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEADER_LIMIT:
            self._is_too_long = True
            raise ValueError("headers too long")  # the parser ends here, and data_received answers

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        if self._abandon_responses():
            self.transport.close()  # an answer that has begun: nothing can be said after it
            return
        body = b'{"code":%d,"message":"%s"}' % (status, message.encode())
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, status.phrase.encode(), len(body)) + body)
        # Closing while the client still sends would reset the connection, and the answer would be lost to it.
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    def _abandon_responses(self) -> bool:
        """Let the requests that are being answered see their client gone: no more of theirs may be written. Returns
        whether the answer to one had begun."""
        self.pipeline.clear()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return cycle.response_started


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers and without its ticking: the engine says when to end."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    def end(self) -> None:
        """Stop listening, let open responses end within CLOSE_TIMEOUT, and let `serve` return. Idempotent."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        await self._told.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """Take the address, so that the port is known and held before anything else is started.

    Raises:
        ConfigurationError: the address or the port cannot be had; the message names both.
    """
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    # The protocol by name: asyncio turns Nagle's algorithm off (40 ms a response) only where it sees TCP there.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        # Listening now, so that a second engine with this port is told at once.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"The engine cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another port, or 0 for a free one.",
            port=port,
        ) from error
    return listener


def server(app: ASGIApp) -> Server:
    """Make the HTTP server; `await server.serve(sockets=[...])` runs it until its `end` is called."""
    config: dict[str, Any] = {
        "http": BoundedProtocol,
        "ws": "none",
        "loop": "none",
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": KEEP_ALIVE,
        "timeout_graceful_shutdown": CLOSE_TIMEOUT,
        "backlog": BACKLOG,
    }
    return Server(uvicorn.Config(app, **config))
