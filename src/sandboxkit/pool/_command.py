"""A command that runs in the background of a session."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import anyio

from sandboxkit._types import CommandResult
from sandboxkit.errors import CommandTimeout, ConfigurationError, SandboxLost
from sandboxkit.pool._lease import MOST_LOSSES, Lease
from sandboxkit.pool._options import seconds
from sandboxkit.provider._base import RunningCommand


class AsyncCommandHandle:
    """A command that `run_command(background=True)` started. It runs until it ends, is killed, or its sandbox ends.

    It does not prolong the sandbox's life; uses of the session do, and so does waiting for it (`renew="heartbeat"`).
    A pause of the sandbox stops it; who waits for it lets both go on. What it writes between then and its being
    listened to again, some milliseconds, is not heard.
    """

    def __init__(self, lease: Lease, command: RunningCommand) -> None:
        self._lease = lease
        self._core = lease.core
        self._command = command

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        return self._command.pid

    async def wait(self, *, timeout: float | None = None) -> CommandResult:
        """Wait for its end and return what it did.

        Args:
            timeout: how many seconds to wait; None waits as long as the sandbox lives. The command goes on after it.

        Raises:
            CommandTimeout: it has not ended within `timeout`; wait again, or `kill()` it.
            OutputTooLarge: it wrote more than the `max_output` that it was started with.
            SandboxLost, PoolError: the sandbox went first, or the session was closed.
            ProviderError: the service did not answer, or knows the command no more after a pause.
        """
        limit = None if timeout is None else seconds("timeout", timeout)
        with anyio.move_on_after(limit):
            return await self._ended()
        raise CommandTimeout(
            f"Command {self.pid} has not ended within timeout={limit:g} s; it goes on.",
            sandbox_id=self._core.sandbox.sandbox_id,
            timeout=limit,
        )

    async def _ended(self) -> CommandResult:
        lost = 0
        while True:
            self._check()
            try:
                return await self._lease.use(0.0, lambda _: self._command.wait())
            except SandboxLost:
                # A pause has cut it off; the next use lets sandbox and command go on.
                lost = 0 if self._core.is_paused else lost + 1
                if self._core.gone is not None or lost > MOST_LOSSES:
                    raise

    async def kill(self) -> bool:
        """Kill it and what it started. False if it had ended already.

        Raises:
            SandboxLost, PoolError: the sandbox went first, or the session was closed.
        """
        self._check()
        return await self._lease.use(0.0, lambda _: self._command.kill())

    def _check(self) -> None:
        """Refuse a command of a sandbox that its session has lost, and replaced by another."""
        gone = self._core.why_gone()
        if gone is not None:
            raise gone

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid={self.pid} sandbox={self._core.sandbox.sandbox_id}>"


def command_line(cmd: str | Sequence[str]) -> str:
    """A command as the sandbox's shell takes it.

    Raises:
        ConfigurationError: neither a text nor a sequence of texts.
    """
    if isinstance(cmd, str):
        return cmd
    if not isinstance(cmd, Sequence) or not cmd or not all(isinstance(word, str) for word in cmd):
        raise ConfigurationError(f"cmd={cmd!r}: a text, or a sequence of texts that is not empty, is needed.")
    return shlex.join(cmd)


AsyncCommandHandle.__module__ = "sandboxkit"
