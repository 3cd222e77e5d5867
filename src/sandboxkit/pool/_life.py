"""Prolongs the lives of the pool's sandboxes, as `_lifetime` decides, pauses them and lets them go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import anyio
from anyio.abc import TaskGroup

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import (
    ProviderUnavailable,
    SandboxExpired,
    SandboxkitError,
    SandboxLost,
    SandboxNotFound,
)
from sandboxkit.events import name_of
from sandboxkit.pool._core import Core
from sandboxkit.pool._lifetime import beat_every, renewal
from sandboxkit.pool._moves import Lost, PoolEvent, Renewed, RenewFailed
from sandboxkit.pool._stats import Counters
from sandboxkit.provider._base import Provider


class Life:
    """Asks the provider to prolong, at most once at a time for each sandbox, and tells the policy."""

    def __init__(
        self, timeouts: TimeoutPolicy, provider: Provider, counters: Counters, step: Callable[[PoolEvent], None]
    ) -> None:
        self._timeouts = timeouts
        self._provider = provider
        self._counters = counters
        self._step = step

    async def prolong(self, core: Core, work: float) -> None:
        """See that a sandbox lives long enough for work that takes up to `work` seconds; a paused one goes on.

        Raises:
            SandboxNotFound: it is gone.
            SandboxExpired: it is too old for the floor to be left (`max_lifetime`).
            ProviderError: the service did not answer, or refused.
        """
        if not core.is_paused and self._wanted(core, work) is None:
            self._refuse_the_old(core)
            return
        async with core.lock:
            self._refuse_the_old(core)
            wanted = self._wanted(core, work)
            if core.is_paused and wanted is None:
                wanted = self._at_most(core, self._timeouts.lifetime)
            if wanted is not None and core.gone is None:
                await self._extend(core, wanted)

    async def make_sure(self, core: Core) -> None:
        """See that a sandbox that lay idle is still there, and give it its life: the first use must not fail.

        One that is gone, or that is too old to start anything, is reported as lost, which is no error: the caller
        gets another.

        Raises:
            ProviderError: the service did not answer; nothing is known.
        """
        async with core.lock:
            if not core.is_unchecked or core.gone is not None:
                return
            if self.is_too_old(core):
                self._step(Lost(core.slot, "expired"))
            elif await self._is_there(core):
                core.is_unchecked = False
            else:
                self._step(Lost(core.slot))

    async def renew_warm(self, core: Core) -> None:
        """Prolong a warm one, because its end is near; how that went is told to the policy."""
        try:
            async with core.lock:
                if core.gone is None:
                    await self._extend(core, self._at_most(core, self._timeouts.lifetime))
                else:
                    self._step(RenewFailed(core.slot))
        except SandboxLost:
            self._step(Lost(core.slot))
        except Exception as error:
            core.tell("sandbox.renew_failed", error=name_of(error))
            self._step(RenewFailed(core.slot))

    async def pause(self, core: Core) -> None:
        """Pause a sandbox; its next use lets it go on.

        Raises:
            SandboxNotFound: it is gone.
            ProviderError: the service did not answer, or refused.
        """
        async with core.lock:
            if core.is_paused:
                return
            with self._limit(core):
                await core.sandbox.pause()
            self._has_paused(core)

    async def is_there(self, core: Core) -> bool:
        """Ask for a sandbox that could not be used, and take in if it is paused. False if it is gone.

        Raises:
            ProviderError: the service did not answer; nothing is known.
        """
        async with core.lock:
            if core.is_paused:
                return True
            try:
                with self._limit(core):
                    info = await self._provider.info(core.sandbox.sandbox_id)
            except SandboxLost:
                return False
            if info.state == "paused":
                self._has_paused(core)
            return True

    async def beat(self, cores: Callable[[], Iterable[Core]], tasks: TaskGroup) -> None:
        """Prolong, again and again, the sandboxes in which work runs, if the policy says so; never returns."""
        every = beat_every(self._timeouts)
        while every is not None:
            await anyio.sleep(every)
            for core in list(cores()):
                if core.uses and core.gone is None and not core.is_paused and not core.lock.locked():
                    tasks.start_soon(self._beat_once, core)
        await anyio.sleep_forever()

    async def _beat_once(self, core: Core) -> None:
        try:
            async with core.lock:
                wanted = self._wanted(core, 0.0)
                if wanted is not None and core.gone is None and not core.is_paused:
                    await self._extend(core, wanted)
        except SandboxLost:
            pass  # the work that runs in it finds out, and knows what to do
        except Exception as error:
            core.tell("sandbox.renew_failed", error=name_of(error))  # the next beat tries again

    async def _is_there(self, core: Core) -> bool:
        lifetime = self._timeouts.lifetime
        try:
            if self._timeouts.renew != "never":
                await self._extend(core, self._at_most(core, lifetime))
                return True
            with self._limit(core):
                if self._timeouts.at_end == "kill" and not core.is_paused:
                    return await core.sandbox.is_running()
                is_paused = (await self._provider.info(core.sandbox.sandbox_id)).state == "paused"
            if is_paused:
                await self._extend(core, self._at_most(core, lifetime))
        except (SandboxNotFound, SandboxExpired):
            return False
        return True

    def left(self, core: Core) -> float | None:
        """Seconds until its provider ends it whatever we ask, None if there is no such end."""
        if self._timeouts.max_lifetime is None:
            return None
        return core.made_at + self._timeouts.max_lifetime - anyio.current_time()

    def is_too_old(self, core: Core) -> bool:
        """Whether less than the floor is left of `max_lifetime`: nothing may begin in it any more."""
        left = self.left(core)
        return left is not None and left < self._timeouts.floor

    def _refuse_the_old(self, core: Core) -> None:
        if self.is_too_old(core):
            raise SandboxExpired(
                f"Sandbox {core.sandbox.sandbox_id} is nearly TimeoutPolicy.max_lifetime="
                f"{self._timeouts.max_lifetime:g} s old: less than floor={self._timeouts.floor:g} s is left.",
                sandbox_id=core.sandbox.sandbox_id,
            )

    def _at_most(self, core: Core, lifetime: float) -> float:
        left = self.left(core)
        return lifetime if left is None else min(lifetime, left)

    def _wanted(self, core: Core, work: float) -> float | None:
        remaining = None if core.end_at is None else core.end_at - anyio.current_time()
        return renewal(self._timeouts, remaining=remaining, work=work, left=self.left(core))

    def _has_paused(self, core: Core) -> None:
        core.is_paused = True
        core.end_at = None
        self._step(Renewed(core.slot, None))
        self._counters.paused_total += 1
        core.tell("sandbox.paused")

    async def _extend(self, core: Core, lifetime: float) -> None:
        with self._limit(core):
            end_at = await core.sandbox.extend(lifetime)
        core.end_at = on_loop_clock(end_at)
        self._counters.renewed += 1
        self._step(Renewed(core.slot, core.end_at))
        if core.is_paused:
            core.is_paused = False
            core.tell("sandbox.resumed", end_at=end_at.timestamp())
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
