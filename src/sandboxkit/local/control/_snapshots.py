"""Carries out snapshots and forks: a sandbox's files are copied while it stands still, and new ones start with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from sandboxkit.local._log import log
from sandboxkit.local.control._kept import Snapshot, read_snapshot, write_snapshot
from sandboxkit.local.control._parts import Recipe
from sandboxkit.local.control._recipes import Recipes
from sandboxkit.local.control._refusals import Refused, cannot_be_kept
from sandboxkit.local.control._registry import Sandbox
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.control._snapshot_index import SnapshotIndex, SnapshotQuery, read_name
from sandboxkit.local.control._store import Store


class Snapshots:
    """All snapshots of an engine. `is_strict` refuses what would lose a memory that nobody has given up."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        *,
        store: Store,
        recipes: Recipes,
        new_key: Callable[[], str],
        is_strict: bool,
    ) -> None:
        self._sandboxes = sandboxes
        self._store = store
        self._recipes = recipes
        self._new_key = new_key
        self._is_strict = is_strict
        self._index = SnapshotIndex()
        self._forks: set[asyncio.Task[list[Sandbox | Refused]]] = set()

    def start(self) -> None:
        """Take in the snapshots that an engine before this one has kept. Blocks."""
        found = []
        for key, record in self._store.records("snapshots"):
            try:
                snapshot = read_snapshot(record)
                if snapshot.key != key:
                    raise ValueError("it is another one's")
                found.append(snapshot)
            except ValueError as error:
                log(logging.ERROR, "snapshot.damaged", snapshot=key, error=str(error))
                self._store.drop("snapshots", key)
        for snapshot in sorted(found, key=lambda one: one.number):
            if (replaced := self._index.add(snapshot)) is not None:
                self._store.drop("snapshots", replaced.key)  # whoever wrote this one had no time to

    # -- asking ---------------------------------------------------------------------------------------------------

    def find(self, text: str) -> Snapshot | None:
        """Find one by its id or name, unless a template has that name."""
        return self._index.find(text)

    def page(self, query: SnapshotQuery) -> tuple[list[Snapshot], str | None]:
        """List some, newest first, and the token of the rest."""
        return self._index.page(query)

    # -- doing ----------------------------------------------------------------------------------------------------

    async def take(self, sandbox_id: str, *, name: str | None, memory: bool) -> Snapshot:
        """Copy a sandbox's files, for new ones to start with. It goes on as it was; its memory is not copied.

        Args:
            memory: False where the taker has said that the files alone are wanted.

        Raises:
            Refused: 404; 400 for a name that is none, and where the engine is strict; 409 for a template's name; 507
                where the files cannot be kept.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        called, tag = read_name(name, taken=self._recipes.known())
        if memory:
            self._refuse_loss("a snapshot", "take it with mode='filesystem' (memory=false)")
        started = time.monotonic()
        draft = await self._sandboxes.copy(sandbox_id)
        # From here to `add` nothing waits: of two with one name, one takes the other's place as a whole.
        snapshot = Snapshot(
            key=self._new_key(),
            name=called,
            tag=tag,
            number=self._index.next_number(),
            sandbox_id=sandbox_id,
            built_from=sandbox.wanted.built_from or sandbox.wanted.template_id,
            limits=sandbox.wanted.limits,
            has_interpreter=sandbox.wanted.has_interpreter,
            memory_lost=memory,
            made_at=datetime.now(UTC),
        )
        try:
            self._store.commit(draft, "snapshots", snapshot.key, write_snapshot(snapshot))
        except OSError as error:
            raise cannot_be_kept(sandbox_id, error) from error
        replaced = self._index.add(snapshot)
        self._sandboxes.journal.note(
            logging.INFO,
            "sandbox.snapshot_taken",
            sandbox_id,
            snapshot=snapshot.snapshot_id,
            bytes=draft.size,
            memory="lost" if memory else None,
            duration=time.monotonic() - started,
        )
        if replaced is not None:
            await self._store.remove("snapshots", replaced.key)
        return snapshot

    async def delete(self, text: str) -> bool:
        """Delete one; sandboxes that started with it live on. False where there is none."""
        if (snapshot := self._index.find(text)) is None:
            return False
        self._index.remove(snapshot)
        await self._store.remove("snapshots", snapshot.key)
        log(logging.INFO, "snapshot.deleted", snapshot=snapshot.snapshot_id)
        return True

    def recipe(self, snapshot: Snapshot, recipe: Recipe) -> Recipe:
        """What its sandboxes are made of. Refused: 404 where it was deleted; 400 where the engine is strict."""
        if snapshot.memory_lost:
            self._refuse_loss(f"starting from the snapshot {snapshot.snapshot_id!r}", "take a snapshot of the files")
        files = self._store.files("snapshots", snapshot.key)
        if files is None:
            raise Refused(404, f"The snapshot {snapshot.snapshot_id!r} was deleted", error_code="template_not_found")
        return replace(recipe, files=files)

    async def fork(self, sandbox_id: str, *, count: int, seconds: int) -> list[Sandbox | Refused]:
        """Make so many sandboxes with a copy of this one's files; each for itself is made, or refused.

        Raises:
            Refused: 404; 400 where the engine is strict; 507 where the files cannot be kept.
        """
        self._refuse_loss("a fork", "take a snapshot with mode='filesystem' (memory=false), and create from that")
        task = asyncio.create_task(self._fork(sandbox_id, count, seconds), name=f"fork {sandbox_id}")
        self._forks.add(task)
        task.add_done_callback(self._forks.discard)
        return await asyncio.shield(task)

    async def _fork(self, sandbox_id: str, count: int, seconds: int) -> list[Sandbox | Refused]:
        started = time.monotonic()
        parent = self._sandboxes.get(sandbox_id).wanted
        network, recipe = await self._recipes.again(parent)
        draft = await self._sandboxes.copy(sandbox_id)
        try:
            wanted = replace(
                parent, timeout=seconds, network=network, idempotency_key=None, fingerprint="", from_files=True
            )
            recipe = replace(recipe, files=draft.path)

            async def make() -> Sandbox | Refused:
                try:
                    return await self._sandboxes.create(wanted, recipe)
                except Refused as refused:
                    return refused

            made = await asyncio.gather(*(make() for _ in range(count)))
        finally:
            self._store.discard(draft)
        with contextlib.suppress(Refused):
            self._sandboxes.get(sandbox_id)
            self._sandboxes.journal.note(
                logging.INFO,
                "sandbox.forked",
                sandbox_id,
                made=sum(isinstance(one, Sandbox) for one in made),
                of=count,
                memory="lost",
                duration=time.monotonic() - started,
            )
        return made

    def _refuse_loss(self, what: str, instead: str) -> None:
        if self._is_strict:
            raise Refused(
                400,
                f"{what} would lose the memory, which this engine cannot keep, and it is strict (SANDBOXKIT_STRICT): "
                f"{instead}",
                error_code="memory_lost",
            )

    async def aclose(self) -> None:
        """Wait for the forks that were begun; the sandboxes have been told to end."""
        while self._forks:
            await asyncio.wait(tuple(self._forks))
