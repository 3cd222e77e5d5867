"""The words between the pool's policy and its shell: events go in, commands come out; all are frozen.

What each of them means is told in `_policy`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sandboxkit._types import Source

Pairs = tuple[tuple[str, str], ...]
Pairings = tuple[tuple[str, int], ...]
"""A number for each template."""
SlotState = Literal["creating", "live", "killing"]
KillReason = Literal[
    "released", "evicted", "replaced", "abandoned", "expired", "lost", "asked", "drained", "closed",
    "shrunk", "retired", "worn", "failed",
]  # fmt: skip
Refusal = Literal["closed", "full", "timeout", "conflict", "create_failed"]
News = Literal["degraded", "recovered", "gave_up"]


@dataclass(frozen=True, slots=True)
class Spec:
    """What a caller asks a sandbox to be. `None` for envs or metadata means: whatever the session has."""

    template: str
    envs: Pairs | None = field(default=None, repr=False)
    metadata: Pairs | None = None

    def is_met_by(self, made: Spec) -> bool:
        """Say whether a sandbox that was made to `made` is what is asked for here."""
        return (
            self.template == made.template
            and (self.envs is None or self.envs == (made.envs or ()))
            and (self.metadata is None or self.metadata == (made.metadata or ()))
        )

    @property
    def made(self) -> Spec:
        """What a sandbox for this is: what is left open is left out."""
        return Spec(self.template, self.envs or (), self.metadata or ())

    @property
    def blank(self) -> Spec:
        """The sandbox of the same template that is nobody's."""
        return Spec(self.template, (), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the policy keeps to. None means: no such limit."""

    max_live: int
    max_waiting: int | None = None
    max_per_template: Pairings = ()
    min_warm: Pairings = ()
    max_creating: int | None = None
    create_rate: float | None = None
    """Creates a second."""
    idle_timeout: float | None = None
    max_uses: int | None = None
    floor: float = 0.0
    """Seconds of life that a warm sandbox must have left."""
    warm_reserve: float = 0.0
    """Seconds before its retirement at which a warm one is too old for a session to begin in it."""
    renew_margin: float | None = None
    """Seconds before their end at which warm ones are prolonged; None: they are not."""
    keeps_idle: bool = True
    """A released session keeps its sandbox; else it is killed at once."""
    pauses: bool = False
    """The end of a life is a pause, and loses nothing."""
    give_up_after: float = 300.0


# -- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    ticket: int
    key: str | None
    spec: Spec
    deadline: float
    replace: bool = False
    adopt: str | None = None
    """The id of a sandbox that is there already, and is to be taken up."""
    place: int | None = None
    """The ticket of an earlier try of the same caller, whose place in the queue it keeps."""


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
    retire_at: float | None = None


@dataclass(frozen=True, slots=True)
class CreateFailed:
    """`is_unsure`: the failure does not say whether a sandbox was made. `jitter` is a random number in [0, 1)."""

    slot: int
    is_unsure: bool = False
    jitter: float = 0.5


@dataclass(frozen=True, slots=True)
class Renewed:
    slot: int
    end_at: float | None


@dataclass(frozen=True, slots=True)
class RenewFailed:
    slot: int


@dataclass(frozen=True, slots=True)
class Lost:
    slot: int
    reason: Literal["lost", "expired", "asked", "replaced", "failed"] = "lost"


@dataclass(frozen=True, slots=True)
class Detach:
    slot: int


@dataclass(frozen=True, slots=True)
class Killed:
    slot: int


@dataclass(frozen=True, slots=True)
class KillFailed:
    """`is_there`: the search after an unclear create found a sandbox, so that there is one to kill."""

    slot: int
    is_there: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    pass


@dataclass(frozen=True, slots=True)
class Resize:
    """None leaves a number as it is."""

    max_live: int | None = None
    min_warm: Pairings | None = None
    max_per_template: Pairings | None = None


@dataclass(frozen=True, slots=True)
class Drain:
    template: str | None = None


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
    | RenewFailed
    | Lost
    | Detach
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
    adopt: str | None = None


@dataclass(frozen=True, slots=True)
class Renew:
    slot: int


@dataclass(frozen=True, slots=True)
class LetGo:
    """The sandbox is not the pool's any more, and lives on."""

    slot: int


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the stock of a template."""

    news: News
    template: str


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


Command = Create | Abort | Kill | LetGo | Renew | Grant | Refuse | Report
