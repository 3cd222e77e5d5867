"""The app of a fragment: started, found running, waited for, stopped; and what its user holds of it."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import AppNotReady, AppStartFailed, ConfigurationError
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.runner import _inside as inside
from sandboxkit.runner._sockets import elsewhere
from sandboxkit.runner._workshop import Workshop

PACE = 0.1
"""Seconds between two questions whether it answers."""
ANSWER_WITHIN = 20.0
"""Seconds that one answer may take; development servers compile before their first one."""
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
        AppNotReady: it did not answer so within `TimeoutPolicy.ready`, or with errors alone for ERRORS_FOR.
    """
    deadline = anyio.current_time() + site.timeouts.ready
    looked_at, misses = anyio.current_time() - LOOK_EVERY, 0
    status: int | None = None
    errors_since: float | None = None
    while (left := deadline - anyio.current_time()) > 0:
        status = await site.sandbox.http_status(site.port, site.path, timeout=min(left, ANSWER_WITHIN))
        if status is not None and status < 500:
            return
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
        await anyio.sleep(PACE)
    raise await _silent(site, status)


async def _exit_code(site: Site) -> int | None:
    """How the app ended that was started here; None while it runs, and for any other."""
    if site.workshop.app is None:
        return None
    return (await inside.look(site.sandbox, site.workshop.app, since=1 << 40)).exit_code


async def _ended(site: Site, code: int | None) -> AppStartFailed:
    site.workshop.app = None
    log = await inside.tail(site.sandbox, inside.APP_LOG)
    last = log.strip().splitlines()[-1:] or [""]
    said = "" if code is None else f" with exit code {code}"
    return AppStartFailed(
        f"The app ended{said} before it answered on port {site.port}. {last[0][:300]}".rstrip(),
        sandbox_id=site.sandbox.sandbox_id,
        exit_code=code,
        log_tail=log,
    )


async def _silent(site: Site, status: int | None) -> AppNotReady:
    log = await inside.tail(site.sandbox, inside.APP_LOG)
    found = await inside.listening(site.sandbox)
    limit = f"within {site.timeouts.ready:g} s (TimeoutPolicy.ready)"
    if status is None:
        said = f"The app gave no answer on port {site.port} {limit}.{elsewhere(site.port, found)}"
    else:
        said = f"The app answers on port {site.port}, with the status {status} and nothing better."
    return AppNotReady(
        said,
        sandbox_id=site.sandbox.sandbox_id,
        status=status,
        listening=tuple(map(str, found)),
        log_tail=log,
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
