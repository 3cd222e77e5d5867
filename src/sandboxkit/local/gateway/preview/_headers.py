"""What a preview does to headers, without input or output: which are passed on, and what they say then.

There are three ways in, and each has its own view of the server inside:

- `named`: the Host is the sandbox's own name, which no other page has. Host, cookies and all else are passed on as they
  are; development servers accept `*.localhost`.
- `headers`: a program names the sandbox in E2B's headers, and its Host means the engine. The server sees `localhost`
  with its own port, and none of E2B's headers.
- `loopback`: the Host is an address that this machine's other servers share. The same, and without cookies and
  credentials, in both directions.

Headers that are between two neighbours (RFC 9110, 7.6.1) end here. `maskRequestHost` of a sandbox wins over any Host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sandboxkit.local.gateway._routes import Door

Headers = list[tuple[bytes, bytes]]

PORT_IN_MASK = "${PORT}"

_PROXYS = frozenset((b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"))
_BETWEEN = frozenset((b"connection", b"keep-alive", b"te", b"upgrade")) | _PROXYS
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_TOKEN = b"e2b-traffic-access-token"
_ROUTING = frozenset((b"e2b-sandbox-id", b"e2b-sandbox-port"))
_SECRETS = frozenset((b"cookie", b"authorization"))
_COOKIES = frozenset((b"set-cookie", b"set-cookie2"))
_COOKIE_DOMAIN = re.compile(rb";\s*domain\s*(?:=[^;]*)?(?=;|$)", re.IGNORECASE)
_FORWARDED = frozenset(
    (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto")
)


@dataclass(frozen=True, slots=True)
class View:
    """How a request and its answer are changed on their way.

    Attributes:
        door: the way in.
        outside: the authority that the client used.
        inside: the authority that the server sees as its Host.
        client: the client's address.
    """

    door: Door
    outside: bytes
    inside: bytes
    client: bytes = b"127.0.0.1"

    @property
    def strips(self) -> frozenset[bytes]:
        """The headers that do not reach the server."""
        if self.door == "named":
            return frozenset((_TOKEN,))
        always = _ROUTING | _FORWARDED | {_TOKEN}
        return always | _SECRETS if self.door == "loopback" else always


def view(door: Door, *, host: bytes, port: int, mask: str | None, client: bytes) -> View:
    """The view of a server on `port` that a request with this Host gets."""
    inside = host if door == "named" else b"localhost:%d" % port
    if mask is not None:
        inside = mask.replace(PORT_IN_MASK, str(port)).encode("ascii")
    return View(door, host, inside, client)


def to_server(headers: Iterable[tuple[bytes, bytes]], seen: View) -> Headers:
    """The headers of a request as the server gets them, with its Host first."""
    given = list(headers)
    dropped = _BETWEEN | _named_in_connection(given) | seen.strips | {b"host", b"trailer"}
    dropped -= _FRAMING
    kept = [(name, _from_here(name, value, seen)) for name, value in given if name not in dropped]
    if seen.door != "named":
        kept += [
            (b"x-forwarded-host", seen.outside),
            (b"x-forwarded-proto", b"http"),
            (b"x-forwarded-for", seen.client),
        ]
    upgrade = wanted_upgrade(given)
    if upgrade is None:
        kept.append((b"connection", b"close"))
    else:
        kept += [(b"connection", b"upgrade"), (b"upgrade", upgrade)]
    return [(b"host", seen.inside), *kept]


def to_client(status: int, headers: Iterable[tuple[bytes, bytes]], seen: View) -> Headers:
    """The headers of an answer as the client gets them. Its framing is made anew, but for a length that was said."""
    given = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    dropped = _BETWEEN | _named_in_connection(given) | {b"transfer-encoding", b"trailer"}
    if status in (204, 304):
        dropped |= {b"content-length"}  # no body follows, whatever length is said
    elif all(name != b"transfer-encoding" for name, _ in given):
        dropped -= {b"content-length"}
    else:
        dropped |= {b"content-length"}  # the chunks counted, not the length
    if seen.door == "loopback":
        dropped |= _COOKIES
    return [(name, _to_there(name, value, seen)) for name, value in given if name not in dropped]


def switching(headers: Iterable[tuple[bytes, bytes]], seen: View) -> bytes:
    """The head of an answer that switches protocols, as the client gets it."""
    given = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    upgrade = next((value for name, value in given if name == b"upgrade"), b"websocket")
    kept = to_client(101, given, seen)
    lines = [name + b": " + value for name, value in kept if name not in _FRAMING]
    head = [b"HTTP/1.1 101 Switching Protocols", b"connection: upgrade", b"upgrade: " + upgrade, *lines]
    return b"\r\n".join(head) + b"\r\n\r\n"


def wanted_upgrade(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """What a request asks to switch to; None where it does not."""
    given = list(headers)
    if b"upgrade" not in _named_in_connection(given):
        return None
    return next((value for name, value in given if name == b"upgrade"), None)


def has_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request says that a body follows."""
    return any(name in _FRAMING for name, _value in headers)


def _named_in_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    parts = (part for name, value in headers if name == b"connection" for part in value.split(b","))
    return frozenset(part.strip().lower() for part in parts)


def _from_here(name: bytes, value: bytes, seen: View) -> bytes:
    """A page's own origin, in the words of the server: it compares it with its Host."""
    if seen.door != "named" and name == b"origin" and value.lower() == b"http://" + seen.outside.lower():
        return b"http://" + seen.inside
    return value


def _to_there(name: bytes, value: bytes, seen: View) -> bytes:
    """A redirect to the Host that the server was told, in the words of the client; a cookie, for that host alone. One
    for all of `localhost` would go to other previews and to this machine's other servers; not every client refuses it.
    """
    if name == b"set-cookie":
        return _COOKIE_DOMAIN.sub(b"", value)
    there = b"http://" + seen.inside
    if seen.door != "named" and name == b"location":
        rest = value[len(there) :]
        if value[: len(there)].lower() == there.lower() and (not rest or rest[:1] in b"/?#"):
            return b"http://" + seen.outside + rest
    return value
