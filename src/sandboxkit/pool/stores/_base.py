"""The contract of a session store: who may make the sandbox of a session, and which one it is.

A row says which generation of a session's sandbox is the current one. The generation is the fence: whoever writes
with an older one is refused, and it seeds the key that makes a repeated create return the same sandbox. Metadata tags
on the sandboxes are for audit; nothing is ever claimed by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Row:
    """The current sandbox of a session; `sandbox_id` is None while it is being created."""

    session: str
    generation: int
    sandbox_id: str | None = None


class Store(Protocol):
    """Rows of sessions. Anonymous sessions have rows too, under a name that the pool makes up."""

    async def begin(self, session: str) -> int:
        """Start a new generation, which replaces the session's row.

        Returns a number that this store has never returned before, for any session: a generation that came again
        would make a create answer with an earlier sandbox.
        """

    async def settle(self, session: str, generation: int, sandbox_id: str) -> bool:
        """Write which sandbox it is. False, and nothing is written, if a newer generation has begun."""

    async def clear(self, session: str, generation: int) -> bool:
        """Forget the row. False, and nothing is forgotten, if a newer generation has begun."""

    async def rows(self) -> tuple[Row, ...]:
        """All rows."""
