"""What an IP address stands for, whatever form it has; pure.

Python's own `is_global` is not used: its tables differ between the versions that we run on, and it does not look into
addresses that carry another one. What is not listed here is public.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

Kind = Literal["public", "private", "loopback", "link-local", "never"]
"""`private` is somebody's own network (or one for documentation and tests); `never` is nobody one could call."""

_KINDS: tuple[tuple[Kind, Sequence[str]], ...] = (
    ("loopback", ("127.0.0.0/8", "::1/128")),
    # Here live the metadata services of all clouds but one; that one is in a private range below.
    ("link-local", ("169.254.0.0/16", "fe80::/10")),
    (
        "private",
        (
            "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10",
            "100.64.0.0/10",  # carriers' own (CGNAT); one cloud's metadata service too
            "192.0.0.0/24", "198.18.0.0/15",  # protocol assignments, benchmarks
            "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20",  # documentation
            "192.88.99.0/24", "2001::/23", "5f00::/16",  # relays, Teredo and other assignments, segment routing
            "64:ff9b:1::/48",  # translation within one network
            "168.63.129.16/32",  # one cloud's platform service, on a public address
        ),
    ),
    ("never", ("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "::/96", "ff00::/8", "100::/64")),
)  # fmt: skip
_TABLE = [(ipaddress.ip_network(text), kind) for kind, texts in _KINDS for text in texts]

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # "IPv4-translated", RFC 2765
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")

_NUMERIC_END = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)\Z")
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")


class BadHost(ValueError):
    """A text that is neither a name nor an address in its usual spelling."""


def plain(address: Address) -> Address:
    """The IPv4 address behind the forms that the kernel, or a router next to it, would turn into one; else itself."""
    if isinstance(address, ipaddress.IPv6Address):
        number = int(address)
        if address in _MAPPED or address in _TRANSLATED or address in _NAT64:
            return ipaddress.IPv4Address(number & 0xFFFFFFFF)
        if address in _SIX_TO_FOUR:
            return ipaddress.IPv4Address(number >> 80 & 0xFFFFFFFF)
        if address.scope_id is not None:
            return ipaddress.IPv6Address(number)
    return address


def kind_of(address: Address) -> Kind:
    """Say what an address stands for."""
    address = plain(address)
    # The narrowest entry says it: ::1 is loopback although ::/96 is nobody.
    found = [(network.prefixlen, kind) for network, kind in _TABLE if address in network]
    return max(found)[1] if found else "public"


def kind_of_network(network: Network) -> Kind:
    """Say what all of a network stands for; "public" where parts of it stand for different things."""
    kinds = {kind_of(network[0]), kind_of(network[-1])}
    within = [kind for known, kind in _TABLE if known.version == network.version and network.subnet_of(known)]  # type: ignore[arg-type]
    return kinds.pop() if within and len(kinds) == 1 else "public"


def read_host(text: str) -> Address | str:
    """Read a host as a request names it: an address, or a name in lower case without its last dot.

    Odd spellings of addresses (`0x7f.1`, `2130706433`, `127.1`), which resolvers take for addresses, are refused.

    Raises:
        BadHost: none of these.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            raise BadHost(f"{text[:80]!r} is no IPv6 address")
    if ":" in text:
        try:
            return plain(ipaddress.IPv6Address(text))
        except ValueError:
            raise BadHost(f"{text[:80]!r} is no IPv6 address") from None
    name = text.removesuffix(".").lower()
    if _NUMERIC_END.fullmatch(name.rpartition(".")[2]):
        try:
            return ipaddress.IPv4Address(name)
        except ValueError:
            raise BadHost(
                f"{text[:80]!r} is an address in an unusual spelling; four decimal numbers are needed"
            ) from None
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise BadHost(f"{text[:80]!r} is no host name")
    return name
