"""What the policy knows: the slots under the cap, the tickets of callers; pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandboxkit.pool._moves import KillReason, SlotState, Spec


@dataclass(slots=True)
class Slot:
    """One place under the cap, and what is known of the sandbox in it."""

    id: int
    key: str | None
    spec: Spec
    asked_at: float = 0.0
    state: SlotState = "creating"
    tickets: dict[int, None] = field(default_factory=dict)
    """Attached, offered or holding, in the order in which they came."""
    blank: bool = False
    """Made for nobody, and nobody has held it yet: whoever comes may have it."""
    adopts: str | None = None
    """The id of a sandbox that was there before; it is only ours once somebody held it."""
    was_held: bool = False
    uses: int = 0
    end_at: float | None = None
    retire_at: float | None = None
    """When it is too old to go on, whatever it has left."""
    idle_since: float = 0.0
    draining: bool = False
    doomed: KillReason | None = None
    is_unsure: bool = False
    """Whether there is a sandbox at all is not known."""
    attempts: int = 0
    retry_at: float | None = None
    is_renewing: bool = False
    renew_not_before: float = float("-inf")

    @property
    def is_like_new(self) -> bool:
        """Whether nothing tells it from one that was made for the stock."""
        return self.key is None and self.adopts is None and not self.was_held and self.spec == self.spec.blank

    @property
    def is_stocked(self) -> bool:
        """Whether it is, or is about to be, a warm one that nobody has been promised."""
        return self.blank and not self.tickets and self.doomed is None and self.state != "killing"

    @property
    def is_warm(self) -> bool:
        return self.is_stocked and self.state == "live"

    @property
    def is_idle(self) -> bool:
        """Whether it is the sandbox of a session that was released."""
        return self.state == "live" and not self.tickets and not self.blank

    @property
    def is_coming_free(self) -> bool:
        """Whether its place is about to be given back, if nobody who wants this very session comes first."""
        return self.doomed is not None or (self.state == "creating" and not self.tickets and not self.blank)


@dataclass(slots=True)
class Ticket:
    """One call of `pool.session()`."""

    id: int
    key: str | None
    spec: Spec
    deadline: float
    replace: bool
    place: int
    """Its place in the order of arrival."""
    adopt: str | None = None
    slot: int | None = None
    """None while queued."""
    granted: bool = False
    holding: bool = False

    def is_met_by(self, slot: Slot) -> bool:
        """Whether the sandbox of its session is what it asks for."""
        return self.spec.is_met_by(slot.spec) and self.adopt in (None, slot.adopts)

    def may_have(self, slot: Slot) -> bool:
        """Whether a blank sandbox can become what this caller asks for: tags cannot be added to one that lives."""
        return (
            slot.is_stocked and self.adopt is None and slot.spec.template == self.spec.template
            and not self.spec.metadata and not slot.draining
        )  # fmt: skip
