"""Warm sandboxes: handed over at once, replaced when they die, kept alive, and no more of them than are needed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import ConfigurationError, PoolClosed, PoolTimeout, ProviderUnavailable, TemplateNotBuilt
from sandboxkit.events import Event
from sandboxkit.pool import AsyncNullSandboxPool, AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

Until = Callable[[Callable[[], bool]], Awaitable[None]]
BOTH = pytest.mark.anyio


@BOTH
async def test_a_warm_one_is_handed_over_at_the_cost_of_one_request() -> None:
    """The caller waits for no create, the sandbox is one that was there, and the next warm one is made meanwhile."""
    fake, told = FakeProvider(), list[Event]()
    async with AsyncSandboxPool(endpoint=fake, min_warm=2, on_event=told.append) as pool:
        await pool.wait_ready()
        warm, before = fake.live, fake.calls.copy()
        fake.inject("create", Fault(delay=50.0, times=5))
        async with pool.session("a") as session:
            assert session.sandbox_id in warm
            assert {k: v for k, v in (fake.calls - before).items() if k != "create"} == {"extend": 1}
            assert (await session.run_code("1 + 1")).text == "2"
        stats = pool.stats()
        assert (stats["from_warm"], stats["warm"], stats["opened"]) == (1, 1, 1)
        opened = next(event for event in told if event.name == "session.opened")
        assert opened.data["source"] == "warm"
        assert opened.session == "a"
    assert fake.live == frozenset()
    assert fake.created == len(fake.ended)


@BOTH
async def test_a_session_comes_back_to_the_warm_one_that_it_got() -> None:
    """A warm sandbox serves one session in its life: it is that session's again, and nobody else's."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), min_warm=1) as pool:
        await pool.wait_ready()
        async with pool.session("a") as session:
            first = session.sandbox_id
            await session.run_code("x = 5")
        async with pool.session("b") as other:
            assert other.sandbox_id != first
        async with pool.session("a") as session:
            assert session.sandbox_id == first
            assert (await session.run_code("x")).text == "5"


@BOTH
async def test_many_at_once_share_the_warm_ones_and_create_the_rest(until: Until) -> None:
    """Eight callers on two warm ones and a cap of four: two are warm, nobody is over the cap, all are served."""
    fake = FakeProvider(limit=4)
    async with AsyncSandboxPool(endpoint=fake, min_warm=2, max_live=4) as pool:
        await pool.wait_ready()

        async def caller() -> None:
            async with pool.session(None) as session:
                await session.run_code("1")

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(caller)
        assert pool.stats()["from_warm"] >= 2
        assert pool.stats()["opened"] == 8
        await until(lambda: pool.stats()["warm"] == 2)


@BOTH
async def test_a_warm_one_that_died_costs_the_caller_nothing(until: Until) -> None:
    """The check at hand-over finds it gone; the caller gets another within the same call, and the stock is refilled."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=2) as pool:
        await pool.wait_ready()
        dead = set(fake.live)
        for sandbox_id in dead:
            fake.crash(sandbox_id)
        async with pool.session("a") as session:
            assert session.sandbox_id not in dead
            assert (await session.run_code("1")).text == "1"
        await until(lambda: pool.stats()["warm"] == 2)
        assert pool.stats()["lost"] == 2


@BOTH
async def test_tags_cannot_be_added_to_a_warm_one() -> None:
    """A session with metadata of its own gets a sandbox created with them; the warm one stays for others."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1) as pool:
        await pool.wait_ready()
        warm = set(fake.live)
        async with pool.session("a", metadata={"team": "x"}) as session:
            assert session.sandbox_id not in warm
            assert fake.requests[-1].metadata["team"] == "x"
        assert pool.stats()["from_created"] == 1


