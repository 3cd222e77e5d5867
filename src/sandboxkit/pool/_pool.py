"""The pool that users hold: checked arguments, sessions, statistics, the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio

from sandboxkit._types import (
    CODE_INTERPRETER,
    Endpoint,
    EndpointName,
    NetworkMode,
    NetworkPolicy,
    OnLoss,
    TimeoutPolicy,
)
from sandboxkit.errors import PoolError, UnsupportedOption
from sandboxkit.events import EventHandler
from sandboxkit.pool._moves import Drain, Resize
from sandboxkit.pool._options import (
    count,
    pool_options,
    refuse_warm,
    seconds,
    session_key,
    session_spec,
    shortened,
)
from sandboxkit.pool._session import AsyncSession, SessionOpening
from sandboxkit.pool._shell import CLOSE_LIMIT, Shell
from sandboxkit.pool._stats import PoolStats, snapshot
from sandboxkit.provider._base import Provider
from sandboxkit.provider._endpoint import open_provider


class AsyncSandboxPool:
    """Sandboxes by session key: at most `max_live` of them, shared fairly, and none left behind.

    Open it with `async with`: its tasks live in the block that opened it, and are gone when the block is left, with
    every sandbox killed. Where there is no block, `AsyncExitStack.enter_async_context(pool)` is the way. `close()`
    may be called before the block's end, from any task of the same event loop.

    Args:
        endpoint: where sandboxes come from. `"auto"` is E2B where E2B_API_KEY is set, else the engine on this machine;
            `"e2b"` and `"local"` say which; an `Endpoint` names any E2B-compatible service. An object with the methods
            of the provider contract, such as `sandboxkit.testing.FakeProvider`, is used as it is, and not closed.
        template: what sessions get that name none.
        min_warm: blank sandboxes to keep ready; only 0 is supported yet.
        max_live: how many sandboxes may exist at once, those included that are being created or killed.
        max_waiting: how many callers may wait for one of those; no bound when None.
        acquire_timeout: seconds that `session()` may take altogether.
        timeouts: all other time limits, and how long sandboxes live.
        network: what sandboxes may reach: "deny" (nothing, the default), "packages" (the package indexes that pip, uv
            and npm are set up for here), "internet" (every public address), or a NetworkPolicy.
        on_loss: what happens when a sandbox vanishes under its session: `"fail"` raises a typed error; the others are
            not supported yet.
        on_event: is told every event, in the event loop's thread: a plain function that does not block. What it raises
            is logged.
        name: of the pool, in logs, events and the sandboxes' metadata.

    Raises:
        ConfigurationError: an argument cannot work; the message names it and its value.
        MissingApiKey: `endpoint="e2b"`, and no key is set.
        UnsupportedOption: an argument is right, but not supported yet.
    """

    def __init__(
        self,
        *,
        endpoint: EndpointName | Endpoint | Provider = "auto",
        template: str = CODE_INTERPRETER,
        min_warm: int = 0,
        max_live: int = 10,
        max_waiting: int | None = None,
        acquire_timeout: float = 30.0,
        timeouts: TimeoutPolicy = TimeoutPolicy(),  # noqa: B008  (frozen)
        network: NetworkMode | NetworkPolicy = "deny",
        on_loss: OnLoss = "fail",
        on_event: EventHandler | None = None,
        name: str | None = None,
    ) -> None:
        options = pool_options(
            template=template,
            min_warm=min_warm,
            max_live=max_live,
            max_waiting=max_waiting,
            acquire_timeout=acquire_timeout,
            timeouts=timeouts,
            network=network,
            on_loss=on_loss,
            on_event=on_event,
            name=name,
        )
        provider = open_provider(endpoint)
        self._shell = Shell(options, provider, owns_provider=provider is not endpoint)
        self._stack = AsyncExitStack()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._shell.options.name

    def session(
        self,
        key: str | None,
        *,
        template: str | None = None,
        replace: bool = False,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        acquire_timeout: float | None = None,
    ) -> SessionOpening:
        """Open a session: the sandbox that it lives in, or a new one. Await it, or enter it with `async with`.

        Everyone in this process who asks for the same key gets the same sandbox; asking while it is being created
        creates no second one. A session that was closed keeps its sandbox until the sandbox's lifetime ends or its
        place is needed; what is opened after that is a new one.

        Args:
            key: the session's name, 1 to 256 characters. None is anonymous: a sandbox of one's own, killed at the end.
            template: what the sandbox is made from; the pool's own template when None.
            replace: if the session lives in a sandbox of another template, `metadata` or `envs`, kill that one, with
                all that is in it, and make a new one. A sandbox that fits is kept, unless it cannot be
                reached.
            metadata: tags of the sandbox; keys that begin with "sandboxkit." are the pool's own. None means any.
            envs: environment variables of the sandbox, for everything that runs in it. None means any.
            acquire_timeout: seconds that this may take altogether; the pool's own when None.

        Raises:
            ConfigurationError: an argument cannot work.
            PoolTimeout: no sandbox in time: all are in use, or creating it takes longer.
            PoolFull: all are in use, and `max_waiting` callers wait already.
            PoolClosed: the pool was closed, or is being closed.
            PoolError: the pool has not been opened.
            SessionConflict: the session lives in a sandbox of another template, `metadata` or `envs`.
            TemplateNotFound, TemplateNotBuilt, ProviderError, EngineUnavailable: the sandbox could not be made.
            ForkedProcess: the pool was made before a fork.
        """
        self._shell.check()
        options = self._shell.options
        return SessionOpening(
            self._shell,
            session_key(key),
            session_spec(template=template, metadata=metadata, envs=envs, default_template=options.template),
            timeout=options.acquire_timeout if acquire_timeout is None else seconds("acquire_timeout", acquire_timeout),
            replace=replace,
        )

    async def attach(self, sandbox_id: str) -> AsyncSession:
        """Take up a sandbox by its id; not supported yet.

        Raises:
            UnsupportedOption: always, in this version.
        """
        raise UnsupportedOption(
            f"pool.attach({shortened(sandbox_id)}) is not supported yet; open the session by its key.",
            option="pool.attach",
        )

    def stats(self) -> PoolStats:
        """Count what the pool has and did; `PoolStats` says what each name means."""
        return snapshot(self._shell.policy, self._shell.counters)

    def pop_stats(self) -> PoolStats:
        """Return `stats()` and let the counters begin at zero again."""
        stats = self.stats()
        self._shell.counters.reset()
        return stats

    async def resize(self, *, max_live: int | None = None, min_warm: int | None = None) -> None:
        """Change how many sandboxes there may be.

        Callers that wait get what became possible. With less than now, idle sessions are killed, least recently used
        first; those in use stay, and no new one is made until enough of them are gone.

        Raises:
            ConfigurationError: not a whole number of at least 1.
            UnsupportedOption: `min_warm` is not 0.
        """
        self._shell.check()
        if min_warm is not None:
            refuse_warm(count("min_warm", min_warm, least=0))
        if max_live is not None:
            self._shell.step(Resize(count("max_live", max_live, least=1)))

    async def drain(self) -> None:
        """Let no sandbox of now be used again: kill the idle ones, and those in use when their last holder closes.

        For a new version of a template, for instance: what is opened afterwards is made anew.
        """
        self._shell.check()
        self._shell.step(Drain())

    async def close(self) -> tuple[str, ...]:
        """Close the pool: callers that wait get PoolClosed at once, and every sandbox is killed.

        Takes 30 seconds for killing at most. May be called again, from anywhere, also while a cancellation is on its
        way; every call waits until all is done.

        Returns:
            The ids of sandboxes whose kill was not confirmed; they end with their lifetime. Empty if all went well.

        Raises:
            ForkedProcess: the pool was made before a fork.
        """
        self._shell.check()
        return await self._shell.close(CLOSE_LIMIT)

    async def __aenter__(self) -> Self:
        self._shell.check()
        if self._shell.is_open or self._shell.policy.closing:
            raise PoolError(f"Pool {self.name!r} was opened before; a pool is opened once.")
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            # Not start(): under a cancellation that would wait for the task, which waits to be told of it.
            tasks.start_soon(self._shell.run)
            try:
                await self._shell.opened.wait()
            except BaseException:
                self._shell.ask_to_close(CLOSE_LIMIT)
                raise
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shell.check()
        try:
            await self.close()
        finally:
            # Not told of the block's exception, which would come out of a task group as an ExceptionGroup.
            await self._stack.aclose()

    def __repr__(self) -> str:
        stats = self.stats()
        state = "open" if self._shell.is_open else "closed" if self._shell.policy.closing else "not open"
        counts = " ".join(f"{name}={stats[name]}" for name in ("in_use", "idle", "creating", "killing", "waiting"))
        return f"<{type(self).__name__} {self.name!r} {state}: {counts} max_live={stats['max_live']}>"


AsyncSandboxPool.__module__ = "sandboxkit"
