"""What `network=` says to a service: E2B's own options, whichever door it is."""

from __future__ import annotations

from typing import Any

import pytest

from sandboxkit._types import NetworkPolicy
from sandboxkit.errors import ConfigurationError, EngineUnavailable, UnsupportedOption
from sandboxkit.local.indexes import Indexes
from sandboxkit.provider._network import network_options

ALL = "0.0.0.0/0"


def test_modes() -> None:
    """deny and internet are said outright; packages is the list of the configured hosts, and all else denied."""
    assert network_options("deny").arguments() == {"allow_internet_access": False}
    assert network_options("internet").arguments() == {"allow_internet_access": True}
    indexes = Indexes(python="https://i.example/s", endpoints=frozenset({("i.example", 443), ("f.example", 443)}))
    packages = network_options("packages", indexes=indexes)
    assert packages.arguments() == {"network": {"allow_out": ["f.example", "i.example"], "deny_out": [ALL]}}
    assert packages.envs["PIP_INDEX_URL"] == "https://i.example/s"


@pytest.mark.parametrize(
    ("policy", "allow", "deny"),
    [
        (NetworkPolicy(allow=("a.example", "*.b.example")), ["a.example", "*.b.example"], [ALL]),
        (NetworkPolicy(allow=("10.0.0.0/30",), deny=("10.0.0.1",)), ["10.0.0.2/31", "10.0.0.0/32"], [ALL]),
        (NetworkPolicy(allow=("*.b.example",), deny=("x.b.example",)), ["*.b.example"], [ALL, "x.b.example"]),
        (NetworkPolicy(allow=("10.0.0.0/8",), deny=("2001:db8::/32",)), ["10.0.0.0/8"], [ALL]),
        (NetworkPolicy(allow=("a.example", "10.0.0.0/31"), deny=("10.0.0.1",)), ["a.example", "10.0.0.0/32"], [ALL]),
    ],
)
def test_policies(policy: NetworkPolicy, allow: list[str], deny: list[str]) -> None:
    """Nothing is reachable but what is allowed; what is denied is cut out, since services let the allowed win."""
    found = network_options(policy).arguments()["network"]
    assert sorted(found["allow_out"]) == sorted(allow)
    assert found["deny_out"] == deny


@pytest.mark.parametrize(
    "policy",
    [NetworkPolicy(), NetworkPolicy(deny=("a.example",)), NetworkPolicy(allow=("10.0.0.1",), deny=("10.0.0.0/8",))],
)
def test_a_policy_that_allows_nothing(policy: NetworkPolicy) -> None:
    """A policy that lets nothing through is a denial."""
    assert network_options(policy).arguments() == {"allow_internet_access": False}


@pytest.mark.parametrize(
    ("network", "error"),
    [
        ("everything", ConfigurationError),
        (NetworkPolicy(allow="example.com"), ConfigurationError),  # type: ignore[arg-type]
        (NetworkPolicy(allow=("10.0.0.0/99",)), ConfigurationError),
        (NetworkPolicy(allow=("",)), ConfigurationError),
        (NetworkPolicy(allow=("a.example",), deny=("8.8.8.0/24",)), UnsupportedOption),
    ],
)
def test_what_cannot_be_said_is_refused(network: Any, error: type[Exception]) -> None:
    """A typo, or a policy that no service could keep, is refused before any request."""
    with pytest.raises(error):
        network_options(network)


def test_e2b_denies_no_names() -> None:
    """E2B would refuse names among the denied; we say it first."""
    with pytest.raises(UnsupportedOption, match=r"x\.b\.example"):
        network_options(NetworkPolicy(allow=("*.b.example",), deny=("x.b.example",)), denies_names=False)


def test_no_index_at_all() -> None:
    """Without any index that a sandbox could use, `packages` is an error that says why."""
    with pytest.raises(EngineUnavailable, match="credentials"):
        network_options("packages", indexes=Indexes(left_out=("the index at x: its URL holds credentials",)))
