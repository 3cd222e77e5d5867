"""The REST API about volumes, and that about what lies in one, which has the volume's own token for a key."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sandboxkit.local.control._refusals import Refused, bad_request, unsupported
from sandboxkit.local.control._requests import read_object, refuse_unknown
from sandboxkit.local.control.volumes._files import OWNER, PIECE, Files, Stat, Writing
from sandboxkit.local.control.volumes._rules import full, read_name
from sandboxkit.local.control.volumes._volumes import Volume, Volumes

Handler = Callable[[Request], Awaitable[Response]]
JSON = dict[str, Any]
Result = TypeVar("Result")
AT_ONCE = 8
"""Requests that use a disk at a time; the others wait for their turn."""
MOST_BITS = 0o777


class VolumeRoutes:
    """Handlers, by method and path; `read` reads a body."""

    def __init__(self, volumes: Volumes, *, read: Callable[[Request], Awaitable[bytes]]) -> None:
        self._volumes = volumes
        self._read = read
        self._turns = asyncio.Semaphore(AT_ONCE)

    def guarded(self) -> list[tuple[str, str, Handler]]:
        """Those that need the engine's key."""
        return [
            ("POST", "/volumes", self._create),
            ("GET", "/volumes", self._list),
            ("GET", "/volumes/{id}", self._get),
            ("DELETE", "/volumes/{id}", self._destroy),
        ]

    def open(self) -> list[tuple[str, str, Handler]]:
        """Those that need a volume's token."""
        handlers: list[tuple[str, str, Callable[[Volume, Request], Awaitable[Response]]]] = [
            ("GET", "path", self._info),
            ("PATCH", "path", self._change),
            ("DELETE", "path", self._remove),
            ("GET", "dir", self._listing),
            ("POST", "dir", self._make_dir),
            ("GET", "file", self._download),
            ("PUT", "file", self._upload),
        ]
        return [(method, f"/volumecontent/{{id}}/{what}", self._opened(run)) for method, what, run in handlers]

    # -- volumes --------------------------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        fields = read_object(await self._read(request))
        name = read_name(fields.pop("name", None))
        refuse_unknown(fields)
        try:
            volume = await self._volumes.create(name)
        except OSError as error:
            raise _refused(error, name, self._volumes.most) from error
        return JSONResponse(_shown(volume) | {"token": volume.token}, status_code=201)

    async def _list(self, request: Request) -> Response:
        return JSONResponse([_shown(volume) for volume in self._volumes.all()])

    async def _get(self, request: Request) -> Response:
        volume = self._volumes.get(request.path_params["id"])
        return JSONResponse(_shown(volume) | {"token": volume.token})

    async def _destroy(self, request: Request) -> Response:
        await self._volumes.destroy(request.path_params["id"])
        return Response(status_code=204)

    # -- content --------------------------------------------------------------------------------------------------

    def _opened(self, run: Callable[[Volume, Request], Awaitable[Response]]) -> Handler:
        async def opened(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            volume = self._volumes.get(request.path_params["id"])
            if not hmac.compare_digest(given, volume.token.encode()):
                raise _unauthorized()
            try:
                return await run(volume, request)
            except OSError as error:
                raise _refused(error, request.query_params.get("path", ""), self._volumes.most) from error

        return opened

    async def _do(self, work: Callable[[], Result]) -> Result:
        async with self._turns:
            return await asyncio.to_thread(work)

    async def _info(self, volume: Volume, request: Request) -> Response:
        path = _path(request)
        return JSONResponse(_entry(await self._do(lambda: self._files(volume).info(path))))

    async def _listing(self, volume: Volume, request: Request) -> Response:
        path, depth = _path(request), _whole("depth", request.query_params.get("depth"), 1)
        if not depth:
            raise bad_request("depth: a whole number from 1 on is needed")
        found = await self._do(lambda: self._files(volume).listing(path, depth))
        return JSONResponse([_entry(one) for one in found])

    async def _make_dir(self, volume: Volume, request: Request) -> Response:
        path, mode, force = _path(request), _mode(request.query_params), _force(request)
        made = await self._do(lambda: self._files(volume).make_dir(path, mode=mode, parents=force))
        return JSONResponse(_entry(made), status_code=201)

    async def _change(self, volume: Volume, request: Request) -> Response:
        fields = read_object(await self._read(request))
        mode = _mode({name: fields.pop(name) for name in ("uid", "gid", "mode") if name in fields})
        refuse_unknown(fields)
        path = _path(request)
        return JSONResponse(_entry(await self._do(lambda: self._files(volume).change_mode(path, mode))))

    async def _remove(self, volume: Volume, request: Request) -> Response:
        path = _path(request)
        await self._do(lambda: self._files(volume).remove(path))
        return Response(status_code=204)

    async def _download(self, volume: Volume, request: Request) -> Response:
        path = _path(request)
        descriptor = await self._do(lambda: self._files(volume).open(path))
        headers = {"content-length": str(os.fstat(descriptor).st_size)}
        return StreamingResponse(
            self._pieces(descriptor, int(headers["content-length"])),
            media_type="application/octet-stream",
            headers=headers,
        )

    async def _pieces(self, descriptor: int, size: int) -> AsyncIterator[bytes]:
        """The content as it was announced; where it has become shorter, the answer is broken off."""
        left = size
        try:
            while left:
                piece = await self._do(partial(os.read, descriptor, min(left, PIECE)))
                if not piece:
                    raise OSError(errno.ESTALE, "the file has become shorter")
                left -= len(piece)
                yield piece
        finally:
            os.close(descriptor)

    async def _upload(self, volume: Volume, request: Request) -> Response:
        path, mode, force = _path(request), _mode(request.query_params), _force(request)
        left = await self._volumes.room(volume)
        files = self._files(volume)
        writing: Writing = await self._do(lambda: files.replace(path, parents=force))
        try:
            waiting = bytearray()
            async for piece in request.stream():
                left -= len(piece)
                if left <= 0:
                    raise full(volume.name, self._volumes.most)
                waiting += piece
                if len(waiting) >= PIECE:
                    await self._do(partial(writing.write, bytes(waiting)))
                    waiting.clear()
            await self._do(partial(writing.write, bytes(waiting)))
            await self._do(partial(writing.finish, mode))
        finally:
            with contextlib.suppress(OSError):
                writing.close()
        return JSONResponse(_entry(await self._do(lambda: files.info(path))), status_code=201)

    def _files(self, volume: Volume) -> Files:
        return Files(self._volumes.data(volume))


# -- reading ------------------------------------------------------------------------------------------------------


def _path(request: Request) -> str:
    path = request.query_params.get("path")
    if path is None:
        raise bad_request("path: the path of something in the volume is needed")
    return path


def _whole(name: str, value: object, default: int | None = None) -> int | None:
    if value is None:
        return default
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise bad_request(f"{name}: a whole number is needed")
    return int(text)


def _mode(said: Mapping[str, object]) -> int | None:
    """Read the permissions, and see that nothing is to belong to anybody else. Refused: 400."""
    for name in ("uid", "gid"):
        if _whole(name, said.get(name), OWNER) != OWNER:
            raise unsupported(name, f"in a sandbox everything belongs to {OWNER}, there is no other user")
    mode = _whole("mode", said.get("mode"))
    if mode is not None and mode > MOST_BITS:
        raise bad_request(f"mode: permissions are at most {MOST_BITS} (0o777)")
    return mode


def _force(request: Request) -> bool:
    value = request.query_params.get("force", "false").lower()
    if value not in ("true", "false"):
        raise bad_request("force: true or false is needed")
    return value == "true"


def _unauthorized() -> Refused:
    message = "The volume's token (Authorization: Bearer) is missing or wrong"
    return Refused(401, message, error_code="unauthorized")


def _refused(error: OSError, path: str, most: int) -> Refused:
    shown = path[:128]
    match error.errno:
        case errno.ENOENT:
            return Refused(404, f"Path {shown!r} was not found", error_code="path_not_found")
        case errno.EEXIST:
            return Refused(409, f"Path {shown!r} is there already", error_code="path_exists", retry=False)
        case errno.ENOSPC | errno.EDQUOT:
            return full("this one", most)
        case errno.EIO | errno.EMFILE | errno.ENFILE | errno.ESTALE:
            return Refused(500, f"Path {shown!r}: {error.strerror}", error_code="volume_failed")
        case _:
            return bad_request(f"path {shown!r}: {error.strerror or error}")


# -- showing ------------------------------------------------------------------------------------------------------


def _shown(volume: Volume) -> JSON:
    return {"volumeID": volume.volume_id, "name": volume.name}


def _entry(one: Stat) -> JSON:
    shown: JSON = {
        "name": one.name,
        "type": one.kind,
        "path": one.path,
        "size": one.size,
        "mode": one.mode,
        "uid": OWNER,
        "gid": OWNER,
        "atime": _moment(one.atime),
        "mtime": _moment(one.mtime),
        "ctime": _moment(one.ctime),
    }
    return shown if one.target is None else shown | {"target": one.target}


def _moment(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError):  # a program may set any time
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat().replace("+00:00", "Z")
