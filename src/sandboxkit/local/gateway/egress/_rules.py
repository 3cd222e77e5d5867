"""Who may be called from a sandbox: one decision over host, port and the addresses that the host has; pure.

The order
---------
1. A name that is denied is refused, whatever else allows it.
2. Of its addresses, each is judged by itself, and only those that pass are ever dialled:
   a. nobody's (`never`: 0.0.0.0, multicast, ...), and the engine's own ports: refused, always
   b. the host's own, loopback and link-local: refused unless an allowed network lies wholly in such a range (the
      host's other addresses: unless this one address is allowed), so that 0.0.0.0/0 opens none of them
   c. private: refused unless an allowed network lies wholly in a private range; a configured package index may have
      one, since whoever set this machine up named it
   d. allowed by address, by name or as a package index: passes. As at E2B, what is allowed wins over what is denied
   e. denied by address: refused
   f. else what the base says: `internet` passes, `deny` does not
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sandboxkit.local.gateway.egress._addresses import (
    Address,
    BadHost,
    Network,
    kind_of,
    kind_of_network,
    plain,
    read_host,
)

Base = Literal["deny", "internet"]
MAX_ENTRIES = 1000
EVERYTHING = ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")


@dataclass(frozen=True, slots=True)
class Rules:
    """A list of hosts and networks, read."""

    names: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    """What stands behind `*.`."""
    networks: tuple[Network, ...] = ()

    def names_host(self, host: Address | str) -> bool:
        """Whether a name is listed, itself or by a wildcard. `*.example.com` does not list `example.com`."""
        if not isinstance(host, str):
            return False
        parents = host.split(".")[1:]
        return host in self.names or any(".".join(parents[at:]) in self.suffixes for at in range(len(parents)))

    def holds(self, address: Address) -> bool:
        """Whether an address is listed."""
        return any(address in network for network in self.networks)

    def singles_out(self, address: Address) -> bool:
        """Whether an address is listed alone."""
        return any(network.num_addresses == 1 and address in network for network in self.networks)

    def names_kind(self, address: Address) -> bool:
        """Whether an address is listed by a network that has nothing but addresses of its kind."""
        kind = kind_of(address)
        return any(address in network and kind_of_network(network) == kind for network in self.networks)


def read_rules(entries: Sequence[str]) -> Rules:
    """Read entries: names, `*.` names, addresses, CIDR blocks. `0.0.0.0/0` means IPv6 too, as E2B's clients mean it.

    Raises:
        ValueError: an entry is none of these, or there are more than 1,000; the message has the entry.
    """
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"{len(entries)} entries; at most {MAX_ENTRIES} are possible")
    names, suffixes = set(), set()
    networks: list[Network] = []
    for entry in entries:
        if entry == str(EVERYTHING[0]):
            networks += EVERYTHING
        elif entry.startswith("*."):
            suffix = read_host(entry[2:])
            if not isinstance(suffix, str):
                raise ValueError(f"{entry[:80]!r}: `*.` stands before a name")
            suffixes.add(suffix)
        elif "/" in entry:
            try:
                network = ipaddress.ip_network(entry, strict=False)
            except ValueError:
                raise ValueError(f"{entry[:80]!r} is no CIDR block") from None
            networks.append(_plain_network(network))
        else:
            host = read_host(entry)
            if isinstance(host, str):
                names.add(host)
            else:
                networks.append(ipaddress.ip_network(plain(host)))
    return Rules(frozenset(names), frozenset(suffixes), tuple(networks))


def _plain_network(network: Network) -> Network:
    """A block of IPv4-mapped addresses is a block of IPv4 addresses: addresses are compared in that form."""
    mapped = ipaddress.IPv6Network("::ffff:0:0/96")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(mapped):
        return ipaddress.ip_network((plain(network[0]), network.prefixlen - 96))
    return network


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing is dialled. `told` is for the program inside: it says nothing about the host's network."""

    told: str
    status: int = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What one sandbox may reach now."""

    base: Base = "deny"
    allow: Rules = field(default_factory=Rules)
    deny: Rules = field(default_factory=Rules)
    packages: frozenset[tuple[str, int]] = frozenset()
    """(host, port) of the package indexes that may be used, and of where their files lie."""

    def is_closed(self) -> bool:
        """Whether nothing at all can be reached, so that no way out need be kept open."""
        return self.base == "deny" and self.allow == Rules() and not self.packages

    def may_ask_for(self, host: Address | str, port: int) -> Refusal | None:
        """Decide before a name is resolved: who may not be called at all is not looked up either."""
        if self.deny.names_host(host):
            return Refusal(f"{host} is denied to this sandbox")
        # A network that is allowed may hold the addresses of any name.
        if self.base == "internet" or self._named(host, port) or self.allow.networks:
            return None
        return Refusal(f"{host}:{port} is not among what this sandbox may reach")

    def passing(
        self,
        host: Address | str,
        port: int,
        addresses: Sequence[Address],
        *,
        is_ours: Callable[[Address], bool],
        is_closed: Callable[[Address, int], bool] = lambda address, port: False,
    ) -> list[Address] | Refusal:
        """Say which of the addresses may be dialled; `is_ours` says which belong to this machine, `is_closed` which
        of its ports are the engine's."""
        if (refusal := self.may_ask_for(host, port)) is not None:
            return refusal
        passed = [address for address in map(plain, addresses) if self._passes(host, port, address, is_ours)]
        passed = [address for address in passed if not is_closed(address, port)]
        if passed:
            return list(dict.fromkeys(passed))
        return Refusal(f"{host}:{port} leads to no address that this sandbox may reach")

    def _named(self, host: Address | str, port: int) -> bool:
        return self.allow.names_host(host) or self._is_index(host, port)

    def _is_index(self, host: Address | str, port: int) -> bool:
        return (str(host), port) in self.packages

    def _passes(self, host: Address | str, port: int, address: Address, is_ours: Callable[[Address], bool]) -> bool:
        kind = kind_of(address)
        index = self._is_index(host, port)
        if kind == "never":
            return False
        if kind in ("loopback", "link-local"):
            if not self.allow.names_kind(address):
                return False
        elif is_ours(address):
            if not self.allow.singles_out(address):
                return False
        elif kind == "private" and not index and not self.allow.names_kind(address):
            return False
        if index or self._named(host, port) or self.allow.holds(address):
            return True
        return self.base == "internet" and not self.deny.holds(address)


__all__ = ["BadHost", "Base", "Policy", "Refusal", "Rules", "read_rules"]
