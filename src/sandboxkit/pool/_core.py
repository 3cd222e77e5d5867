"""What all holds on one sandbox share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import anyio

from sandboxkit.errors import PoolClosed, SandboxExpired, SandboxkitError, SandboxNotFound
from sandboxkit.pool._emit import Teller
from sandboxkit.pool._journal import Journal
from sandboxkit.pool._moves import KillReason, Spec
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.runner import Workshop

_SAYS: dict[str, str] = {
    "released": "was an anonymous session's, which has been closed",
    "evicted": "was idle and made room for another session",
    "replaced": "was replaced by session(replace=True)",
    "abandoned": "was made for a caller that went away",
    "expired": "reached the end of its lifetime (TimeoutPolicy.lifetime, or max_lifetime)",
    "lost": "is gone, the provider does not know it any more",
    "asked": "was killed by kill()",
    "drained": "was drained",
    "shrunk": "lay unused longer than idle_timeout",
    "retired": "grew older than TimeoutPolicy.max_lifetime",
    "worn": "was opened max_uses times",
    "failed": "could not be prepared for its session",
    "detached": "was taken out of the pool by detach()",
}


@dataclass(eq=False, kw_only=True)
class Core:
    """One sandbox of the pool."""

    slot: int
    key: str | None
    row: str
    generation: int
    spec: Spec
    sandbox: ProviderSandbox
    tell: Teller
    made_at: float
    """On the loop's clock: at the latest then, it did not live yet."""
    journal: Journal
    workshop: Workshop = field(default_factory=Workshop)
    """What fragments have left here, for those that follow."""
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while its life is prolonged, so that concurrent uses ask once."""
    preparing: anyio.Lock = field(default_factory=anyio.Lock)
    """Held by the first holder while it makes it the session's own."""
    is_prepared: bool = False
    is_unchecked: bool = False
    """It lay idle, or warm: whoever is handed it next makes sure that it is still there."""
    is_paused: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """What its session has started with, by path."""
    late_envs: dict[str, str] = field(default_factory=dict, repr=False)
    """The session's environment, where the sandbox was made without it: it is given to each run."""
    uses: int = 0
    """How many are under way."""
    runs: set[anyio.CancelScope] = field(default_factory=set)
    """Code that runs, for `interrupt()`."""
    end_at: float | None = None
    """On the loop's clock."""
    gone: KillReason | Literal["detached"] | None = None
    tried_to_kill: anyio.Event = field(default_factory=anyio.Event)
    """Set when the first attempt to kill it has ended, with `kill_error` where it failed."""
    kill_error: Exception | None = None

    def become(self, key: str | None, spec: Spec, tell: Teller) -> None:
        """Become a session's own, though it was made for nobody; whoever gives it up is followed by the next."""
        self.key, self.spec, self.late_envs = key, spec, dict(spec.envs or ())
        self.tell = tell.about(session=key, template=spec.template, sandbox_id=self.sandbox.sandbox_id)

    def interrupt(self) -> bool:
        """Interrupt the code that runs; whether there was any."""
        runs = list(self.runs)
        for scope in runs:
            scope.cancel()
        return bool(runs)

    def why_gone(self) -> SandboxkitError | None:
        """The error for a use of this sandbox, None while it is there."""
        if self.gone is None:
            return None
        sandbox_id = self.sandbox.sandbox_id
        if self.gone == "closed":
            return PoolClosed(f"The pool was closed, and sandbox {sandbox_id} with it.", sandbox_id=sandbox_id)
        kind = SandboxExpired if self.gone in ("expired", "retired") else SandboxNotFound
        again = "" if self.key is None else f" pool.session({self.key!r}) makes a new one."
        return kind(f"Sandbox {sandbox_id} {_SAYS[self.gone]}.{again}", sandbox_id=sandbox_id)
