"""The bound on what an engine keeps holds however many copies are written at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sandboxkit.local.control._store import Draft, Store
from sandboxkit.local.isolation._archive import Packed, Stopped, TooLarge

MOST = 100_000


def writes(size: int, granted: list[int] | None = None) -> Callable[[int, int], Awaitable[Packed]]:
    """A copy of so many bytes, which takes some turns of the loop."""

    async def save(descriptor: int, most: int) -> Packed:
        if granted is not None:
            granted.append(most)
        try:
            for _ in range(10):
                await asyncio.sleep(0.001)
                if os.fstat(descriptor).st_size + size // 10 > most:
                    raise TooLarge("too much")
                os.write(descriptor, bytes(size // 10))
            return Packed(size, 1, 0)
        finally:
            if granted is not None:
                granted.remove(most)

    return save


def on_disk(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def opened(folder: Path) -> Store:
    store = Store(folder, most=MOST, outlives=False)
    assert store.open()
    return store


def test_copies_at_once_keep_to_the_bound(folder: Path) -> None:
    """Each has what is promised to it alone; the ones that do not fit are refused, and as many fit as there is room."""

    async def scenario() -> None:
        store = opened(folder)
        granted: list[int] = []
        most_at_once = most_promised = 0

        async def watch() -> None:
            nonlocal most_at_once, most_promised
            while True:
                most_at_once = max(most_at_once, on_disk(folder))
                most_promised = max(most_promised, sum(granted))
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        done = await asyncio.gather(*(store.draft(writes(30_000, granted)) for _ in range(5)), return_exceptions=True)
        watching.cancel()
        drafts = [one for one in done if isinstance(one, Draft)]
        assert len(drafts) == 3
        assert all(isinstance(one, TooLarge) for one in done if not isinstance(one, Draft))
        assert most_at_once <= MOST
        assert most_promised <= MOST
        for number, draft in enumerate(drafts):
            store.commit(draft, "paused", f"p{number}", {})
        with pytest.raises(TooLarge):
            await store.draft(writes(30_000))
        store.close()

    asyncio.run(scenario())


def test_a_draft_counts_until_it_is_discarded(folder: Path) -> None:
    """What was written for a fork takes room although no record names it."""

    async def scenario() -> None:
        store = opened(folder)
        draft = await store.draft(writes(90_000))  # more than half, and nobody else is there
        with pytest.raises(TooLarge):
            await store.draft(writes(20_000))
        store.discard(draft)
        await store.draft(writes(90_000))
        store.close()

    asyncio.run(scenario())


def test_nobody_waits_who_is_to_stop(folder: Path) -> None:
    """A copy that waits for all the room is given up at once, and the others go on."""

    async def scenario() -> None:
        store = opened(folder)
        going = asyncio.Event()

        async def endless(descriptor: int, most: int) -> Packed:
            await going.wait()
            return Packed(1, 1, 0)

        first = asyncio.create_task(store.draft(endless))
        await asyncio.sleep(0)
        wanted = True
        second = asyncio.create_task(store.draft(writes(80_000), stop=lambda: not wanted))
        third = asyncio.create_task(store.draft(writes(1000)))
        await asyncio.sleep(0.2)
        assert not second.done()
        wanted = False
        with pytest.raises(Stopped):
            await asyncio.wait_for(second, 5)
        await asyncio.wait_for(third, 5)
        going.set()
        await asyncio.wait_for(first, 5)
        store.close()

    asyncio.run(scenario())
