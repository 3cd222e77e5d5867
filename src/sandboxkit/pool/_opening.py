"""What `pool.session()` returns before anything is asked of the pool."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Any

from sandboxkit.pool._lease import Lease
from sandboxkit.pool._session import AsyncSession
from sandboxkit.pool._shell import Request, Shell


class SessionOpening:
    """What `pool.session()` returns: await it for a session that is held until `close()` or the pool's end, or enter
    it with `async with` for one that is closed at the end of the block. Nothing is asked of the pool before."""

    def __init__(self, shell: Shell, request: Request) -> None:
        self._shell = shell
        self._request = request
        self._entered: list[AsyncSession] = []

    async def open(self) -> AsyncSession:
        """Open the session; the same as awaiting this."""
        return AsyncSession(Lease(self._shell, await self._shell.open(self._request), self._request))

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self.open().__await__()

    async def __aenter__(self) -> AsyncSession:
        session = await self.open()
        self._entered.append(session)
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._entered.pop().close()
