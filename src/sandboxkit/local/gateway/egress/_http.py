"""What a proxy does to HTTP requests and answers, without input or output: whom they are for, what is passed on.

Headers that are between the client and us (RFC 9110, 7.6.1) stop here, in both directions; of an upgrade, therefore,
nothing is passed on, and WebSockets go through CONNECT, as clients do where there is a proxy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from sandboxkit.local.gateway.egress._addresses import Address, read_host

Headers = list[tuple[bytes, bytes]]

_OURS = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"upgrade",
    )
)


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a request is for. `path` is what the server sees; empty for a tunnel."""

    host: Address | str
    port: int
    path: bytes = b""
    shown: str = ""
    """The host as a Host header has it."""


class BadTarget(ValueError):
    """The request's target cannot be called."""


def read_authority(text: str, *, default_port: int | None = None) -> tuple[Address | str, int]:
    """Read `host:port`.

    Raises:
        ValueError: malformed.
    """
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host += bracket
    else:
        host, rest = (text, "") if ":" not in text else (text[: text.index(":")], text[text.index(":") :])
    if rest == "" and default_port is not None:
        return read_host(host), default_port
    digits = rest.removeprefix(":")
    if not rest.startswith(":") or not digits.isascii() or not digits.isdigit() or not 0 < int(digits[:6]) < 65536:
        raise BadTarget("a port is needed, from 1 to 65535")
    return read_host(host), int(digits)


def read_target(method: bytes, target: bytes) -> Target:
    """Read whom a request is for.

    Raises:
        ValueError: malformed, or not for a proxy.
    """
    text = target.decode("ascii", "replace")
    if method == b"CONNECT":
        return Target(*read_authority(text))
    scheme, mark, rest = text.partition("://")
    if not mark:
        raise BadTarget("this is a proxy: a request names a whole address, or is a CONNECT")
    if scheme.lower() != "http":
        raise BadTarget(f"{scheme[:16]}: cannot be passed on by a plain request; use CONNECT")
    authority = urlsplit(f"//{rest}").netloc
    if "@" in authority:
        raise BadTarget("an address with a user's name in it is not passed on")
    path = rest[len(authority) :].partition("#")[0]
    if not path.startswith("/"):
        path = f"/{path}"
    return Target(*read_authority(authority, default_port=80), path=path.encode("ascii", "replace"), shown=authority)


def passed_on(headers: Iterable[tuple[bytes, bytes]], *, without: frozenset[bytes] = frozenset()) -> Headers:
    """The headers that go on to the other side, with ours in the place of those that end here."""
    given = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    named = {part.strip().lower() for name, value in given if name == b"connection" for part in value.split(b",")}
    # Framing stays: taking it away would make one message of two.
    named -= {b"content-length", b"transfer-encoding", b"host"}
    kept = [(name, value) for name, value in given if name not in _OURS | named | without]
    return [*kept, (b"connection", b"close")]
