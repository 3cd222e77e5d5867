"""What stands beside kept files, as JSON: which paused sandbox or which snapshot they belong to; pure.

What is read was written by an engine of the same user, perhaps an older one: what does not parse is a `ValueError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sandboxkit.local.control._network import Network, NetworkRequest
from sandboxkit.local.control._states import Sandbox, State, Wanted
from sandboxkit.local.control.volumes._rules import Mounted
from sandboxkit.local.isolation._base import Limits

FORM = 1
KEY = re.compile(r"[a-z0-9]{1,64}")
NOT_KEPT = frozenset({"fingerprint", "idempotency_key", "network", "from_files"})
"""Of what a sandbox's creator wanted, what is no part of what it is, or is kept in another form."""

Record = Mapping[str, Any]  # JSON: read here, and nowhere else


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Files that new sandboxes can start with. `number` grows with each one that is taken."""

    key: str
    """The name that nobody chose, which never changes."""
    name: str | None
    tag: str
    number: int
    sandbox_id: str
    built_from: str
    """The template whose layers its sandboxes have."""
    limits: Limits
    has_interpreter: bool
    memory_lost: bool
    """Its taker did not say that the files alone are wanted."""
    made_at: datetime

    @property
    def snapshot_id(self) -> str:
        """What clients call it."""
        return f"{self.full_name or self.key}:{self.tag}"

    @property
    def full_name(self) -> str | None:
        """Its name within this engine's one namespace."""
        return None if self.name is None else f"{NAMESPACE}/{self.name}"

    @property
    def names(self) -> list[str]:
        """What `names` shows."""
        return [] if self.name is None else [self.snapshot_id]


NAMESPACE = "local"


def write_sandbox(sandbox: Sandbox, *, memory: bool) -> Record:
    """Say all that another engine needs to give a paused sandbox back. Holds its environment; not its token.

    Args:
        memory: its memory was to be kept, so that it is lost where the files are used.
    """
    wanted = {one.name: getattr(sandbox.wanted, one.name) for one in fields(Wanted) if one.name not in NOT_KEPT}
    wanted |= {"volumes": [asdict(one) for one in sandbox.wanted.volumes]}
    wanted |= {"limits": asdict(sandbox.wanted.limits), "metadata": dict(sandbox.wanted.metadata)}
    wanted |= {"envs": dict(sandbox.wanted.envs), "asked_network": asdict(sandbox.wanted.network.asked)}
    return {
        "form": FORM,
        "sandbox_id": sandbox.sandbox_id,
        "memory": memory,
        "started_at": sandbox.started_at.isoformat(),
        "paused_at": sandbox.end_at.isoformat(),
        "wanted": wanted,
    }


def read_sandbox(record: Record, *, new_token: Callable[[], str]) -> Sandbox:
    """Read what `write_sandbox` wrote; its tokens are new, its network is not decided yet, and closed."""
    try:
        _check_form(record)
        said = dict(record["wanted"])
        asked = said.pop("asked_network")
        for name in ("allow", "deny"):
            asked[name] = None if asked[name] is None else tuple(asked[name])
        said["limits"] = Limits(**said["limits"])
        said["volumes"] = tuple(Mounted(**one) for one in said.get("volumes", ()))
        wanted = Wanted(fingerprint="", network=Network(asked=NetworkRequest(**asked)), **said)
        return Sandbox(
            sandbox_id=_key(record["sandbox_id"]),
            access_token=new_token(),
            traffic_token=None if wanted.public_traffic else new_token(),
            wanted=wanted,
            state=State.STORED,
            started_at=_moment(record["started_at"]),
            end_at=_moment(record["paused_at"]),
            deadline=0.0,
            memory_lost=record["memory"] is True,
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it is of another form: {error}") from error


def write_snapshot(snapshot: Snapshot) -> Record:
    """Say what a snapshot is."""
    said = {one.name: getattr(snapshot, one.name) for one in fields(Snapshot)}
    said |= {"limits": asdict(snapshot.limits), "made_at": snapshot.made_at.isoformat()}
    return {"form": FORM, "snapshot": said}


def read_snapshot(record: Record) -> Snapshot:
    """Read what `write_snapshot` wrote."""
    try:
        _check_form(record)
        said = dict(record["snapshot"])
        said["limits"] = Limits(**said["limits"])
        said["made_at"] = _moment(said["made_at"])
        _key(said["key"])
        return Snapshot(**said)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"it is of another form: {error}") from error


def _check_form(record: Record) -> None:
    if record["form"] != FORM:
        raise ValueError(f"it is of form {record['form']!r}, and this engine reads {FORM}")


def _key(text: str) -> str:
    if not KEY.fullmatch(text):
        raise ValueError("its id is none")
    return text


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
