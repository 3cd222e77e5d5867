"""Turns what a request says about the network into what the sandbox may reach, within what the engine allows; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from sandboxkit.local.control._refusals import Refused, bad_request, unsupported
from sandboxkit.local.gateway.egress._rules import EVERYTHING, Policy, Rules, read_rules

Mode = Literal["deny", "packages", "internet"]
ORDER: tuple[Mode, ...] = ("deny", "packages", "internet")
ALL_TRAFFIC = str(EVERYTHING[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRequest:
    """What a request says about the network.

    Attributes:
        internet: `allow_internet_access`; None where it was not said.
        overridden: access was asked for by a client that always asks; it counts as not said.
        allow, deny: `allowOut` and `denyOut`; None where they were not said.
    """

    internet: bool | None = None
    overridden: bool = False
    allow: Sequence[str] | None = None
    deny: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a sandbox may reach, and how its info tells that.

    Attributes:
        mode: `rules` where hosts and networks are listed.
        internet: what `allowInternetAccess` shows: whether everything public that is not denied can be reached.
        shown: what `network` shows; None where no lists are in force.
        asked: what this was decided from, so that another engine can decide again.
    """

    mode: Literal["deny", "packages", "internet", "rules"] = "deny"
    policy: Policy = field(default_factory=Policy)
    internet: bool = False
    shown: Mapping[str, object] | None = None
    asked: NetworkRequest = field(default_factory=NetworkRequest)


def check_request(request: NetworkRequest, *, ceiling: Mode) -> None:
    """Refuse what cannot be granted, or cannot be read, whatever the package indexes are. Refused: 400 by name."""
    for name, entries in (("allowOut", request.allow), ("denyOut", request.deny)):
        try:
            read_rules(entries or ())
        except ValueError as error:
            raise bad_request(f"network.{name}: {error}") from None
    if request.internet is True and ceiling != "internet":
        raise _beyond("allow_internet_access=true", ceiling)
    if request.allow and ceiling == "deny":
        raise _beyond("network.allowOut", ceiling)


def wants_packages(request: NetworkRequest, *, default: Mode, ceiling: Mode, index_hosts: Set[str]) -> bool:
    """Whether the package indexes must be known to decide."""
    if request.allow:
        return ceiling == "packages" or not index_hosts.isdisjoint(entry.lower() for entry in request.allow)
    return _mode_said(request, default) == "packages"


def decide(
    request: NetworkRequest, *, default: Mode, ceiling: Mode, endpoints: frozenset[tuple[str, int]] = frozenset()
) -> Network:
    """Say what the sandbox may reach.

    Args:
        default: what a request that says nothing gets.
        ceiling: the most that may be asked for.
        endpoints: (host, port) of the package indexes; needed where `wants_packages` says so.

    Raises:
        Refused: 400, the request goes beyond the ceiling, or an entry cannot be read.
    """
    check_request(request, ceiling=ceiling)
    allow, deny = list(request.allow or ()), list(request.deny or ())
    said = _mode_said(request, default)
    hosts = {host for host, _port in endpoints}
    others = [entry for entry in allow if entry.lower() not in hosts]
    if others and ceiling == "packages":
        raise _beyond(f"network.allowOut {others[0][:80]!r}", ceiling)
    named = {entry.lower() for entry in allow}
    # A list of nothing but index hosts means what the mode of that name means: their ports, and no others.
    usable = endpoints if said == "packages" else frozenset(one for one in endpoints if one[0] in named)
    rules = read_rules(others if said != "internet" else allow)
    policy = Policy(
        base="internet" if said == "internet" else "deny",
        allow=rules,
        deny=read_rules(deny),
        packages=usable,
    )
    shown: dict[str, object] | None = None
    if request.allow is not None or request.deny is not None:
        lists = {"allowOut": request.allow, "denyOut": request.deny}
        shown = {name: list(value) for name, value in lists.items() if value is not None}
    if said == "packages":
        shown = {"allowOut": [*sorted(hosts), *others], "denyOut": [*deny, ALL_TRAFFIC]}
    return Network(
        mode=_mode_of(policy, deny), policy=policy, internet=policy.base == "internet", shown=shown, asked=request
    )


def _mode_of(policy: Policy, deny: Sequence[str]) -> Literal["deny", "packages", "internet", "rules"]:
    if policy.is_closed():
        return "deny"
    if policy.base == "internet":
        return "rules" if deny else "internet"
    return "packages" if policy.allow == Rules() else "rules"


def _mode_said(request: NetworkRequest, default: Mode) -> Mode:
    """What holds for hosts that no list names. As at E2B, denying everything is what refusing the internet is."""
    if request.internet is False or ALL_TRAFFIC in (request.deny or ()):
        return "deny"
    return "internet" if request.internet else default


def _beyond(option: str, ceiling: Mode) -> Refused:
    return unsupported(
        option,
        f"this engine was started with --internet {ceiling}, and lets sandboxes reach no more than that; start it with "
        "a wider setting, or leave the option out",
    )
