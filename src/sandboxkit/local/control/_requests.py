"""Reads what clients send to the control plane: JSON bodies and query strings become values, or are refused by name.

Every field that E2B's clients can send is known here. One that cannot be honoured is refused unless it asks for
nothing (an empty list, a switch that is off); an unknown one is refused too, since a newer client that relies on it
must not believe that it works.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

from sandboxkit.local._sandbox import ENVD_PORT, INTERPRETER_PORT
from sandboxkit.local.control._network import NetworkRequest
from sandboxkit.local.control._refusals import bad_request, unsupported
from sandboxkit.local.control._registry import PAGE_LIMIT, Query
from sandboxkit.local.control.volumes._rules import Wish, read_mounts

V1_DEFAULT_TIMEOUT = 15
"""Seconds that a v1 create without a timeout gets; those clients always name one."""

REFRESH_DEFAULT = 15
REFRESH_MAX = 3_600

EXPLICIT_SINCE = (2, 51)
"""The first version of E2B's SDKs (Python and JavaScript alike) that sends `allow_internet_access` only when its
user said something. It is also the first that creates through v2."""

_KEY = re.compile(r"[a-z0-9-]{1,255}")
_ENV_NAME = re.compile(r"[^=\x00]+")
_TEMPLATE = re.compile(r"[A-Za-z0-9._/-]{1,128}(:[A-Za-z0-9._-]{1,128})?")
_MASK = re.compile(r"(?:[A-Za-z0-9._-]|\$\{PORT\}){1,255}(?::(?:[0-9]{1,5}|\$\{PORT\}))?")
_STATES = frozenset({"running", "paused"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """A request to create, understood."""

    template: str
    timeout: int
    metadata: Mapping[str, str]
    envs: Mapping[str, str]
    auto_pause: bool
    auto_pause_memory: bool
    auto_resume: bool
    network: NetworkRequest
    public_traffic: bool = True
    mask_host: str | None = None
    volumes: tuple[Wish, ...] = ()
    idempotency_key: str | None
    fingerprint: str


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object; an empty body is an empty one. Refused: 400."""
    if not body:
        return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise bad_request("The request's body is not JSON") from None
    if not isinstance(value, dict):
        raise bad_request("The request's body is not a JSON object")
    return value


# -- create -------------------------------------------------------------------------------------------------------


def read_create(
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    dialect: Literal["v1", "v2"],
    default_timeout: int,
    max_timeout: int,
) -> CreateRequest:
    """Read a create request; `default_timeout` is that of v2. Refused: 400 by name."""
    fields = dict(body)
    template = fields.pop("templateID", None)
    if not isinstance(template, str) or not _TEMPLATE.fullmatch(template):
        raise bad_request("templateID: the name of a template is needed")
    public_traffic, mask_host, network = _ingress(fields.pop("network", None))
    always_asks = dialect == "v1" or _older_than(headers.get("package_version", ""), EXPLICIT_SINCE)
    request = CreateRequest(
        template=template,
        timeout=read_timeout(
            fields.pop("timeout", V1_DEFAULT_TIMEOUT if dialect == "v1" else default_timeout), max_timeout=max_timeout
        ),
        metadata=_strings("metadata", fields.pop("metadata", None)),
        envs=_environment(fields.pop("envVars", None)),
        auto_pause=switch("autoPause", fields.pop("autoPause", None)),
        auto_pause_memory=_kept("autoPauseMemory", fields.pop("autoPauseMemory", None)),
        auto_resume=_auto_resume(fields.pop("autoResume", None)),
        network=_network(fields.pop("allow_internet_access", None), network, always_asks=always_asks),
        public_traffic=public_traffic,
        mask_host=mask_host,
        volumes=read_mounts(fields.pop("volumeMounts", None)),
        idempotency_key=_idempotency_key(headers.get("idempotency-key")),
        fingerprint=hashlib.sha256(json.dumps([dialect, body], sort_keys=True).encode()).hexdigest(),
    )
    switch("secure", fields.pop("secure", None))  # every sandbox is, here as at E2B
    if request.auto_pause and request.auto_resume and not request.auto_pause_memory:
        raise bad_request("autoResume: traffic cannot resume what was paused without its memory (autoPauseMemory)")
    iam = fields.pop("iam", None)
    if iam not in (None, {}, {"tokens": {}}):
        raise unsupported("iam", "there are no workload identities on this machine")
    _refuse_if_asked(fields, "mcp", "there is no MCP gateway yet")
    refuse_unknown(fields)
    return request


