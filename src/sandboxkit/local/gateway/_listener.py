"""The HTTP/1.1 listener: uvicorn, with bounds on what a client may send before anybody looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sandboxkit.errors import ConfigurationError
from sandboxkit.local._descriptors import MAX_CONNECTIONS_SHARE, limit
from sandboxkit.local.gateway._tunnel import TAKE_OVER, Tunnel

HEADER_LIMIT = 64 * 1024
"""Bytes of a request line and its headers together; signed URLs and trace headers stay far below."""

KEEP_ALIVE = 330
"""Seconds that an idle connection is kept. E2B's clients keep theirs for 300, and must be the ones to close."""

CLOSE_TIMEOUT = 2
"""Seconds that open responses get when the engine ends; their sandboxes are gone by then."""

EARLY_LIMIT = 64 * 1024
"""Bytes that are read behind a request for another protocol before it is decided."""

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
    _is_switching = False
    """A request asked for another protocol: nothing after it is for the parser."""
    _early = b""
    """What came after such a request, while it is undecided."""
    _tunnel: Tunnel | None = None
    _cycles: Sequence[RequestResponseCycle] = ()
    """The requests that have no whole answer yet, in their order; uvicorn itself knows the last one alone."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > limit() * MAX_CONNECTIONS_SHARE:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, TOO_MANY)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._tunnel is not None:
            self._tunnel.feed(data)
            return
        if self._is_switching:
            self._keep_early(data)
            return
        self._piece = len(data)
        self._received += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._is_switching = True
            self._keep_early(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
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
        if self.parser.should_upgrade():
            self.scope["extensions"] = {TAKE_OVER: {"call": self._take_over}}
        super().on_headers_complete()
        self._cycles = [*self._unanswered(), self.cycle]
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser reads no further request after this one

    def on_message_complete(self) -> None:
        self._piece = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if self._is_too_long:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, TOO_LONG)
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)

    def eof_received(self) -> bool | None:  # type: ignore[override]
        if self._tunnel is None:
            super().eof_received()
            return None
        self._tunnel.feed_end()
        return True  # it may have said all, and still listen

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tunnel is not None:
            self._tunnel.feed_end(is_lost=True)
        super().connection_lost(exc)
        for cycle in self._unanswered():
            _hang_up(cycle)

    def shutdown(self) -> None:
        if self._tunnel is not None:
            self.transport.close()
        else:
            super().shutdown()

    def _keep_early(self, data: bytes) -> None:
        self._early += data
        if len(self._early) > EARLY_LIMIT:
            self.flow.pause_reading()

    def _take_over(self, head: bytes) -> Tunnel:
        """Answer the request that asked for another protocol with this head; what follows is the caller's."""
        cycle = self.cycle
        cycle.disconnected = True  # so that uvicorn expects no answer, and writes none
        self._tunnel = Tunnel(self.transport, self.flow)
        self.transport.write(head)
        self._tunnel.feed(self._early)
        self._early = b""
        if self.transport.is_closing():
            self._tunnel.feed_end(is_lost=True)
        return self._tunnel

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > HEADER_LIMIT:
            self._is_too_long = True
            raise ValueError("headers too long")  # the parser ends here, and data_received answers

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        if self._leave_to_others():
            return
        body = b'{"code":%d,"message":"%s"}' % (status, message.encode())
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, status.phrase.encode(), len(body)) + body)
        # Closing while the client still sends would reset the connection, and the answer would be lost to it.
        self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    def _leave_to_others(self) -> bool:
        """Give up the request that broke off. Whether the answers to others, or to its own beginning, are on their way:
        a refusal would be taken for one of them. They are the last ones of this connection."""
        unanswered = self._unanswered()
        broken = [cycle for cycle in unanswered if cycle.more_body]
        whole = [cycle for cycle in unanswered if not cycle.more_body]
        for cycle in broken:
            _hang_up(cycle)
        self.pipeline = deque((cycle, app) for cycle, app in self.pipeline if cycle not in broken)
        if whole:
            whole[-1].keep_alive = False
        elif any(cycle.response_started for cycle in broken):
            self.transport.close()
        else:
            return False
        return True

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]


def _hang_up(cycle: RequestResponseCycle) -> None:
    """Let a request that is being answered see its client gone: no more of its answer is written."""
    cycle.disconnected = True
    cycle.message_event.set()


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
    return Server(uvicorn.Config(app, **_CONFIG))


async def listen_too(app: ASGIApp, listener: socket.socket, state: ServerState) -> asyncio.Server:
    """Serve another application at another address, by the same rules; its connections count as, and end with, those
    of the server that has this state. Closing what is returned ends the listening, and no connection."""
    config = uvicorn.Config(app, **_CONFIG)
    config.load()
    loop = asyncio.get_running_loop()
    return await loop.create_server(
        lambda: BoundedProtocol(config=config, server_state=state, app_state={}, _loop=loop),
        sock=listener,
        backlog=BACKLOG,
    )


_CONFIG: dict[str, Any] = {
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
