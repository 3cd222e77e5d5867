"""What was measured in the nearest pools and in the application that this library replaces, each as a test of ours.

llm-sandbox 0.3.46: a release waited for another's create (a); a waiter timed out with capacity free (b); the health
check destroyed a box in use (c); temporary boxes stayed in the pool (d); close() destroyed a box in use (e).
OpenSandbox 1.1.1: 20 callers made 20 boxes under max_idle 1 (a); how fast it refills (b); a cancelled caller's
candidate is not lost (c); a graceful end left the idle ones alive (d).
W1-W5: a race that created 8 for one key; another template got the old box; dead boxes stayed for ever; a reused box was
not prolonged; successes, and some failures, never killed.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from sandboxkit import SandboxPool
from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import PoolTimeout, ProviderUnavailable, SessionConflict
from sandboxkit.pool import AsyncNullSandboxPool, AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

BOTH = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


# -- llm-sandbox --------------------------------------------------------------------------------------------------


@BOTH
async def test_llm_sandbox_a_release_waits_for_nobodys_create(until: Until) -> None:
    """A session is given back, and opened again, while another's create takes for ever."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=2) as pool:
        held = await pool.session("a")
        fake.inject("create", Fault(delay=1000))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.session("b").open)
            await until(lambda: pool.stats()["creating"] == 1)
            with anyio.fail_after(5):
                await held.close()
                await (await pool.session("a")).close()
            tasks.cancel_scope.cancel()


@BOTH
async def test_llm_sandbox_b_a_waiter_gets_capacity_that_no_box_comes_back_with(until: Until) -> None:
    """With one place and one use per box, the waiter is served when the used one has been killed."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=1, max_uses=1) as pool:
        first = await pool.session("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.session("b").open)
            await until(lambda: pool.stats()["waiting"] == 1)
            await first.close()
        assert pool.stats()["in_use"] == 1
        assert fake.killed == 1


def test_llm_sandbox_c_health_checks_leave_boxes_in_use_alone(virtual_time: VirtualTime) -> None:
    """However long the pool looks after its stock, a sandbox that somebody got meanwhile is theirs."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20)
        async with AsyncSandboxPool(endpoint=fake, min_warm=1, timeouts=timeouts, idle_timeout=30) as pool:
            await pool.wait_ready()
            await anyio.sleep(49.9)  # it is about to be prolonged
            fake.inject("extend", Fault(delay=5, error=ProviderUnavailable("503"), times=1))
            await anyio.sleep(1)
            session = await pool.session("a")
            assert fake.killed == 0, "that it could not be prolonged once is no reason to kill it"
            for _ in range(20):
                await anyio.sleep(30)
                assert (await session.run_code("1")).text == "1"
            assert session.sandbox_id in fake.live
            assert fake.killed == 0

    virtual_time.run(main)


@BOTH
async def test_llm_sandbox_d_nothing_lives_beside_the_pool() -> None:
    """Five callers on one place use one box after the other; at no time are there two, and at the end none."""
    fake, most = FakeProvider(), 0
    async with AsyncNullSandboxPool(endpoint=fake, max_live=1) as pool:

        async def caller() -> None:
            nonlocal most
            async with pool.session(None):
                most = max(most, len(fake.live))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(caller)
        assert (most, pool.stats()["live"]) == (1, 0)
    assert fake.created == fake.killed == 5


