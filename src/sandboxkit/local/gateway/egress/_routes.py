"""Asks the kernel whether an address is this machine's own, by the routing table that a connection would go by."""

from __future__ import annotations

import ipaddress
import socket
import struct

from sandboxkit.local.gateway.egress._addresses import Address

RTM_NEWROUTE, RTM_GETROUTE, NLM_F_REQUEST, RTA_DST, RTN_UNICAST = 24, 26, 1, 1, 1
_HEADER, _ROUTE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBBBBBBBI"), struct.Struct("=HH")


def is_own(address: Address) -> bool:
    """Whether a connection to this address would not leave the machine (or is a broadcast). Where there is no route
    at all it would not, either, but it could not be made: False.

    Raises:
        OSError: the kernel does not answer; the caller must not call the address then.
    """
    packed = address.packed
    family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
    route = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), RTA_DST) + packed
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(1.0)
        asking.send(_HEADER.pack(_HEADER.size + len(body), RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + body)
        answer = asking.recv(65536)
    kind = _HEADER.unpack_from(answer)[1]
    if kind != RTM_NEWROUTE:
        return False
    return bool(_ROUTE.unpack_from(answer, _HEADER.size)[7] != RTN_UNICAST)
