"""Looks after the pool's stock and after what others left: waiting for the warm ones, giving up, cleaning up."""

from __future__ import annotations

import logging

import anyio

from sandboxkit.errors import PoolClosed, PoolTimeout
from sandboxkit.events import name_of
from sandboxkit.pool import _life
from sandboxkit.pool._emit import Teller
from sandboxkit.pool._liveness import is_dead
from sandboxkit.pool._moves import Report
from sandboxkit.pool._options import PoolOptions
from sandboxkit.pool._policy import PoolPolicy
from sandboxkit.pool._reap import orphans
from sandboxkit.pool._stats import Counters
from sandboxkit.pool._workers import Workers
from sandboxkit.provider._base import Provider

REAP_LIMIT = 15.0
"""Seconds that cleaning up may take before the pool opens all the same."""

_logger = logging.getLogger("sandboxkit.pool")


class Upkeep:
    """What a pool does besides serving its callers."""

    def __init__(
        self,
        options: PoolOptions,
        provider: Provider,
        policy: PoolPolicy,
        workers: Workers,
        counters: Counters,
        tell: Teller,
    ) -> None:
        self._options = options
        self._provider = provider
        self._policy = policy
        self._workers = workers
        self._counters = counters
        self._tell = tell
        self.stepped = anyio.Event()
        """Set by each step of the policy; who waits for one makes it anew."""

    def report(self, report: Report) -> None:
        """Tell how the stock of a template fares."""
        error = self._workers.last_failures.get(report.template)
        tell = self._tell.about(template=report.template)
        if report.news == "recovered" or error is None:
            tell(f"pool.{report.news}")
            return
        tell(f"pool.{report.news}", error=name_of(error))
        if report.news == "gave_up" and self._options.on_give_up is not None:
            try:
                self._options.on_give_up(error)
            except Exception:
                _logger.exception("on_give_up raised", extra={"op": "pool.gave_up"})

    async def wait_ready(self, timeout: float) -> None:
        """Wait until all warm ones are there. Errors: as `AsyncSandboxPool.wait_ready` says."""
        with anyio.move_on_after(timeout):
            while not self._policy.is_ready or self._policy.closing:
                if self._policy.closing:
                    raise PoolClosed(f"Pool {self._options.name!r} is closed.")
                for template, stock in self._policy.stocks.items():
                    if stock.stage == "given_up":
                        raise self._workers.last_failures[template]
                self.stepped = anyio.Event()
                await self.stepped.wait()
            return
        missing = {
            template: stock.target - self._policy.warm(template)
            for template, stock in self._policy.stocks.items()
            if stock.target > self._policy.warm(template)
        }
        failures = self._workers.last_failures
        raise PoolTimeout(
            f"Pool {self._options.name!r} was not ready within timeout={timeout:g} s; warm sandboxes are missing: "
            f"{missing}."
        ) from next((failures[template] for template in missing if template in failures), None)

    async def reap(self, older_than: float | None) -> tuple[str, ...]:
        """Kill what dead processes left; the ids. Errors: as `AsyncSandboxPool.reap` says."""
        killed: list[str] = []
        found = await orphans(
            self._provider, self._options, now=_life.utc_now(), older_than=older_than, is_dead=is_dead
        )
        for info in found:
            if await self._provider.kill(info.sandbox_id):
                killed.append(info.sandbox_id)
                self._counters.reaped += 1
                self._tell.about(sandbox_id=info.sandbox_id, template=info.template)("sandbox.reaped")
        return tuple(killed)

    async def reap_first(self) -> None:
        """Clean up before the pool opens; what fails is told, and the pool opens all the same."""
        try:
            with anyio.fail_after(REAP_LIMIT):
                await self.reap(None)
        except Exception as error:
            self._tell("pool.reap_failed", error=name_of(error))
