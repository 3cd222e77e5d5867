"""The metadata that the pool gives its sandboxes, and what is read from those of others; pure.

Tags say whose a sandbox is: for audit, for `attach`, and for whoever cleans up. Nothing is claimed by them, and they
hold no environment, no secret and no code. They are fixed when a sandbox is created, so one that was made for the
stock has an empty `session`, whoever got it later.
"""

from __future__ import annotations

from collections.abc import Mapping

RESERVED = "sandboxkit."
"""Metadata keys that begin so are ours."""

POOL = f"{RESERVED}pool"
"""The pool's name, for people."""
POOL_ID = f"{RESERVED}id"
"""Known to one pool object alone."""
OWNER = f"{RESERVED}owner"
"""Who may take it up by `attach`: the pool's `owner`, or its id where it has none."""
SESSION = f"{RESERVED}session"
TEMPLATE = f"{RESERVED}template"
GENERATION = f"{RESERVED}gen"
PROCESS = f"{RESERVED}process"
"""Which process made it, so that one on the same host can see that it has died."""


def owned(metadata: Mapping[str, str]) -> dict[str, str]:
    """The tags of a request that no other request has."""
    return {name: metadata[name] for name in (POOL_ID, GENERATION)}


def own_pairs(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What of a sandbox's metadata is not the pool's, as a spec has it."""
    return tuple(sorted((name, value) for name, value in metadata.items() if not name.startswith(RESERVED)))
