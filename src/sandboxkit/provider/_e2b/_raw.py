"""The SDK's asynchronous sandbox as we make it: with one HTTP client for all that it runs, instead of one for each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from httpx import AsyncClient

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox
else:
    from e2b_code_interpreter import AsyncSandbox


class RawSandbox(AsyncSandbox):
    """What `session.sandbox` is.

    The SDK makes a client for each run (0.15 ms, of the 1.6 that a small cell takes), though its transport, which has
    the connections, is shared by all of them anyway. Should the SDK call it otherwise one day, nothing is overridden.
    """

    _kept: tuple[asyncio.AbstractEventLoop, AsyncClient] | None = None

    @property
    def _client(self) -> AsyncClient:
        loop = asyncio.get_running_loop()
        if self._kept is None or self._kept[0] is not loop:  # versions of the SDK have a transport for each loop
            self._kept = (loop, super()._client)
        return self._kept[1]


RawSandbox.__name__ = RawSandbox.__qualname__ = AsyncSandbox.__name__
RawSandbox.__module__ = AsyncSandbox.__module__
