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

Opening = Callable[[], AbstractAsyncContextManager[AsyncSession]]


class EventStream(Response):
    """Carries a fragment out while it answers, and stops when the client goes.

    An error before the first event is an answer with its status; a later one is an event of the name `error`.
    """

    def __init__(self, fragment: Fragment, opening: Opening) -> None:
        self.background = None
        self.status_code = 200
        self._fragment = fragment
        self._opening = opening
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive, tasks.cancel_scope)
            try:
                await self._carry_out(send)
            except Exception as error:
                failure = error
            tasks.cancel_scope.cancel()
        if failure is not None:
            await self._fail(failure, scope, receive, send)

    async def _watch(self, receive: Receive, scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _carry_out(self, send: Send) -> None:
        async with self._opening() as session, aclosing(session.stream(self._fragment)) as events:
            async for event in events:
                if not self._has_begun:
                    self._has_begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
                await send(_piece(event.name, told(event)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        answer = refusal(error)
        if not self._has_begun:
            await JSONResponse(fit(answer.body), answer.status, answer.headers)(scope, receive, send)
        else:
            await send(_piece("error", fit(answer.body)))
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


def _piece(name: str, data: dict[str, Any]) -> dict[str, Any]:
    text = f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"
    return {"type": "http.response.body", "body": text.encode(), "more_body": True}
