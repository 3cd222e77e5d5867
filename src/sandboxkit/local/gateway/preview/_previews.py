"""Previews of all sandboxes: calls into their boxes, and the loopback ports that lead there."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandboxkit.local import _answers as answers
from sandboxkit.local._descriptors import MAX_PREVIEWS_SHARE, limit
from sandboxkit.local._log import log
from sandboxkit.local.control._parts import Live, Receive, Send
from sandboxkit.local.control._refusals import Refused, no_such_sandbox
from sandboxkit.local.control._requests import read_port
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.gateway._listener import bind
from sandboxkit.local.gateway._routes import Route, ToSandbox, route_loopback
from sandboxkit.local.gateway.egress._stream import Stream
from sandboxkit.local.gateway.preview import _headers
from sandboxkit.local.gateway.preview._doors import Closable
from sandboxkit.local.gateway.preview._forward import BadRequest, CutOff, Forward, Unanswered
from sandboxkit.local.gateway.preview._shares import NoRoom, Shares
from sandboxkit.local.isolation._base import AgentError

__all__ = ["CutOff", "Gone", "Previews"]

PORTS = 64
"""Loopback ports that one sandbox may have."""
LOOPBACK = ("127.0.0.1", "::1")
"""Where a server inside may listen: one that asks for `localhost` may get either."""
HELD_FOR = 30.0
"""Seconds that a request waits for an app that is starting."""
HELD_POLL = 0.05

Scope = MutableMapping[str, Any]
Router = Callable[[Scope, "dict[str, str]", int], Route]
Listen = Callable[[Router, socket.socket], Awaitable[Closable]]


class Gone(Exception):
    """The sandbox ended while it answered."""


class _Port:
    """A loopback port that listens; `closed_ports` has it meanwhile."""

    def __init__(self, number: int, server: Closable, closed_ports: set[int]) -> None:
        self._number = number
        self._server = server
        self._closed_ports = closed_ports

    def close(self) -> None:
        self._server.close()
        self._closed_ports.discard(self._number)


class Previews:
    """One per engine.

    Args:
        domain: what `get_host()` appends.
        closed_ports: what no sandbox may reach by its way out; the loopback ports are added to it while they are open.
    """

    def __init__(self, *, sandboxes: Sandboxes, domain: str, closed_ports: set[int]) -> None:
        self._sandboxes = sandboxes
        self._domain = domain
        self._closed_ports = closed_ports
        self._shares = Shares(max(16, int(limit() * MAX_PREVIEWS_SHARE)))
        self._turn = asyncio.Lock()
        self._listen: Listen | None = None

    def serve_by(self, listen: Listen) -> None:
        """Say how a loopback port is served; before the first is opened."""
        self._listen = listen

    def routes(self) -> list[tuple[str, str, Callable[[Request], Awaitable[Response]]]]:
        """What the REST API has beyond E2B's: method, path, handler."""
        return [("POST", "/sandboxes/{id}/ports/{port}", self._asked_to_open)]

    # -- loopback ports -------------------------------------------------------------------------------------------

    async def open(self, sandbox_id: str, port: int) -> int:
        """Return the loopback port that leads to a port of a sandbox, after opening it if need be.

        Raises:
            Refused: 404, there is no such sandbox; 429, it has too many.
        """
        async with self._turn:
            live = self._sandboxes.live(sandbox_id)
            if live is None:
                raise no_such_sandbox(sandbox_id)
            if (known := live.doors.ports.get(port)) is not None:
                return known[0]
            if len(live.doors.ports) >= PORTS:
                raise Refused(
                    429,
                    f"Sandbox {sandbox_id[:64]!r} has {PORTS} loopback ports already, as many as it may",
                    error_code="too_many_ports",
                    retry=False,
                )
            opened = await self._opened(sandbox_id, port)
            number, listener = opened
            if live.doors.is_closed:  # it ended meanwhile
                listener.close()
                raise no_such_sandbox(sandbox_id)
            live.doors.ports[port] = opened
        log(logging.INFO, "preview.opened", sandbox_id=sandbox_id, port=port, loopback_port=number)
        return number

    async def _asked_to_open(self, request: Request) -> Response:
        sandbox_id, port = str(request.path_params["id"]), read_port(str(request.path_params["port"]))
        self._sandboxes.get(sandbox_id)
        opened = await self.open(sandbox_id, port)
        where = {"url": f"http://127.0.0.1:{opened}", "browserUrl": f"http://{port}-{sandbox_id}.{self._domain}"}
        return JSONResponse({"port": port, **where}, status_code=201)

    async def _opened(self, sandbox_id: str, port: int) -> tuple[int, Closable]:
        assert self._listen is not None
        listener = bind("127.0.0.1", 0)
        number: int = listener.getsockname()[1]
        to, named = ToSandbox(sandbox_id, port, "loopback"), f"{port}-{sandbox_id}.{self._domain}"

        def decide(scope: Scope, headers: dict[str, str], hosts: int) -> Route:
            query = scope["query_string"].decode("latin-1")
            return route_loopback(
                method=scope["method"],
                target=scope["raw_path"].decode("latin-1") + (f"?{query}" if query else ""),
                headers=headers,
                hosts=hosts,
                own_port=number,
                to=to,
                named=named,
            )

        # Before it listens: no sandbox may be let through to it, not even for a moment.
        self._closed_ports.add(number)
        try:
            server = await self._listen(decide, listener)
        except BaseException:
            self._closed_ports.discard(number)
            listener.close()
            raise
        return number, _Port(number, server, self._closed_ports)

    # -- requests -------------------------------------------------------------------------------------------------

    async def serve(self, live: Live, meant: ToSandbox, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to what listens in a sandbox, or say what is wrong.

        Raises:
            AgentLost: the sandbox is lost.
            Gone: it ended meanwhile.
            CutOff: the answer broke off after it had begun.
        """
        with live.doors.answering():
            try:
                if live.doors.is_closed:
                    raise Gone
                await self._answer(live, meant, scope, receive, send)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not live.doors.is_closed or task is None or task.uncancel():
                    raise
                raise Gone from None

    async def _answer(self, live: Live, meant: ToSandbox, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._shares.place(meant.sandbox_id):
                await self._call(live, meant, scope, receive, send)
        except NoRoom:
            busy = answers.error(
                503, "This sandbox has too many previews open; close some", error_code="too_many_calls"
            )
            await busy(scope, receive, send)

    async def _call(self, live: Live, meant: ToSandbox, scope: Scope, receive: Receive, send: Send) -> None:
        host = next(value for name, value in scope["headers"] if name == b"host")
        client = scope.get("client") or ("127.0.0.1", 0)
        seen = _headers.view(
            meant.door, host=host, port=meant.port, mask=live.settings.mask_host, client=str(client[0]).encode()
        )
        try:
            stream = await _called_once_started(live, meant)
        except AgentError:
            await answers.port_not_open(meant.sandbox_id, meant.port)(scope, receive, send)
            return
        try:
            await Forward(
                scope, receive, send, stream=stream, seen=seen, is_alive=lambda: not live.doors.is_closed
            ).run()
        except Unanswered as error:
            if live.doors.is_closed:
                raise Gone from error
            await answers.bad_answer(meant.sandbox_id, meant.port, str(error))(scope, receive, send)
        except BadRequest as error:
            refusal = answers.error(400, f"The request cannot be passed on: {error}", error_code="bad_request")
            await refusal(scope, receive, send)
        finally:
            stream.close()


async def _called_once_started(live: Live, meant: ToSandbox) -> Stream:
    """As `_called`, but under a sandbox's name nobody listens only once its app has started: programs that were written
    for E2B ask at once, and get the app's answer there. Who comes by a loopback port is ours, and waits in its own way.
    """
    until = time.monotonic() + HELD_FOR
    while True:
        try:
            return await _called(live, meant.port)
        except AgentError:
            waits = meant.door == "named" and live.app is not None and live.app.is_starting
            if not waits or time.monotonic() > until:
                raise
        await asyncio.sleep(HELD_POLL)


async def _called(live: Live, port: int) -> Stream:
    """A connection to a server inside. AgentError where nobody listens."""
    refused: AgentError | None = None
    for host in LOOPBACK:
        try:
            return Stream(socket.socket(fileno=await live.box.agent.dial(port, host=host)))
        except AgentError as error:
            refused = refused or error
            if error.errno not in (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
    assert refused is not None
    raise refused
