"""The pool that users hold: checked arguments, sessions, statistics, the end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import anyio

from sandboxkit._types import (
    CODE_INTERPRETER,
    Endpoint,
    EndpointName,
    NetworkMode,
    NetworkPolicy,
    OnLoss,
    SessionRef,
    TimeoutPolicy,
)
from sandboxkit.errors import ConfigurationError, PoolError
from sandboxkit.events import EventHandler
from sandboxkit.pool._attach import attach_request
from sandboxkit.pool._lease import Lease
from sandboxkit.pool._moves import Drain, Resize
from sandboxkit.pool._opening import SessionOpening
from sandboxkit.pool._options import (
    GiveUpHandler,
    count,
    environment,
    numbers,
    pool_options,
    seconds,
    session_files,
    session_key,
    session_spec,
    warm_targets,
)
from sandboxkit.pool._prepare import Recipe
from sandboxkit.pool._session import AsyncSession
from sandboxkit.pool._shell import CLOSE_LIMIT, Request, Shell
from sandboxkit.pool._stats import PoolStats, picture, snapshot
from sandboxkit.provider._base import Provider
from sandboxkit.provider._endpoint import open_provider


class AsyncSandboxPool:
    """Sandboxes by session key: at most `max_live` of them, some of them warm, shared fairly, and none left behind.

    Open it with `async with`: its tasks live in the block that opened it, and are gone when the block is left, with
    every sandbox killed. Where there is no block, `AsyncExitStack.enter_async_context(pool)` is the way, in one task
    from its beginning to its end; the cells of a notebook are several, and there `SandboxPool` is the way. `close()`
    may be called before the block's end, from any task of the same event loop.

    Args:
        endpoint: where sandboxes come from. `"auto"` is E2B where E2B_API_KEY is set, else the engine on this machine;
            `"e2b"` and `"local"` say which; an `Endpoint` names any E2B-compatible service. An object with the methods
            of the provider contract, such as `sandboxkit.testing.FakeProvider`, is used as it is, and not closed.
        template: what sessions get that name none.
        min_warm: blank sandboxes to keep ready, of the pool's template, or a number for each template. They take the
            places that nobody needs, and are handed over at once, made the session's own first.
        max_live: how many sandboxes may exist at once, those included that are being created or killed.
        max_per_template: how many of them may be of one template, for the templates that it names.
        max_waiting: how many callers may wait for one of those; no bound when None.
        max_creating: how many may be created at the same time; no bound but `max_live` when None.
        create_rate: how many may be created in one second, after a burst of one second's worth; no bound when None.
        max_uses: how often one may be opened; after that it is killed when its last holder closes. No bound when None.
        idle_timeout: seconds after which what lies unused is killed: a released session, and as many warm ones beyond
            `min_warm` as stayed unused for a whole such time. None keeps them until their lifetime ends.
        acquire_timeout: seconds that `session()` may take altogether.
        timeouts: all other time limits, and how long sandboxes live.
        network: what sandboxes may reach: "deny" (nothing, the default), "packages" (the package indexes that pip, uv
            and npm are set up for here), "internet" (every public address), or a NetworkPolicy.
        on_loss: what happens when a sandbox vanishes under its session. `"fail"` raises a typed error. `"recreate"`
            gives the session a new one, with the `files` that it was opened with; `"replay"` also writes again what
            was written through the session, up to 64 MiB. The use that met the loss is done again there, unless it had
            shown output. `session.losses` and the event `session.recovered` tell what was lost.
        on_event: is told every event, in the event loop's thread: a plain function that does not block. What it raises
            is logged.
        on_give_up: is told the error when the pool gives up making warm sandboxes, since it failed for
            `give_up_after` seconds; a plain function. Callers are served all the same; the first create of theirs that
            succeeds, `resize(min_warm=...)` and `drain()` let it try again.
        give_up_after: see there.
        reap: clean up before the pool opens, as `reap()` does.
        owner: whose its sandboxes are, for `attach()` by other pools of the same owner; this pool's alone when None.
        name: of the pool, in logs, events and the sandboxes' metadata.

    Raises:
        ConfigurationError: an argument cannot work; the message names it and its value.
        MissingApiKey: `endpoint="e2b"`, and no key is set.
    """

    _keeps_idle = True

    def __init__(
        self,
        *,
        endpoint: EndpointName | Endpoint | Provider = "auto",
        template: str = CODE_INTERPRETER,
        min_warm: int | Mapping[str, int] = 0,
        max_live: int = 10,
        max_per_template: Mapping[str, int] | None = None,
        max_waiting: int | None = None,
        max_creating: int | None = None,
        create_rate: float | None = None,
        max_uses: int | None = None,
        idle_timeout: float | None = None,
        acquire_timeout: float = 30.0,
        timeouts: TimeoutPolicy = TimeoutPolicy(),  # noqa: B008  (frozen)
        network: NetworkMode | NetworkPolicy = "deny",
        on_loss: OnLoss = "fail",
        on_event: EventHandler | None = None,
        on_give_up: GiveUpHandler | None = None,
        give_up_after: float = 300.0,
        reap: bool = False,
        owner: str | None = None,
        name: str | None = None,
    ) -> None:
        options = pool_options(
            template=template,
            min_warm=min_warm,
            max_live=max_live,
            max_per_template=max_per_template,
            max_waiting=max_waiting,
            max_creating=max_creating,
            create_rate=create_rate,
            max_uses=max_uses,
            idle_timeout=idle_timeout,
            acquire_timeout=acquire_timeout,
            timeouts=timeouts,
            network=network,
            on_loss=on_loss,
            on_event=on_event,
            on_give_up=on_give_up,
            give_up_after=give_up_after,
            reap=reap,
            owner=owner,
            name=name,
            keeps_idle=self._keeps_idle,
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
        files: Mapping[str, str | bytes] | None = None,
        secrets: Mapping[str, str] | None = None,
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
            metadata: tags of the sandbox; keys that begin with "sandboxkit." are the pool's own. None means any. A
                warm sandbox cannot be tagged, so with tags one is created.
            envs: environment variables for all that this session runs. None means any. A sandbox created for the
                session has them itself; a warm one is given them with each run, so that what `.sandbox` runs does not.
            files: files that a new sandbox starts with, by path; one that the session has already is left alone. If
                one cannot be written, the sandbox is killed, and the error raised.
            secrets: environment variables for what runs through this hold, and nothing else: they are given with each
                run, and are in no metadata, log, event or `repr`. Another hold may have others. A program that runs
                can read them, and code that the program runs, too.
            acquire_timeout: seconds that this may take altogether; the pool's own when None.

        Raises:
            ConfigurationError: an argument cannot work.
            PoolTimeout: no sandbox in time: all are in use, or creating it takes longer.
            PoolFull: all are in use, and `max_waiting` callers wait already.
            PoolClosed: the pool was closed, or is being closed.
            PoolError: the pool has not been opened.
            SessionConflict: the session lives in a sandbox of another template, `metadata` or `envs`.
            TemplateNotFound, TemplateNotBuilt, ProviderError, EngineUnavailable: the sandbox could not be made.
            SafeFSError: one of `files` could not be written; PathError: its path leads out of /home/user.
            ForkedProcess: the pool was made before a fork.
        """
        self._shell.check()
        options = self._shell.options
        request = Request(
            key=session_key(key),
            spec=session_spec(template=template, metadata=metadata, envs=envs, default_template=options.template),
            timeout=options.acquire_timeout if acquire_timeout is None else seconds("acquire_timeout", acquire_timeout),
            replace=replace,
            recipe=Recipe(session_files(files)),
            secrets=dict(environment(secrets, name="secrets") or ()),
        )
        return SessionOpening(self._shell, request)

    async def attach(
        self,
        sandbox: str | SessionRef,
        *,
        envs: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        acquire_timeout: float | None = None,
    ) -> AsyncSession:
        """Take up a sandbox that is there already: one that `session.detach()` let go of, or one of a dead process.

        From then on it is this pool's as if it had been made here: it counts towards `max_live` and is killed at the
        end. Whose it is, the service is asked before anything connects to it, so that nothing of others is woken or
        prolonged. Its session is that of its tags, or of the reference; where neither names one it is anonymous.
        A sandbox that this very pool has is opened as its session. Whether another process uses it, nothing tells: take
        up what was let go of.

        Args:
            sandbox: its id, or what `detach()` returned.
            envs: environment variables, as in `session()`; it is given them with each run.
            secrets: as in `session()`.
            acquire_timeout: seconds that this may take altogether; the pool's own when None.

        Raises:
            SandboxNotFound: there is none of that id, or it is not this pool's owner's.
            SessionConflict: its session lives in another sandbox of this pool.
            SessionBusy: it is an anonymous one that this pool has lent already, or another pool of this process has it.
            PoolTimeout, PoolFull, PoolClosed, PoolError, ForkedProcess: as in `session()`.
            ProviderError: the service did not answer.
        """
        self._shell.check()
        options = self._shell.options
        timeout = options.acquire_timeout if acquire_timeout is None else seconds("acquire_timeout", acquire_timeout)
        late_envs, checked = environment(envs), dict(environment(secrets, name="secrets") or ())
        request = await attach_request(self._shell, sandbox, envs=late_envs, secrets=checked, timeout=timeout)
        return AsyncSession(Lease(self._shell, await self._shell.open(request), request))

    async def wait_ready(self, *, timeout: float = 60.0) -> None:
        """Wait until all of `min_warm` are there, and what their templates' start commands serve answers.

        Raises:
            PoolTimeout: they are not within `timeout` seconds; its cause is the last failed create's error.
            PoolClosed: the pool was closed.
            ProviderError, TemplateNotFound, TemplateNotBuilt, EngineUnavailable: the pool has given up making them.
        """
        self._shell.check()
        await self._shell.upkeep.wait_ready(seconds("timeout", timeout))

    async def reap(self, *, older_than: float | None = None) -> tuple[str, ...]:
        """Kill what a process left when it died: sandboxes of a pool with this name, and this `owner` if one is set.

        A process on the same host (or in the same container) that runs no more is known to be dead; so are pools of
        this process that are gone. Nothing is known of other hosts: sandboxes from there are left to their lifetime,
        unless `older_than` says from which age on, in seconds, nobody can need them. What a pool of this process has,
        attached ones too, is never killed. Of what another process has attached nothing is known: its tags name who
        made it.

        Returns:
            The ids of those that were killed.

        Raises:
            ProviderError: the service did not answer, or did not kill one of them; the others are killed all the same.
        """
        self._shell.check()
        return await self._shell.upkeep.reap(None if older_than is None else seconds("older_than", older_than))

    def stats(self) -> PoolStats:
        """Count what the pool has and did; `PoolStats` says what each name means."""
        shell = self._shell
        paused = sum(core.is_paused and core.gone is None for core in shell.workers.cores.values())
        return snapshot(shell.policy, shell.counters, paused=paused, generation=shell.generation)

    def pop_stats(self) -> PoolStats:
        """Return `stats()` and let the counters begin at zero again."""
        stats = self.stats()
        self._shell.counters.reset()
        return stats

    async def resize(
        self,
        *,
        max_live: int | None = None,
        min_warm: int | Mapping[str, int] | None = None,
        max_per_template: Mapping[str, int] | None = None,
    ) -> None:
        """Change how many sandboxes there may be, and how many warm ones there should be; None leaves a number alone.

        Callers that wait get what became possible. With less than now, warm ones and then idle sessions are killed,
        least recently used first; those in use stay, and no new one is made until enough of them are gone. Warm ones
        beyond a lower `min_warm` stay until somebody uses them, their place is needed, `idle_timeout` says so, or their
        lifetime ends.

        Raises:
            ConfigurationError: not a whole number of at least 1 (0 for `min_warm`), or more warm than live ones.
        """
        self._shell.check()
        options, policy = self._shell.options, self._shell.policy
        most = policy.max_live if max_live is None else count("max_live", max_live, least=1)
        caps = None if max_per_template is None else numbers("max_per_template", max_per_template, least=1)
        per_template = policy.max_per_template if caps is None else dict(caps)
        warm: Any = {name: stock.target for name, stock in policy.stocks.items()} if min_warm is None else min_warm
        if not self._keeps_idle and min_warm:
            raise ConfigurationError(f"min_warm={min_warm!r}: a null pool keeps nothing; use SandboxPool.")
        targets = warm_targets(warm, template=options.template, max_live=most, max_per_template=per_template)
        self._shell.step(Resize(max_live, None if min_warm is None else targets, caps))
        self._shell.tell("pool.resized", max_live=most, min_warm=sum(number for _, number in targets))

    async def drain(self, *, template: str | None = None) -> None:
        """Let no sandbox of now be used again: kill the idle and the warm ones, and those in use when their last holder
        closes.

        For a new version of a template, for instance: what is opened afterwards is made anew, and so are warm ones.

        Args:
            template: only those of this template; all when None.
        """
        self._shell.check()
        self._shell.generation += 1
        self._shell.step(Drain(template))
        self._shell.tell.about(template=template)("pool.drained")

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
        stats: Mapping[str, Any] = self.stats()
        state = "open" if self._shell.is_open else "closed" if self._shell.policy.closing else "not open"
        state += " degraded" if stats["degraded"] else ""
        names = ("in_use", "idle", "warm", "creating", "killing", "waiting", "max_live")
        counts = " ".join(f"{name}={stats[name]}" for name in names)
        return f"<{type(self).__name__} {self.name!r} {state}: {counts} [{picture(self._shell.policy)}]>"


class AsyncNullSandboxPool(AsyncSandboxPool):
    """A pool that keeps nothing: every session gets a new sandbox, which is killed when its last holder closes.

    For tests, for serverless functions, and for finding out what a pool is worth: it has the same methods, limits,
    queue, statistics and events as `AsyncSandboxPool`, and takes the same arguments but `min_warm`.
    """

    _keeps_idle = False


AsyncSandboxPool.__module__ = "sandboxkit"
AsyncNullSandboxPool.__module__ = "sandboxkit"