@BOTH
async def test_each_template_has_a_stock_of_its_own(until: Until) -> None:
    """min_warm as a mapping keeps so many of each; a session gets one of its own template only."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm={"base": 1, "code-interpreter-v1": 2}) as pool:
        await pool.wait_ready()
        assert sorted(r.template for r in fake.requests) == ["base", "code-interpreter-v1", "code-interpreter-v1"]
        async with pool.session("a", template="base") as session:
            assert session.template == "base"
            assert pool.stats()["from_warm"] == 1
        await until(lambda: pool.stats()["warm"] == 3)


@BOTH
async def test_warm_ones_make_room_before_sessions_do(until: Until) -> None:
    """When a place is needed, a warm one of another template goes, and no session's work is lost."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1, max_live=2) as pool:
        await pool.wait_ready()
        async with pool.session("a", template="base") as session:
            kept = session.sandbox_id
        async with pool.session("b", template="base"):
            assert kept in fake.live
            assert pool.stats()["evicted"] == 1
            assert pool.stats()["wasted"] == 1


@BOTH
async def test_drain_replaces_the_warm_ones(until: Until) -> None:
    """After drain() no warm one of before is handed out, and as many new ones are made."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=2) as pool:
        await pool.wait_ready()
        old = set(fake.live)
        await pool.drain()
        async with pool.session("a") as session:
            assert session.sandbox_id not in old
        await until(lambda: pool.stats()["warm"] == 2 and not old & fake.live)
        assert pool.stats()["generation"] == 1


@BOTH
async def test_drain_of_one_template_leaves_the_others() -> None:
    """drain(template=...) concerns no sandbox of another template."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm={"base": 1}) as pool:
        await pool.wait_ready()
        async with pool.session("a") as session:
            kept = session.sandbox_id
        await pool.drain(template="base")
        async with pool.session("a") as session:
            assert session.sandbox_id == kept


@BOTH
async def test_resize_of_the_stock_takes_effect_at_run_time(until: Until) -> None:
    """A higher min_warm makes more; a lower one makes no more, and kills none before its time."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        await pool.resize(min_warm=2)
        await pool.wait_ready()
        await pool.resize(min_warm=0)
        assert pool.stats()["warm"] == 2
        async with pool.session("a"):
            assert pool.stats()["from_warm"] == 1
        with pytest.raises(ConfigurationError, match="min_warm"):
            await pool.resize(min_warm=11)


@BOTH
async def test_an_anonymous_sandbox_that_nobody_took_goes_into_the_stock(until: Until) -> None:
    """A caller who went away wastes no sandbox where the pool keeps warm ones."""
    fake = FakeProvider(create_delay=0.02)
    async with AsyncSandboxPool(endpoint=fake, min_warm=1) as pool:
        await pool.wait_ready()
        async with pool.session(None):
            with anyio.move_on_after(0.001):
                await pool.session(None)
            await until(lambda: pool.stats()["creating"] == 0)
            assert fake.ended == {}


@BOTH
async def test_a_pool_that_is_not_ready_in_time_says_why() -> None:
    """wait_ready() raises PoolTimeout with the last failure as its cause, and PoolClosed once the pool is closed."""
    fake = FakeProvider()
    fake.inject("create", Fault(error=ProviderUnavailable("503"), times=1000))
    async with AsyncSandboxPool(endpoint=fake, min_warm=1) as pool:
        with pytest.raises(PoolTimeout, match="missing") as caught:
            await pool.wait_ready(timeout=0.05)
        assert isinstance(caught.value.__cause__, ProviderUnavailable)
        await pool.close()
        with pytest.raises(PoolClosed):
            await pool.wait_ready(timeout=0.05)


def test_failures_back_off_degrade_and_are_given_up(virtual_time: VirtualTime) -> None:
    """The stock is asked for ever more seldom, the pool says so and why it gives up, and serves callers throughout."""
    events, given_up = list[Event](), list[Exception]()

    async def main() -> None:
        fake = virtual_time.provider(unbuilt=["code-interpreter-v1"])
        pool = AsyncSandboxPool(
            endpoint=fake, min_warm=2, give_up_after=300, on_give_up=given_up.append, on_event=events.append
        )
        async with pool:
            await anyio.sleep(100)
            assert 8 <= len(fake.requests) <= 16, "two at a time, 1, 2, 4 ... 60 s apart"
            assert pool.stats()["degraded"] == 1
            assert "degraded" in repr(pool)
            async with pool.session("other", template="base") as session:
                assert (await session.run_code("1")).text == "1"
            await anyio.sleep(400)
            asked = len(fake.requests)
            await anyio.sleep(4000)
            assert len(fake.requests) == asked, "given up"
            with pytest.raises(TemplateNotBuilt):
                await pool.wait_ready()
            fake.unbuilt = frozenset()
            async with pool.session("a"):  # a caller's own try ends the trouble
                pass
            await pool.wait_ready()
            assert pool.stats()["degraded"] == 0

    virtual_time.run(main)
    assert [type(error) for error in given_up] == [TemplateNotBuilt]
    news = [e.name for e in events if e.name in ("pool.degraded", "pool.gave_up", "pool.recovered")]
    assert news == ["pool.degraded", "pool.gave_up", "pool.recovered"]


def test_warm_ones_are_kept_alive_for_callers_only(virtual_time: VirtualTime) -> None:
    """A warm one is prolonged in time, at a small number of requests; an idle session never is."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20)
        async with AsyncSandboxPool(endpoint=fake, min_warm=1, timeouts=timeouts) as pool:
            await pool.wait_ready()
            first = set(fake.live)
            await anyio.sleep(1000)
            assert fake.live == first
            assert 10 <= fake.calls["extend"] <= 25
            async with pool.session("a"):
                pass
            await pool.resize(min_warm=0)
            await anyio.sleep(101)
            assert not first & fake.live, "released, and never prolonged"

    virtual_time.run(main)


