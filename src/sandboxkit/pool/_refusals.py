"""Says in words why a call of `session()` got no sandbox."""

from __future__ import annotations

import copy

from sandboxkit.errors import PoolClosed, PoolFull, PoolTimeout, SandboxkitError, SessionConflict
from sandboxkit.pool._moves import Refusal
from sandboxkit.pool._options import PoolOptions
from sandboxkit.pool._policy import PoolPolicy


def refusal(why: Refusal, options: PoolOptions, policy: PoolPolicy, failure: Exception | None = None) -> Exception:
    """The error for one caller. `failure` is what the creation of its sandbox ended with, if that is why."""
    name, taken, waiting = options.name, len(policy.slots), len(policy.queued)
    match why:
        case "closed":
            return PoolClosed(f"Pool {name!r} is closed.")
        case "full":
            return PoolFull(
                f"All max_live={policy.max_live} sandboxes of pool {name!r} are in use, and {waiting} callers wait "
                f"already (max_waiting={policy.max_waiting}).",
                waiting=waiting,
            )
        case "timeout":
            return PoolTimeout(
                f"Pool {name!r} had no sandbox within acquire_timeout: {taken} of max_live={policy.max_live} are "
                f"taken, and {waiting} other callers wait. Close sessions that are done, or raise max_live, "
                "max_per_template, max_creating or acquire_timeout."
            )
        case "conflict":
            return SessionConflict(
                "The session lives in a sandbox of another template, environment or metadata, or has just been "
                "replaced by one. session(..., replace=True) replaces it, and loses what is in it."
            )
        case "create_failed":
            assert failure is not None, "a failed creation has a failure"
            # Each caller gets one of its own, so that tracebacks do not grow into each other.
            again = copy.copy(failure) if isinstance(failure, SandboxkitError) else failure
            if again is not failure:
                again.__cause__ = failure
            return again
