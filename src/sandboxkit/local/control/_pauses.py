"""Carries out pauses and resumptions, and keeps the files of paused sandboxes on disk.

A pause that keeps the memory stops every process, and then copies the files to the store in the background, where that
outlives the engine. A pause that keeps the files alone copies them first, and then ends the box. Who connects wakes the
processes where there are any, else a new box is made for the files.

Each sandbox has one turn: whoever stops, wakes, copies or makes its box holds it, so that these never overlap; the
background copy alone does without, and is told to stop when the processes go on. A kill waits for nobody: it tells
copies and restorations to stop, and waits until they have.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from sandboxkit.local.control._journal import Journal
from sandboxkit.local.control._kept import write_sandbox
from sandboxkit.local.control._parts import Live, Recipe
from sandboxkit.local.control._pausing import go_on, hold, stop
from sandboxkit.local.control._recipes import Recipes
from sandboxkit.local.control._refusals import Refused, cannot_be_kept, could_not_be_made, no_such_sandbox
from sandboxkit.local.control._registry import Now, Registry, Sandbox, State
from sandboxkit.local.control._store import Draft, Store
from sandboxkit.local.isolation._archive import ArchiveError, Stopped
from sandboxkit.local.isolation._base import AgentLost

COPIES_AT_ONCE = 2
AWAKE_FOR = 300
"""Seconds that one lives at least which traffic has resumed, as at E2B."""
Result = TypeVar("Result")


class House(Protocol):
    """What is needed of `Sandboxes`."""

    def get(self, sandbox_id: str) -> Sandbox: ...
    def live(self, sandbox_id: str) -> Live | None: ...
    def extend(self, sandbox_id: str, seconds: int) -> Sandbox: ...
    def lost(self, sandbox_id: str) -> None: ...
    def settle(self, sandbox_id: str) -> asyncio.Task[None] | None: ...
    async def make_live(self, sandbox: Sandbox, recipe: Recipe) -> Live: ...
    def take_in(self, sandbox_id: str, live: Live) -> None: ...
    async def let_out(self, sandbox_id: str) -> None: ...
    def look_at_time(self) -> None: ...


class Pauses:
    """The pauses of all sandboxes. `create_timeout` is the longest that making a box may take, for messages."""

    def __init__(
        self,
        house: House,
        *,
        registry: Registry,
        store: Store,
        recipes: Recipes,
        journal: Journal,
        create_timeout: float,
    ) -> None:
        self._house = house
        self._registry = registry
        self._store = store
        self._recipes = recipes
        self._journal = journal
        self._create_timeout = create_timeout
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._copying: dict[str, dict[threading.Event, asyncio.Event]] = {}
        self._slots = asyncio.Semaphore(COPIES_AT_ONCE)
        self._restoring: dict[str, asyncio.Task[Sandbox]] = {}
        self._tasks: set[asyncio.Task[object]] = set()

    # -- pausing --------------------------------------------------------------------------------------------------

    async def pause(self, sandbox_id: str, *, memory: bool = True) -> None:
        """Stop all that runs in it (or end it, where only the files are wanted); return when nothing runs.

        Raises:
            Refused: 404, also where it ends meanwhile; 409 where it is paused already; 507 where its files cannot be
                kept: it runs on.
        """
        self._house.settle(sandbox_id)
        self._registry.pause(sandbox_id, _now())
        await asyncio.shield(self.carry_out(sandbox_id, "asked", memory=memory))
        self._house.get(sandbox_id)

    def carry_out(self, sandbox_id: str, reason: str, *, memory: bool) -> asyncio.Task[None]:
        """Carry out a pause that the registry has granted. With the reason `expired`, one whose files cannot be kept
        is paused with its memory instead."""
        return self._own(self._pause(sandbox_id, reason, memory), f"pause {sandbox_id}")

    async def _pause(self, sandbox_id: str, reason: str, memory: bool) -> None:
        started = time.monotonic()
        async with self._turn(sandbox_id):
            live = self._paused_with_box(sandbox_id)
            if live is None:
                return  # resumed or killed already
            try:
                await stop(live)
            except (AgentLost, TimeoutError) as error:
                self._journal.note(
                    logging.ERROR, "sandbox.pause_failed", sandbox_id=sandbox_id, error=type(error).__name__
                )
                self._house.lost(sandbox_id)
                return
            if not memory:
                memory = not await self._stored(sandbox_id, live, or_else_runs=reason != "expired")
            if not self._is_in(State.PAUSED if memory else State.STORED, sandbox_id):
                return  # killed meanwhile
            if memory:
                self._registry.stopped(sandbox_id)
                if self._store.outlives:
                    # Noted now: who resumes it before the copy has begun must find what to stop.
                    self._own(self._persist(sandbox_id, live, self._note_copy(sandbox_id)), f"persist {sandbox_id}")
            self._journal.note(
                logging.INFO,
                "sandbox.paused",
                sandbox_id=sandbox_id,
                reason=reason,
                memory="kept" if memory else "dropped",
                duration=time.monotonic() - started,
            )

    async def _stored(self, sandbox_id: str, live: Live, *, or_else_runs: bool) -> bool:
        """Keep the files of one whose processes are stopped, and end its box; False where the memory is kept instead.

        Raises:
            Refused: 507, its files cannot be kept, and its processes go on.
        """
        try:
            await self._file(sandbox_id, live)
        except (ArchiveError, OSError, AgentLost) as error:
            if not self._is_in(State.PAUSED, sandbox_id):
                return True  # killed meanwhile: that is why
            self._not_kept(sandbox_id, error)
            if not or_else_runs:
                return False
            with contextlib.suppress(AgentLost):
                await go_on(live)
            self._registry.pause_failed(sandbox_id, _now())
            raise cannot_be_kept(sandbox_id, error) from error
        return True

    async def _file(self, sandbox_id: str, live: Live) -> None:
        """Keep the files of one whose processes are stopped; of a paused one there are then only these."""
        record = write_sandbox(self._house.get(sandbox_id), memory=False)
        draft = await self._copy(sandbox_id, live)
        if not self._is_in(State.PAUSED, sandbox_id):
            self._store.discard(draft)
            raise Stopped("it was ended meanwhile")
        self._store.commit(draft, "paused", sandbox_id, record)
        self._registry.stored(sandbox_id, persisted=self._store.outlives)
        await self._house.let_out(sandbox_id)

    async def _persist(self, sandbox_id: str, live: Live, stop: threading.Event) -> None:
        """Keep a copy of the files of one that stays paused; it counts only if nothing has gone on meanwhile."""
        started = time.monotonic()
        try:
            record = write_sandbox(self._house.get(sandbox_id), memory=True)
            draft = await self._save(live, stop)
            if stop.is_set():
                self._store.discard(draft)
                return
            self._store.commit(draft, "paused", sandbox_id, record)
        except (Refused, Stopped):
            return
        except (ArchiveError, OSError, AgentLost) as error:
            self._not_kept(sandbox_id, error)
            return
        finally:
            self._forget_copy(sandbox_id, stop)
        self._registry.persisted(sandbox_id)
        duration = time.monotonic() - started
        self._journal.note(
            logging.INFO, "sandbox.persisted", sandbox_id=sandbox_id, bytes=draft.size, duration=duration
        )

    def _not_kept(self, sandbox_id: str, error: Exception) -> None:
        self._journal.note(
            logging.WARNING, "sandbox.not_persisted", sandbox_id=sandbox_id, error=str(error) or type(error).__name__
        )

    # -- resuming -------------------------------------------------------------------------------------------------

    async def connect(
        self, sandbox_id: str, seconds: int, *, memory: bool = True, strict: bool = False, by_traffic: bool = False
    ) -> tuple[Sandbox, bool]:
        """Let it live at least `seconds` from now, and let it go on if it is paused; True if it was.

        Args:
            memory: False starts a paused one anew with its files, whatever else is there of it.
            strict: refuse one whose memory is lost, unless `memory` is False.
            by_traffic: wake its processes, for at least AWAKE_FOR, or do nothing.

        Raises:
            Refused: 404; 400, strict; 429 where there is no place for a new box; others where none can be made: it is
                paused as before.
        """
        self._house.settle(sandbox_id)
        if by_traffic:
            seconds = max(seconds, AWAKE_FOR)
        if self._house.get(sandbox_id).state is State.LIVE:
            return self._house.extend(sandbox_id, seconds), False
        return await asyncio.shield(
            self._own(self._resume(sandbox_id, seconds, memory, strict, by_traffic), f"resume {sandbox_id}")
        )

    async def _resume(
        self, sandbox_id: str, seconds: int, memory: bool, strict: bool, by_traffic: bool
    ) -> tuple[Sandbox, bool]:
        async with self._turn(sandbox_id):
            sandbox = self._house.get(sandbox_id)
            if sandbox.state is State.LIVE:  # another one has resumed it
                return self._house.extend(sandbox_id, seconds), False
            live = self._paused_with_box(sandbox_id)
            if live is not None and memory and await self._woken(sandbox_id, live):
                self._stop_copies(sandbox_id)
                sandbox = self._registry.resumed(sandbox_id, seconds, _now())
                await self._store.remove("paused", sandbox_id)
                self._journal.note(logging.INFO, "sandbox.resumed", sandbox_id=sandbox_id, timeout=seconds)
                self._house.look_at_time()
                return sandbox, True
            if by_traffic:
                raise no_such_sandbox(sandbox_id)
            if strict and memory and (live is not None or sandbox.memory_lost):
                raise Refused(
                    400,
                    f"The memory of sandbox {sandbox_id!r} is lost, only its files are kept, and this engine is strict "
                    "(SANDBOXKIT_STRICT): connect with on_resume='reboot' (memory=false) to start it anew with them",
                    error_code="memory_lost",
                )
            if live is not None:
                await self._reduce(sandbox_id, live)
            self._restoring[sandbox_id] = restoring = asyncio.ensure_future(self._restore(sandbox_id, seconds))
            try:
                return await restoring, True
            except asyncio.CancelledError:
                raise no_such_sandbox(sandbox_id) from None  # somebody has killed it
            finally:
                del self._restoring[sandbox_id]

    async def _woken(self, sandbox_id: str, live: Live) -> bool:
        """Let the processes of a paused one go on; False where they are gone and its files are kept."""
        try:
            await go_on(live)
        except AgentLost:
            if not self._house.get(sandbox_id).persisted:
                self._house.lost(sandbox_id)
                raise no_such_sandbox(sandbox_id) from None
            return False
        return True

    async def _reduce(self, sandbox_id: str, live: Live) -> None:
        """Leave nothing of a paused one but its files."""
        self._stop_copies(sandbox_id)
        if self._house.get(sandbox_id).persisted:
            self._registry.stored(sandbox_id, persisted=self._store.outlives)
            await self._house.let_out(sandbox_id)
            return
        try:
            if self._house.get(sandbox_id).pause_mode is None:
                await hold(live)  # its pause waits for this turn to end, and will find nothing to do
            await self._file(sandbox_id, live)
        except (ArchiveError, OSError, AgentLost) as error:
            self._house.get(sandbox_id)
            raise cannot_be_kept(sandbox_id, error) from error

    async def _restore(self, sandbox_id: str, seconds: int) -> Sandbox:
        """Make a box for the files of a stored one."""
        started = time.monotonic()
        sandbox = self._registry.restoring(sandbox_id)
        try:
            network, recipe = await self._recipes.again(sandbox.wanted)
            sandbox = replace(sandbox, wanted=replace(sandbox.wanted, network=network))
            files = self._store.files("paused", sandbox_id)
            live = await self._house.make_live(sandbox, replace(recipe, files=files))
        except BaseException as error:
            self._registry.restore_failed(sandbox_id)
            if isinstance(error, Refused | asyncio.CancelledError):
                raise
            self._journal.note(
                logging.ERROR, "sandbox.restore_failed", sandbox_id=sandbox_id, error=str(error) or repr(error)
            )
            raise could_not_be_made(error, self._create_timeout) from error
        try:
            resumed = self._registry.resumed(sandbox_id, seconds, _now(), network=network)
        except Refused:
            await asyncio.shield(live.aclose())
            raise  # somebody has ended it meanwhile
        self._house.take_in(sandbox_id, live)
        await self._store.remove("paused", sandbox_id)
        self._journal.note(
            logging.INFO,
            "sandbox.resumed",
            sandbox_id=sandbox_id,
            timeout=seconds,
            memory="lost",
            duration=time.monotonic() - started,
        )
        return resumed

    # -- copies ---------------------------------------------------------------------------------------------------

    async def copy(self, sandbox_id: str) -> Draft:
        """Copy the files of one, which stands still meanwhile and then goes on as it was, to the store.

        Raises:
            Refused: 404, also where it ends meanwhile; 507 where they cannot be kept.
        """
        return await asyncio.shield(self._own(self._quiet_copy(sandbox_id), f"copy {sandbox_id}"))

    async def _quiet_copy(self, sandbox_id: str) -> Draft:
        async with self._turn(sandbox_id):
            sandbox = self._house.get(sandbox_id)
            live = self._house.live(sandbox_id)
            try:
                if live is None:
                    return await self._store.draft_of("paused", sandbox_id)
                if sandbox.pause_mode is not None:
                    return await self._copy(sandbox_id, live)
                # It runs; or it counts as paused, and its pause waits for this turn to end.
                await hold(live)
                try:
                    return await self._copy(sandbox_id, live)
                finally:
                    with contextlib.suppress(AgentLost):
                        await go_on(live)
            except (AgentLost, ArchiveError, OSError, TimeoutError) as error:
                if isinstance(error, AgentLost):
                    self._house.lost(sandbox_id)
                self._house.get(sandbox_id)
                raise cannot_be_kept(sandbox_id, error) from error

    async def _copy(self, sandbox_id: str, live: Live) -> Draft:
        """Copy the files of a box that stands still. ArchiveError, OSError, AgentLost."""
        stop = self._note_copy(sandbox_id)
        try:
            return await self._save(live, stop)
        finally:
            self._forget_copy(sandbox_id, stop)

    async def _save(self, live: Live, stop: threading.Event) -> Draft:
        async with self._slots:
            if stop.is_set():
                raise Stopped("it is wanted no more")
            return await self._store.draft(
                lambda descriptor, most: live.box.save(descriptor, most=most, stop=stop), stop=stop.is_set
            )

    def _note_copy(self, sandbox_id: str) -> threading.Event:
        stop = threading.Event()
        self._copying.setdefault(sandbox_id, {})[stop] = asyncio.Event()
        return stop

    def _forget_copy(self, sandbox_id: str, stop: threading.Event) -> None:
        copies = self._copying[sandbox_id]
        copies.pop(stop).set()
        if not copies:
            del self._copying[sandbox_id]

    def _stop_copies(self, sandbox_id: str) -> list[asyncio.Event]:
        copies = self._copying.get(sandbox_id, {})
        for one in copies:
            one.set()
        return list(copies.values())

    # -- ends -----------------------------------------------------------------------------------------------------

    async def leave(self, sandbox_id: str, *, keeps: bool) -> None:
        """Let go of one that ends: nothing of it is copied or restored any more. Its files go too, unless they are to
        be there for the next engine."""
        copies = self._stop_copies(sandbox_id)
        if (restoring := self._restoring.get(sandbox_id)) is not None:
            restoring.cancel()
            await asyncio.wait([restoring])
        for done in copies:
            await done.wait()
        if not keeps:
            await self._store.remove("paused", sandbox_id)

    async def finish(self, *, within: float) -> None:
        """Wait so many seconds for pauses and the copies behind them: the engine ends."""
        copies = [task for task in self._tasks if task.get_name().startswith(("pause ", "persist "))]
        if copies:
            await asyncio.wait(copies, timeout=within)

    async def aclose(self) -> None:
        """Wait for all that was begun; every sandbox has been told to end."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _turn(self, sandbox_id: str) -> asyncio.Lock:
        # Held by those who have it or wait for it, and by nobody else.
        return self._turns.setdefault(sandbox_id, asyncio.Lock())

    def _is_in(self, state: State, sandbox_id: str) -> bool:
        try:
            return self._house.get(sandbox_id).state is state
        except Refused:
            return False

    def _paused_with_box(self, sandbox_id: str) -> Live | None:
        return self._house.live(sandbox_id) if self._is_in(State.PAUSED, sandbox_id) else None

    def _own(self, work: Coroutine[None, None, Result], name: str) -> asyncio.Task[Result]:
        """A task that goes on when nobody waits for it any more; its own end is waited for by `aclose`."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Result]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for it is told; nobody may


def _now() -> Now:
    return Now(time.monotonic(), datetime.now(UTC))
