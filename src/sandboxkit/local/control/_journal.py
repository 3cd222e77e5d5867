"""What has happened to each sandbox, for its owner: the newest entries of each, until it is gone.

Entries hold what the engine's own log holds: no code, no output, no environment values, no keys.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sandboxkit.local._log import log

KEPT = 500
"""Entries of one sandbox."""

Level = Literal["debug", "info", "warn", "error"]
LEVELS: dict[int, Level] = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
}
ORDER: tuple[Level, ...] = ("debug", "info", "warn", "error")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of a sandbox's life."""

    at: datetime
    level: Level
    message: str
    fields: Mapping[str, str]

    @property
    def milliseconds(self) -> int:
        """Unix milliseconds, which clients use as a cursor."""
        return int(self.at.timestamp() * 1000)


class Journal:
    """The entries of all sandboxes."""

    def __init__(self) -> None:
        self._entries: dict[str, deque[LogEntry]] = {}

    def note(self, level: int, event: str, sandbox_id: str, *, exc_info: bool = False, **fields: object) -> None:
        """Write to the engine's log, and to the sandbox's."""
        log(level, event, exc_info=exc_info, sandbox_id=sandbox_id, **fields)
        self.tell(level, event, sandbox_id, **fields)

    def tell(self, level: int, event: str, sandbox_id: str, **fields: object) -> None:
        """Write to the sandbox's log alone."""
        said = {name: _text(value) for name, value in fields.items() if value is not None}
        entries = self._entries.setdefault(sandbox_id, deque(maxlen=KEPT))
        entries.append(LogEntry(datetime.now(UTC), LEVELS[level], event, said))

    def forget(self, sandbox_id: str) -> None:
        """Drop the entries of one that is gone."""
        self._entries.pop(sandbox_id, None)

    def read(
        self,
        sandbox_id: str,
        *,
        since: int | None = None,
        until: int | None = None,
        backward: bool = False,
        limit: int = 1000,
        level: Level = "debug",
        search: str = "",
    ) -> list[LogEntry]:
        """Read some entries, the oldest first unless `backward`.

        Args:
            since, until: Unix milliseconds; entries of that moment included.
            level: the least one.
            search: what the message must contain.
        """
        found = [
            entry
            for entry in self._entries.get(sandbox_id, ())
            if (since is None or entry.milliseconds >= since)
            and (until is None or entry.milliseconds <= until)
            and ORDER.index(entry.level) >= ORDER.index(level)
            and search in entry.message
        ]
        return (found[::-1] if backward else found)[:limit]


def _text(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
