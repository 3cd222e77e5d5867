"""Installs what a fragment needs, once per sandbox, with its log as it comes."""

from __future__ import annotations

import codecs
import shlex
from collections.abc import AsyncGenerator

import anyio

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import DependencyError
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.runner import _inside as inside
from sandboxkit.runner._plan import Install, InstallCommand
from sandboxkit.runner._workshop import Workshop

PACE = 0.25
"""Seconds between two looks at its log."""
KILL_WITHIN = 15.0


async def install(
    step: Install | InstallCommand, sandbox: ProviderSandbox, workshop: Workshop, timeouts: TimeoutPolicy
) -> AsyncGenerator[str]:
    """Install what is not installed yet, yielding the log. Closing it ends the installation.

    Raises:
        DependencyError: it failed, or took longer than `TimeoutPolicy.install`; the command has been killed.
    """
    wanted = (step.command,) if isinstance(step, InstallCommand) else step.dependencies
    missing = tuple(one for one in wanted if one not in workshop.installed)
    if not missing:
        return
    line = step.command if isinstance(step, InstallCommand) else shlex.join(step.argv(missing))
    deadline = anyio.current_time() + timeouts.install
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    job = await inside.start_job(sandbox, "install", line)
    is_over = False
    try:
        since = 0
        while True:
            look = await inside.look(sandbox, job, since=since)
            since += len(look.text)
            if text := decoder.decode(look.text):
                yield text
            if look.exit_code is not None and len(look.text) < inside.PIECE:
                is_over = True
                if look.exit_code:
                    raise await _failed(step, sandbox, missing, f"ended with exit code {look.exit_code}")
                break
            if anyio.current_time() > deadline:
                took = f"took longer than {timeouts.install:g} s (TimeoutPolicy.install) and was stopped"
                raise await _failed(step, sandbox, missing, took)
            await anyio.sleep(PACE)
        workshop.installed.update(missing)
    finally:
        if not is_over:
            with anyio.move_on_after(KILL_WITHIN, shield=True):
                await job.command.kill()


async def _failed(
    step: Install | InstallCommand, sandbox: ProviderSandbox, missing: tuple[str, ...], what: str
) -> DependencyError:
    named = "The fragment's install command" if isinstance(step, InstallCommand) else f"Installing {' '.join(missing)}"
    offline = isinstance(step, Install) and step.offline
    remedy = 'open the pool with network="packages", or use a template that has what is needed'
    why = f" The sandbox reaches no package index: {remedy}." if offline else ""
    return DependencyError(
        f"{named} {what}.{why}",
        sandbox_id=sandbox.sandbox_id,
        dependencies=missing,
        log_tail=await inside.tail(sandbox, f"{inside.PLACE}/install.log"),
    )
