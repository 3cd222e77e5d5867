"""POST of `/files`: files into the sandbox, in bounded memory.

A file is written in place, as envd does: links are followed, an existing file keeps its mode, its owner and its other
names, and a watcher sees it created and written. So an upload that breaks off leaves what came until then. Where the
sandbox's disk is full the file is emptied, which frees the space and leaves no half file that looks whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterable, Mapping
from typing import Final

from starlette.datastructures import Headers

from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._entries import text
from sandboxkit.local.envd._file_agent import FileAgent
from sandboxkit.local.envd._http import PIECE, Body, Refused, unzipped
from sandboxkit.local.envd._multipart import FormReader, PartBegin, PartData, PartEnd
from sandboxkit.local.envd._paths import BadPath, resolve
from sandboxkit.local.isolation._base import AgentError, File

METADATA_HEADER: Final = "x-metadata-"
XATTR_PREFIX: Final = "user.e2b."
MAX_XATTR_NAME: Final = 255
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Upload:
    """One request's files."""

    def __init__(self, agent: FileAgent, settings: SandboxSettings, headers: Headers, path: str | None) -> None:
        """`path` is the query's; without it, each part's file name is its path. Raises Refused for bad metadata."""
        self._agent = agent
        self._settings = settings
        self._path = path
        self._type = headers.get("content-type", "")
        self._coding = headers.get("content-encoding", "").split(";", 1)[0].strip().lower()
        self._length = headers.get("content-length", "")
        self._metadata = metadata_of(headers)
        self._done: list[str] = []

    async def run(self, body: Body) -> list[dict[str, object]]:
        """Write all files and describe them, as the answer does.

        Raises:
            Refused: 400, 403, 408, 500 or 507.
            ClientGone: the body broke off.
            AgentLost: the sandbox is gone.
        """
        pieces: AsyncIterable[bytes] = body
        if self._coding == "gzip":
            pieces = unzipped(body)
        elif self._coding not in ("", "identity"):
            raise Refused(
                400,
                f"error decompressing request body: unsupported Content-Encoding: {self._coding}, supported: [gzip]",
            )
        kind = self._type.split(";", 1)[0].strip().lower()
        if kind == "application/octet-stream":
            await self._raw(pieces)
        elif kind.startswith("multipart/"):
            await self._form(pieces)
        else:
            raise Refused(
                400,
                f"unsupported content type: {self._type}, expected multipart/form-data or application/octet-stream",
            )
        return [self._describe(path) for path in self._done]

    def _describe(self, path: str) -> dict[str, object]:
        entry: dict[str, object] = {
            "path": text(path),
            "name": text(path.rstrip("/").rpartition("/")[2]),
            "type": "file",
        }
        if self._metadata:
            entry["metadata"] = self._metadata
        return entry

    async def _raw(self, pieces: AsyncIterable[bytes]) -> None:
        if self._path is None:
            raise Refused(400, "path query parameter is required for raw body upload")
        file = await self._open(self._resolve(self._path))
        try:
            async for piece in pieces:
                await file.write(piece)
            await self._close(file)
        finally:
            file.close()

    async def _form(self, pieces: AsyncIterable[bytes]) -> None:
        reader = FormReader(self._type)
        file: _File | None = None
        try:
            async for piece in pieces:
                for part in reader.feed(piece):
                    match part:
                        case PartBegin(name, filename):
                            file = await self._open(self._part_path(filename)) if name == "file" else None
                        case PartData(data) if file is not None:
                            await file.write(data)
                        case PartEnd() if file is not None:
                            await self._close(file)
                            file = None
            reader.finish()
        finally:
            if file is not None:
                file.close()

    def _part_path(self, filename: str | None) -> str:
        asked = (filename or None) if self._path is None else self._path
        if asked is None:
            raise Refused(400, "error getting multipart custom part file name: the part has no filename")
        path = self._resolve(asked)
        if path in self._done:
            raise Refused(
                400,
                f"you cannot upload multiple files to the same path '{path}' in one upload request, "
                "only the first specified file was uploaded",
            )
        return path

    def _resolve(self, path: str) -> str:
        settings = self._settings
        try:
            return resolve(path, home=settings.home, workdir=settings.workdir, user=settings.user)
        except BadPath as problem:
            raise Refused(400, f"error resolving path: {problem}") from None

    async def _open(self, path: str) -> _File:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            try:
                file = await self._agent.open_file(path, flags, 0o644)
            except AgentError as error:
                if error.errno != errno.ENOENT:
                    raise
                # The usual case is that the directory is there; only when it is not does it cost a second request.
                await self._agent.make_dir(path.rstrip("/").rpartition("/")[0] or "/")
                file = await self._agent.open_file(path, flags, 0o644)
        except AgentError as error:
            raise _open_refusal(path, error) from None
        return _File(file, path, self._length)

    async def _close(self, file: _File) -> None:
        await file.finish()
        if self._metadata or await file.has_metadata():
            try:
                await self._agent.set_xattrs(file.path, self._metadata)
            except AgentError as error:
                status = 507 if error.errno in _FULL else 500
                raise Refused(status, f"error setting metadata of '{file.path}': {error}") from None
        file.close()
        self._done.append(file.path)


class _File:
    """A file that is being written. Owns the open one."""

    def __init__(self, file: File, path: str, length: str) -> None:
        self.path = path
        self._file = file
        self._length = length
        self._held: list[bytes] = []
        self._held_bytes = 0

    async def write(self, data: bytes) -> None:
        """Take more of the content; it is written in larger pieces. Raises Refused."""
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= PIECE:
            await self.finish()

    async def finish(self) -> None:
        """Write what is held. Raises Refused."""
        data = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        if not data:
            return
        try:
            await self._file.write(data)
        except (OSError, AgentError) as error:
            if error.errno not in _FULL:
                raise Refused(500, f"error writing file: {os.strerror(error.errno or errno.EIO)}") from None
            await self._file.empty()
            attempted = f"attempted to write {self._length} bytes: " if self._length else ""
            raise Refused(507, f"{attempted}not enough disk space available") from None

    async def has_metadata(self) -> bool:
        """Whether the file carries metadata of an earlier upload."""
        return (await self._file.facts()).has_metadata

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()


def _open_refusal(path: str, error: AgentError) -> Refused:
    match error.errno:
        case errno.EISDIR:
            return Refused(400, f"path is a directory: {path}")
        case errno.EINVAL:
            return Refused(400, f"path is not a regular file: {path}")
        case errno.ENAMETOOLONG:
            return Refused(400, f"error opening file: {error}")
        case errno.ENOTDIR | errno.EEXIST:
            return Refused(500, f"error ensuring directories: path is a file: {error.path or path}")
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.EXDEV | errno.EMLINK:
            return Refused(403, f"error opening file: {error}")
        case errno.ENOSPC | errno.EDQUOT:
            return Refused(507, f"not enough inodes available: {error}")
    return Refused(500, f"error opening file: {error}")


def metadata_of(headers: Headers) -> Mapping[str, str]:
    """The metadata of `X-Metadata-*` headers: keys in lower case, the first of several values. Raises Refused."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower().removeprefix(METADATA_HEADER)
        if not name.lower().startswith(METADATA_HEADER) or not key or key in found:
            continue
        if len(XATTR_PREFIX) + len(key) > MAX_XATTR_NAME:
            raise Refused(400, f"metadata key '{key}' is longer than {MAX_XATTR_NAME - len(XATTR_PREFIX)} bytes")
        if not value.isascii() or not value.isprintable():
            raise Refused(400, f"metadata value of key '{key}' is not printable US-ASCII")
        found[key] = value
    return found
