"""What `network=` becomes in a create request; pure, and the one place that refuses what cannot be had."""

from __future__ import annotations

from sandboxkit._types import NetworkMode, NetworkPolicy
from sandboxkit.errors import ConfigurationError, UnsupportedOption


def internet_access(network: NetworkMode | NetworkPolicy) -> bool:
    """Say what `allow_internet_access` must be. It is always said, since a service's own default may be anything.

    Whether `"internet"` can be had is the service's to answer: the local engine refuses it unless it was started with
    it, and the refusal becomes UnsupportedOption.

    Raises:
        UnsupportedOption: no door can do it yet; the message names what can be had.
    """
    if network == "deny":
        return False
    if network == "internet":
        return True
    if network == "packages" or isinstance(network, NetworkPolicy):
        shown = '"packages"' if network == "packages" else "NetworkPolicy(...)"
        raise UnsupportedOption(f'network={shown} is not supported yet; "deny" and "internet" are.', option="network")
    raise ConfigurationError(f'network={network!r}: one of "deny", "packages", "internet" or a NetworkPolicy.')