def test_without_renewal_warm_ones_are_replaced_before_they_are_too_old(virtual_time: VirtualTime) -> None:
    """With renew="never" nobody is handed a sandbox with less than the floor left."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=40, renew="never")
        async with AsyncSandboxPool(endpoint=fake, min_warm=1, timeouts=timeouts) as pool:
            for _ in range(20):
                await anyio.sleep(23)
                async with pool.session(None) as session:
                    left = session.sandbox.end_at - virtual_time.now()
                    assert left.total_seconds() >= 40
            assert fake.calls["extend"] == 0

    virtual_time.run(main)


def test_a_warm_one_that_cannot_be_prolonged_is_tried_again(virtual_time: VirtualTime) -> None:
    """A service that is down for a while costs the stock nothing but some requests."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20)
        async with AsyncSandboxPool(endpoint=fake, min_warm=1, timeouts=timeouts) as pool:
            await pool.wait_ready()
            first = set(fake.live)
            fake.inject("extend", Fault(error=ProviderUnavailable("503"), times=4))
            await anyio.sleep(150)
            assert fake.live == first

    virtual_time.run(main)


def test_only_what_stayed_unused_for_a_whole_period_is_shrunk(virtual_time: VirtualTime) -> None:
    """Of four warm ones beyond the wanted number, the two that were needed now and then stay."""

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, min_warm=4, idle_timeout=100, max_live=6) as pool:
            await pool.wait_ready()
            await pool.resize(min_warm=0)
            await anyio.sleep(50)
            async with pool.session("a"), pool.session("b"):
                await anyio.sleep(60)
                assert pool.stats()["warm"] == 0, "two in use, two unused for the whole period"
            assert pool.stats()["idle"] == 2
            await anyio.sleep(99)
            assert pool.stats()["idle"] == 2
            await anyio.sleep(2)
            assert pool.stats()["live"] == 0

    virtual_time.run(main)


