"""Whom a request means, and whether it may pass: decided from its headers alone.

Rules, in this order:

1. The Host must be a loopback name or address. Everything else is somebody's page that rebound its own name to us.
2. A request that a browser sent on behalf of another page (an Origin that is not the Host's, `Sec-Fetch-Site` other
   than `same-origin` or `none`) may not pass: pages have no business here. Following a link is no such request, as
   long as it only reads: a signed download link must work wherever it is shown.
3. A Host of the form `<port>-<sandbox>.<domain>` means that sandbox. Its headers cannot change that, since a page
   that the sandbox serves runs under this very name.
4. Else the headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port` name the sandbox.
5. Else `/files` with a signature means the sandbox whose signature it is.
6. Else the control plane is meant.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxkit.local._sandbox import ENVD_PORT

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")
_SANDBOX_NAME = re.compile(r"(?P<port>[0-9]{1,5})-(?P<id>[a-z0-9]+)")
_PORT = re.compile(r"[0-9]{1,5}")
_ID_SHOWN = 64


@dataclass(frozen=True, slots=True)
class ToSandbox:
    """A sandbox is meant, by id."""

    sandbox_id: str
    port: int


@dataclass(frozen=True, slots=True)
class ToSignature:
    """The sandbox is meant whose signature the query carries."""


@dataclass(frozen=True, slots=True)
class ToControl:
    """The control plane is meant."""


@dataclass(frozen=True, slots=True)
class Denied:
    """The request does not pass."""

    status: int
    message: str
    error_code: str


Route = ToSandbox | ToSignature | ToControl | Denied


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
    host = headers.get("host", "")
    parsed = _HOST.fullmatch(host)
    if hosts != 1 or parsed is None:
        return Denied(400, "One well-formed Host header is needed", "bad_host")
    name = parsed["name"].lower().rstrip(".")
    if not _is_ours(name, any_address=any_address):
        return Denied(403, f"This engine does not answer for the host {name[:64]!r}", "host_not_allowed")
    if not _may_pass(method, host, headers):
        return Denied(403, "Pages in a browser may not call this engine", "origin_not_allowed")
    if name.endswith(".localhost"):
        meant = _SANDBOX_NAME.fullmatch(name.removesuffix(".localhost"))
        if meant is not None:
            return _to_sandbox(meant["id"], meant["port"])
    if "e2b-sandbox-id" in headers:
        return _to_sandbox(headers["e2b-sandbox-id"], headers.get("e2b-sandbox-port", str(ENVD_PORT)))
    if path == "/files" and signed:
        return ToSignature()
    return ToControl()


def _to_sandbox(sandbox_id: str, port: str) -> ToSandbox | Denied:
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65_536:
        return Denied(400, f"{port[:16]!r} is not a port", "bad_port")
    return ToSandbox(sandbox_id[:_ID_SHOWN], int(port))


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
