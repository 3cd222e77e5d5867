"""The app of a fragment: started, found running, waited for, stopped; and what its user holds of it."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import AppNotReady, AppStartFailed, ConfigurationError, DependencyError
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.runner import _inside as inside
from sandboxkit.runner._answers import missing_packages, plain, reason
from sandboxkit.runner._sockets import elsewhere
from sandboxkit.runner._workshop import Workshop

PACE = 0.1
"""Seconds between two questions whether it answers."""
ERRORS_PACE = 1.0
"""The same where it answers with an error."""
ANSWER_WITHIN = 20.0
"""Seconds that one answer may take; development servers compile before their first one."""
FAIR = 1.0
"""Seconds that an answer needs at least, to count as one that did not come."""
ERRORS_FOR = 10.0
"""Seconds after which an app that answers with errors alone is not waited for any longer."""
LOOK_EVERY = 1.0
"""Seconds between two looks whether its processes are there."""
CLEAN_UP = 15.0
LOG = 128 * 1024


@dataclass(frozen=True, slots=True)
class Site:
    """Where an app is, and how it is started."""

    sandbox: ProviderSandbox
    workshop: Workshop
    timeouts: TimeoutPolicy
    start: str
    port: int
    path: str


async def start(site: Site) -> bool:
    """Start the app, unless it runs. True if it was started here."""
    status = await site.sandbox.http_status(site.port, site.path, timeout=2.0)
    if status is not None or await inside.groups_of(site.sandbox, site.start):
        return False
    site.workshop.app = await inside.start_job(site.sandbox, "app", site.start, envs={"PORT": str(site.port)})
    return True


async def wait(site: Site) -> None:
    """Wait until the app answers, with anything below 500.

    Raises:
        AppStartFailed: its process ended.
        DependencyError: its answer is an error, which names packages that are not there.
        AppNotReady: it did not answer so within `TimeoutPolicy.ready`, or with errors alone for ERRORS_FOR.
    """
    deadline = anyio.current_time() + site.timeouts.ready
    looked_at, misses = anyio.current_time() - LOOK_EVERY, 0
    status: int | None = None
    errors_since: float | None = None
    while (left := deadline - anyio.current_time()) > 0:
        within = min(left, ANSWER_WITHIN)
        answer = await site.sandbox.http_status(site.port, site.path, timeout=within)
        if answer is not None and answer < 500:
            return
        if answer is not None or within >= FAIR:
            status = answer  # what the last moment is too short for says nothing
        now = anyio.current_time()
        errors_since = None if status is None else errors_since or now
        if errors_since is not None and now - errors_since > ERRORS_FOR:
            break
        if status is None and anyio.current_time() - looked_at >= LOOK_EVERY:
            looked_at = anyio.current_time()
            code = await _exit_code(site)
            # One that is started anew by its own supervisor may be missed once.
            misses = 0 if code is None and await inside.groups_of(site.sandbox, site.start) else misses + 1
            if code is not None or misses > 1:
                raise await _ended(site, code)
        # Each question to a server that fails may write its error to the log once more, of which only the end is told.
        await anyio.sleep(PACE if status is None else ERRORS_PACE)
    raise await _silent(site, status)


async def _exit_code(site: Site) -> int | None:
    """How the app ended that was started here; None while it runs, and for any other."""
    if site.workshop.app is None:
        return None
    return (await inside.look(site.sandbox, site.workshop.app, since=1 << 40)).exit_code


async def _ended(site: Site, code: int | None) -> AppStartFailed:
    site.workshop.app = None
    log = await inside.tail(site.sandbox, inside.APP_LOG)
    lines = [line for line in plain(log).splitlines() if line.strip()]
    said = "" if code is None else f" with exit code {code}"
    return AppStartFailed(
        f"The app ended{said} before it answered on port {site.port}. {''.join(lines[-1:])[:300]}".rstrip(),
        sandbox_id=site.sandbox.sandbox_id,
        exit_code=code,
        log_tail=log,
    )


async def _silent(site: Site, status: int | None) -> AppNotReady | DependencyError:
    if status is not None:
        return await _failing(site, status)
    found = await inside.listening(site.sandbox)
    limit = f"within {site.timeouts.ready:g} s (TimeoutPolicy.ready)"
    return AppNotReady(
        f"The app gave no answer on port {site.port} {limit}.{elsewhere(site.port, found)}",
        sandbox_id=site.sandbox.sandbox_id,
        status=None,
        listening=tuple(map(str, found)),
        log_tail=await inside.tail(site.sandbox, inside.APP_LOG),
    )


async def _failing(site: Site, status: int) -> AppNotReady | DependencyError:
    """It answers with errors: what the last one says comes after the log, which need not have it."""
    log = await inside.tail(site.sandbox, inside.APP_LOG)
    said = reason(await inside.error_page(site.sandbox, site.port, site.path))
    tail = f"{log.rstrip()}\n\nThe answer: {said}\n" if said else log
    sandbox_id = site.sandbox.sandbox_id
    if packages := missing_packages(said):
        return DependencyError(
            f"The app imports what is not installed: {', '.join(packages)}. List the packages in `dependencies`.",
            sandbox_id=sandbox_id,
            dependencies=packages,
            log_tail=tail,
        )
    return AppNotReady(
        f"The app answers on port {site.port}, with the status {status} and nothing better. {said[:300]}".rstrip(),
        sandbox_id=sandbox_id,
        status=status,
        listening=tuple(map(str, await inside.listening(site.sandbox))),
        log_tail=tail,
    )


async def stop(site: Site) -> None:
    """End the app, whoever started it, and wait until its processes are gone."""
    job, site.workshop.app = site.workshop.app, None
    groups = await inside.groups_of(site.sandbox, site.start)
    await inside.end_groups(site.sandbox, groups)
    if job is not None:
        await job.command.kill()


async def stop_on_failure(site: Site) -> None:
    """The same while an error is on its way, which counts more than one of ours."""
    with anyio.move_on_after(CLEAN_UP, shield=True):
        try:
            await stop(site)
        except Exception:
            # The sandbox may be gone, or out of reach: then nothing of it runs, or its end takes the app along.
            return


class AsyncApp:
    """An app that answers, made by `session.run()` of a fragment whose template serves one.

    It runs until it is stopped, or its sandbox ends; it does not prolong the sandbox's life, uses of the session do.
    """

    def __init__(self, site: Site, *, url: str, browser_url: str) -> None:
        self._site = site
        self._url = url
        self._browser_url = browser_url

    @property
    def url(self) -> str:
        """Where programs on this machine find it; on E2B also everybody else."""
        return self._url

    @property
    def browser_url(self) -> str:
        """Where a browser finds it: under a name of the sandbox's own."""
        return self._browser_url

    @property
    def port(self) -> int:
        """Its port inside the sandbox."""
        return self._site.port

    async def log(self, *, max_bytes: int = 65536) -> str:
        """Return the end of what it has written to its output, as text; empty where there is no log.

        Args:
            max_bytes: how much of it, at most 128 KiB.

        Raises:
            ConfigurationError: `max_bytes` is not positive.
            SandboxLost, PoolError: the sandbox is gone, or the session was closed.
        """
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or not 0 < max_bytes <= LOG:
            raise ConfigurationError(f"max_bytes={max_bytes!r}: a number from 1 to {LOG} is needed.")
        return await inside.tail(self._site.sandbox, inside.APP_LOG, max_bytes)

    async def stop(self) -> None:
        """End it. The sandbox stays; a second time does nothing.

        Raises:
            SandboxLost, PoolError: the sandbox is gone, or the session was closed.
        """
        async with self._site.workshop.lock:
            await stop(self._site)

    async def restart(self) -> None:
        """End it, start it anew with the template's command, and wait until it answers.

        Raises:
            AppStartFailed, AppNotReady: it did not come up again.
            SandboxLost, PoolError: the sandbox is gone, or the session was closed.
        """
        async with self._site.workshop.lock:
            await stop(self._site)
            await start(self._site)
            try:
                await wait(self._site)
            except BaseException:
                await stop_on_failure(self._site)
                raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._browser_url} sandbox={self._site.sandbox.sandbox_id}>"


AsyncApp.__module__ = "sandboxkit"