def test_creates_keep_to_the_rate(virtual_time: VirtualTime) -> None:
    """With create_rate=2 ten callers are served in five seconds, in order, and no second sees more than asked for."""
    at = list[float]()

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, create_rate=2) as pool:

            async def caller(number: int) -> None:
                async with pool.session(str(number)):
                    at.append(virtual_time.elapsed())

            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(caller, number)

    virtual_time.run(main)
    assert at == sorted(at)
    assert at[-1] == pytest.approx(4.0, abs=0.01)
    assert all(sum(start <= moment < start + 0.999 for moment in at) <= 3 for start in at)


@BOTH
async def test_creates_keep_to_the_number_at_once() -> None:
    """With max_creating=2 no more than two creates are ever under way, and all callers are served."""
    fake, most = FakeProvider(create_delay=0.005), 0

    def look(event: Event) -> None:
        nonlocal most
        most = max(most, pool.stats()["creating"]) if event.name == "sandbox.creating" else most

    pool = AsyncSandboxPool(endpoint=fake, max_creating=2, min_warm=1, on_event=look)
    async with pool, anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(pool.session(str(number)).open)
    assert most == 2
    assert fake.created == len(fake.ended) >= 8


@BOTH
async def test_a_template_can_have_a_cap_of_its_own(until: Until) -> None:
    """Callers who wait for a template's cap let those of other templates pass, and are served in order."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_live=4, max_per_template={"base": 1}) as pool:
        held = await pool.session("a", template="base")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.session("b", template="base").open)
            await until(lambda: pool.stats()["waiting"] == 1)
            async with pool.session("other"):
                assert pool.stats()["waiting"] == 1
            await held.close()  # idle now: it goes for the one who waits
        assert [r.template for r in fake.requests].count("base") == 2
        assert pool.stats()["waiting"] == 0


@BOTH
async def test_a_worn_out_sandbox_is_not_opened_again(until: Until) -> None:
    """max_uses counts openings; the sandbox is killed when its last holder closes, and the key starts anew."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, max_uses=2) as pool:
        ids = []
        for _ in range(3):
            async with pool.session("a") as session:
                ids.append(session.sandbox_id)
        assert ids[0] == ids[1] != ids[2]


@BOTH
async def test_the_null_pool_keeps_nothing(until: Until) -> None:
    """It has the same methods and the cap; each session is a new sandbox, killed when its last holder closes."""
    fake = FakeProvider()
    with pytest.raises(ConfigurationError, match="null pool"):
        AsyncNullSandboxPool(endpoint=fake, min_warm=1)
    async with AsyncNullSandboxPool(endpoint=fake, max_live=2) as pool:
        async with pool.session("a") as one, pool.session("a") as two:
            assert one.sandbox_id == two.sandbox_id
        await until(lambda: pool.stats()["live"] == 0)
        async with pool.session("a") as again:
            assert again.sandbox_id != one.sandbox_id
        assert repr(pool).startswith("<AsyncNullSandboxPool ")


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_warm": 11},
        {"min_warm": -1},
        {"min_warm": {"base": "1"}},
        {"min_warm": {"base": 6, "x": 6}},
        {"min_warm": 2, "max_per_template": {"code-interpreter-v1": 1}},
        {"max_per_template": {"base": 0}},
        {"max_creating": 0},
        {"create_rate": 0},
        {"max_uses": 0},
        {"idle_timeout": -1},
        {"give_up_after": 0},
        {"reap": "yes"},
        {"owner": ""},
        {"on_give_up": 5},
        {"on_give_up": anyio.sleep},
        {"timeouts": "x"},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(arguments: dict[str, Any]) -> None:
    """An option that cannot work is refused at construction, and named."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        AsyncSandboxPool(endpoint=FakeProvider(), **arguments)


@BOTH
async def test_the_picture_shows_every_place(until: Until) -> None:
    """repr() draws one sign for each place, and tells the numbers."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1, max_live=5) as pool:
        await pool.wait_ready()
        async with pool.session("idle"):
            pass
        await until(lambda: pool.stats()["warm"] == 1)
        async with pool.session("used", template="base"):
            assert "[#=o..]" in repr(pool)
            assert "in_use=1 idle=1 warm=1" in repr(pool)
