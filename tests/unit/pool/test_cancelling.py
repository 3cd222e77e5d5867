"""Cancellation at every single checkpoint, and random schedules: created = alive + killed, and the pool goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

import anyio
import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import (
    PoolClosed,
    PoolFull,
    PoolTimeout,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    SandboxLost,
    SessionBusy,
    SessionConflict,
)
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

MOST_CHECKPOINTS = 300


class CancelAt:
    """Drives a coroutine on any backend, and cancels its scope when it waits for the n-th time."""

    def __init__(self, work: Coroutine[Any, Any, None], scope: anyio.CancelScope, at: int) -> None:
        self.work, self.scope, self.at = work, scope, at
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        step: Callable[[], Any] = lambda: self.work.send(None)  # noqa: E731  (replaced in the loop)
        while True:
            try:
                waiting_for = step()
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self.at:
                self.scope.cancel()
            try:
                value = yield waiting_for
            except BaseException as error:
                step = lambda error=error: self.work.throw(error)  # noqa: E731
            else:
                step = lambda value=value: self.work.send(value)  # noqa: E731


async def at_every_checkpoint(
    work: Callable[[FakeProvider], Coroutine[Any, Any, None]], check: Callable[[FakeProvider, bool], Awaitable[None]]
) -> int:
    """Run `work` once for each of its checkpoints, cancelled there; how many there were."""
    for at in range(1, MOST_CHECKPOINTS):
        fake = FakeProvider()
        with anyio.fail_after(20), anyio.CancelScope() as scope:
            driven = CancelAt(work(fake), scope, at)
            await driven
        await check(fake, scope.cancelled_caught)
        assert fake.created == len(fake.live) + len(fake.ended)
        if driven.waits < at:
            return at
    raise AssertionError("the work never ends")


async def use_everything(pool: AsyncSandboxPool) -> None:
    """All that a caller does: acquire, use, release, keyed and anonymous, evict, replace, kill."""
    async with pool.session("a") as session:
        await session.run_code("x = 1")
        await session.files.write("f.txt", "f")
    async with pool.session("a") as session, pool.session(None):
        await session.run_command("true")
    held = await pool.session("b")  # evicts a
    async with pool.session("b", envs={"N": "1"}, replace=True) as session:
        await session.kill()
    await held.close()
    async with pool.session("c", files={"x": "1", "y": "2"}, secrets={"T": "1"}) as session:
        await session.pause()
        await session.run_code("1")
        ref = await session.detach()
        try:
            again = await pool.attach(ref)
        except BaseException:
            with anyio.CancelScope(shield=True):  # it is nobody's but ours
                await pool._shell.workers._provider.kill(ref.sandbox_id)
            raise
    await again.close()


@pytest.mark.anyio
@pytest.mark.slow
@pytest.mark.parametrize("min_warm", [0, 1])
async def test_a_whole_pool_cancelled_anywhere_leaves_nothing(min_warm: int) -> None:
    """Wherever the owner of the pool is cancelled, opening, using or closing: every sandbox is killed."""

    async def work(fake: FakeProvider) -> None:
        async with AsyncSandboxPool(endpoint=fake, max_live=2, min_warm=min_warm) as pool:
            await use_everything(pool)

    async def check(fake: FakeProvider, was_cancelled: bool) -> None:
        assert fake.live == frozenset()

    assert await at_every_checkpoint(work, check) > 15


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_recovery_cancelled_anywhere_leaves_nothing() -> None:
    """Wherever it is cancelled while a loss is made good, or while a command is waited for through a pause: the pool
    has no more than the session's own sandbox, which nobody holds, and nothing is left behind it."""
    counts: list[tuple[int, ...]] = []

    async def work(fake: FakeProvider) -> None:
        async with AsyncSandboxPool(endpoint=fake, on_loss="replay") as pool:
            try:
                async with pool.session("a", files={"x": "1"}) as session, pool.session("a") as other:
                    await session.files.write("y", "2")
                    fake.crash(session.sandbox_id)
                    assert await other.files.read_text("y") == "2"
                    command = await session.run_command("echo 1", background=True)
                    await session.pause()
                    await command.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    while pool.stats()["creating"] or pool.stats()["killing"]:
                        await anyio.lowlevel.checkpoint()
                stats = pool.stats()
                unknown = max(0, len(fake.live) - stats["live"])  # the one that is lost may not be known to be
                counts.append((stats["in_use"], stats["waiting"], unknown, stats["live"] // 2))

    async def check(fake: FakeProvider, was_cancelled: bool) -> None:
        assert not any(counts[-1] if counts else ()), counts
        assert fake.live == frozenset()

    assert await at_every_checkpoint(work, check) > 15


@pytest.mark.anyio
@pytest.mark.slow
async def test_a_caller_cancelled_anywhere_leaves_the_pool_whole() -> None:
    """Wherever a caller is cancelled: its holds are given back, no place is lost, and others get their sandboxes."""
    pools: list[AsyncSandboxPool] = []

    async def work(fake: FakeProvider) -> None:
        shell = pools[-1]._shell  # a fresh provider for each round; the pool is the same throughout
        shell.provider = shell.workers._provider = shell.life._provider = fake
        held: list[Any] = []
        try:
            await use_everything(pools[-1])
        finally:
            held.clear()

    async def check(fake: FakeProvider, was_cancelled: bool) -> None:
        pool = pools[-1]
        with anyio.fail_after(10):
            await pool.drain()
            while pool.stats()["creating"] or pool.stats()["killing"]:
                await anyio.lowlevel.checkpoint()
        stats = pool.stats()
        assert stats["waiting"] == 0
        # `held` above was opened without a block: after a cancellation it is held on, as documented.
        assert stats["live"] == stats["in_use"] <= int(was_cancelled)
        for session in [s for s in pool._shell.policy.slots.values() if not s.is_idle]:
            pool._shell.discard(pool._shell.workers.cores[session.id])
        while pool.stats()["live"]:
            await anyio.lowlevel.checkpoint()
        assert fake.live == frozenset()

    async with AsyncSandboxPool(endpoint=FakeProvider(), max_live=2) as pool:
        pools.append(pool)
        assert await at_every_checkpoint(work, check) > 15
        async with pool.session("after"), pool.session(None):
            assert pool.stats()["in_use"] == 2


# -- random schedules ---------------------------------------------------------------------------------------------

MOMENTS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 20.0])
CALLER = st.fixed_dictionaries(
    {
        "starts": MOMENTS,
        "key": st.sampled_from([None, "a", "b", "c"]),
        "files": st.sampled_from([None, None, {"x": "1"}]),
        "holds": MOMENTS,
        "patience": st.sampled_from([0.2, 2.0, 60.0]),
        "gives_up": st.none() | MOMENTS,
        "ends_by": st.sampled_from(["close", "close", "kill", "crash", "replace", "pause", "detach"]),
    }
)
FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["create", "create", "kill", "extend", "list", "info", "connect", "files", "pause"]),
        st.builds(
            Fault,
            delay=st.sampled_from([0.0, 0.3, 5.0]),
            error=st.sampled_from([None, ProviderUnavailable("500", status=500)]),
            after_commit=st.booleans(),
            times=st.integers(1, 3),
        )
        | st.just(Fault(error=RateLimited("429", status=429), times=2)),
    ),
    max_size=6,
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    callers=st.lists(CALLER, min_size=1, max_size=12),
    faults=FAULTS,
    closes_at=st.none() | MOMENTS,
    owner=st.lists(st.tuples(MOMENTS, st.sampled_from(["drain", "resize", "reap", "grow"])), max_size=3),
    options=st.fixed_dictionaries(
        {
            "min_warm": st.sampled_from([0, 1, 2]),
            "on_loss": st.sampled_from(["fail", "recreate", "replay"]),
            "max_creating": st.sampled_from([None, 1]),
            "create_rate": st.sampled_from([None, 2.0]),
            "max_uses": st.sampled_from([None, 1]),
            "idle_timeout": st.sampled_from([None, 2.0]),
            "timeouts": st.sampled_from(
                [
                    TimeoutPolicy(),
                    TimeoutPolicy(lifetime=9, floor=2, renew="heartbeat"),
                    TimeoutPolicy(lifetime=9, floor=2, at_end="pause"),
                    TimeoutPolicy(lifetime=9, floor=2, max_lifetime=15),
                    TimeoutPolicy(lifetime=9, floor=2, renew="never"),
                ]
            ),
        }
    ),
)
def test_random_schedules_leave_nothing(
    fresh_time: Callable[[], VirtualTime],
    callers: list[Any],
    faults: list[Any],
    closes_at: float | None,
    owner: list[tuple[float, str]],
    options: dict[str, Any],
) -> None:
    """Whatever callers do and whenever the provider fails: the cap holds, each ends in time, and nothing is left."""
    time, detached = fresh_time(), list[str]()
    fake = time.provider(create_delay=0.2)
    for operation, fault in faults:
        fake.inject(operation, fault)

    async def caller(pool: AsyncSandboxPool, plan: Any) -> None:
        await anyio.sleep(plan["starts"])
        gives_up = float("inf") if plan["gives_up"] is None else plan["gives_up"]
        asked_at = anyio.current_time()
        try:
            with anyio.move_on_after(gives_up):
                opening = pool.session(
                    plan["key"],
                    envs={"N": "1"} if plan["ends_by"] == "replace" else None,
                    replace=plan["ends_by"] == "replace",
                    files=plan["files"],
                    acquire_timeout=plan["patience"],
                )
                async with opening as session:
                    assert anyio.current_time() <= asked_at + plan["patience"] + 0.001
                    assert len(fake.live) <= 3 + len(detached)
                    await session.run_command("true")
                    await anyio.sleep(plan["holds"])
                    if plan["ends_by"] == "pause":
                        await session.pause()
                        await session.run_command("true")
                    if plan["ends_by"] == "detach":
                        ref = await session.detach()
                        detached.append(ref.sandbox_id)
                        async with await pool.attach(ref):
                            detached.remove(ref.sandbox_id)
                    if plan["ends_by"] == "kill":
                        await session.kill()
                    if plan["ends_by"] == "crash":
                        fake.crash(session.sandbox_id)
        except (PoolTimeout, PoolFull):
            assert anyio.current_time() <= asked_at + plan["patience"] + 0.001
        except (PoolClosed, SessionConflict, SessionBusy, SandboxLost, ProviderError):
            pass  # each is an honest answer to this plan

    async def by_its_owner(pool: AsyncSandboxPool, at: float, does: str) -> None:
        await anyio.sleep(at)
        match does:
            case "drain":
                await pool.drain()
            case "resize":
                await pool.resize(min_warm=0)
            case "grow":
                await pool.resize(min_warm=2)
            case "reap":
                with contextlib.suppress(ProviderError):
                    await pool.reap()

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=fake, max_live=3, max_waiting=6, **options) as pool:
            async with anyio.create_task_group() as tasks:
                for plan in callers:
                    tasks.start_soon(caller, pool, plan)
                for at, does in owner:
                    tasks.start_soon(by_its_owner, pool, at, does)
                if closes_at is not None:
                    await anyio.sleep(closes_at)
                    await pool.close()
            assert pool.stats()["in_use"] == pool.stats()["waiting"] == 0
            assert pool.stats()["live"] <= 3

    time.run(main)
    assert fake.live == frozenset(detached) & fake.live, "nothing but what was taken out, and not taken up again"
    assert fake.created == len(fake.ended) + len(fake.live)
