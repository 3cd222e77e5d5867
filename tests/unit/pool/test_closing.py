"""The end of a pool: nothing is left, whatever was under way, and what could not be killed is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import pytest

from sandboxkit.errors import PoolClosed, ProviderUnavailable
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@pytest.mark.anyio
async def test_closing_refuses_waiters_at_once_and_kills_everything(until: Until) -> None:
    """close() ends every waiter with PoolClosed, aborts creates, kills idle and used sandboxes; again is harmless."""
    fake, refused = FakeProvider(), 0
    async with AsyncSandboxPool(endpoint=fake, max_live=3) as pool:
        async with pool.session("idle"):
            pass
        await pool.session("used")
        fake.inject("create", Fault(delay=50.0))

        async def caller(key: str) -> None:
            nonlocal refused
            with pytest.raises(PoolClosed):
                await pool.session(key)
            refused += 1

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller, "creating")
                await until(lambda: pool.stats()["creating"] == 1)
                for key in ("w1", "w2"):
                    tasks.start_soon(caller, key)
                await until(lambda: pool.stats()["live"] == 3 and pool.stats()["waiting"] > 0)
                assert await pool.close() == ()
                assert await pool.close() == ()
        assert refused == 3
        assert fake.live == frozenset()
        assert pool.stats()["live"] == 0
        with pytest.raises(PoolClosed):
            await pool.session("late")
    assert fake.created == len(fake.ended)


@pytest.mark.anyio
async def test_leaving_by_an_exception_closes_and_raises_it_unwrapped() -> None:
    """The exception of the block comes out as it is, no group around it, and nothing is left."""
    fake = FakeProvider()
    with pytest.raises(ZeroDivisionError):
        async with AsyncSandboxPool(endpoint=fake) as pool:
            await pool.session("a")
            raise ZeroDivisionError
    assert fake.live == frozenset()


@pytest.mark.anyio
async def test_leaving_by_cancellation_closes() -> None:
    """A cancelled block leaves nothing: closing is shielded from the cancellation."""
    fake = FakeProvider()
    with anyio.CancelScope() as scope:
        async with AsyncSandboxPool(endpoint=fake) as pool:
            await pool.session("a")
            await pool.session(None)
            scope.cancel()
            await anyio.sleep(50)
    assert scope.cancelled_caught
    assert fake.killed == 2
    assert fake.live == frozenset()


@pytest.mark.anyio
async def test_a_given_provider_is_not_closed() -> None:
    """Whoever passes a provider keeps it: it may serve another pool."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake):
        pass
    assert not fake.is_closed


@pytest.mark.anyio
async def test_a_use_under_way_ends_with_pool_closed(until: Until) -> None:
    """Code that runs while the pool is closed ends with PoolClosed, not with a puzzle about its sandbox."""
    fake, started = FakeProvider(), anyio.Event()
    async with AsyncSandboxPool(endpoint=fake) as pool, anyio.create_task_group() as tasks:
        session = await pool.session("a")

        async def run() -> None:
            with pytest.raises(PoolClosed):
                await session.run_code("print(1)\nwhile True: pass", on_stdout=lambda _: started.set())

        tasks.start_soon(run)
        with anyio.fail_after(5):
            await started.wait()
            await pool.close()


def test_a_failed_kill_is_tried_again_and_holds_its_place(virtual_time: VirtualTime) -> None:
    """While a kill is not confirmed, its sandbox counts towards the cap; it is tried again until it is."""
    fake, events = virtual_time.provider(limit=1), list[Event]()
    fake.inject("kill", Fault(error=ProviderUnavailable("503"), times=3))

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=fake, max_live=1, on_event=events.append) as pool:
            async with pool.session(None):
                pass
            assert pool.stats()["killing"] == 1
            async with pool.session("b"):
                pass
        assert fake.live == frozenset()

    virtual_time.run(main)
    assert [e.name for e in events].count("sandbox.kill_failed") == 3
    assert 6.0 < virtual_time.elapsed() < 9.0  # 1 + 2 + 4 seconds between four attempts


def test_what_cannot_be_killed_is_returned_within_the_limit(virtual_time: VirtualTime) -> None:
    """A provider that refuses every kill delays closing for 30 seconds at most, and the ids are returned."""
    fake, left = virtual_time.provider(), list[str]()
    fake.inject("kill", Fault(error=ProviderUnavailable("503"), times=10_000))

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=fake) as pool:
            await pool.session("a")
            left.extend(await pool.close())
            assert await pool.close() == tuple(left)

    virtual_time.run(main)
    assert left == list(fake.live)
    assert virtual_time.elapsed() < 31


def test_a_kill_that_hangs_does_not_hang_the_close(virtual_time: VirtualTime) -> None:
    """A kill that never answers is given up after its limit and tried again; closing takes 30 seconds at most."""
    fake = virtual_time.provider()
    fake.inject("kill", Fault(delay=10_000, times=10_000))

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=fake) as pool:
            await pool.session("a")
            assert len(await pool.close()) == 1

    virtual_time.run(main)
    assert virtual_time.elapsed() < 31


def test_a_create_that_hangs_ends_by_the_create_limit(virtual_time: VirtualTime) -> None:
    """TimeoutPolicy.create bounds a create that never answers; its place is free afterwards."""
    fake = virtual_time.provider()
    fake.inject("create", Fault(delay=10_000))

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=fake, acquire_timeout=500, max_live=1) as pool:
            with pytest.raises(ProviderUnavailable, match="create"):
                await pool.session("a")
            await pool.session("a")

    virtual_time.run(main)
    assert virtual_time.elapsed() < 70


def test_a_pool_may_be_made_before_there_is_a_loop() -> None:
    """A module may hold its pool; it is entered later."""
    fake = FakeProvider()
    pool = AsyncSandboxPool(endpoint=fake, reap=True)

    async def use() -> str | None:
        async with pool, pool.session("a") as session:
            return (await session.run_code("1 + 1")).text

    assert anyio.run(use) == "2"
    assert not fake.live
