"""The part of the REST API about lives: pause, connect, fork, snapshots, logs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandboxkit.local._config import EngineConfig
from sandboxkit.local.control import _life_requests as lives
from sandboxkit.local.control import _requests as requests
from sandboxkit.local.control._journal import LogEntry
from sandboxkit.local.control._kept import Snapshot
from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control._registry import Sandbox, State
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.control._snapshots import Snapshots
from sandboxkit.local.control._template_routes import TemplateRoutes

JSON = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]
MEMORY_HEADER = "x-sandboxkit-memory"
"""`lost` where a sandbox starts with files whose processes are not there any more."""


class LifeRoutes:
    """Handlers, by method and path. `created` says what a create answers of a sandbox; `read` reads a body."""

    def __init__(
        self,
        *,
        config: EngineConfig,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        template_routes: TemplateRoutes,
        created: Callable[[Sandbox], JSON],
        read: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self._config = config
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._template_routes = template_routes
        self._created = created
        self._read = read

    def routes(self) -> list[tuple[str, str, Handler]]:
        """List them."""
        return [
            ("POST", "/v2/sandboxes/{id}/connect", self._connect),
            ("POST", "/sandboxes/{id}/connect", self._connect),
            ("POST", "/sandboxes/{id}/pause", self._pause),
            ("POST", "/sandboxes/{id}/resume", self._resume),
            ("POST", "/sandboxes/{id}/fork", self._fork),
            ("POST", "/sandboxes/{id}/snapshots", self._take_snapshot),
            ("GET", "/sandboxes/{id}/logs", self._logs_v1),
            ("GET", "/v2/sandboxes/{id}/logs", self._logs_v2),
            ("GET", "/snapshots", self._list_snapshots),
            ("GET", "/templates/aliases/{alias:path}", self._alias),
            ("DELETE", "/templates/{id:path}", self._delete_template),
        ]

    async def _connect(self, request: Request) -> Response:
        wish = lives.read_connect(
            requests.read_object(await self._read(request)),
            default_timeout=self._config.default_timeout,
            max_timeout=self._config.max_timeout,
        )
        sandbox, was_paused = await self._sandboxes.connect(
            _id(request), wish.timeout, memory=wish.memory, strict=self._config.strict
        )
        return JSONResponse(
            self._created(sandbox),
            status_code=201 if was_paused else 200,
            headers=memory_headers(was_paused and sandbox.memory_lost),
        )

    async def _pause(self, request: Request) -> Response:
        wish = lives.read_pause(requests.read_object(await self._read(request)))
        await self._sandboxes.pause(_id(request), memory=wish.memory, require_healthy=wish.require_healthy)
        return Response(status_code=204)

    async def _resume(self, request: Request) -> Response:
        body = requests.read_object(await self._read(request))
        seconds = requests.read_resume(body, max_timeout=self._config.max_timeout)
        sandbox_id = _id(request)
        running = Refused(409, f"Sandbox {sandbox_id[:64]!r} is running already", error_code="sandbox_running")
        if self._sandboxes.get(sandbox_id).state is State.LIVE:
            raise running
        sandbox, was_paused = await self._sandboxes.connect(sandbox_id, seconds, strict=self._config.strict)
        if not was_paused:
            raise running
        return JSONResponse(self._created(sandbox), status_code=201, headers=memory_headers(sandbox.memory_lost))

    # -- snapshots ------------------------------------------------------------------------------------------------

    async def _fork(self, request: Request) -> Response:
        body = requests.read_object(await self._read(request))
        wish = lives.read_fork(body, max_timeout=self._config.max_timeout)
        made = await self._snapshots.fork(_id(request), count=wish.count, seconds=wish.timeout)
        answer = [
            {"sandbox": self._created(one)}
            if isinstance(one, Sandbox)
            else {"error": {"code": one.status, "message": f"{one.message} [{one.error_code}]"}}
            for one in made
        ]
        return JSONResponse(answer, status_code=201, headers=memory_headers(True))

    async def _take_snapshot(self, request: Request) -> Response:
        wish = lives.read_snapshot(requests.read_object(await self._read(request)))
        snapshot = await self._snapshots.take(_id(request), name=wish.name, memory=wish.memory)
        return JSONResponse(_shown(snapshot), status_code=201, headers=memory_headers(snapshot.memory_lost))

    async def _list_snapshots(self, request: Request) -> Response:
        found, next_token = self._snapshots.page(lives.read_snapshot_query(request.query_params))
        headers = {"x-next-token": next_token} if next_token else None
        return JSONResponse([_shown(one) for one in found], headers=headers)

    async def _alias(self, request: Request) -> Response:
        if (snapshot := self._snapshots.find(str(request.path_params["alias"]))) is not None:
            return JSONResponse({"templateID": snapshot.key, "public": False})
        return await self._template_routes.alias(request)

    async def _delete_template(self, request: Request) -> Response:
        name = _id(request)
        if await self._snapshots.delete(name):
            return Response(status_code=204)
        if self._template_routes.delete(name):
            return Response(status_code=204)
        raise Refused(404, f"There is no template or snapshot {name[:128]!r}", error_code="template_not_found")

    # -- logs -----------------------------------------------------------------------------------------------------

    async def _logs_v1(self, request: Request) -> Response:
        entries = self._entries(request, version=1)
        lines = [{"timestamp": one.at.isoformat(), "line": _line(one)} for one in entries]
        return JSONResponse({"logs": lines, "logEntries": [_entry(one) for one in entries]})

    async def _logs_v2(self, request: Request) -> Response:
        return JSONResponse({"logs": [_entry(one) for one in self._entries(request, version=2)]})

    def _entries(self, request: Request, *, version: int) -> list[LogEntry]:
        query = lives.read_log_query(request.query_params, version=version)
        sandbox_id = self._sandboxes.get(_id(request)).sandbox_id
        return self._sandboxes.journal.read(
            sandbox_id,
            since=query.since,
            until=query.until,
            backward=query.backward,
            limit=query.limit,
            level=query.level,
            search=query.search,
        )


def memory_headers(is_lost: bool) -> dict[str, str] | None:
    """The headers that say that memory is lost, where it is."""
    return {MEMORY_HEADER: "lost"} if is_lost else None


def about_pause(sandbox: Sandbox) -> JSON:
    """What the detail of a sandbox says about its pause; `persisted` and `memory` are fields of ours."""
    said: JSON = {}
    if sandbox.pause_mode is not None:
        said["pauseMode"] = sandbox.pause_mode
    if sandbox.is_paused:
        said["persisted"] = sandbox.persisted
    if sandbox.memory_lost:
        said["memory"] = "lost"
    return said


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _shown(snapshot: Snapshot) -> JSON:
    return {"snapshotID": snapshot.snapshot_id, "names": snapshot.names}


def _entry(entry: LogEntry) -> JSON:
    return {
        "timestamp": entry.at.isoformat(),
        "level": entry.level,
        "message": entry.message,
        "fields": dict(entry.fields),
    }


def _line(entry: LogEntry) -> str:
    """The first dialect's line, which E2B's command line reads as JSON with a level, and filters by its logger."""
    return json.dumps({**entry.fields, "level": entry.level, "logger": "engine", "message": entry.message})
