"""Makes a new sandbox its session's own: its environment, its files, its row in the store.

It is done once for each sandbox, by the first who holds it, and before anybody gets to use it. The same is done to one
that was created for the session and to one that lay warm; only where the environment goes differs. A sandbox in which
this failed halfway is nobody's, and is killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio

from sandboxkit.errors import SandboxkitError
from sandboxkit.pool._core import Core
from sandboxkit.pool._journal import Journal
from sandboxkit.pool._stats import Counters
from sandboxkit.pool.stores import Store

AT_ONCE = 8
"""Files that are written at the same time."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a session starts with. `replayed` is what was written into the sandbox that it lost."""

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    replayed: Journal | None = None


class Preparer:
    """Prepares cores."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters

    async def prepare(self, core: Core, recipe: Recipe) -> bool:
        """Prepare a sandbox, or wait until who came first has. False if it is gone meanwhile.

        Raises:
            SafeFSError: a file could not be written.
            SandboxLost, ProviderError: so could nothing.
        """
        async with core.preparing:
            if core.gone is not None or core.is_prepared:
                return core.gone is None
            started_at = anyio.current_time()
            if core.key is not None and core.key != core.row:  # it was made for the stock
                await self._rename_row(core, core.key)
            await self._write(core, recipe)
            core.files, core.is_prepared = recipe.files, True
            self._counters.ready_seconds += anyio.current_time() - started_at
        return core.gone is None

    async def _rename_row(self, core: Core, key: str) -> None:
        generation = await self._store.begin(key)
        old = core.row, core.generation
        core.row, core.generation = key, generation
        await self._store.settle(key, generation, core.sandbox.sandbox_id)
        await self._store.clear(*old)

    async def _write(self, core: Core, recipe: Recipe) -> None:
        files = dict(recipe.files)
        core.journal.most_bytes += sum(map(len, files.values()))  # they are kept here in any case
        if recipe.replayed is not None:
            core.journal.most_bytes = recipe.replayed.most_bytes
            for path in recipe.replayed.directories:
                await core.sandbox.files.make_dir(path)
                core.journal.made(path)
            files |= recipe.replayed.files
        # What is written is the session's from now on, and is written again after a loss.
        waiting = list(files.items())
        failures: list[SandboxkitError] = []

        async def write_some() -> None:
            while waiting and not failures:
                path, data = waiting.pop()
                try:
                    await core.sandbox.files.write(path, data)
                except SandboxkitError as error:
                    failures.append(error)
                    return
                core.journal.wrote(path, data)

        if len(waiting) < 2:
            await write_some()
        else:
            async with anyio.create_task_group() as tasks:
                for _ in range(min(AT_ONCE, len(waiting))):
                    tasks.start_soon(write_some)
        if failures:
            raise failures[0]
