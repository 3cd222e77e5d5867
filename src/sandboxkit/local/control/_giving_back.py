"""At an engine's start: the paused sandboxes that an engine before it has kept are listed again."""

from __future__ import annotations

import logging
import secrets
from datetime import UTC, datetime

from sandboxkit.local.control._journal import Journal
from sandboxkit.local.control._kept import read_sandbox
from sandboxkit.local.control._registry import Registry
from sandboxkit.local.control._store import Store


def give_back(store: Store, registry: Registry, journal: Journal) -> None:
    """Take in what is kept, the oldest first, and remove what is too old, or damaged. Blocks."""
    found = []
    for key, record in store.records("paused"):
        try:
            sandbox = read_sandbox(record, new_token=lambda: secrets.token_hex(20))
            if sandbox.sandbox_id != key:
                raise ValueError("it is another one's")
        except ValueError as error:
            journal.note(logging.ERROR, "sandbox.not_given_back", key, error=str(error))
            journal.forget(key)
            store.drop("paused", key)
            continue
        found.append(sandbox)
    for sandbox in sorted(found, key=lambda one: one.started_at):
        if (datetime.now(UTC) - sandbox.end_at).total_seconds() > store.keeps_for:
            journal.note(logging.INFO, "sandbox.expired", sandbox.sandbox_id, paused_at=sandbox.end_at.isoformat())
            journal.forget(sandbox.sandbox_id)
            store.drop("paused", sandbox.sandbox_id)
        elif registry.given_back(sandbox):
            memory = "lost" if sandbox.memory_lost else None
            journal.note(logging.INFO, "sandbox.given_back", sandbox.sandbox_id, memory=memory)
