"""Shares room out among sandboxes, so that none can take another's; pure.

A sandbox may take one more while it has less than what is left. So one alone gets half of all, two that take what they
can a third each, and of N there is always a part of 1/(N+1) that is free for who comes then.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class NoRoom(Exception):
    """This sandbox has its share already."""


class Shares:
    """So many places in all."""

    def __init__(self, total: int) -> None:
        self._free = total
        self._taken: dict[str, int] = {}

    @contextmanager
    def place(self, sandbox_id: str) -> Iterator[None]:
        """Take a place for the length of the block. NoRoom where the sandbox may have no more."""
        own = self._taken.get(sandbox_id, 0)
        if own >= self._free:
            raise NoRoom
        self._taken[sandbox_id] = own + 1
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1
            self._taken[sandbox_id] -= 1
            if not self._taken[sandbox_id]:
                del self._taken[sandbox_id]
