"""The engine's outermost ASGI application: finds out whom a request means, and hands it over.

Nothing that a client or a sandbox does ends in an unhandled error here: what was not begun is answered with JSON, what
was begun is cut off, so that the client sees a broken response and not a short one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from sandboxkit.local import _answers as answers
from sandboxkit.local._descriptors import means_exhausted
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import ENVD_PORT, INTERPRETER_PORT
from sandboxkit.local.control._sandboxes import Live, Receive, Sandboxes, Send
from sandboxkit.local.gateway._routes import Denied, ToControl, ToSandbox, ToSignature, route
from sandboxkit.local.isolation._base import AgentLost

PING_TIMEOUT = 2.0

Scope = MutableMapping[str, Any]


class Gateway:
    """Routes requests to the control plane or to a sandbox's services."""

    def __init__(self, *, rest: ASGIApp, sandboxes: Sandboxes, any_address: bool) -> None:
        self._rest = rest
        self._sandboxes = sandboxes
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            # Sockets of browsers come with the previews; the server has no other kind of scope for us.
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        sandbox_id: str | None = None
        try:
            meant = self._route(scope)
            match meant:
                case Denied():
                    refusal = answers.error(meant.status, meant.message, error_code=meant.error_code)
                    await refusal(scope, receive, watched)
                case ToControl():
                    await self._rest(scope, receive, watched)
                case ToSandbox():
                    sandbox_id = meant.sandbox_id
                    await (await self._to_sandbox(meant, scope["path"]))(scope, receive, watched)
                case ToSignature():
                    await self._to_signer(scope)(scope, receive, watched)
        except AgentLost:
            if sandbox_id is not None:
                self._sandboxes.lost(sandbox_id)
            if not started:
                await answers.sandbox_not_found(sandbox_id or "")(scope, receive, send)
        except ClientDisconnect:
            return  # it hung up in the middle of its request; there is nobody to tell
        except asyncio.CancelledError:
            # Only the HTTP server cancels, when the engine ends and a client keeps its request open.
            if not started:
                ending = answers.error(503, "The engine is shutting down", error_code="engine_closing")
                await ending(scope, receive, send)
        except Exception as error:
            if means_exhausted(error):
                log(logging.ERROR, "request.no_descriptors", sandbox_id=sandbox_id, method=scope["method"])
                if not started:
                    message = "The engine has no descriptors left; raise its limit of open files"
                    await answers.error(503, message, error_code="no_descriptors")(scope, receive, send)
                return
            log(
                logging.ERROR,
                "request.failed",
                sandbox_id=sandbox_id,
                method=scope["method"],
                error=type(error).__name__,
                exc_info=True,
            )
            if not started:
                failure = answers.error(500, "The engine failed; its log says why", error_code="internal")
                await failure(scope, receive, send)

    def _route(self, scope: Scope) -> ToSandbox | ToSignature | ToControl | Denied:
        headers: dict[str, str] = {}
        hosts = 0
        for name, value in scope["headers"]:
            hosts += name == b"host"
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        return route(
            method=scope["method"],
            path=scope["path"],
            headers=headers,
            signed=b"signature=" in scope["query_string"],
            hosts=hosts,
            any_address=self._any_address,
        )

    async def _to_sandbox(self, meant: ToSandbox, path: str) -> ASGIApp:
        live = self._sandboxes.live(meant.sandbox_id)
        if live is None:
            return answers.sandbox_not_found(meant.sandbox_id)
        if meant.port == ENVD_PORT and path == "/health":
            # Clients ask this when a stream broke off, to learn whether the sandbox is gone. The stream of a lost one
            # breaks off before its box has ended, so ask the agent. One that is only slow is alive.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_TIMEOUT):
                    await live.box.agent.ping()
        return _service(live, meant.port) or answers.port_not_open(meant.sandbox_id, meant.port)

    def _to_signer(self, scope: Scope) -> ASGIApp:
        owner = self._sandboxes.owner_of(QueryParams(scope["query_string"]))
        if owner is None:
            # The same answer for a wrong signature and for a sandbox that is gone: a signature is all there is.
            return answers.error(401, "invalid signature", error_code="unauthorized")
        return owner.envd


def _service(live: Live, port: int) -> ASGIApp | None:
    if port == ENVD_PORT:
        return live.envd
    if port == INTERPRETER_PORT:
        return live.interpreter
    return None
