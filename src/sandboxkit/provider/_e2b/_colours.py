"""The SDK's objects of the other colour, and the files of an object that somebody else made; no request is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import e2b
import e2b_code_interpreter as interpreter

from sandboxkit.errors import (
    ConfigurationError,
)
from sandboxkit.provider._e2b._sandbox import E2BSandbox

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox
else:
    from e2b_code_interpreter import AsyncSandbox


def taken_up(sandbox: object) -> E2BSandbox:
    """A `ProviderSandbox` for one of the SDK's own asynchronous sandboxes.

    Raises:
        ConfigurationError: it is a synchronous one (which SafeFS takes), or no sandbox at all.
    """
    if isinstance(sandbox, e2b.Sandbox):
        raise ConfigurationError("AsyncSafeFS takes an AsyncSandbox; this is a synchronous Sandbox: use SafeFS.")
    if not isinstance(sandbox, e2b.AsyncSandbox):
        raise ConfigurationError(f"A sandbox is needed (the SDK's AsyncSandbox), not {type(sandbox).__name__}.")
    return E2BSandbox(cast("AsyncSandbox", sandbox), "", None)  # files and commands are those of the base class


def async_twin(sandbox: object) -> AsyncSandbox:
    """The asynchronous object for the same sandbox as a synchronous one; no request is made.

    Raises:
        ConfigurationError: it is an asynchronous one (which AsyncSafeFS takes), or no sandbox at all.
    """
    if isinstance(sandbox, e2b.AsyncSandbox):
        raise ConfigurationError("SafeFS takes a synchronous Sandbox; this is an AsyncSandbox: use AsyncSafeFS.")
    if not isinstance(sandbox, e2b.Sandbox):
        raise ConfigurationError(f"A sandbox is needed (the SDK's Sandbox), not {type(sandbox).__name__}.")
    return AsyncSandbox(**_identity(sandbox))


def sync_twin(sandbox: object) -> object:
    """The synchronous object for the same sandbox as an asynchronous one; no request is made, so its life is neither
    shortened nor lengthened. What is not the SDK's (the fake's object) is returned as it is."""
    if not isinstance(sandbox, e2b.AsyncSandbox):
        return sandbox
    return interpreter.Sandbox(**_identity(sandbox))


def _identity(sandbox: e2b.Sandbox | e2b.AsyncSandbox) -> Any:
    # The constructors are kept for compatibility, and are the one way to such an object without a request.
    return {
        "sandbox_id": sandbox.sandbox_id,
        "sandbox_domain": sandbox.sandbox_domain,
        "envd_version": sandbox._envd_version,
        "envd_access_token": sandbox._envd_access_token,
        "traffic_access_token": sandbox.traffic_access_token,
        "connection_config": sandbox.connection_config,
    }
