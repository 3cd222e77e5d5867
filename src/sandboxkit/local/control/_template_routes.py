"""E2B's REST routes for templates: building them, their files, tags, lists and ends."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound
from sandboxkit.local._sandbox import ENVD_VERSION
from sandboxkit.local.control._builds import Build, Builds, Entry
from sandboxkit.local.control._refusals import Refused, bad_request, unsupported
from sandboxkit.local.control._requests import read_object
from sandboxkit.local.control._templates import Templates
from sandboxkit.local.images._definition import DISK, OWN
from sandboxkit.local.images._records import DEFAULT_TAG, NAME, TAG, build_of, split_name
from sandboxkit.local.images._store import BuildRecord, Store, TemplateRecord

BODY_LIMIT = 4 * 1024 * 1024
UPLOAD_LIMIT = 1024 * 1024 * 1024
ENTRIES = 100
MIB = 1024 * 1024
DEFAULT_CPUS, DEFAULT_MEMORY_MB = 2, 1024
LEVELS = ("debug", "info", "warn", "error")

Handler = Callable[[Request], Awaitable[Response]]
JSON = dict[str, Any]


class TemplateRoutes:
    """The handlers, over what the engine builds and has built."""

    def __init__(self, *, builds: Builds, store: Store, templates: Templates) -> None:
        self._builds = builds
        self._store = store
        self._templates = templates

    def guarded(self) -> list[tuple[str, str, Handler]]:
        """Those that need the engine's key."""
        return [
            ("POST", "/v3/templates", self._request),
            ("GET", "/templates/{id}/files/{hash}", self._file),
            ("POST", "/v2/templates/{id}/builds/{build}", self._start),
            ("GET", "/templates/{id}/builds/{build}/status", self._status),
            ("GET", "/templates/{id}/builds/{build}/logs", self._logs),
            ("POST", "/templates/tags", self._assign),
            ("DELETE", "/templates/tags", self._remove_tags),
            ("GET", "/templates/{id}/tags", self._tags),
            ("GET", "/templates/{id}/tags/count", self._count_tags),
            ("GET", "/templates/{id}/tags/exists", self._tag_exists),
            ("GET", "/templates", self._list),
            ("GET", "/v2/templates", self._list),
            ("GET", "/templates/{id}", self._get),
        ]

    def open(self) -> list[tuple[str, str, Handler]]:
        """The one that is guarded by its own link, which works once."""
        return [("PUT", "/templates/{id}/files/{hash}/{ticket}", self._upload)]

    # -- building -------------------------------------------------------------------------------------------------

    async def _request(self, request: Request) -> Response:
        fields = read_object(await _body(request))
        name = fields.pop("name", None) or fields.pop("alias", None)
        fields.pop("alias", None)
        tags = fields.pop("tags", None) or []
        cpus = _number("cpuCount", fields.pop("cpuCount", None), DEFAULT_CPUS, 1, 256)
        memory = _number("memoryMB", fields.pop("memoryMB", None), DEFAULT_MEMORY_MB, 128, 1024 * 1024)
        disk = _number("minFreeDiskMb", fields.pop("minFreeDiskMb", None), 0, 0, 1024 * 1024)
        fields.pop("teamID", None)
        if fields:
            raise unsupported(", ".join(sorted(key[:64] for key in fields)), "the engine does not know it")
        full = _name(name)
        name, tag = split_name(full)
        if not isinstance(tags, list):
            raise bad_request("tags: a list of names is needed")
        given = [*([tag] if ":" in full else []), *tags]
        for one in given:
            _tag(one)
        build = self._builds.request(name, given, cpus=cpus, memory_mb=memory, disk_mb=max(disk, DISK // MIB))
        return JSONResponse(
            {
                "templateID": name,
                "buildID": build.build_id,
                "public": False,
                "names": [name],
                "tags": list(build.tags),
                "aliases": [name],
            },
            status_code=202,
        )

    async def _file(self, request: Request) -> Response:
        digest = _digest(request)
        name = _name(request.path_params["id"])
        link = f"{request.url.scheme}://{request.headers['host']}/templates/{name}/files/{digest}"
        present = self._store.file(digest).is_file()
        return JSONResponse({"present": present, "url": f"{link}/{self._builds.ticket(digest)}"}, status_code=201)

    async def _upload(self, request: Request) -> Response:
        digest = _digest(request)
        self._builds.redeem(request.path_params["ticket"], digest)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > UPLOAD_LIMIT:
            raise _too_long(UPLOAD_LIMIT)
        size = 0
        try:
            with self._store.new_file(digest) as descriptor:
                async for piece in request.stream():
                    size += len(piece)
                    if size > UPLOAD_LIMIT:
                        raise _too_long(UPLOAD_LIMIT)
                    await asyncio.to_thread(_write_all, descriptor, piece)
        except ClientDisconnect:
            raise
        except OSError as error:
            raise Refused(507, f"The files could not be kept: {error.strerror}", error_code="no_space") from error
        return Response(status_code=200)

    async def _start(self, request: Request) -> Response:
        build = self._build(request)
        self._builds.start(build, read_object(await _body(request)))
        return Response(status_code=202)

    async def _status(self, request: Request) -> Response:
        build = self._build(request)
        offset = _count("logsOffset", request.query_params.get("logsOffset"), 0, 2**31)
        limit = _count("limit", request.query_params.get("limit"), ENTRIES, ENTRIES)
        level = _level(request.query_params.get("level"))
        entries = [one for one in build.entries if LEVELS.index(one.level) >= level]
        answer: JSON = {
            "templateID": build.template,
            "buildID": build.build_id,
            "status": build.status,
            "logs": [],
            "logEntries": [_entry(entry) for entry in entries[offset : offset + limit]],
        }
        if build.status == "error":
            last = [entry for entry in build.entries if entry.step == build.failed_step][-20:]
            answer["reason"] = {
                "message": build.failure,
                "step": build.failed_step,
                "logEntries": [_entry(entry) for entry in last],
            }
        return JSONResponse(answer)

    async def _logs(self, request: Request) -> Response:
        build = self._build(request)
        query = request.query_params
        limit = _count("limit", query.get("limit"), ENTRIES, ENTRIES)
        cursor = _count("cursor", query.get("cursor"), 0, 2**53)
        level = _level(query.get("level"))
        backward = query.get("direction", "forward") == "backward"
        entries = [one for one in build.entries if LEVELS.index(one.level) >= level]
        if cursor:
            moment = datetime.fromtimestamp(cursor / 1000, UTC)
            entries = [one for one in entries if (one.at <= moment if backward else one.at >= moment)]
        entries = entries[::-1][:limit] if backward else entries[:limit]
        return JSONResponse({"logs": [_entry(entry) for entry in entries]})

    def _build(self, request: Request) -> Build:
        return self._builds.get(_name(request.path_params["id"]), request.path_params["build"])

    # -- tags -----------------------------------------------------------------------------------------------------

    async def _assign(self, request: Request) -> Response:
        fields = read_object(await _body(request))
        name, tag = split_name(_name(fields.get("target")))
        tags = _tags(fields.get("tags"))
        with self._store.changing(name) as write:
            record = self._read(name)
            build = build_of(record, tag)
            if build is None:
                raise _no_template(f"{name}:{tag}")
            now = datetime.now(UTC).isoformat()
            write(replace(record, tags={**record.tags, **dict.fromkeys(tags, (build.build_id, now))}))
        return JSONResponse({"tags": tags, "buildID": build.build_id}, status_code=201)

    async def _remove_tags(self, request: Request) -> Response:
        fields = read_object(await _body(request))
        name, _ = split_name(_name(fields.get("name")))
        tags = _tags(fields.get("tags"))
        with self._store.changing(name) as write:
            record = self._read(name)
            if DEFAULT_TAG in tags:
                raise bad_request(f"The tag {DEFAULT_TAG!r} cannot be removed; delete the template, or assign it anew")
            write(replace(record, tags={tag: one for tag, one in record.tags.items() if tag not in tags}))
        return Response(status_code=204)

    async def _tags(self, request: Request) -> Response:
        record = self._read(_name(request.path_params["id"]))
        return JSONResponse(
            [{"tag": tag, "buildID": build, "createdAt": _moment(at)} for tag, (build, at) in record.tags.items()]
        )

    async def _count_tags(self, request: Request) -> Response:
        return JSONResponse({"count": len(self._read(_name(request.path_params["id"])).tags)})

    async def _tag_exists(self, request: Request) -> Response:
        record = self._read(_name(request.path_params["id"]))
        return JSONResponse({"exists": request.query_params.get("tag", DEFAULT_TAG) in record.tags})

    def _read(self, name: str) -> TemplateRecord:
        record = self._store.read(split_name(name)[0])
        if record is None:
            raise _no_template(name)
        return record

    # -- looking and deleting -------------------------------------------------------------------------------------

    async def alias(self, request: Request) -> Response:
        """Answer whether there is a template of a name: without a tag, whichever tags its builds have."""
        name = request.path_params["alias"]
        try:
            found = self._templates.find(name)
        except TemplateNotBuilt:
            own = split_name(name)[0]
            if own in OWN:
                return JSONResponse({"templateID": own, "public": True})
            raise _no_template(name) from None
        except TemplateNotFound:
            if NAME.fullmatch(name.lower()) and (record := self._store.read(name.lower())) is not None:
                return JSONResponse({"templateID": record.name, "public": False})
            raise _no_template(name) from None
        return JSONResponse({"templateID": found.id, "public": found.id in OWN})

    async def _list(self, request: Request) -> Response:
        records = [record for name in self._store.names() if (record := self._store.read(name)) is not None]
        return JSONResponse([shown for record in records if (shown := _shown(record)) is not None])

    async def _get(self, request: Request) -> Response:
        record = self._read(_name(request.path_params["id"]))
        shown = _shown(record)
        if shown is None:
            raise _no_template(record.name)
        return JSONResponse(shown | {"builds": [_shown_build(build) for build in record.builds.values()]})

    def notes(self, name: str) -> list[str]:
        """Where a template is not what its definition asked for."""
        record = self._store.read(name) if NAME.fullmatch(name) else None
        build = build_of(record, "latest") if record is not None else None
        return list(build.notes) if build is not None else []

    def delete(self, name: str) -> bool:
        """Delete a template, all its tags and builds; sandboxes of it go on. False where there is none of this name.

        Refused: 403 for the engine's own.
        """
        if name in OWN:
            raise Refused(403, f"Template {name!r} is the engine's own", error_code="template_is_own", retry=False)
        if not NAME.fullmatch(name):
            return False
        with self._store.changing(name) as write:
            if self._store.read(name) is None:
                return False
            write(None)
        return True


# -- reading ------------------------------------------------------------------------------------------------------


def _name(value: object) -> str:
    name, _, tag = str(value).partition(":") if isinstance(value, str) else ("", "", "")
    name = name.lower()
    if not NAME.fullmatch(name):
        raise bad_request("name: a template's name has a-z, 0-9, '.', '_' and '-', and no namespace")
    if name in OWN:
        raise Refused(403, f"Template {name!r} is the engine's own", error_code="template_is_own", retry=False)
    if tag:
        _tag(tag)
    return f"{name}:{tag}" if tag else name


def _tag(value: object) -> str:
    if not isinstance(value, str) or not TAG.fullmatch(value):
        raise bad_request("tags: a tag has letters, digits, '.', '_' and '-'")
    return value


def _tags(value: object) -> list[str]:
    if not isinstance(value, list) or not value:
        raise bad_request("tags: a list of names is needed")
    return [_tag(one) for one in value]


def _number(name: str, value: object, default: int, least: int, most: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad_request(f"{name}: a whole number from {least} to {most} is needed")
    return value


def _count(name: str, value: str | None, default: int, most: int) -> int:
    if not value:
        return default
    if not re.fullmatch(r"[0-9]{1,16}", value):
        raise bad_request(f"{name}: a whole number is needed")
    return min(int(value), most)


def _level(value: str | None) -> int:
    if value is not None and value not in LEVELS:
        raise bad_request(f"level: one of {', '.join(LEVELS)} is needed")
    return LEVELS.index(value) if value is not None else 0


def _digest(request: Request) -> str:
    digest = str(request.path_params["hash"])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise bad_request("hash: a SHA-256 digest in lower-case hex is needed")
    return digest


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_LIMIT:
            raise _too_long(BODY_LIMIT)
    return bytes(body)


def _too_long(limit: int) -> Refused:
    return Refused(413, f"The request's body is longer than {limit} bytes", error_code="body_too_long", retry=False)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _no_template(name: str) -> Refused:
    return Refused(404, f"There is no template {name[:128]!r}", error_code=TemplateNotFound.code)


# -- showing ------------------------------------------------------------------------------------------------------


def _entry(entry: Entry) -> JSON:
    shown = {"timestamp": _moment(entry.at.isoformat()), "message": entry.message, "level": entry.level}
    return shown | ({"step": entry.step} if entry.step else {})


def _moment(text: str) -> str:
    return text.replace("+00:00", "Z")


def _shown(record: TemplateRecord) -> JSON | None:
    latest = build_of(record, "latest") or next(iter(record.builds.values()), None)
    if latest is None:
        return None
    return {
        "templateID": record.name,
        "buildID": latest.build_id,
        "cpuCount": int(latest.cpus),
        "memoryMB": latest.memory_mb,
        "diskSizeMB": latest.disk_mb,
        "public": False,
        "aliases": [record.name],
        "names": [record.name],
        "createdAt": _moment(record.made_at),
        "updatedAt": _moment(latest.made_at),
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": len(record.builds),
        "envdVersion": ENVD_VERSION,
        "buildStatus": "ready",
    }


def _shown_build(build: BuildRecord) -> Mapping[str, object]:
    return {
        "buildID": build.build_id,
        "status": "ready",
        "createdAt": _moment(build.made_at),
        "updatedAt": _moment(build.made_at),
        "finishedAt": _moment(build.made_at),
        "cpuCount": int(build.cpus),
        "memoryMB": build.memory_mb,
        "diskSizeMB": build.disk_mb,
        "envdVersion": ENVD_VERSION,
        "python": build.python,
        "notes": list(build.notes),
    }
