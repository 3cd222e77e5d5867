"""Makes and kills sandboxes, each in a task of the pool's own, and reports how it ended.

A task here is shielded: no caller's cancellation reaches it. What ends it early is `abort` (a create whose pool is
closing) and `stop` (closing has taken as long as it may).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from sandboxkit.errors import PoolClosed, ProviderUnavailable, SandboxkitError, SandboxLost
from sandboxkit.events import name_of
from sandboxkit.pool import _life
from sandboxkit.pool._core import Core
from sandboxkit.pool._emit import Teller
from sandboxkit.pool._journal import Journal
from sandboxkit.pool._life import on_loop_clock
from sandboxkit.pool._lifetime import retire_after
from sandboxkit.pool._liveness import this_process
from sandboxkit.pool._moves import Create, Created, CreateFailed, Kill, Killed, KillFailed, KillReason, PoolEvent
from sandboxkit.pool._options import PoolOptions, create_request
from sandboxkit.pool._stats import Counters
from sandboxkit.pool._sweep import is_unsure, tagged
from sandboxkit.pool._tags import owned
from sandboxkit.pool.stores import MemoryStore, Store
from sandboxkit.provider._base import Provider, ProviderSandbox

CommandT = TypeVar("CommandT", Create, Kill)

KILL_LIMIT = 10.0
"""Seconds for one attempt to kill a sandbox."""
GRACE = 5.0
"""Seconds beyond a provider's own limit for a create, before we give it up ourselves."""


