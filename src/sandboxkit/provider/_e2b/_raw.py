"""The SDK's asynchronous sandbox as we make it: with one plain HTTP client for all that it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from httpx import AsyncBaseTransport, AsyncClient, Request, Response

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox
else:
    from e2b_code_interpreter import AsyncSandbox


class PlainClient(AsyncClient):
    """Sends a request, and that is all: no cookie is kept, which a sandbox could set, no redirect followed, and no
    password looked for. The SDK's requests want none of it."""

    def __init__(self, transport: AsyncBaseTransport) -> None:
        super().__init__(transport=transport)
        self._sends = transport.handle_async_request

    async def send(self, request: Request, *, stream: bool = False, **_: Any) -> Response:
        """As httpx's."""
        response = await self._sends(request)
        response.request = request
        if not stream:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response


class RawSandbox(AsyncSandbox):
    """What `session.sandbox` is.

    The SDK makes a client for each run, though its transport, which has the connections, is shared by all of them
    anyway: 0.1 to 0.2 ms of the 1.8 that a small cell takes. Should the SDK, or httpx, name its parts otherwise one
    day, it goes as the SDK does it.
    """

    _kept: tuple[asyncio.AbstractEventLoop, AsyncClient] | None = None

    @property
    def _client(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        if self._kept is None or self._kept[0] is not loop:  # versions of the SDK have a transport for each loop
            theirs = super()._client
            transport = getattr(theirs, "_transport", None)
            self._kept = (loop, theirs if transport is None else PlainClient(transport))
        return self._kept[1]


RawSandbox.__name__ = RawSandbox.__qualname__ = AsyncSandbox.__name__
RawSandbox.__module__ = AsyncSandbox.__module__
