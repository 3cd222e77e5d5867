"""The engine's outermost ASGI application: finds out whom a request means, and hands it over.

One of it serves the engine's own address; each loopback port of a preview has another, with rules of its own.

Nothing that a client or a sandbox does ends in an unhandled error here: what was not begun is answered with JSON, what
was begun is cut off, so that the client sees a broken response and not a short one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from sandboxkit.local import _answers as answers
from sandboxkit.local._descriptors import means_exhausted
from sandboxkit.local._log import log
from sandboxkit.local._sandbox import ENVD_PORT, INTERPRETER_PORT
from sandboxkit.local.control._parts import Live, Receive, Send
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.gateway._routes import Denied, Moved, Route, ToControl, ToHolder, ToSandbox, ToSignature, route
from sandboxkit.local.gateway.preview._previews import CutOff, Gone, Previews
from sandboxkit.local.isolation._base import AgentLost

PING_TIMEOUT = 2.0
TOKEN_HEADER = b"e2b-traffic-access-token"

Scope = MutableMapping[str, Any]


class Paused(Exception):
    """The sandbox was paused while it answered."""


Router = Callable[[Scope, "dict[str, str]", int], Route]
"""Decides about a request: its scope, the first of each of its headers, and how many Host headers it has."""


class Gateway:
    """Routes requests to the control plane, to a sandbox's services, or to what a sandbox serves by itself."""

    def __init__(self, *, rest: ASGIApp, sandboxes: Sandboxes, previews: Previews, router: Router) -> None:
        self._rest = rest
        self._sandboxes = sandboxes
        self._previews = previews
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return  # the server has no other kind of scope for us
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
                case Moved():
                    await answers.moved(meant.location)(scope, receive, watched)
                case ToControl():
                    await self._rest(scope, receive, watched)
                case ToSandbox():
                    sandbox_id = meant.sandbox_id
                    await self._to_sandbox(meant, scope, receive, watched)
                case ToSignature():
                    await self._to_signer(scope, receive, watched)
                case ToHolder():
                    sandbox_id = self._holder(meant.token)
                    await self._to_sandbox(ToSandbox(sandbox_id, ENVD_PORT), scope, receive, watched)
        except AgentLost:
            if sandbox_id is not None:
                self._sandboxes.lost(sandbox_id)
            if not started:
                await answers.sandbox_not_found(sandbox_id or "")(scope, receive, send)
        except CutOff:
            return  # the server in the sandbox broke its answer off: so do we
        except (Paused, Gone):
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

    def _route(self, scope: Scope) -> Route:
        headers: dict[str, str] = {}
        hosts = 0
        for name, value in scope["headers"]:
            hosts += name == b"host"
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        return self._router(scope, headers, hosts)

    async def _to_sandbox(self, meant: ToSandbox, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._checked_token(meant, scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        asks_for_health = meant.port == ENVD_PORT and scope["path"] == "/health"
        # Who only asks whether it runs does not want to wake it.
        live = await self._sandboxes.for_traffic(meant.sandbox_id, wakes=not asks_for_health)
        if live is None:
            await answers.sandbox_not_found(meant.sandbox_id)(scope, receive, send)
            return
        with live.answering():
            try:
                if asks_for_health:
                    # Clients ask this when a stream broke off, to learn whether the sandbox is gone. The stream of a
                    # lost one breaks off before its box has ended, so ask the agent. One that is only slow is alive.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(PING_TIMEOUT):
                            await live.box.agent.ping()
                service = _service(live, meant.port)
                if service is not None:
                    await service(scope, receive, send)
                else:
                    await self._previews.serve(live, meant, scope, receive, send)
            except asyncio.CancelledError:
                if not live.was_cut():
                    raise
                raise Paused from None

    def _checked_token(self, meant: ToSandbox, scope: Scope) -> ASGIApp | None:
        """The refusal of a request without the token that the sandbox's traffic needs. envd has a token of its own."""
        live = self._sandboxes.live(meant.sandbox_id)
        wanted = live.settings.traffic_token if live is not None else None
        if wanted is None or meant.port == ENVD_PORT:
            return None
        given = next((value for name, value in scope["headers"] if name == TOKEN_HEADER), b"")
        if hmac.compare_digest(given, wanted.encode()):
            return None
        return answers.token_refused(meant.sandbox_id, is_missing=not given)

    def _holder(self, token: str) -> str:
        """The sandbox of this token; of no name where it is one of a sandbox that is gone, or a guess."""
        given = token.encode()
        found = self._sandboxes.find(lambda live: hmac.compare_digest(given, live.settings.access_token.encode()))
        return found or ""

    async def _to_signer(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = QueryParams(scope["query_string"])
        owner = self._sandboxes.find(lambda live: live.envd.owns(query))
        if owner is None:
            # The same answer for a wrong signature and for a sandbox that is gone: a signature is all there is.
            refusal = answers.error(401, "invalid signature", error_code="unauthorized")
            await refusal(scope, receive, send)
            return
        await self._to_sandbox(ToSandbox(owner, ENVD_PORT), scope, receive, send)


def _service(live: Live, port: int) -> ASGIApp | None:
    if port == ENVD_PORT:
        return live.envd
    if port == INTERPRETER_PORT:
        return live.interpreter
    return None


def by_host(*, any_address: bool) -> Router:
    """The rules of the engine's own address; see `_routes.route`."""

    def decide(scope: Scope, headers: dict[str, str], hosts: int) -> Route:
        return route(
            method=scope["method"],
            path=scope["path"],
            headers=headers,
            signed=b"signature=" in scope["query_string"],
            hosts=hosts,
            any_address=any_address,
        )

    return decide
