"""Calls on a sandbox of this process's own engine: once that engine has ended, its sandboxes are certainly gone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from sandboxkit.errors import ProviderUnavailable, SandboxNotFound
from sandboxkit.local._child import Engine
from sandboxkit.provider._asyncio import Here, TrioCall
from sandboxkit.provider._e2b._request import cross

T = TypeVar("T")

DEATH_LIMIT = 2.0
"""Seconds to wait for the end of an engine that dropped a connection: its sockets close before its process is over."""
_PACE = 0.02


class CallOnOwnEngine:
    """`cross()` for one such sandbox. Asks the kernel, not the network, whether the engine lives."""

    def __init__(self, engine: Engine, sandbox_id: str) -> None:
        self._engine = engine
        self._sandbox_id = sandbox_id
        self._call: TrioCall | Here = cross()
        self.is_crossing = self._call.is_crossing

    def back(self, func: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        return self._call.back(func)

    async def __call__(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """Carry a call out.

        Raises:
            SandboxNotFound: the engine has ended, before the call or under it.
        """
        if not self._engine.is_alive():
            raise self._gone()
        try:
            return await self._call(func, *args, **kwargs)
        except ProviderUnavailable as error:
            if await self._ends():
                raise self._gone() from error
            raise

    async def _ends(self) -> bool:
        with anyio.move_on_after(DEATH_LIMIT):
            while self._engine.is_alive():  # noqa: ASYNC110  (a process sets no event)
                await anyio.sleep(_PACE)
        return not self._engine.is_alive()

    def _gone(self) -> SandboxNotFound:
        return SandboxNotFound(
            f"Sandbox {self._sandbox_id} is gone: the local engine that it lived in has ended. The next sandbox starts "
            "a new engine.",
            sandbox_id=self._sandbox_id,
        )
