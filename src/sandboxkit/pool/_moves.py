"""The words between the pool's policy and its shell: events go in, commands come out; all are frozen.

What each of them means is told in `_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pairs = tuple[tuple[str, str], ...]
SlotState = Literal["creating", "live", "killing"]
KillReason = Literal["released", "evicted", "replaced", "abandoned", "expired", "lost", "asked", "drained", "closed"]
Refusal = Literal["closed", "full", "timeout", "conflict", "create_failed"]
Source = Literal["created", "reused"]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a caller asks a sandbox to be. `None` for envs or metadata means: whatever the session has."""

    template: str
    envs: Pairs | None = None
    metadata: Pairs | None = None

    def is_met_by(self, made: Spec) -> bool:
        """Say whether a sandbox that was made to `made` is what is asked for here."""
        return (
            self.template == made.template
            and (self.envs is None or self.envs == (made.envs or ()))
            and (self.metadata is None or self.metadata == (made.metadata or ()))
        )


# -- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    ticket: int
    key: str | None
    spec: Spec
    deadline: float
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Accept:
    ticket: int


@dataclass(frozen=True, slots=True)
class Leave:
    ticket: int


@dataclass(frozen=True, slots=True)
class Created:
    slot: int
    end_at: float | None = None


@dataclass(frozen=True, slots=True)
class CreateFailed:
    """`is_unsure`: the failure does not say whether a sandbox was made."""

    slot: int
    is_unsure: bool = False


@dataclass(frozen=True, slots=True)
class Renewed:
    slot: int
    end_at: float | None


@dataclass(frozen=True, slots=True)
class Lost:
    slot: int
    reason: Literal["lost", "asked", "replaced"] = "lost"


@dataclass(frozen=True, slots=True)
class Killed:
    slot: int


@dataclass(frozen=True, slots=True)
class KillFailed:
    slot: int


@dataclass(frozen=True, slots=True)
class Tick:
    pass


@dataclass(frozen=True, slots=True)
class Resize:
    max_live: int


@dataclass(frozen=True, slots=True)
class Drain:
    pass


@dataclass(frozen=True, slots=True)
class Close:
    pass


PoolEvent = (
    Acquire
    | Accept
    | Leave
    | Created
    | CreateFailed
    | Renewed
    | Lost
    | Killed
    | KillFailed
    | Tick
    | Resize
    | Drain
    | Close
)


# -- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    slot: int
    key: str | None
    spec: Spec


@dataclass(frozen=True, slots=True)
class Abort:
    slot: int


@dataclass(frozen=True, slots=True)
class Kill:
    slot: int
    reason: KillReason
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Grant:
    ticket: int
    slot: int
    source: Source


@dataclass(frozen=True, slots=True)
class Refuse:
    """`slot` is the slot whose creation failed, or the one that the ticket is in conflict with."""

    ticket: int
    why: Refusal
    slot: int | None = None


Command = Create | Abort | Kill | Grant | Refuse
