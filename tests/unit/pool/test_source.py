"""A session says where it got its sandbox, in the same word as the event and the statistics."""

from __future__ import annotations

import pytest

from sandboxkit.events import Event
from sandboxkit.pool import AsyncNullSandboxPool, AsyncSandboxPool
from sandboxkit.testing import FakeProvider

pytestmark = pytest.mark.anyio


async def test_each_way_to_a_sandbox_has_its_word() -> None:
    """Warm from the stock, created when that is empty, reused while it is held and after it; counted as it is told."""
    told: list[Event] = []
    async with AsyncSandboxPool(endpoint=FakeProvider(), min_warm=1, on_event=told.append) as pool:
        await pool.wait_ready()
        await pool.resize(min_warm=0)
        async with pool.session("a") as first, pool.session("b") as second, pool.session("a") as shared:
            words = [session.source for session in (first, second, shared)]
        async with pool.session("a") as again:
            words.append(again.source)
        async with pool.session(None) as nobodys:
            words.append(nobodys.source)
        assert first.source == "warm", "a hold that was closed says it still"
        assert words == ["warm", "created", "reused", "reused", "created"]
        assert [event.data["source"] for event in told if event.name == "session.opened"] == words
        stats = pool.stats()
        assert (stats["from_warm"], stats["from_created"], stats["reused"], stats["attached"]) == (1, 2, 2, 0)


async def test_an_attached_one_and_the_null_pools_have_theirs() -> None:
    """What was taken up is attached, for its first holder; a pool that keeps nothing creates each time."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, owner="o") as one, AsyncNullSandboxPool(endpoint=fake, owner="o") as two:
        session = await one.session("a")
        async with await two.attach(await session.detach()) as taken, two.session("a") as same:
            assert (taken.source, same.source) == ("attached", "reused")
        for _ in range(2):
            async with two.session("a") as new:
                assert new.source == "created"


async def test_after_a_loss_it_is_that_of_the_new_one() -> None:
    """A hold whose sandbox was replaced under it tells of the one that it has now."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1, on_loss="recreate") as pool:
        await pool.wait_ready()
        await pool.resize(min_warm=0)
        async with pool.session("a") as session:
            assert session.source == "warm"
            await fake.kill(session.sandbox_id)
            assert (await session.run_code("1 + 1")).text == "2"
            assert (session.source, len(session.losses)) == ("created", 1)