class Workers:
    """The pool's tasks, and the sandboxes that they made."""

    def __init__(
        self,
        options: PoolOptions,
        provider: Provider,
        counters: Counters,
        tell: Teller,
        step: Callable[[PoolEvent], None],
    ) -> None:
        self.cores: dict[int, Core] = {}
        """The sandbox of each slot, from its creation until its kill is confirmed."""
        self.failures: dict[int, Exception] = {}
        """What a create ended with, while the policy is being told."""
        self.last_failures: dict[str, Exception] = {}
        """What the last failed create of a template ended with."""
        self._options = options
        self._provider = provider
        self._counters = counters
        self._tell = tell
        self._step = step
        self.store: Store = MemoryStore()
        self._process = this_process()
        self._unsure: dict[int, tuple[Teller, Mapping[str, str]]] = {}
        self._scopes: dict[tuple[str, int], anyio.CancelScope] = {}
        self._aborted: set[int] = set()
        self._is_stopped = False

    def start(self, command: Create | Kill, tasks: TaskGroup) -> None:
        """Begin what the policy says."""
        if isinstance(command, Create):
            self._run(self._create if command.adopt is None else self._adopt, command, tasks)
        else:
            self._start_killing(command, tasks)

    def abort(self, slot: int) -> None:
        """Give up a create under way."""
        self._aborted.add(slot)
        self._scopes["create", slot].cancel()

    def let_go(self, slot: int) -> Core:
        """Forget a sandbox that is not the pool's any more."""
        return self.cores.pop(slot)

    def stop(self) -> None:
        """Give up everything under way; a sandbox that comes in spite of it is killed by the task that made it."""
        self._is_stopped = True
        for scope in self._scopes.values():
            scope.cancel()

    def _run(
        self,
        work: Callable[[CommandT, anyio.CancelScope], Coroutine[Any, Any, None]],
        command: CommandT,
        tasks: TaskGroup,
    ) -> None:
        scope = anyio.CancelScope(shield=True)
        self._scopes["create" if isinstance(command, Create) else "kill", command.slot] = scope
        tasks.start_soon(work, command, scope)

    async def _create(self, command: Create, scope: anyio.CancelScope) -> None:
        row = command.key if command.key is not None else f"\0anonymous-{command.slot}"
        tell = self._tell.about(session=command.key, template=command.spec.template)
        started_at, generation = anyio.current_time(), 0
        tags: Mapping[str, str] | None = None
        sandbox: ProviderSandbox | None = None
        error: Exception | None = None
        try:
            with scope:
                try:
                    generation = await self.store.begin(row)
                    request = create_request(
                        self._options,
                        session=command.key,
                        row=row,
                        generation=generation,
                        spec=command.spec,
                        process=self._process,
                    )
                    tell("sandbox.creating")
                    tags = owned(request.metadata)
                    with anyio.fail_after(request.timeout + GRACE):
                        sandbox = await self._provider.create(request)
                except SandboxkitError as failure:
                    error = failure
                except TimeoutError as failure:
                    error = ProviderUnavailable(
                        f"No sandbox of {command.spec.template!r} within TimeoutPolicy.create="
                        f"{self._options.timeouts.create:g} s, and no answer."
                    )
                    error.__cause__ = failure
                except Exception as failure:
                    error = failure  # a provider's own mistake: told to whoever waits for this sandbox
            if sandbox is None and error is None:
                error = PoolClosed(f"Pool {self._options.name!r} was closed while the sandbox was being created.")
        finally:
            # Also when a loop that is being torn down cancels this task past every shield.
            self._scopes.pop(("create", command.slot), None)
            duration = anyio.current_time() - started_at
            if sandbox is None:
                if error is not None and tags is not None and is_unsure(error):
                    self._unsure[command.slot] = tell, tags
                self._create_failed(command, tell, error, duration)
            else:
                self._counters.count_create(duration)
                self._created(command, tell, sandbox, row, generation, started_at, duration)
        with anyio.CancelScope(shield=True):
            if sandbox is None:
                await self.store.clear(row, generation)
            else:
                await self.store.settle(row, generation, sandbox.sandbox_id)
            if sandbox is not None and self._is_stopped and command.slot in self.cores:
                # It came in spite of the abort, and later than closing waits: nobody else will kill it.
                with anyio.move_on_after(KILL_LIMIT):
                    await self._provider.kill(sandbox.sandbox_id)
                    del self.cores[command.slot]

    def _create_failed(self, command: Create, tell: Teller, error: Exception | None, duration: float) -> None:
        if error is None:
            error = PoolClosed(f"Pool {self._options.name!r} was cancelled while the sandbox was being created.")
        if command.slot in self._aborted and isinstance(error, PoolClosed):
            tell("sandbox.create_aborted", duration=duration)
        else:
            self._counters.create_errors += 1
            tell("sandbox.create_failed", error=name_of(error), duration=duration)
            self.last_failures[command.spec.template] = error
        self._aborted.discard(command.slot)
        self.failures[command.slot] = error
        self._step(CreateFailed(command.slot, command.slot in self._unsure, random.random()))
        del self.failures[command.slot]

    def _created(
        self,
        command: Create,
        tell: Teller,
        sandbox: ProviderSandbox,
        row: str,
        generation: int,
        made_at: float,
        duration: float,
    ) -> None:
        core = self.cores[command.slot] = Core(
            slot=command.slot,
            key=command.key,
            row=row,
            generation=generation,
            spec=command.spec,
            sandbox=sandbox,
            tell=tell.about(sandbox_id=sandbox.sandbox_id),
            made_at=made_at,
            journal=Journal(keeps_content=self._options.on_loss == "replay"),
            end_at=on_loop_clock(sandbox.end_at),
            late_envs=dict(command.spec.envs or ()) if command.adopt is not None else {},
        )
        self._aborted.discard(command.slot)
        if command.adopt is None:
            core.tell("sandbox.created", duration=duration, source="created")
        after = retire_after(self._options.timeouts, jitter=random.random())
        self._step(Created(command.slot, core.end_at, None if after is None else made_at + after))

    async def _adopt(self, command: Create, scope: anyio.CancelScope) -> None:
        """Take up a sandbox that is there already; it is nobody's of ours until then, and lives on if this fails."""
        assert command.adopt is not None
        row = command.key if command.key is not None else f"\0attached-{command.slot}"
        tell = self._tell.about(session=command.key, template=command.spec.template)
        started_at, generation, timeouts = anyio.current_time(), 0, self._options.timeouts
        sandbox: ProviderSandbox | None = None
        made_at = started_at
        error: Exception | None = None
        try:
            with scope:
                try:
                    with anyio.fail_after(timeouts.create + GRACE):
                        info = await self._provider.info(command.adopt)
                        made_at -= (_life.utc_now() - info.started_at).total_seconds()
                        left = timeouts.lifetime
                        if timeouts.max_lifetime is not None:
                            left = max(min(left, made_at + timeouts.max_lifetime - started_at), 1.0)
                        sandbox = await self._provider.connect(command.adopt, lifetime=left)
                        generation = await self.store.begin(row)
                        await self.store.settle(row, generation, command.adopt)
                except TimeoutError as failure:
                    error = ProviderUnavailable(
                        f"No answer for sandbox {command.adopt} within TimeoutPolicy.create={timeouts.create:g} s."
                    )
                    error.__cause__ = failure
                except Exception as failure:
                    error = failure  # told to whoever attaches
        finally:
            self._scopes.pop(("create", command.slot), None)
            if sandbox is None or error is not None:
                self._create_failed(command, tell, error, anyio.current_time() - started_at)
            else:
                self._created(command, tell, sandbox, row, generation, made_at, 0.0)

    def _start_killing(self, command: Kill, tasks: TaskGroup) -> None:
        if command.slot in self._unsure:
            self._run(self._search, command, tasks)
            return
        core = self.cores[command.slot]
        if core.gone is None:
            core.gone = command.reason
            self._counters.wasted += not core.is_prepared
            if command.reason in ("lost", "expired"):
                self._counters.lost += 1
                error = "sandbox_expired" if command.reason == "expired" else "sandbox_not_found"
                core.tell("sandbox.lost", error=error, files_lost=len(core.journal.names))
            self._counters.evicted += command.reason == "evicted"
        self._run(self._kill, command, tasks)

    async def _kill(self, command: Kill, scope: anyio.CancelScope) -> None:
        core = self.cores[command.slot]
        error: Exception | None = TimeoutError("given up: the pool's time to close was over")
        try:
            with scope:
                try:
                    with anyio.fail_after(KILL_LIMIT):
                        await self._provider.kill(core.sandbox.sandbox_id)
                    error = None
                except SandboxLost:
                    error = None
                except Exception as failure:
                    error = failure  # kept: told as an event, tried again, and raised by kill()
        finally:
            self._scopes.pop(("kill", command.slot), None)
            core.kill_error = error
            core.tried_to_kill.set()
            self._kill_ended(core, command.reason, error)
        if error is None:
            with anyio.CancelScope(shield=True):
                await self.store.clear(core.row, core.generation)

    def _kill_ended(self, core: Core, reason: KillReason, error: Exception | None) -> None:
        if error is None:
            del self.cores[core.slot]
            self._counters.killed += 1
            core.tell("sandbox.killed", reason=reason)
            self._step(Killed(core.slot))
        else:
            self._counters.kill_errors += 1
            core.tell("sandbox.kill_failed", error=name_of(error), reason=reason)
            self._step(KillFailed(core.slot))

    async def _search(self, command: Kill, scope: anyio.CancelScope) -> None:
        tell, tags = self._unsure[command.slot]
        error: Exception | None = TimeoutError("given up: the pool's time to close was over")
        found: list[str] = []
        try:
            with scope:
                try:
                    with anyio.fail_after(KILL_LIMIT):
                        found = await tagged(self._provider, tags)
                        for sandbox_id in found:
                            await self._provider.kill(sandbox_id)
                            self._counters.killed += 1
                            tell.about(sandbox_id=sandbox_id)("sandbox.killed", reason=command.reason)
                    error = None
                except Exception as failure:
                    error = failure  # kept: told as an event, and tried again
        finally:
            self._scopes.pop(("kill", command.slot), None)
            if error is not None:
                self._counters.kill_errors += 1
                tell("sandbox.kill_failed", error=name_of(error), reason=command.reason)
            if error is None:
                del self._unsure[command.slot]
            self._step(Killed(command.slot) if error is None else KillFailed(command.slot, bool(found)))
