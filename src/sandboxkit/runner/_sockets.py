"""Reads the kernel's tables of sockets, and says what they mean for an app that was expected elsewhere; pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

LISTEN = "0A"
OWN_PORTS = frozenset((3128, 49983, 49999))
"""Of the service itself: its proxy, its agent, its interpreter."""
MOST = 20


@dataclass(frozen=True, slots=True, order=True)
class Listening:
    """One socket that listens."""

    port: int
    address: str

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def is_reached(self) -> bool:
        """Whether a preview would find it: previews call 127.0.0.1 and ::1."""
        return self.address in ("127.0.0.1", "0.0.0.0", "::1", "::")


def read_sockets(text: str) -> tuple[Listening, ...]:
    """Read /proc/net/tcp and tcp6; what is no line of theirs is passed over."""
    found = set()
    for line in text.splitlines():
        words = line.split()
        if len(words) > 3 and words[3] == LISTEN and (one := _read(words[1])) is not None:
            found.add(one)
    return tuple(sorted(found))[:MOST]


def _read(word: str) -> Listening | None:
    host, colon, port = word.partition(":")
    try:
        raw = bytes.fromhex(host)
        number = int(port, 16)
        # Words of four bytes, each in the machine's order, which is little-endian wherever this runs.
        parts = [raw[at : at + 4][::-1] for at in range(0, len(raw), 4)]
        address = ipaddress.ip_address(b"".join(parts))
    except ValueError:
        return None
    if not colon or not 0 < number < 65_536:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return Listening(number, str(mapped or address))


def elsewhere(port: int, listening: tuple[Listening, ...]) -> str:
    """A sentence about where an app listens that does not answer on its port; empty where nothing is known."""
    here = [one for one in listening if one.port == port]
    if here:
        if any(one.is_reached for one in here):
            return f" Something listens on port {port}, and gives no answer to HTTP."
        shown = ", ".join(map(str, here))
        return f" It listens on {shown}; it has to listen on 127.0.0.1, or on all addresses (0.0.0.0)."
    others = [one for one in listening if one.port not in OWN_PORTS]
    if others:
        return f" Nothing listens on port {port}; what listens is {', '.join(map(str, others))}."
    return f" Nothing listens on port {port}."
