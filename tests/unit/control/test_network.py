"""What a request about the network gets, within the engine's default and ceiling."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from sandboxkit.local.control._network import NetworkRequest, decide, wants_packages
from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.gateway.egress._rules import Refusal

ALL = "0.0.0.0/0"
ENDPOINTS = frozenset({("index.example", 443), ("files.example", 8443)})
MODES = ("deny", "packages", "internet")


def asked(**fields: Any) -> NetworkRequest:
    """A request."""
    return NetworkRequest(**fields)


def reaches(network: Any, host: str, port: int = 443, address: str = "8.8.8.8") -> bool:
    """Whether a host is reached."""
    found = network.policy.passing(host, port, [ipaddress.ip_address(address)], is_ours=lambda one: False)
    return not isinstance(found, Refusal)


@pytest.mark.parametrize("default", MODES)
def test_saying_nothing_gets_the_default(default: Any) -> None:
    """A create that says nothing gets what the engine was started with, and its info tells it."""
    network = decide(asked(), default=default, ceiling=default, endpoints=ENDPOINTS)
    assert network.mode == default
    assert network.internet is (default == "internet")
    assert reaches(network, "other.example") is (default == "internet")
    assert reaches(network, "index.example") is (default != "deny")
    assert reaches(network, "files.example", 443) is (default == "internet")
    if default == "packages":
        assert network.shown == {"allowOut": ["files.example", "index.example"], "denyOut": [ALL]}
        assert reaches(network, "index.example", 443, "10.0.0.1")
    else:
        assert network.shown is None


@pytest.mark.parametrize("ceiling", MODES)
def test_the_ceiling(ceiling: Any) -> None:
    """What goes beyond what the engine was started with is a 400 that names the flag."""
    for request, least in (
        (asked(internet=True), "internet"),
        (asked(allow=("other.example",)), "internet"),
        (asked(allow=("10.0.0.1",), deny=(ALL,)), "internet"),
        (asked(allow=("index.example",), deny=(ALL,)), "packages"),
        (asked(internet=False, deny=("10.0.0.0/8",)), "deny"),
    ):
        if MODES.index(ceiling) >= MODES.index(least):
            decide(request, default="deny", ceiling=ceiling, endpoints=ENDPOINTS)
            continue
        # With other hosts allowed, "packages" is too little even for a list that begins with an index.
        with pytest.raises(Refused, match=f"--internet {ceiling}") as refused:
            decide(request, default="deny", ceiling=ceiling, endpoints=ENDPOINTS)
        assert refused.value.status == 400


def test_a_list_of_indexes_is_the_mode() -> None:
    """A list of nothing but index hosts, all else denied, is `packages`: their ports alone, private or not."""
    request = asked(allow=("Index.example", "files.example"), deny=(ALL,))
    assert wants_packages(request, default="deny", ceiling="internet", index_hosts={"index.example"})
    network = decide(request, default="deny", ceiling="internet", endpoints=ENDPOINTS)
    assert network.mode == "packages"
    assert reaches(network, "index.example", 443, "10.0.0.1")
    assert not reaches(network, "index.example", 80)
    assert reaches(network, "files.example", 8443)


def test_lists() -> None:
    """Denying everything leaves what is allowed; without it, lists stand beside the default or the internet."""
    only = decide(asked(allow=("a.example",), deny=(ALL,)), default="internet", ceiling="internet")
    assert (only.mode, only.internet) == ("rules", False)
    assert reaches(only, "a.example")
    assert not reaches(only, "b.example")
    both = decide(asked(internet=True, deny=("8.8.0.0/16",)), default="deny", ceiling="internet")
    assert (both.mode, both.internet) == ("rules", True)
    assert not reaches(both, "b.example")
    assert reaches(both, "b.example", address="9.9.9.9")
    beside = decide(asked(allow=("a.example",)), default="deny", ceiling="internet")
    assert reaches(beside, "a.example")
    assert not reaches(beside, "b.example")
    assert beside.shown == {"allowOut": ["a.example"]}
    nothing = decide(asked(internet=True, deny=(ALL,)), default="internet", ceiling="internet")
    assert nothing.mode == "deny"
    assert nothing.policy.is_closed()


@pytest.mark.parametrize("entry", ["0x7f.1", "10.0.0.0/99", "*.10.0.0.1", "*", "*.*.a", "a b", "", "::1/x", "x" * 300])
def test_malformed_entries(entry: str) -> None:
    """An entry that is no host, address or block is a 400 that shows it."""
    for name in ("allow", "deny"):
        with pytest.raises(Refused, match=rf"network\.{name}Out"):
            decide(asked(**{name: (entry,)}), default="deny", ceiling="internet")
