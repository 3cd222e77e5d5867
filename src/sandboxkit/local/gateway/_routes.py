"""Whom a request means, and whether it may pass: decided from its headers alone.

Rules, in this order:

1. The Host must be a loopback name or address. Everything else is somebody's page that rebound its own name to us.
2. A request that a browser sent on behalf of another page (an Origin that is not the Host's, `Sec-Fetch-Site` other
   than `same-origin` or `none`) may not pass: pages have no business here. Following a link is no such request, as
   long as it only reads: a signed download link must work wherever it is shown.
3. A Host of the form `<port>-<sandbox>.<domain>` means that sandbox. Its headers cannot change that, since a page
   that the sandbox serves runs under this very name.
4. Else the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port` name the sandbox. Python SDKs until 2.25 send them with
   `connect`, too, which is the control plane's: that path, at the port of E2B's own API, passes to rule 7.
5. Else an `X-Access-Token` names the sandbox whose token it is: after `connect`, those SDKs send nothing more.
6. Else `/files` means the sandbox whose signature the query carries; without a signature it is refused, as envd does.
7. Else the control plane is meant.

A loopback port that belongs to one port of one sandbox (`route_loopback`) has rules of its own: it is for programs on
this machine. Its Host is an address or `localhost` with that very port; other pages are refused as above; and a page
of its own never comes to be, since a browser that is sent there is sent on to the sandbox's own name. Cookies know no
ports: under an address a sandbox would read and set those of every other server of this machine.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sandboxkit.local._sandbox import ENVD_PORT

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_SANDBOX_NAME = re.compile(r"(?P<port>[0-9]{1,5})-(?P<id>[a-z0-9]+)")
_PORT = re.compile(r"[0-9]{1,5}")
_CONNECT = re.compile(r"/sandboxes/[a-z0-9]+/connect")
_ID_SHOWN = 64

Door = Literal["named", "headers", "loopback"]
"""How a request says which port of which sandbox it is for: by its Host, by E2B's headers, or by where it came in."""


@dataclass(frozen=True, slots=True)
class ToSandbox:
    """A sandbox is meant, by id."""

    sandbox_id: str
    port: int
    door: Door = "headers"


@dataclass(frozen=True, slots=True)
class ToSignature:
    """The sandbox is meant whose signature the query carries."""


@dataclass(frozen=True, slots=True)
class ToHolder:
    """The sandbox is meant whose access token this is."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ToControl:
    """The control plane is meant."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The request does not pass."""

    status: int
    message: str
    error_code: str


@dataclass(frozen=True, slots=True)
class Moved:
    """A browser is to ask there."""

    location: str


Route = ToSandbox | ToSignature | ToHolder | ToControl | Denied | Moved


def route(
    *, method: str, path: str, headers: Mapping[str, str], signed: bool, hosts: int, any_address: bool = False
) -> Route:
    """Decide about one request.

    Args:
        method, path: of the request line.
        headers: by lower-case name, the first of each.
        signed: the query carries a signature.
        hosts: how many Host headers there are.
        any_address: the engine listens on more than loopback, so any literal address will do for a Host (names never:
            a page cannot rebind an address).
    """
    name = _checked_host(method, headers, hosts, any_address=any_address)
    if isinstance(name, Denied):
        return name
    if name.endswith(".localhost"):
        meant = _SANDBOX_NAME.fullmatch(name.removesuffix(".localhost"))
        if meant is not None:
            return _to_sandbox(meant["id"], meant["port"], "named")
    if "e2b-sandbox-id" in headers:
        port = headers.get("e2b-sandbox-port", str(ENVD_PORT))
        if port == str(ENVD_PORT) and method == "POST" and _CONNECT.fullmatch(path):
            return ToControl()
        return _to_sandbox(headers["e2b-sandbox-id"], port, "headers")
    if "x-access-token" in headers:
        return ToHolder(headers["x-access-token"])
    if path == "/files":
        return ToSignature() if signed else Denied(401, "missing signature query parameter", "unauthorized")
    return ToControl()


def route_loopback(
    *, method: str, target: str, headers: Mapping[str, str], hosts: int, own_port: int, to: ToSandbox, named: str
) -> Route:
    """Decide about one request that came in at a loopback port of its own.

    Args:
        target: path and query, as they came.
        own_port: the loopback port.
        to: whom it leads to.
        named: `<port>-<sandbox>.<domain>`, where browsers find the same.
    """
    name = _checked_host(method, headers, hosts, any_address=False)
    if isinstance(name, Denied):
        return name
    parsed = _HOST.fullmatch(headers["host"])
    is_own = name == "localhost" or not name.endswith("localhost")
    if parsed is None or not is_own or parsed["port"] != str(own_port):
        return Denied(403, f"This port does not answer for the host {headers['host'][:64]!r}", "host_not_allowed")
    # Browsers that are too old to say what they want a thing for want pages first of all.
    asks_for_a_page = headers.get("accept", "").startswith("text/html")
    if headers.get("sec-fetch-mode", "navigate" if asks_for_a_page else "") == "navigate":
        return Moved(f"http://{named}{target}")
    return to


def _checked_host(method: str, headers: Mapping[str, str], hosts: int, *, any_address: bool) -> str | Denied:
    """The name in the Host header, where a request may pass at all (rules 1 and 2)."""
    host = headers.get("host", "")
    parsed = _HOST.fullmatch(host)
    if hosts != 1 or parsed is None:
        return Denied(400, "One well-formed Host header is needed", "bad_host")
    name = parsed["name"].lower().rstrip(".")
    if not _is_ours(name, any_address=any_address):
        return Denied(403, f"This engine does not answer for the host {name[:64]!r}", "host_not_allowed")
    if not _may_pass(method, host, headers):
        return Denied(403, "Pages in a browser may not call this engine", "origin_not_allowed")
    return name


def _to_sandbox(sandbox_id: str, port: str, door: Door) -> ToSandbox | Denied:
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65_536:
        return Denied(400, f"{port[:16]!r} is not a port", "bad_port")
    return ToSandbox(sandbox_id[:_ID_SHOWN], int(port), door)


def _is_ours(name: str, *, any_address: bool) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return any_address or address.is_loopback


def _may_pass(method: str, host: str, headers: Mapping[str, str]) -> bool:
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host.lower()}":
        return False
    if headers.get("sec-fetch-mode") == "navigate" and method in ("GET", "HEAD"):
        return True
    return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
