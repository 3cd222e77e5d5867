"""A fragment's events as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import anyio
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sandboxkit.adapters.asgi._bodies import fit, run_result
from sandboxkit.adapters.asgi._refusals import refusal
from sandboxkit.events import Event
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.pool._session import AsyncSession

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

KEEP_ALIVE_EVERY = 15.0
"""Seconds of silence after which a comment is sent: proxies cut connections that are silent for 30 or 60."""
KEEP_ALIVE = b": still at work\n\n"

Opening = Callable[[], AbstractAsyncContextManager[AsyncSession]]


class EventStream(Response):
    """Carries a fragment out while it answers, and stops when the client goes.

    Where nothing happens for a while, comments are sent, which clients pass over. An error before anything was sent is
    an answer with its status; a later one is an event of the name `error`.
    """

    def __init__(self, fragment: Fragment, opening: Opening) -> None:
        self.background = None
        self.status_code = 200
        self._fragment = fragment
        self._opening = opening
        self._has_begun = False
        self._lock = anyio.Lock()
        self._said_at = anyio.current_time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Exception | None = None
        is_done = False
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            tasks.start_soon(self._keep_alive, send, tasks.cancel_scope)
            try:
                await self._carry_out(send)
                is_done = True
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            await self._fail(failure, scope, receive, send)
        elif is_done:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _keep_alive(self, send: Send, scope: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep(max(self._said_at + KEEP_ALIVE_EVERY - anyio.current_time(), 0))
            if anyio.current_time() < self._said_at + KEEP_ALIVE_EVERY:
                continue
            try:
                await self._say(send, KEEP_ALIVE)
            except OSError:
                scope.cancel()  # the client has gone
                return

    async def _carry_out(self, send: Send) -> None:
        async with self._opening() as session, aclosing(session.stream(self._fragment)) as events:
            async for event in events:
                await self._say(send, _piece(event.name, told(event)))

    async def _say(self, send: Send, data: bytes) -> None:
        async with self._lock:
            self._said_at = anyio.current_time()
            if not self._has_begun:
                self._has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        answer = refusal(error)
        if not self._has_begun:
            await JSONResponse(fit(answer.body), answer.status, answer.headers)(scope, receive, send)
        else:
            await self._say(send, _piece("error", fit(answer.body)))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        if answer.code == "internal_error":
            raise error  # the server's log says what it was


def told(event: Event) -> dict[str, Any]:
    """What a client is told of an event: what it did not know, and nothing of the pool."""
    data = dict(event.data)
    result = data.pop("result", None)
    if isinstance(result, FragmentResult):
        data["result"] = run_result(result)
    return {"at": event.at, "sandbox_id": event.sandbox_id, **fit(data)}


def _piece(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()
