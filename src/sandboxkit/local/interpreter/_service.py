"""The interpreter's HTTP interface for one sandbox, as E2B's clients expect it on port 49999."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from sandboxkit.local import _answers
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.interpreter._contexts import Context
from sandboxkit.local.interpreter._kernel import KernelFailed, NoKernel
from sandboxkit.local.interpreter._languages import DEFAULTS, PYTHON, Language, UnknownLanguage, language
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost

MAX_REQUEST = 16 * 1024 * 1024
MAX_CONTEXTS = 64


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status_code)
        self.response = response


@dataclass(frozen=True, slots=True)
class Cell:
    """A valid request to run code."""

    code: str
    envs: dict[str, str]


class InterpreterService:
    """ASGI application of one sandbox. Make it inside a running loop: it starts the default kernel at once.

    The access token is demanded where code is run, and nowhere else: E2B's clients send it with /execute only.
    """

    def __init__(self, agent: Agent, settings: SandboxSettings) -> None:
        self._agent = agent
        self._settings = settings
        self._tasks: set[asyncio.Task[None]] = set()
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        for name in DEFAULTS:
            self._default_context(language(name))
        # Only Python's starts now: it is what nearly everybody uses.
        self._default_context(PYTHON).start()

    def pause(self) -> None:
        """Be ready for the box to be stopped: cells that run go on after it, though their clients are cut off now."""
        for context in self._contexts.values():
            context.pause()

    def resume(self) -> None:
        """The box goes on."""
        for context in self._contexts.values():
            context.resume()

    def adopt(self, settings: SandboxSettings) -> None:
        """Take over another sandbox's settings, before any code was run: the kernel that runs is given its environment,
        or, where that holds what an interpreter reads at its start only, replaced."""
        self._settings = settings
        envs = settings.base_environment()
        for context in self._contexts.values():
            context.adopt(envs)

    async def aclose(self) -> None:
        """Let go of everything; the box is expected to end next. Idempotent."""
        contexts, self._contexts, self._defaults = list(self._contexts.values()), {}, {}
        for context in contexts:
            await context.aclose()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            AgentLost: the sandbox is gone; where the response had begun, its connection has to be dropped.
        """
        request = Request(scope, receive)
        parts = [part for part in request.url.path.split("/") if part]
        try:
            match (request.method, parts):
                case "POST", ["execute"]:
                    context, cell = await self._cell_to_run(request)
                    await self._execute(context, cell, receive, send)
                    return
                case "GET", ["health"]:
                    response: Response = PlainTextResponse("OK")
                case "GET", ["contexts"]:
                    response = JSONResponse([context.describe() for context in self._contexts.values()])
                case "POST", ["contexts"]:
                    response = await self._create(request)
                case "POST", ["contexts", context_id, "restart"]:
                    response = await self._restart(context_id)
                case "DELETE", ["contexts", context_id]:
                    response = await self._remove(context_id)
                case _:
                    response = _answers.error(404, f"The interpreter has no {request.method} {request.url.path}.")
        except Refused as refused:
            response = refused.response
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    # -- contexts -------------------------------------------------------------------------------------------------

    def _default_context(self, wanted: Language) -> Context:
        if wanted.name not in self._defaults:
            self._defaults[wanted.name] = self._new_context(self._settings.workdir, wanted)
        return self._defaults[wanted.name]

    def _new_context(self, cwd: str, wanted: Language) -> Context:
        if len(self._contexts) >= MAX_CONTEXTS:
            raise Refused(_answers.error(400, f"A sandbox has at most {MAX_CONTEXTS} contexts; remove one first."))
        envs = self._settings.base_environment()
        context = Context(self._agent, envs=envs, cwd=cwd, language=wanted, spawn=self._spawn)
        self._contexts[context.id] = context
        return context

    async def _create(self, request: Request) -> Response:
        wanted = await _json(request)
        cwd = _text(wanted, "cwd") or self._settings.workdir
        context = self._new_context(cwd, _language(_text(wanted, "language")))
        await self._started(context)
        return JSONResponse(context.describe())

    async def _started(self, context: Context) -> None:
        """Wait for a new context's kernel; what does not start leaves no context."""
        try:
            await context.started(context.start())
        except BaseException as error:
            self._forget(context)
            await context.remove()
            if isinstance(error, AgentError):
                missing = error.errno in (errno.ENOENT, errno.ENOTDIR) and error.path == context.cwd
                message = f"cwd {context.cwd!r} does not exist" if missing else f"The kernel did not start: {error}"
                raise Refused(_answers.error(400 if missing else 500, message)) from error
            if isinstance(error, KernelFailed):
                raise Refused(_answers.error(400 if isinstance(error, NoKernel) else 500, str(error))) from error
            raise

    def _forget(self, context: Context) -> None:
        self._contexts.pop(context.id, None)
        if self._defaults.get(context.language.name) is context:
            del self._defaults[context.language.name]

    async def _restart(self, context_id: str) -> Response:
        try:
            await self._find(context_id).restart()
        except (KernelFailed, AgentError) as error:
            raise Refused(_answers.error(500, f"The interpreter did not start again: {error}")) from error
        return PlainTextResponse("")

    async def _remove(self, context_id: str) -> Response:
        context = self._find(context_id)
        self._forget(context)
        await context.remove()
        return PlainTextResponse("")

    def _find(self, context_id: str) -> Context:
        if context_id not in self._contexts:
            raise Refused(PlainTextResponse(f"Context {context_id} not found", status_code=404))
        return self._contexts[context_id]

    # -- running code ---------------------------------------------------------------------------------------------

    async def _cell_to_run(self, request: Request) -> tuple[Context, Cell]:
        token = request.headers.get("x-access-token", "")
        if not hmac.compare_digest(token.encode(), self._settings.access_token.encode()):
            raise Refused(_answers.error(401, "The access token is missing or wrong; pass it as X-Access-Token."))
        wanted = await _json(request)
        if not isinstance(wanted.get("code"), str):
            raise Refused(_answers.error(400, "The request needs `code`, a text."))
        context_id, asked, envs = _text(wanted, "context_id"), _text(wanted, "language"), _envs(wanted)
        if context_id and asked:
            raise Refused(_answers.error(400, "Only one of context_id or language can be provided"))
        context = self._find(context_id) if context_id else self._default_context(_language(asked))
        if envs and not context.language.takes_envs:
            message = f"`env_vars` of a call are not supported for {context.language.name!r}; give them to the sandbox."
            raise Refused(_answers.error(400, message))
        if not context.has_started:
            await self._started(context)
        # What the network asks for may have changed since the kernel started.
        now = self._settings.network_variables()
        later = {
            name: value
            for name, value in now.items()
            if context.envs.get(name) != value and name not in self._settings.envs
        }
        return context, Cell(wanted["code"], later | envs)

    async def _execute(self, context: Context, cell: Cell, receive: Receive, send: Send) -> None:
        """Stream a cell's events; a client that leaves ends the run."""
        running = asyncio.create_task(_stream(context, cell, send))
        leaving = asyncio.create_task(_client_left(receive))
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (running, leaving):
                task.cancel()
            await asyncio.wait({running, leaving})
        if not running.cancelled():
            running.result()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _stream(context: Context, cell: Cell, send: Send) -> None:
    headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with contextlib.aclosing(context.run(cell.code, cell.envs)) as pieces:
        async for events, more in pieces:
            await send({"type": "http.response.body", "body": events, "more_body": more})


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_REQUEST:
            raise Refused(_answers.error(413, f"A request may have at most {MAX_REQUEST // 2**20} MiB."))
    try:
        wanted = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refused(_answers.error(400, f"The request is not JSON: {error}")) from error
    if not isinstance(wanted, dict):
        raise Refused(_answers.error(400, "The request is not a JSON object."))
    return wanted


def _text(wanted: dict[str, Any], name: str) -> str | None:
    value = wanted.get(name)
    if value is not None and not isinstance(value, str):
        raise Refused(_answers.error(400, f"`{name}` is not a text."))
    return value or None


def _envs(wanted: dict[str, Any]) -> dict[str, str]:
    envs = wanted.get("env_vars") or {}
    if not isinstance(envs, dict):
        raise Refused(_answers.error(400, "`env_vars` is not an object."))
    for name, value in envs.items():
        if not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
            raise Refused(_answers.error(400, f"The environment variable {name!r} has an impossible name or value."))
    return envs


def _language(asked: str | None) -> Language:
    try:
        return language(asked)
    except UnknownLanguage as error:
        raise Refused(_answers.error(400, str(error))) from error


__all__ = ["AgentLost", "InterpreterService"]
