"""Keeps connections to this machine away from the proxies that the environment names.

The SDK's transports read the proxy variables when they are made, once for the process, and send all requests that way,
those to 127.0.0.1 too; no option of theirs says "no proxy". What they heed is NO_PROXY, so loopback is added there.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
EXEMPT = ("localhost", "127.0.0.1", "::1")

_lock = threading.Lock()


def is_loopback(url: str | None) -> bool:
    """Whether a URL leads to this machine, as far as can be seen without asking a name server."""
    host = (urlsplit(url).hostname or "") if url else ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_variables(environment: Mapping[str, str]) -> list[str]:
    """The names of the variables that name a proxy."""
    return sorted(name for name, value in environment.items() if name.lower() in PROXY_VARIABLES and value)


def exemptions(environment: Mapping[str, str], hosts: tuple[str, ...]) -> str | None:
    """What NO_PROXY has to be for these hosts to be reached directly; None if nothing needs to change."""
    if not proxy_variables(environment):
        return None
    entries = [
        entry.strip()
        for name in ("no_proxy", "NO_PROXY")
        for entry in environment.get(name, "").split(",")
        if entry.strip()
    ]
    wanted = ",".join(dict.fromkeys([*entries, *hosts]))
    # Both spellings: which of them is read, where they differ, is not the same in all libraries.
    same = all(environment.get(name) == wanted for name in ("no_proxy", "NO_PROXY"))
    return None if "*" in entries or same else wanted


def exempt_loopback(*urls: str | None) -> None:
    """Add this machine to NO_PROXY, for this process and what it starts, if one of the URLs leads to it.

    Only where the environment names a proxy; safe from any thread.
    """
    hosts = [urlsplit(url).hostname or "" for url in urls if url is not None and is_loopback(url)]
    if not hosts:
        return
    with _lock:
        wanted = exemptions(os.environ, tuple(dict.fromkeys([*EXEMPT, *hosts])))
        if wanted is not None:
            os.environ["NO_PROXY"] = os.environ["no_proxy"] = wanted
