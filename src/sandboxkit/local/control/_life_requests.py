"""Reads what clients send about pauses, snapshots, forks and logs: values, or a refusal by name. See `_requests`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sandboxkit.local.control._journal import ORDER, Level
from sandboxkit.local.control._refusals import bad_request
from sandboxkit.local.control._requests import V1_DEFAULT_TIMEOUT, read_timeout, refuse_unknown, switch
from sandboxkit.local.control._snapshot_index import SnapshotQuery, read_token
from sandboxkit.local.control._states import PAGE_LIMIT

MOST_FORKS = 20
LOG_LIMIT = 1000
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """For how many seconds, and whether the memory is wanted."""

    timeout: int
    memory: bool = True


@dataclass(frozen=True, slots=True)
class PauseRequest:
    """Whether the memory is to be kept, and whether the sandbox must be healthy for it."""

    memory: bool
    require_healthy: bool


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """Under which name, and whether the memory is wanted."""

    name: str | None
    memory: bool


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """How many, and for how many seconds."""

    count: int
    timeout: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """Which entries. Moments are Unix milliseconds."""

    since: int | None
    until: int | None
    backward: bool
    limit: int
    level: Level
    search: str


def read_connect(body: Fields, *, default_timeout: int, max_timeout: int) -> ConnectRequest:
    """Read a connect request. `memory` says how to resume, and a running sandbox has nothing to resume."""
    fields = dict(body)
    timeout = read_timeout(fields.pop("timeout", default_timeout), max_timeout=max_timeout)
    memory = _memory(fields)
    refuse_unknown(fields)
    return ConnectRequest(timeout, memory)


def read_pause(body: Fields) -> PauseRequest:
    """Read a pause request."""
    fields = dict(body)
    memory = _memory(fields)
    require_healthy = switch("requireHealthyGuest", fields.pop("requireHealthyGuest", None))
    refuse_unknown(fields)
    return PauseRequest(memory, require_healthy)


def read_snapshot(body: Fields) -> SnapshotRequest:
    """Read a request to take a snapshot; the name is judged by who knows what is taken."""
    fields = dict(body)
    name = fields.pop("name", None)
    if name is not None and not isinstance(name, str):
        raise bad_request("name: text is needed")
    memory = _memory(fields)
    refuse_unknown(fields)
    return SnapshotRequest(name, memory)


def read_fork(body: Fields, *, max_timeout: int) -> ForkRequest:
    """Read a request to fork."""
    fields = dict(body)
    timeout = read_timeout(fields.pop("timeout", V1_DEFAULT_TIMEOUT), max_timeout=max_timeout)
    count = fields.pop("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_FORKS:
        raise bad_request(f"count: a whole number from 1 to {MOST_FORKS} is needed")
    refuse_unknown(fields)
    return ForkRequest(count, timeout)


def read_snapshot_query(query: Mapping[str, str]) -> SnapshotQuery:
    """Read the filters and the page of a list of snapshots. Refused: 400 by name."""
    return SnapshotQuery(
        sandbox_id=query.get("sandboxID") or None,
        name=query.get("name") or None,
        limit=_number("limit", query.get("limit"), default=PAGE_LIMIT, most=PAGE_LIMIT, least=1),
        before=read_token(query.get("nextToken")),
    )


def read_log_query(query: Mapping[str, str], *, version: int) -> LogQuery:
    """Read which log entries are wanted. v1 has `start` and `limit`, v2 a cursor, a direction and filters."""
    most = LOG_LIMIT
    limit = _number("limit", query.get("limit"), default=most, most=most)
    if version == 1:
        since = _moment("start", query.get("start"))
        return LogQuery(since=since, until=None, backward=False, limit=limit, level="debug", search="")
    direction = query.get("direction") or "forward"
    if direction not in ("forward", "backward"):
        raise bad_request("direction: forward or backward is needed")
    level = query.get("level") or "debug"
    if level not in ORDER:
        raise bad_request(f"level: one of {', '.join(ORDER)} is needed")
    cursor = _moment("cursor", query.get("cursor"))
    backward = direction == "backward"
    return LogQuery(
        since=None if backward else cursor,
        until=cursor if backward else None,
        backward=backward,
        limit=limit,
        level=level,
        search=query.get("search", ""),
    )


def _memory(fields: dict[str, Any]) -> bool:
    memory = fields.pop("memory", None)
    switch("memory", memory)
    return memory is not False


def _number(name: str, text: str | None, *, default: int, most: int, least: int = 0) -> int:
    if text is None or text == "":
        return default
    if not re.fullmatch(r"[0-9]{1,6}", text) or not least <= int(text) <= most:
        raise bad_request(f"{name}: a number from {least} to {most} is needed")
    return int(text)


def _moment(name: str, text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise bad_request(f"{name}: whole Unix milliseconds are needed")
    return int(text)