def read_timeout(value: object, *, max_timeout: int, least: int = 1) -> int:
    """Read a life in whole seconds. Refused: 400."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_request("timeout: a whole number of seconds is needed")
    if value < least:
        raise bad_request(f"timeout: {value} is too short; at least {least} second(s)")
    if value > max_timeout:
        raise bad_request(f"timeout: {value} is too long; this engine allows at most {max_timeout} seconds")
    return value


def template_name(template: str) -> str:
    """Strip the tag of the only build that there is: `name:default` is `name`, another tag stays and is not found."""
    name, _, tag = template.partition(":")
    return name if tag in ("", "default", "latest") else template


def _ingress(network: object) -> tuple[bool, str | None, Mapping[str, Any]]:
    """Read what is said about traffic to the sandbox: whether it needs no token, and the Host that its servers see;
    with the rest. Refused: 400 by name."""
    if network is not None and not isinstance(network, dict):
        raise bad_request("network: an object is needed")
    fields = dict(network or {})
    public = fields.pop("allowPublicTraffic", None)
    switch("network.allowPublicTraffic", public)
    mask = fields.pop("maskRequestHost", None)
    if mask is not None and (not isinstance(mask, str) or not _MASK.fullmatch(mask)):
        raise bad_request("network.maskRequestHost: a host is needed, as in 'localhost:${PORT}'")
    _refuse_if_asked(fields, "httpsPorts", "ports of a sandbox are called by plain HTTP", prefix="network.")
    return public is not False, mask, fields


def _network(internet: object, network: Mapping[str, Any], *, always_asks: bool) -> NetworkRequest:
    """Read what is said about the way out. Refused: 400 by name."""
    switch("allow_internet_access", internet)
    fields = dict(network)
    allow, deny = (_entries(name, fields.pop(name, None)) for name in ("allowOut", "denyOut"))
    _refuse_if_asked(fields, "rules", "requests are passed on as they are, nothing is put into them", prefix="network.")
    _refuse_if_asked(fields, "egressProxy", "the engine dials by itself", prefix="network.")
    _refuse_if_asked(fields, "dnsServers", "names are resolved by the engine, as this machine does", prefix="network.")
    refuse_unknown(fields, prefix="network.")
    overridden = internet is True and always_asks
    said = None if overridden or not isinstance(internet, bool) else internet
    return NetworkRequest(internet=said, overridden=overridden, allow=allow, deny=deny)


def _entries(name: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise bad_request(f"network.{name}: a list of hosts, addresses and CIDR blocks is needed")
    return tuple(value)


def _idempotency_key(value: str | None) -> str | None:
    if value is not None and not _KEY.fullmatch(value):
        raise bad_request("Idempotency-Key: 1 to 255 of a-z, 0-9 and - are needed")
    return value


def _environment(value: object) -> Mapping[str, str]:
    envs = _strings("envVars", value)
    for name, content in envs.items():
        if not _ENV_NAME.fullmatch(name) or "\x00" in content:
            raise bad_request(f"envVars: {name[:64]!r} cannot be set: a name has no '=' or NUL, a value no NUL")
    return envs


def _strings(name: str, value: object) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise bad_request(f"{name}: an object of strings is needed")
    try:
        # A lone surrogate is fine for JSON and for nothing else.
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request(f"{name}: holds text that has no UTF-8 form") from None
    return dict(value)


def switch(name: str, value: object) -> bool:
    """Read a switch that may be left out. Refused: 400."""
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{name}: true or false is needed")
    return value is True


def _auto_resume(value: object) -> bool:
    if value is None:
        return False
    if not isinstance(value, dict):
        raise bad_request("autoResume: an object is needed")
    fields = dict(value)
    enabled = switch("autoResume.enabled", fields.pop("enabled", None))
    refuse_unknown(fields, prefix="autoResume.")
    return enabled


def _kept(name: str, value: object) -> bool:
    """Read a switch that is on unless it is turned off."""
    switch(name, value)
    return value is not False


def _refuse_if_asked(fields: dict[str, Any], name: str, why: str, *, prefix: str = "") -> None:
    if fields.pop(name, None) not in (None, False, [], {}):
        raise unsupported(prefix + name, why)


def refuse_unknown(fields: Mapping[str, object], *, prefix: str = "") -> None:
    """Refuse what is left of a request when all that is known was taken out. Refused: 400."""
    if fields:
        names = ", ".join(sorted(prefix + name[:64] for name in fields))
        raise unsupported(names, "the engine does not know it; it may be newer than the SDKs that it was tested with")


def _older_than(version: str, bound: tuple[int, int]) -> bool:
    match = re.match(r"(\d{1,6})\.(\d{1,6})", version)
    return match is not None and (int(match[1]), int(match[2])) < bound


# -- the other calls ----------------------------------------------------------------------------------------------


def read_resume(body: Mapping[str, Any], *, max_timeout: int) -> int:
    """Read a v1 resume request: seconds. `autoPause` is what older clients repeat of their create."""
    fields = dict(body)
    timeout = read_timeout(fields.pop("timeout", V1_DEFAULT_TIMEOUT), max_timeout=max_timeout)
    if switch("autoPause", fields.pop("autoPause", None)):
        raise unsupported("autoPause", "what happens at the end of a life is said when a sandbox is created")
    refuse_unknown(fields)
    return timeout


def read_set_timeout(body: Mapping[str, Any], *, max_timeout: int) -> int:
    """Read a new timeout: seconds, 0 to kill at once."""
    fields = dict(body)
    timeout = read_timeout(fields.pop("timeout", None), max_timeout=max_timeout, least=0)
    refuse_unknown(fields)
    return timeout


def read_refresh(body: Mapping[str, Any]) -> int:
    """Read a refresh: seconds, at most an hour."""
    fields = dict(body)
    value = fields.pop("duration", REFRESH_DEFAULT)
    refuse_unknown(fields)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= REFRESH_MAX:
        raise bad_request(f"duration: a whole number of seconds from 0 to {REFRESH_MAX} is needed")
    return value


def read_network_update(body: Mapping[str, Any]) -> NetworkRequest:
    """Read a network update, which replaces all that was said before."""
    fields = dict(body)
    return _network(fields.pop("allow_internet_access", None), fields, always_asks=False)


def read_port(text: str) -> int:
    """Read a port of a sandbox that a loopback port may lead to. Refused: 400."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65_536:
        raise bad_request(f"port: {text[:16]!r} is none")
    if int(text) in (ENVD_PORT, INTERPRETER_PORT):
        raise bad_request(f"port: {text} is the engine's own; it is reached at the engine's address")
    return int(text)


