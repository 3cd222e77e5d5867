"""Files below a root by the confined base path of a server that has one: the local engine."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import httpx
from e2b.envd.api import ahandle_envd_api_exception

from sandboxkit.errors import ProviderUnavailable
from sandboxkit.provider import _errors
from sandboxkit.provider._confined import BrokenAnswer, FileAnswer, FileCall, decoded, encoded
from sandboxkit.provider._e2b._files import TRANSFER_LIMIT
from sandboxkit.provider._e2b._request import REQUEST_LIMIT, one_request

if TYPE_CHECKING:
    from e2b import AsyncSandbox

HEADER = "X-Sandboxkit-Confined"
_SMALL = 64 * 1024
"""Bytes of an answer's fields, beside its content; listings have a bound of their own."""


class EngineConfined:
    """A `Confined` whose server resolves. No sandbox of the engine's has a root, so nobody in it is above its user."""

    root_adversary = False
    mechanism = "engine"
    can_watch = True

    def __init__(self, raw: AsyncSandbox, cross: Callable[[], Callable[..., Awaitable[Any]]], root: str) -> None:
        self._raw = raw
        self._cross = cross
        self._base = base_path(root)

    async def call(self, call: FileCall) -> FileAnswer:
        answer: FileAnswer = await self._cross()(self._call, call)
        return answer

    async def _call(self, call: FileCall) -> FileAnswer:
        doing = f"{call.operation} below a root"
        raw = bytearray()
        limit = call.max_answer + _SMALL
        try:
            with anyio.move_on_after(TRANSFER_LIMIT):
                request = self._raw._envd_api.stream(
                    "POST",
                    f"{self._base}/call",
                    content=encoded(call) + call.data,
                    headers={"Content-Type": "application/octet-stream", "Accept-Encoding": "identity"},
                    timeout=REQUEST_LIMIT,
                )
                async with request as response:
                    failure = await ahandle_envd_api_exception(response)
                    if failure is not None:
                        raise failure
                    async for piece in response.aiter_raw():
                        raw += piece
                        if len(raw) > limit:
                            raise BrokenAnswer("it is longer than was asked for")
                return decoded(bytes(raw))
        except Exception as error:
            if not isinstance(error, httpx.HTTPError) and not _errors.is_from_the_sdk(error):
                raise
            raise _errors.translated(error, doing=doing, sandbox_id=self._raw.sandbox_id) from error
        raise ProviderUnavailable(
            f"No answer within {TRANSFER_LIMIT:g} s ({doing}).", sandbox_id=self._raw.sandbox_id, status=None
        )


def base_path(root: str) -> str:
    """The confined base path of a root."""
    name = base64.urlsafe_b64encode(root.encode("utf-8", "surrogateescape")).rstrip(b"=").decode()
    return f"/confined/{name}"


async def has_confined(raw: AsyncSandbox, root: str) -> bool:
    """Whether the server has a confined base path. Only one that is configured by its URL is asked: what the SDK makes
    up from a sandbox's id may be answered in the sandbox, by whoever is root there."""
    if not vars(raw.connection_config).get("_sandbox_url"):  # a static method has the same name
        return False

    async def ask() -> bool:
        response = await raw._envd_api.get(f"{base_path(root)}/health", timeout=REQUEST_LIMIT)
        if response.status_code == 404:
            return False
        failure = await ahandle_envd_api_exception(response)
        if failure is not None:
            raise failure
        return response.status_code == 204 and response.headers.get(HEADER) == "1"

    return await one_request(ask, "asking for a confined base path", raw.sandbox_id)
