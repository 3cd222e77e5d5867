"""Prolongs the lives of the pool's sandboxes, as `_lifetime` decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import anyio

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import (
    ProviderUnavailable,
    SandboxExpired,
    SandboxkitError,
    SandboxNotFound,
)
from sandboxkit.pool._core import Core
from sandboxkit.pool._lifetime import renewal
from sandboxkit.pool._moves import Lost, PoolEvent, Renewed
from sandboxkit.pool._stats import Counters


class Life:
    """Asks the provider to prolong, at most once at a time for each sandbox, and tells the policy."""

    def __init__(self, timeouts: TimeoutPolicy, counters: Counters, step: Callable[[PoolEvent], None]) -> None:
        self._timeouts = timeouts
        self._counters = counters
        self._step = step

    async def prolong(self, core: Core, work: float) -> None:
        """See that a sandbox lives long enough for work that takes up to `work` seconds.

        Raises:
            SandboxNotFound: it is gone.
            ProviderError: the service did not answer, or refused.
        """
        if self._wanted(core, work) is None:
            return
        async with core.lock:
            wanted = self._wanted(core, work)
            if wanted is not None and core.gone is None:
                await self._extend(core, wanted)

    async def make_sure(self, core: Core) -> None:
        """See that an idle session's sandbox is still there, and give it its life: the first use must not fail.

        One that is gone is reported as lost, which is no error: the session gets a new one.

        Raises:
            ProviderError: the service did not answer; nothing is known.
        """
        async with core.lock:
            if not core.is_unchecked or core.gone is not None:
                return
            if await self._is_there(core):
                core.is_unchecked = False
            else:
                self._step(Lost(core.slot))

    async def _is_there(self, core: Core) -> bool:
        try:
            if self._timeouts.renew == "never":
                with self._limit(core):
                    return await core.sandbox.is_running()
            await self._extend(core, max(self._timeouts.lifetime, self._timeouts.floor))
        except (SandboxNotFound, SandboxExpired):
            return False
        return True

    def _wanted(self, core: Core, work: float) -> float | None:
        remaining = None if core.end_at is None else core.end_at - anyio.current_time()
        return renewal(self._timeouts, remaining=remaining, work=work)

    async def _extend(self, core: Core, lifetime: float) -> None:
        with self._limit(core):
            end_at = await core.sandbox.extend(lifetime)
        core.end_at = on_loop_clock(end_at)
        self._counters.renewed += 1
        self._step(Renewed(core.slot, core.end_at))
        core.tell("sandbox.renewed", end_at=end_at.timestamp())

    @contextmanager
    def _limit(self, core: Core) -> Iterator[None]:
        try:
            with anyio.fail_after(self._timeouts.command):
                yield
        except TimeoutError as error:
            if isinstance(error, SandboxkitError):
                raise
            raise ProviderUnavailable(
                f"The service did not answer for sandbox {core.sandbox.sandbox_id} within TimeoutPolicy.command="
                f"{self._timeouts.command:g} s.",
                sandbox_id=core.sandbox.sandbox_id,
            ) from error


def on_loop_clock(moment: datetime | None) -> float | None:
    """A moment of the calendar on the event loop's clock."""
    if moment is None:
        return None
    return anyio.current_time() + (moment - utc_now()).total_seconds()


def utc_now() -> datetime:
    """The calendar's time, which sandboxes end by. A function of its own, so that tests can let it pass."""
    return datetime.now(UTC)
