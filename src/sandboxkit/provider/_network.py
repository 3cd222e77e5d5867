"""What `network=` becomes in a create request: E2B's own options, the same for every door."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sandboxkit._types import NetworkMode, NetworkPolicy
from sandboxkit.errors import ConfigurationError, EngineUnavailable, UnsupportedOption

if TYPE_CHECKING:
    from sandboxkit.local.indexes import Indexes

ALL_TRAFFIC = "0.0.0.0/0"

Block = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What a create request says.

    Attributes:
        internet: `allow_internet_access`; it is said wherever no lists are, since a service's own default may be
            anything. None: the lists say it.
        allow, deny: `network.allow_out` and `network.deny_out`.
        envs: variables that make pip, uv and npm use this machine's indexes.
    """

    internet: bool | None = None
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """The arguments of the SDK's `create`."""
        if self.internet is not None:
            return {"allow_internet_access": self.internet}
        return {"network": {"allow_out": list(self.allow), "deny_out": list(self.deny)}}


def network_options(
    network: NetworkMode | NetworkPolicy, *, indexes: Indexes | None = None, denies_names: bool = True
) -> NetworkOptions:
    """Say what a create request must say. Pure.

    Args:
        network: what the pool was given.
        indexes: this machine's package indexes; needed for "packages".
        denies_names: whether the service can deny hosts by name; E2B can deny addresses only.

    Raises:
        ConfigurationError: it is no mode and no policy, or an entry of the policy cannot be read.
        UnsupportedOption: the service cannot do it; the message names what it can.
        EngineUnavailable: "packages", and no index that a sandbox could use is configured here.
    """
    if network in ("deny", "internet"):
        return NetworkOptions(internet=network == "internet")
    if network == "packages":
        assert indexes is not None, "the indexes are needed"
        if not indexes.endpoints:
            why = "; ".join(indexes.left_out) or "neither pip nor uv nor npm was found"
            raise EngineUnavailable(f'network="packages": no package index of this machine can be used ({why}).')
        return NetworkOptions(allow=tuple(indexes.hosts()), deny=(ALL_TRAFFIC,), envs=indexes.variables())
    if isinstance(network, NetworkPolicy):
        return _of_policy(network, denies_names=denies_names)
    raise ConfigurationError(f'network={network!r}: one of "deny", "packages", "internet" or a NetworkPolicy.')


def machine_indexes() -> Indexes:
    """The package indexes of this machine. Blocks for about a second."""
    from sandboxkit.local.indexes import learn, read_settings, with_defaults

    return learn(with_defaults(read_settings()))


def _of_policy(policy: NetworkPolicy, *, denies_names: bool) -> NetworkOptions:
    """At the service, what is allowed wins over what is denied; here it is the other way round. So denied blocks are
    cut out of the allowed ones, and denied names go along where the service takes them."""
    allow_blocks, allow_names = _split("allow", policy.allow)
    deny_blocks, deny_names = _split("deny", policy.deny)
    if deny_names and not denies_names:
        raise UnsupportedOption(
            f"NetworkPolicy(deny=({deny_names[0]!r}, ...)): E2B denies addresses and networks, and no names; leave it "
            "out, since nothing is reachable that is not allowed.",
            option="network",
        )
    # The engine lets no name lead to a private address anyhow; a service of E2B's has not said so.
    open_blocks = [block for block in deny_blocks if not (denies_names and block.is_private)]
    if open_blocks and allow_names:
        raise UnsupportedOption(
            f"NetworkPolicy(deny=({str(open_blocks[0])!r}, ...)) beside an allowed name ({allow_names[0]!r}): what is "
            "allowed by name is reached at whatever address it has. Allow addresses, or deny names.",
            option="network",
        )
    if not policy.allow:
        return NetworkOptions(internet=False)
    left = [piece for block in allow_blocks for piece in _without(block, deny_blocks)]
    allow = (*allow_names, *map(str, left))
    return NetworkOptions(allow=allow, deny=(ALL_TRAFFIC, *deny_names)) if allow else NetworkOptions(internet=False)


def _split(which: str, entries: Sequence[str]) -> tuple[list[Block], list[str]]:
    if isinstance(entries, str):
        raise ConfigurationError(f"NetworkPolicy({which}={entries!r}): a tuple of texts is needed.")
    blocks: list[Block] = []
    names: list[str] = []
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise ConfigurationError(f"NetworkPolicy({which}=...): {entry!r} is no host, address or network.")
        try:
            blocks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            if "/" in entry or ":" in entry:
                raise ConfigurationError(f"NetworkPolicy({which}=...): {entry!r} is no network.") from None
            names.append(entry)
    return blocks, names


def _without(block: Block, denied: Sequence[Block]) -> list[Block]:
    left = [block]
    for other in denied:
        cut: list[Block] = []
        for piece in left:
            if piece.version != other.version or not piece.overlaps(other):
                cut.append(piece)
            elif other.supernet_of(piece):  # type: ignore[arg-type]  # of one version, as was looked at above
                continue
            else:
                cut += piece.address_exclude(other)  # type: ignore[arg-type]
        left = cut
    return left
