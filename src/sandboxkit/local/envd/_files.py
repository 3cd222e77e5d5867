"""The route `/files`: checks who asks, finds the path, and answers with a download or an upload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from sandboxkit.local import _answers
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.envd._access import Denied, Operation, Signer, refused_user
from sandboxkit.local.envd._download import download
from sandboxkit.local.envd._entries import text
from sandboxkit.local.envd._file_agent import FileAgent
from sandboxkit.local.envd._http import Body, ClientGone, Refused
from sandboxkit.local.envd._paths import BadPath, resolve
from sandboxkit.local.envd._upload import Upload
from sandboxkit.local.isolation._base import AgentLost

_DISCARD_UNKNOWN: Final = 1024 * 1024
"""Bytes of a refused upload that are read on, so that its client sees the refusal: from anybody..."""
_DISCARD_KNOWN: Final = 1024 * 1024 * 1024
"""...and from a client that has shown that it may write."""


class Files:
    """Answers `/files` of one sandbox."""

    def __init__(
        self, agent: FileAgent, settings: SandboxSettings, *, signer: Signer, lost: Callable[[], Response]
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._signer = signer
        self._lost = lost
        self._transfers: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        begun = False

        async def sending(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        # A task of its own, so that `aclose` can end a transfer without ending the server's task: as long as a
        # descriptor of the box is open here, so is its disk.
        work = asyncio.ensure_future(self._answer(scope, receive, sending))
        self._transfers.add(work)
        try:
            await asyncio.wait({work})
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._transfers.discard(work)
        if not work.cancelled():
            work.result()
        elif not begun:
            await self._lost()(scope, receive, send)
        # Otherwise the response stays unfinished, which makes the server close the connection.

    def is_busy(self) -> bool:
        """Whether a transfer is under way."""
        return bool(self._transfers)

    async def aclose(self) -> None:
        """End every transfer. Idempotent."""
        transfers = list(self._transfers)
        for work in transfers:
            work.cancel()
        await asyncio.gather(*transfers, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        headers = Headers(scope=scope)
        query = QueryParams(scope["query_string"])
        try:
            if method in ("GET", "HEAD"):
                self._admit(query, "read", headers)
                await self._download(query, headers, receive, send, head=method == "HEAD")
            elif method == "POST":
                await self._upload(query, headers, scope, receive, send)
            else:
                await Response(status_code=405, headers={"Allow": "GET, HEAD, POST"})(scope, receive, send)
        except Refused as refusal:
            await _answers.error(refusal.status, text(refusal.message))(scope, receive, send)
        except AgentLost:
            await self._lost()(scope, receive, send)
        except ClientGone:
            # Nobody is there, or a file shrank under its promised length: the response stays unfinished.
            return

    def _admit(self, query: Mapping[str, str], operation: Operation, headers: Headers) -> None:
        try:
            self._signer.check(query, operation, token=headers.get("x-access-token"), now=time.time())
        except Denied as denied:
            raise Refused(401, str(denied)) from None
        user = query.get("username")
        reason = refused_user(user, self._settings.user)
        if reason is not None:
            raise Refused(401, f"error looking up user '{user}'{reason}")

    async def _download(
        self, query: Mapping[str, str], headers: Headers, receive: Receive, send: Send, *, head: bool
    ) -> None:
        asked = query.get("path", "")
        settings = self._settings
        try:
            path = resolve(asked, home=settings.home, workdir=settings.workdir, user=settings.user)
        except BadPath as problem:
            raise Refused(400, f"error expanding and resolving path '{asked}': {problem}") from None
        await download(self._agent, path, headers, receive, send, head=head)

    async def _upload(
        self, query: Mapping[str, str], headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        body = Body(receive)
        left = _DISCARD_UNKNOWN
        try:
            self._admit(query, "write", headers)
            left = _DISCARD_KNOWN
            upload = Upload(self._agent, self._settings, headers, query.get("path"))
            written = await upload.run(body)
        except Refused as refusal:
            if refusal.status != 408:
                await body.discard(at_most=left)
            raise
        await JSONResponse(written)(scope, receive, send)