@BOTH
async def test_llm_sandbox_e_close_does_what_it_says(until: Until) -> None:
    """close() kills every sandbox, in use or not, waits until that is confirmed, and says what was not."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1) as pool:
        await pool.wait_ready()
        await pool.session("a")
        fake.inject("kill", Fault(delay=0.05))
        assert await pool.close() == ()
        assert fake.live == frozenset(), "confirmed when it returns"


# -- OpenSandbox --------------------------------------------------------------------------------------------------


@BOTH
async def test_opensandbox_a_a_burst_stays_under_the_cap() -> None:
    """Twenty at once, one warm, a cap of four: never more than four live, all are served."""
    fake, served, most = FakeProvider(limit=4, create_delay=0.002), 0, 0
    async with AsyncSandboxPool(endpoint=fake, min_warm=1, max_live=4) as pool:

        async def caller() -> None:
            nonlocal served, most
            async with pool.session(None):
                most = max(most, len(fake.live), pool.stats()["live"])
                await anyio.lowlevel.checkpoint()
            served += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(caller)
    assert served == 20
    assert most <= 4


def test_opensandbox_b_the_stock_is_full_again_after_one_create(virtual_time: VirtualTime) -> None:
    """What was taken is being made at once: the stock is short for as long as one create takes."""

    async def main() -> None:
        fake = virtual_time.provider(create_delay=1.0)
        async with AsyncSandboxPool(endpoint=fake, min_warm=3) as pool:
            await pool.wait_ready()
            for keys in (("a",), ("b", "c", "d")):
                for key in keys:
                    await pool.session(key)
                await anyio.sleep(1.01)
                assert pool.stats()["warm"] == 3
            assert pool.stats()["from_warm"] == 4

    virtual_time.run(main)


@BOTH
@pytest.mark.parametrize("min_warm", [0, 1])
async def test_opensandbox_c_a_cancelled_callers_candidate_is_not_lost(min_warm: int, until: Until) -> None:
    """Cancelled during the check at hand-over: the sandbox is warm again, the next caller's, or killed."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=min_warm) as pool:
        await pool.wait_ready()
        fake.inject("extend" if min_warm else "create", Fault(delay=0.01))
        with anyio.move_on_after(0.001):
            await pool.session("a")
        await until(lambda: pool.stats()["creating"] == pool.stats()["killing"] == pool.stats()["in_use"] == 0)
        assert pool.stats()["warm"] == len(fake.live) >= min_warm
        assert min_warm or fake.killed == 1


@BOTH
async def test_opensandbox_d_the_end_leaves_no_idle_one() -> None:
    """Warm and idle sandboxes die with the pool."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=3) as pool:
        await pool.wait_ready()
        async with pool.session("a"):
            pass
    assert fake.live == frozenset()
    assert fake.created == fake.killed


# -- the application ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("min_warm", [0, 2])
async def test_w1_eight_at_once_make_one_sandbox(min_warm: int) -> None:
    """Eight concurrent calls for one key get one and the same sandbox."""
    fake, ids = FakeProvider(create_delay=0.002), set[str]()
    async with AsyncSandboxPool(endpoint=fake, min_warm=min_warm) as pool:

        async def caller() -> None:
            async with pool.session("a") as session:
                ids.add(session.sandbox_id)
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(caller)
        assert len(ids) == 1
        assert pool.stats()["in_use"] + pool.stats()["idle"] == 1


@BOTH
async def test_w2_another_template_never_gets_the_old_sandbox() -> None:
    """It is a conflict, or, with replace=True, a new sandbox of that template."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm={"base": 1}) as pool:
        await pool.wait_ready()
        async with pool.session("a") as session:
            old = session.sandbox_id
        with pytest.raises(SessionConflict):
            await pool.session("a", template="base")
        async with pool.session("a", template="base", replace=True) as session:
            assert session.template == "base"
            assert session.sandbox_id != old


