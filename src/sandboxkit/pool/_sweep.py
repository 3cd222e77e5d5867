"""Finds a sandbox whose create gave no clear answer."""

from __future__ import annotations

from collections.abc import Mapping

from sandboxkit.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ProviderError,
    RateLimited,
    SandboxkitError,
)
from sandboxkit.provider._base import Provider


def is_unsure(error: Exception) -> bool:
    """Whether a sandbox may have been made although its create ended with this error: a lost reply, a server's error.

    A refusal that names its reason made none.
    """
    if isinstance(error, AuthenticationFailed | RateLimited | ConfigurationError):
        return False
    return isinstance(error, ProviderError) or not isinstance(error, SandboxkitError)


async def tagged(provider: Provider, tags: Mapping[str, str]) -> list[str]:
    """The ids of the sandboxes that have all these tags.

    A create that the service is still busy with when this looks is missed; its sandbox ends with its lifetime.

    Raises:
        ProviderError: the service did not answer; nothing is known.
    """
    return [info.sandbox_id async for info in provider.list(metadata=tags)]
