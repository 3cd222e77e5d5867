"""SOCKS 5 as far as a sandbox needs it, without input or output: no password, CONNECT only (RFC 1928)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sandboxkit.local.gateway.egress._addresses import Address, plain, read_host

VERSION = 5
NO_METHOD = b"\x05\xff"
WELCOME = b"\x05\x00"
LARGEST = 262
"""Bytes of the longest request."""

OK, NOT_ALLOWED, UNREACHABLE, NO_SUCH_COMMAND, NO_SUCH_KIND = 0, 2, 4, 7, 8


class Malformed(ValueError):
    """What came is no SOCKS 5; `reply` is what to answer before hanging up."""

    def __init__(self, message: str, reply: bytes = b"") -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Wish:
    """Whom to call."""

    host: Address | str
    port: int


def reply(code: int) -> bytes:
    """Answer a request. The address that belongs in it is nobody's business."""
    return bytes([VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0])


def read_greeting(data: bytes) -> int | None:
    """How long the greeting is; None while it is not all there.

    Raises:
        Malformed: it is none, or wants a password.
    """
    if data[:1] != bytes([VERSION]):
        raise Malformed("not SOCKS 5")
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    if 0 not in data[2 : 2 + data[1]]:
        raise Malformed("wants a password", NO_METHOD)
    return 2 + data[1]


def read_request(data: bytes) -> tuple[int, Wish] | None:
    """How long the request is, and what it asks for; None while it is not all there.

    Raises:
        Malformed: something else than a call to a host.
        BadHost: the host is neither a name nor an address.
    """
    if len(data) < 5:
        return None
    version, command, _reserved, kind = data[:4]
    if version != VERSION:
        raise Malformed("not SOCKS 5")
    if command != 1:
        raise Malformed("a command that is not CONNECT", reply(NO_SUCH_COMMAND))
    if kind not in (1, 3, 4):
        raise Malformed("an unknown kind of address", reply(NO_SUCH_KIND))
    start = 5 if kind == 3 else 4
    end = start + {1: 4, 3: data[4], 4: 16}[kind]
    if len(data) < end + 2:
        return None
    raw = data[start:end]
    # A name may hold anything; what is no ASCII can be no host either.
    host = read_host(raw.decode("ascii", "replace")) if kind == 3 else plain(ipaddress.ip_address(raw))
    return end + 2, Wish(host, int.from_bytes(data[end : end + 2]))