@BOTH
async def test_w3_a_dead_sandbox_is_never_returned(until: Until) -> None:
    """What died while it lay idle is found out when it is opened, and forgotten."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=3) as pool:
        for number in range(30):
            async with pool.session(f"user-{number}") as session:
                fake.crash(session.sandbox_id)
        async with pool.session("user-29") as session:
            assert session.sandbox_id in fake.live
        assert len(pool._shell.workers.cores) <= 3, "the map is bounded"


def test_w4_reuse_prolongs(virtual_time: VirtualTime) -> None:
    """Whoever opens a session again has its whole lifetime before them."""

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=virtual_time.provider(), timeouts=TimeoutPolicy(lifetime=100)) as pool:
            for _ in range(5):
                async with pool.session("a") as session:
                    left = (session.sandbox.end_at - virtual_time.now()).total_seconds()
                    assert left == pytest.approx(100, abs=1)
                await anyio.sleep(90)
            assert pool.stats()["created"] == 1

    virtual_time.run(main)


@BOTH
async def test_w5_success_and_failure_both_give_back(until: Until) -> None:
    """An anonymous sandbox dies with its block, however it is left; a create without its files leaves nothing; all
    that before the pool ends."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with pool.session(None) as session:
            await session.run_code("1")
        with pytest.raises(ZeroDivisionError):
            async with pool.session(None):
                raise ZeroDivisionError
        assert (fake.created, fake.live) == (2, frozenset())
        fake.inject("files", Fault(error=ProviderUnavailable("503")))
        with pytest.raises(ProviderUnavailable):
            await pool.session(None, files={"x": "1"})
        await until(lambda: pool.stats()["live"] == 0)
        assert (fake.created, fake.live) == (3, frozenset())


# -- fairness -----------------------------------------------------------------------------------------------------


@BOTH
async def test_fifty_on_five_are_served_in_order() -> None:
    """Fifty clients on five boxes: served in the order in which they came, none starves, none is over the cap."""
    fake, served = FakeProvider(limit=5), list[int]()
    async with AsyncSandboxPool(endpoint=fake, max_live=5) as pool:

        async def client(number: int) -> None:
            async with pool.session(None) as session:
                served.append(number)
                await session.run_code("1")

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(client, number)
                await anyio.lowlevel.checkpoint()
        assert served == list(range(50))


@BOTH
async def test_a_spike_of_fifty_on_ten_does_not_over_grow() -> None:
    """Fifty short uses that a few boxes could serve make no more than ten, and none beyond what was asked for."""
    fake, most = FakeProvider(create_delay=0.01), 0
    async with AsyncSandboxPool(endpoint=fake, max_live=10, min_warm=4) as pool:
        await pool.wait_ready()

        async def client(number: int) -> None:
            nonlocal most
            async with pool.session(f"user-{number % 6}") as session:
                await session.run_code("1")
                most = max(most, pool.stats()["live"])

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(client, number)
        assert most <= 10
        assert fake.created <= 10, "six sessions and the stock, whatever the spike"
        assert pool.stats()["opened"] == 50


@BOTH
async def test_after_a_spike_of_fifty_on_ten_no_more_lie_warm_than_should(until: Until) -> None:
    """Fifty at once, a sandbox each: never more than ten, none made that nobody took, and the stock is what it was."""
    fake, most = FakeProvider(create_delay=0.001), 0
    async with AsyncSandboxPool(endpoint=fake, max_live=10, min_warm=3) as pool:
        await pool.wait_ready()

        async def client() -> None:
            nonlocal most
            async with pool.session(None):
                most = max(most, len(fake.live), pool.stats()["live"])

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(client)
        await until(lambda: pool.stats()["creating"] == pool.stats()["killing"] == 0)
        stats = pool.stats()
        assert most == 10
        assert (stats["opened"], stats["warm"], stats["live"]) == (50, 3, 3)
        assert fake.created <= 53 + stats["wasted"]
        assert stats["wasted"] <= 3, "those of the stock that made room"


@pytest.mark.slow
def test_ten_threads_on_the_sync_face_time_out_no_earlier_than_they_said() -> None:
    """Behind one held box, ten threads wait out their whole time, and each gets PoolTimeout."""
    fake, early, barrier = FakeProvider(), list[float](), threading.Barrier(10)
    with SandboxPool(endpoint=fake, max_live=1) as pool, pool.session("held"):

        def client(number: int) -> None:
            import time

            barrier.wait()
            started = time.monotonic()
            with pytest.raises(PoolTimeout):
                pool.session(f"user-{number}", acquire_timeout=0.2)
            early.append(time.monotonic() - started)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(early) == 10
    assert min(early) >= 0.199
