"""What `network=` becomes in a create request; pure, and the one place that refuses what cannot be had."""

from __future__ import annotations

from typing import Literal

from sandboxkit._types import NetworkMode, NetworkPolicy
from sandboxkit.errors import ConfigurationError, UnsupportedOption

Door = Literal["e2b", "local"]


def internet_access(network: NetworkMode | NetworkPolicy, *, door: Door, allowed: bool = False) -> bool | None:
    """Say what `allow_internet_access` must be; None leaves it out of the request.

    The local engine gives no network to a request that leaves it out, so `"deny"` asks for it only where silence
    would mean the contrary. `allowed` tells whether the local engine was started with `--internet internet`.

    Raises:
        UnsupportedOption: the door cannot do it (yet); the message names what is missing.
    """
    if network == "deny":
        return False
    if network == "internet":
        if door == "local" and not allowed:
            raise UnsupportedOption(
                'network="internet": the local engine gives its sandboxes no network (its egress proxy is not there '
                'yet). Use network="deny", or endpoint="e2b".',
                option="network",
            )
        return True
    if network == "packages" or isinstance(network, NetworkPolicy):
        shown = '"packages"' if network == "packages" else "NetworkPolicy(...)"
        raise UnsupportedOption(f'network={shown} is not supported yet; "deny" and "internet" are.', option="network")
    raise ConfigurationError(f'network={network!r}: one of "deny", "packages", "internet" or a NetworkPolicy.')
