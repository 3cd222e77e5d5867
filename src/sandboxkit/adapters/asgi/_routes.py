"""The routes: who asks, what of theirs it is about, and the answer."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sandboxkit._confine import confine
from sandboxkit.adapters.asgi import _bodies as bodies
from sandboxkit.adapters.asgi import _refusals as refusals
from sandboxkit.adapters.asgi._events import EventStream
from sandboxkit.adapters.asgi._openapi import openapi
from sandboxkit.adapters.asgi._owned import Owned, session_key
from sandboxkit.adapters.asgi._refusals import Refusal
from sandboxkit.errors import ConfigurationError, NotADirectory, NotFound, SandboxkitError, SandboxLost, SandboxNotFound
from sandboxkit.pool._pool import AsyncSandboxPool
from sandboxkit.pool._session import AsyncSession
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.template import Template

Authorize = Callable[[Request], Awaitable[str | None]]
"""Says who asks: a name of theirs that is always the same, or None for nobody."""

LOG_PLACE, LOG_NAME, LOG_MOST = "/tmp/.sandboxkit", "app.log", 64 * 1024

Model = TypeVar("Model", bound=BaseModel)


def routes(pool: AsyncSandboxPool, *, authorize: Authorize, max_body: int = 5 * 1024 * 1024) -> Starlette:
    """Make an application that carries fragments out, to be served as it is, or mounted into another one.

    The pool is the caller's: it has to be open while requests come, and is neither opened nor closed here. A principal
    has one sandbox for each session name and template; what others have is to them as if it were not there. The ids
    are kept in this process: with several, a principal's requests have to go to the same one.

    Args:
        pool: where sandboxes come from.
        authorize: is asked first, for each request but `/openapi.json`. It returns the principal, who is in the
            sandbox's tags and the pool's events. None, and any exception but Starlette's HTTPException, is a 401.
        max_body: bytes that a body may have, and a file that is read.

    Raises:
        ConfigurationError: an argument cannot work.
    """
    if not isinstance(pool, AsyncSandboxPool):
        raise ConfigurationError(f"routes() takes an AsyncSandboxPool, not {type(pool).__name__}.")
    if not callable(authorize):
        raise ConfigurationError(f"authorize={authorize!r} is not callable.")
    if isinstance(max_body, bool) or not isinstance(max_body, int) or max_body < 1:
        raise ConfigurationError(f"max_body={max_body!r}: a positive number of bytes is needed.")
    desk = _Desk(pool, authorize, max_body)
    return Starlette(
        routes=[
            Route("/api/sandbox", desk.run, methods=["POST"]),
            Route("/api/sandbox/{id}", desk.end, methods=["DELETE"]),
            Route("/api/sandbox/{id}/files", desk.tree, methods=["GET"]),
            Route("/api/sandbox/{id}/files/content", desk.content, methods=["GET", "POST"]),
            Route("/api/sandbox/{id}/logs", desk.logs, methods=["GET"]),
            Route("/openapi.json", _described, methods=["GET"]),
        ],
        exception_handlers={
            HTTPException: _http_failed,
            Refusal: _failed,
            SandboxkitError: _failed,
            Exception: _failed,  # which the server's log has, too
        },
    )


class _Desk:
    """Answers requests with the sessions of one pool."""

    def __init__(self, pool: AsyncSandboxPool, authorize: Authorize, max_body: int) -> None:
        self._pool = pool
        self._authorize = authorize
        self._max_body = max_body
        self._owned = Owned()

    # -- the routes ------------------------------------------------------------------------------------------------

    async def run(self, request: Request) -> Response:
        principal = await self._principal(request)
        asked = await self._body(request, bodies.RunRequest)
        fragment = asked.fragment
        Template.get(fragment.template)  # an unknown one is refused before a sandbox is made
        key = session_key(principal, asked.session, fragment.template)

        @asynccontextmanager
        async def opening() -> AsyncGenerator[AsyncSession]:
            async with self._pool.session(key, template=fragment.template) as session:
                self._owned.give(session.sandbox_id, principal, key)
                try:
                    yield session
                finally:
                    self._owned.give(session.sandbox_id, principal, key)  # another one, if it was lost on the way

        if "text/event-stream" in request.headers.get("accept", "").lower():
            return EventStream(fragment, opening)
        async with opening() as session:
            return _json(bodies.run_result(await session.run(fragment)))

    async def tree(self, request: Request) -> Response:
        async with self._held(request) as session:
            return _json(bodies.fit({"files": (await session.tree()).children}))

    async def content(self, request: Request) -> Response:
        principal = await self._principal(request)
        self._key(request, principal)  # before its body is read: an unknown sandbox is that, whatever is sent to it
        if request.method == "POST":
            given = await self._body(request, bodies.FileContent)
            data = bodies.bytes_of(given)
            async with self._held(request, principal) as session:
                await session.files.write_bytes(given.path, data)
                return _json(bodies.fit({"path": confine(given.path), "size": len(data)}))
        path = request.query_params.get("path", "")
        if not path:
            raise bodies.invalid([{"loc": ["path"], "type": "missing", "msg": "The query names no path."}])
        async with self._held(request, principal) as session:
            data = await session.files.read_bytes(path, max_bytes=self._max_body)
            return _json(bodies.fit(bodies.content_of(confine(path), data)))

    async def logs(self, request: Request) -> Response:
        async with self._held(request) as session:
            files = AsyncSafeFS(session.sandbox, root=LOG_PLACE)
            try:
                size = (await files.stat(LOG_NAME)).size
                data = await files.read_range(LOG_NAME, max(size - LOG_MOST, 0), LOG_MOST)
            except (NotFound, NotADirectory):
                data = b""
            return _json(bodies.fit({"sandbox_id": session.sandbox_id, "log": data.decode("utf-8", "replace")}))

    async def end(self, request: Request) -> Response:
        async with self._held(request) as session:
            await session.kill()
        self._owned.forget(request.path_params["id"])
        return Response(status_code=204)

    # -- who, what and how much ------------------------------------------------------------------------------------

    async def _principal(self, request: Request) -> str:
        try:
            principal = self._authorize(request)
            named = await principal if inspect.isawaitable(principal) else principal
        except HTTPException:
            raise
        except Exception as error:
            raise refusals.unauthorized() from error
        if not isinstance(named, str) or not named:
            raise refusals.unauthorized()
        return named

    def _key(self, request: Request, principal: str) -> str:
        key = self._owned.key_of(request.path_params["id"], principal)
        if key is None:
            raise refusals.unknown_sandbox()
        return key

    @asynccontextmanager
    async def _held(self, request: Request, principal: str | None = None) -> AsyncGenerator[AsyncSession]:
        """The principal's session behind the id in the path; whose it is, is known before anything is connected to."""
        principal = await self._principal(request) if principal is None else principal
        key = self._key(request, principal)
        sandbox_id = request.path_params["id"]
        try:
            async with await self._pool.attach(sandbox_id) as session:
                if session.key != key or session.sandbox_id != sandbox_id:
                    # The pool opens the session of a sandbox that has just been lost in another one.
                    raise SandboxNotFound(f"Sandbox {sandbox_id} is gone.", sandbox_id=sandbox_id)
                yield session
        except SandboxLost:
            self._owned.forget(sandbox_id)
            raise

    async def _body(self, request: Request, model: type[Model]) -> Model:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise refusals.not_json()
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_body:
                raise refusals.too_large(self._max_body)
        try:
            return model.model_validate_json(bytes(body))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_context=False, include_input=False)
            if any(problem["type"] == "json_invalid" for problem in problems):
                raise refusals.malformed() from None
            raise bodies.invalid(list(problems)) from None


def _json(body: Any) -> Response:
    return JSONResponse(body, headers={"cache-control": "no-store"})


async def _described(request: Request) -> Response:
    return JSONResponse(openapi(server=request.scope.get("root_path") or "/"))


async def _failed(request: Request, error: Exception) -> Response:
    answer = refusals.refusal(error)
    return JSONResponse(bodies.fit(answer.body), answer.status, answer.headers)


async def _http_failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = Refusal(error.status_code, "http_error", error.detail)
    return JSONResponse(bodies.fit(answer.body), answer.status, error.headers or answer.headers)
