"""The cap, the queue and the hand-over: who gets a sandbox, when, and what happens to one that nobody takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from sandboxkit.errors import PoolFull, PoolTimeout, ProviderUnavailable, RateLimited, TemplateNotFound
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.pool._policy import UNSURE_ATTEMPTS
from sandboxkit.testing import FakeProvider, Fault

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_the_cap_holds_under_a_burst_and_the_queue_is_fair() -> None:
    """Thirty callers on three sandboxes: never more than three live, and all are served in the order they came."""
    fake, served, most = FakeProvider(limit=3), list[int](), 0
    async with AsyncSandboxPool(endpoint=fake, max_live=3) as pool:

        async def caller(number: int) -> None:
            nonlocal most
            async with pool.session(None):
                served.append(number)
                most = max(most, len(fake.live), pool.stats()["live"])
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(caller, number)
                await anyio.lowlevel.checkpoint()
        assert served == list(range(30))
        assert most == 3
    assert fake.created == 30
    assert fake.live == frozenset()


async def test_one_slow_create_blocks_nobody_else(until: Until) -> None:
    """While one sandbox takes for ever to come, others are released and opened at once."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=2) as pool:
        ready = await pool.session("ready")
        fake.inject("create", Fault(delay=50.0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.session("slow").open)
            await until(lambda: pool.stats()["creating"] == 1)
            with anyio.fail_after(5):
                await ready.close()
                again = await pool.session("ready")
                assert (await again.run_code("1")).text == "1"
            tasks.cancel_scope.cancel()


async def test_idle_sessions_make_room_oldest_first_and_used_ones_never() -> None:
    """When somebody needs a place, the idle session that was used longest ago goes; what is in use stays."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=3) as pool:
        ids = {}
        for key in ("a", "b", "held"):
            session = await pool.session(key)
            ids[key] = session.sandbox_id
            if key != "held":
                await session.close()
        async with pool.session("a"):
            pass  # used later than b now
        async with pool.session("new"):
            assert fake.ended == {ids["b"]: "killed"}
        assert pool.stats()["evicted"] == 1
        assert {ids["a"], ids["held"]} < fake.live


async def test_a_released_session_frees_its_place_for_a_waiter(until: Until) -> None:
    """Whatever frees a place wakes the queue: here a release, with no sandbox being returned to anybody."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=1) as pool:
        first = await pool.session("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.session("b").open)
            await until(lambda: pool.stats()["waiting"] == 1)
            await first.close()
        assert pool.stats()["in_use"] == 1
        assert fake.created == 2


async def test_waiting_ends_in_time_with_a_typed_error() -> None:
    """A caller that gets nothing in time gets PoolTimeout, which is a TimeoutError and names its setting."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), max_live=1, acquire_timeout=0.01) as pool:
        await pool.session("a", acquire_timeout=30)
        with pytest.raises(PoolTimeout, match="acquire_timeout"):
            await pool.session("b")
        with pytest.raises(TimeoutError):
            await pool.session("b", acquire_timeout=0.02)
        assert (pool.stats()["timed_out"], pool.stats()["waiting"]) == (2, 0)


async def test_a_slow_create_counts_towards_the_deadline(until: Until) -> None:
    """acquire_timeout covers the whole call; a sandbox that comes too late is killed, and its place given back."""
    fake = FakeProvider(create_delay=0.05)
    async with AsyncSandboxPool(endpoint=fake, acquire_timeout=0.01) as pool:
        with pytest.raises(PoolTimeout):
            await pool.session("a")
        await until(lambda: pool.stats()["live"] == 0)
        assert (fake.created, fake.killed) == (1, 1)


async def test_too_many_waiters_are_turned_away(until: Until) -> None:
    """With max_waiting callers waiting, the next gets PoolFull at once, told how many wait."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), max_live=1, max_waiting=2) as pool:
        await pool.session("a")
        async with anyio.create_task_group() as tasks:
            for key in ("b", "c"):
                tasks.start_soon(pool.session(key).open)
            await until(lambda: pool.stats()["waiting"] == 2)
            with pytest.raises(PoolFull) as caught:
                await pool.session("d")
            assert caught.value.waiting == 2  # type: ignore[attr-defined]  # a fact of the error
            assert (await pool.session("a")).key == "a"  # needs no place
            tasks.cancel_scope.cancel()


async def test_no_waiting_at_all_still_takes_the_place_of_an_idle_session() -> None:
    """max_waiting=0 refuses to wait for users, not for an idle session to be killed."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), max_live=1, max_waiting=0) as pool:
        async with pool.session("a"):
            with pytest.raises(PoolFull):
                await pool.session("b")
        assert (await pool.session("b")).key == "b"


async def test_a_cancelled_callers_sandbox_goes_to_the_next(until: Until) -> None:
    """The caller who caused a create goes away; another who asked for the same session gets that sandbox."""
    fake = FakeProvider()
    fake.inject("create", Fault(delay=0.05))
    async with AsyncSandboxPool(endpoint=fake) as pool, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def impatient() -> None:
            with scope:
                await pool.session("a")

        tasks.start_soon(impatient)
        await until(lambda: pool.stats()["creating"] == 1)
        scope.cancel()
        session = await pool.session("a")
        assert fake.live == {session.sandbox_id}
        assert fake.created == 1
        assert pool.stats()["cancelled"] == 1


async def test_a_sandbox_that_nobody_wants_is_killed(until: Until) -> None:
    """The only caller goes away while its sandbox is made; the sandbox is killed, and its place is free."""
    fake = FakeProvider(create_delay=0.02)
    async with AsyncSandboxPool(endpoint=fake, max_live=1) as pool:
        with anyio.move_on_after(0.001):
            await pool.session("a")
        await until(lambda: fake.created == 1)
        session = await pool.session("b")
        assert fake.live == {session.sandbox_id}


@pytest.mark.parametrize("error", [RateLimited("429", status=429), ProviderUnavailable("503"), TemplateNotFound("no")])
async def test_a_failed_create_is_told_to_all_who_wait_for_it(error: Exception, until: Until) -> None:
    """Everyone who joined a create that fails gets its error; the place is free, and the next call tries anew."""
    fake, met = FakeProvider(), list[BaseException]()
    fake.inject("create", Fault(delay=0.01, error=error))
    async with AsyncSandboxPool(endpoint=fake, max_live=1) as pool:

        async def caller() -> None:
            with pytest.raises(type(error)) as caught:
                await pool.session("a")
            met.append(caught.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(caller)
        assert len({id(e) for e in met}) == 3
        # After a reply that was lost the place is free only when it is known that no sandbox came of it.
        await until(lambda: pool.stats()["live"] == 0)
        assert (await pool.session("a")).key == "a"


async def test_a_providers_own_mistake_reaches_the_caller_and_not_the_pool() -> None:
    """An exception that is none of ours is raised as it is, and the pool goes on."""
    fake = FakeProvider()
    fake.inject("create", Fault(error=RuntimeError("a mistake")))
    async with AsyncSandboxPool(endpoint=fake) as pool:
        with pytest.raises(RuntimeError, match="a mistake"):
            await pool.session("a")
        assert (await pool.session("a")).key == "a"


async def test_resize_serves_waiters_and_shrinks_by_idle_ones(until: Until) -> None:
    """A higher cap lets those who wait in; a lower one kills idle sessions, never one in use."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=1) as pool:
        one = await pool.session("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.session("b").open)
            await until(lambda: pool.stats()["waiting"] == 1)
            await pool.resize(max_live=3)
        async with pool.session("c"):
            pass
        await pool.resize(max_live=1)
        await until(lambda: pool.stats()["killing"] == 0)
        assert (pool.stats()["in_use"], pool.stats()["idle"]) == (2, 0)
        await one.close()
        await until(lambda: pool.stats()["live"] == 1)


async def test_drain_lets_no_sandbox_of_now_be_used_again(until: Until) -> None:
    """After drain(), idle sandboxes are killed at once, held ones when they are closed, and the keys start anew."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with pool.session("idle"):
            pass
        held = await pool.session("held")
        await pool.drain()
        await until(lambda: len(fake.live) == 1)
        assert (await held.run_code("1")).text == "1"
        await held.close()
        assert (await pool.session("held")).sandbox_id != held.sandbox_id


async def test_statistics_count_and_begin_anew() -> None:
    """stats() tells what is and what was; pop_stats() lets the counters begin at zero."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), max_live=4) as pool:
        async with pool.session("a"), pool.session("a"), pool.session("b"):
            stats = pool.pop_stats()
        assert stats["max_live"] == 4
        assert (stats["live"], stats["in_use"], stats["opened"], stats["created"], stats["reused"]) == (2, 2, 3, 2, 1)
        assert stats["create_seconds"] > 0
        after = pool.stats()
        assert (after["live"], after["idle"], after["opened"], after["create_seconds"]) == (2, 2, 0, 0.0)


@pytest.mark.parametrize("searches_that_fail", [0, 2])
async def test_a_create_whose_reply_was_lost_leaves_no_sandbox(searches_that_fail: int, until: Until) -> None:
    """The service made a sandbox and the answer was lost: the caller gets the error, the sandbox is found and killed,
    and its place is taken until then. (Found by the random schedules.)"""
    fake = FakeProvider()
    fake.inject("create", Fault(after_commit=True))
    if searches_that_fail:
        fake.inject("list", Fault(error=ProviderUnavailable("503"), times=searches_that_fail))
    async with AsyncSandboxPool(endpoint=fake) as pool:
        other = await AsyncSandboxPool(endpoint=fake).__aenter__()  # its sandboxes have other tags
        try:
            with pytest.raises(ProviderUnavailable):
                await pool.session("a")
            assert pool.stats()["killing"] == 1
            theirs = await other.session("a")
            if not searches_that_fail:
                await until(lambda: pool.stats()["live"] == 0)
                assert fake.live == {theirs.sandbox_id}
        finally:
            await other.__aexit__(None, None, None)
    assert fake.live == frozenset()
    assert fake.created == fake.killed == 2


async def test_what_a_search_has_found_is_not_given_up() -> None:
    """Looking fails three times, then killing what was found: it is tried again, for there is a sandbox."""
    fake = FakeProvider()
    fake.inject("create", Fault(after_commit=True))
    fake.inject("list", Fault(error=ProviderUnavailable("503"), times=UNSURE_ATTEMPTS - 1))
    fake.inject("kill", Fault(error=ProviderUnavailable("503"), times=2))
    async with AsyncSandboxPool(endpoint=fake) as pool:
        with pytest.raises(ProviderUnavailable):
            await pool.session("a")
    assert fake.live == frozenset()
    assert (fake.created, pool.stats()["kill_errors"]) == (1, UNSURE_ATTEMPTS + 1)


async def test_a_provider_that_is_down_is_not_searched_for_ever() -> None:
    """Where even looking fails, the place is given back after a few attempts: there may be no sandbox at all."""
    fake = FakeProvider()
    fake.inject("create", Fault(error=ProviderUnavailable("503")))
    fake.inject("list", Fault(error=ProviderUnavailable("503"), times=100))
    with anyio.fail_after(8):
        async with AsyncSandboxPool(endpoint=fake) as pool:
            with pytest.raises(ProviderUnavailable):
                await pool.session("a")
    assert pool.stats()["live"] == 0


def test_who_comes_too_late_by_a_moment_has_nothing() -> None:
    """Offered in time, and taken when the time was over, since the loop was busy: PoolTimeout, and the next has it."""

    def busy_at_that_moment(event: Event) -> None:
        if event.name == "sandbox.created":
            # Runs after the offer, which this create is about to cause, and before its waiter.
            asyncio.get_running_loop().call_soon(time.sleep, 0.2)

    async def main() -> None:
        fake, got = FakeProvider(create_delay=0.01), list[str]()
        async with AsyncSandboxPool(endpoint=fake, max_live=1, on_event=busy_at_that_moment) as pool:

            async def late() -> None:
                with pytest.raises(PoolTimeout):
                    await pool.session(None, acquire_timeout=0.15)

            async def next_one() -> None:
                async with pool.session(None) as session:
                    got.append(session.sandbox_id)
                    await session.run_code("1")
                    assert pool.stats()["in_use"] == 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(late)
                await anyio.lowlevel.checkpoint()
                tasks.start_soon(next_one)
            assert got == ["fake00000001"]
            assert (pool.stats()["opened"], pool.stats()["timed_out"]) == (1, 1)
        assert fake.live == frozenset()

    anyio.run(main)
