"""The store of one process: rows in a dictionary, gone with the pool."""

from __future__ import annotations

import itertools

from sandboxkit.pool.stores._base import Row


class MemoryStore:
    """Session rows in memory. Holds no more rows than there are sandboxes."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}
        self._generations = itertools.count(1)

    async def begin(self, session: str) -> int:
        generation = next(self._generations)
        self._rows[session] = Row(session, generation)
        return generation

    async def settle(self, session: str, generation: int, sandbox_id: str) -> bool:
        if not self._is_current(session, generation):
            return False
        self._rows[session] = Row(session, generation, sandbox_id)
        return True

    async def clear(self, session: str, generation: int) -> bool:
        if not self._is_current(session, generation):
            return False
        del self._rows[session]
        return True

    async def rows(self) -> tuple[Row, ...]:
        return tuple(self._rows.values())

    def _is_current(self, session: str, generation: int) -> bool:
        row = self._rows.get(session)
        return row is not None and row.generation == generation
