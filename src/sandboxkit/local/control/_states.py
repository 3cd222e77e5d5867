"""What the registry tells about a sandbox, and what it is asked: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Literal

from sandboxkit.local.control._network import Network
from sandboxkit.local.control.volumes._rules import Mounted
from sandboxkit.local.isolation._base import Limits

PAGE_LIMIT = 100

Order = Literal["asc", "desc"]


class State(Enum):
    """Where a sandbox is in its life."""

    MAKING = "making"
    LIVE = "live"
    PAUSED = "paused"
    STORED = "stored"
    RESTORING = "restoring"
    ENDING = "ending"


PAUSED = frozenset({State.PAUSED, State.STORED, State.RESTORING})
SHOWN_AS = {State.LIVE: "running", **dict.fromkeys(PAUSED, "paused")}
"""What clients call the states that they can see."""


@dataclass(frozen=True, slots=True)
class Now:
    """One moment, by both clocks. `monotonic` is in seconds and decides; `wall` (UTC) is for showing."""

    monotonic: float
    wall: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A sandbox as its creator asked for it; `fingerprint` stands for the whole request."""

    template_id: str
    timeout: int
    fingerprint: str
    idempotency_key: str | None = None
    alias: str | None = None
    limits: Limits = field(default_factory=Limits)
    has_interpreter: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    auto_pause: bool = False
    """Its time being up pauses it instead of ending it."""
    auto_pause_memory: bool = True
    """That pause keeps its processes, and not its files alone."""
    auto_resume: bool = False
    """Traffic resumes it."""
    built_from: str = ""
    """The template whose layers it has, where `template_id` is a snapshot's."""
    from_files: bool = False
    """It starts with another one's files, whose processes are not kept."""
    network: Network = field(default_factory=Network)
    public_traffic: bool = True
    """Requests to its ports need no token."""
    mask_host: str | None = None
    """What its servers see as the Host."""
    volumes: tuple[Mounted, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """One sandbox at one moment."""

    sandbox_id: str
    access_token: str = field(repr=False)
    wanted: Wanted
    state: State
    number: int = 0
    started_at: datetime
    end_at: datetime
    deadline: float
    traffic_token: str | None = field(default=None, repr=False)
    pause_mode: Literal["full", "filesystem"] | None = None
    """What its pause has kept; None while it runs, and until the pause is done."""
    persisted: bool = False
    """A copy of its files will be there after the engine's end. Always False while it runs."""
    has_place: bool = True
    """It counts towards the cap: there is a box of it, or one is being made or ended."""
    memory_lost: bool = False
    """Its processes were started anew for files that older ones have left."""

    @property
    def is_paused(self) -> bool:
        """Whether clients see it as paused."""
        return self.state in PAUSED


@dataclass(frozen=True, slots=True)
class Make:
    """Make this one, and say `made` or `failed`."""

    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class Repeat:
    """The key is known: answer with this one, once it is made if it is still being made."""

    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class Due:
    """The time of this one is up: it is paused or ending now, and the caller carries that out."""

    sandbox_id: str
    action: Literal["end", "pause"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which sandboxes to list. `states` empty means all."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    states: frozenset[str] = frozenset()
    template: str | None = None
    started_after: datetime | None = None
    order: Order = "desc"
    limit: int = PAGE_LIMIT
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the sandboxes; `next_token` leads to the rest, None when there is none."""

    sandboxes: tuple[Sandbox, ...]
    next_token: str | None
