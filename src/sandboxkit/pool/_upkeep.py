"""Looks after the pool's stock and after what others left: waiting for the warm ones, giving up, cleaning up."""

from __future__ import annotations

import logging

import anyio

from sandboxkit.errors import PoolClosed, PoolTimeout, ProviderError, SandboxLost, TemplateNotFound
from sandboxkit.events import name_of
from sandboxkit.pool import _life
from sandboxkit.pool._core import Core
from sandboxkit.pool._emit import Teller
from sandboxkit.pool._liveness import held_here, is_dead
from sandboxkit.pool._moves import Report
from sandboxkit.pool._options import PoolOptions
from sandboxkit.pool._policy import PoolPolicy
from sandboxkit.pool._reap import orphans
from sandboxkit.pool._refusals import refusal
from sandboxkit.pool._stats import Counters
from sandboxkit.pool._workers import Workers
from sandboxkit.provider._base import Provider
from sandboxkit.template import Template

REAP_LIMIT = 15.0
"""Seconds that cleaning up may take before the pool opens all the same."""

ASK_EVERY = 0.1
"""Seconds between two questions whether the apps of the warm ones answer."""
ANSWER_WITHIN = 20.0
"""Seconds that one answer may take; development servers compile before their first one."""

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
        """Set by each step of the policy; who waits for the next one makes it anew, or shares what others wait for."""

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
        """Wait until all warm ones are there, and their apps answer. Errors: as `AsyncSandboxPool.wait_ready` says."""
        answering: set[int] = set()
        with anyio.move_on_after(timeout):
            while True:
                await self._wait_for_creates()
                if not (silent := self._silent(answering)):
                    return
                async with anyio.create_task_group() as tasks:
                    for core, template in silent:
                        tasks.start_soon(_ask, core, template, answering)
                if self._silent(answering):
                    await anyio.sleep(ASK_EVERY)
        missing = {
            template: stock.target - self._policy.warm(template)
            for template, stock in self._policy.stocks.items()
            if stock.target > self._policy.warm(template)
        }
        failures = self._workers.last_failures
        what = f"warm sandboxes are missing: {missing}"
        if not missing:
            what = f"no answer from the apps of {[core.sandbox.sandbox_id for core, _ in self._silent(answering)]}"
        raise PoolTimeout(f"Pool {self._options.name!r} was not ready within timeout={timeout:g} s; {what}.") from next(
            (failures[template] for template in missing if template in failures), None
        )

    async def _wait_for_creates(self) -> None:
        while not self._policy.is_ready or self._policy.closing:
            if self._policy.closing:
                raise PoolClosed(f"Pool {self._options.name!r} is closed.")
            for template, stock in self._policy.stocks.items():
                if stock.stage == "given_up":
                    raise refusal("create_failed", self._options, self._policy, self._workers.last_failures[template])
            if self.stepped.is_set():  # else somebody waits for it already
                self.stepped = anyio.Event()
            await self.stepped.wait()

    def _silent(self, answering: set[int]) -> list[tuple[Core, Template]]:
        """The warm ones whose template's start command serves an app that has not been seen to answer."""
        silent = []
        for slot in self._policy.slots.values():
            if slot.is_warm and slot.id not in answering and (template := _with_app(slot.spec.template)) is not None:
                silent.append((self._workers.cores[slot.id], template))
        return silent

    async def reap(self, older_than: float | None) -> tuple[str, ...]:
        """Kill what dead processes left; the ids. Errors: as `AsyncSandboxPool.reap` says."""
        killed: list[str] = []
        failures: list[ProviderError] = []
        found = await orphans(
            self._provider, self._options, now=_life.utc_now(), older_than=older_than, is_dead=is_dead
        )
        for info in found:
            if info.sandbox_id in held_here():
                continue  # attached: its tags still name who made it
            tell = self._tell.about(sandbox_id=info.sandbox_id, template=info.template)
            try:
                if not await self._provider.kill(info.sandbox_id):
                    continue
            except ProviderError as error:
                failures.append(error)  # the others go all the same
                tell("sandbox.kill_failed", error=name_of(error), reason="reaped")
                continue
            killed.append(info.sandbox_id)
            self._counters.reaped += 1
            tell("sandbox.reaped")
        if failures:
            raise failures[0]
        return tuple(killed)

    async def reap_first(self) -> None:
        """Clean up before the pool opens; what fails is told, and the pool opens all the same."""
        try:
            with anyio.fail_after(REAP_LIMIT):
                await self.reap(None)
        except Exception as error:
            self._tell("pool.reap_failed", error=name_of(error))


def _with_app(name: str) -> Template | None:
    """The registry's entry of a template whose start command serves an app."""
    try:
        template = Template.get(name)
    except TemplateNotFound:
        return None
    return template if template.start is not None and template.port is not None else None


async def _ask(core: Core, template: Template, answering: set[int]) -> None:
    """See whether its app answers. A sandbox that is gone has none to wait for: the hand-over finds that out."""
    assert template.port is not None
    try:
        status = await core.sandbox.http_status(template.port, template.ready or "/", timeout=ANSWER_WITHIN)
    except SandboxLost:
        answering.add(core.slot)
        return
    except ProviderError:
        return  # asked again
    if status is not None and status < 500:
        answering.add(core.slot)