def read_query(query: Mapping[str, str]) -> Query:
    """Read the filters, the order and the page of a list request. Refused: 400 by name."""
    states = frozenset(filter(None, query.get("state", "").split(",")))
    if not states <= _STATES:
        raise bad_request("state: running and paused are known")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise bad_request("order: asc or desc is needed")
    limit = query.get("limit", str(PAGE_LIMIT))
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= PAGE_LIMIT:
        raise bad_request(f"limit: a number from 1 to {PAGE_LIMIT} is needed")
    return Query(
        metadata=read_metadata_filter(query.get("metadata", "")),
        states=states,
        template=template_name(query["template"]) if query.get("template") else None,
        started_after=_moment("startedAfter", query.get("startedAfter")),
        order="asc" if order == "asc" else "desc",
        limit=int(limit),
        token=query.get("nextToken") or None,
    )


def read_metadata_filter(value: str) -> Mapping[str, str]:
    """Read `metadata`, of which the query string's own encoding is gone already. Clients quote each name and value,
    encode the pairs as a query string, and that as a query value."""
    try:
        pairs = parse_qsl(value, keep_blank_values=True, strict_parsing=bool(value), max_num_fields=100)
    except ValueError:
        raise bad_request("metadata: not an encoded list of pairs") from None
    return {unquote(name): unquote(content) for name, content in pairs}


def read_seconds(name: str, value: str | None) -> float | None:
    """Read a moment in whole Unix seconds."""
    if value is None or value == "":
        return None
    if not re.fullmatch(r"-?[0-9]{1,12}", value):
        raise bad_request(f"{name}: whole Unix seconds are needed")
    return float(value)


def _moment(name: str, value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise bad_request(f"{name}: an ISO 8601 date and time is needed") from None
