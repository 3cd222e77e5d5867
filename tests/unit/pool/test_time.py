"""Long lives and their ends: heartbeats, plans with a cap, pauses and what resumes from them, interrupts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import anyio
import anyio.lowlevel
import pytest

from sandboxkit._types import Execution, TimeoutPolicy
from sandboxkit.errors import (
    CommandTimeout,
    ConfigurationError,
    ProviderUnavailable,
    SandboxExpired,
    SandboxNotFound,
    SessionBusy,
)
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

BOTH = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def test_a_heartbeat_keeps_work_alive_and_nothing_else(virtual_time: VirtualTime) -> None:
    """Work far longer than a lifetime goes on, never asking for more than one lifetime; an idle holder's ends."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=90, floor=20, renew="heartbeat", code=1000)
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool:
            session = await pool.session("a")
            done = list[str | None]()

            async def work() -> None:
                done.append((await session.run_code("import time\ntime.sleep(900)\n'done'")).text)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work)
                for _ in range(17):
                    await anyio.sleep(50)
                    assert (session.sandbox.end_at - virtual_time.now()).total_seconds() <= 90
            assert done == ["done"]
            assert 900 / 90 <= fake.calls["extend"] <= 35
            await anyio.sleep(200)
            assert fake.live == frozenset(), "nobody worked in it"

    virtual_time.run(main)


def test_a_heartbeat_that_fails_is_made_up_for(virtual_time: VirtualTime) -> None:
    """Two beats may fail before a life ends."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=90, floor=20, renew="heartbeat")
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool:
            session = await pool.session("a")
            fake.inject("extend", Fault(error=ProviderUnavailable("503")))
            assert (await session.run_code("import time\ntime.sleep(280)\n'done'")).text == "done"

    virtual_time.run(main)


@pytest.mark.parametrize("at_end", ["kill", "pause"])
@pytest.mark.parametrize("hours", [1, 24])
def test_a_plans_cap_is_kept_to(virtual_time: VirtualTime, hours: int, at_end: Literal["kill", "pause"]) -> None:
    """No request asks for more than the plan allows, nor lets a sandbox grow older; before its cap it is retired, with
    the floor left for what began last. A session with on_loss goes on in a new one."""
    cap = hours * 3600.0
    timeouts = TimeoutPolicy(lifetime=600, floor=60, max_lifetime=cap, at_end=at_end)

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts, on_loss="recreate", min_warm=1) as pool:
            session = await pool.session("a")
            first, ids = session.sandbox_id, set[str]()
            while virtual_time.elapsed() < 2.5 * cap:
                await session.run_command("true")
                if session.sandbox_id not in ids:
                    ids.add(session.sandbox_id)
                    age = (virtual_time.now() - session.sandbox.info().started_at).total_seconds()
                    assert age <= cap / 2, "a session does not begin in an old one"
                raw = session.sandbox
                assert (raw.end_at - raw.info().started_at).total_seconds() <= cap + 1
                assert (raw.end_at - virtual_time.now()).total_seconds() >= 59
                await anyio.sleep(500)
            assert first in fake.ended
            assert 3 <= len(ids) <= 4
            assert all(request.lifetime <= cap for request in fake.requests)
            assert {loss.error for loss in session.losses} == {"sandbox_expired"}

    virtual_time.run(main)


def test_at_the_cap_a_holder_is_told_before_its_work_begins(virtual_time: VirtualTime) -> None:
    """With on_loss="fail", a use that would have less than the floor left raises SandboxExpired at once."""
    timeouts = TimeoutPolicy(lifetime=100, floor=20, max_lifetime=150)

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool:
            session = await pool.session("a")
            await anyio.sleep(90)
            await session.run_command("true")
            await anyio.sleep(41)
            with pytest.raises(SandboxExpired, match="max_lifetime"):
                await session.run_command("true")

    virtual_time.run(main)


def test_sandboxes_of_a_burst_are_not_retired_at_one_moment(virtual_time: VirtualTime) -> None:
    """Chance spreads the retirement over the last 5 %; an idle session is gone before its cap."""
    ended = list[float]()

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=1000, floor=10, max_lifetime=1000)

        def look(event: Event) -> None:
            if event.name == "sandbox.killed" and event.data["reason"] == "retired":
                ended.append(virtual_time.elapsed())

        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts, max_live=20, on_event=look) as pool:
            for number in range(20):
                async with pool.session(str(number)):
                    pass
            await anyio.sleep(1000)

    virtual_time.run(main)
    assert len(ended) == 20
    assert all(940 <= moment <= 990 for moment in ended)
    assert len({round(moment, 3) for moment in ended}) > 10


@pytest.mark.parametrize(
    "values", [{"lifetime": 100, "floor": 10, "max_lifetime": 50}, {"floor": 60, "max_lifetime": 100, "lifetime": 90}]
)
def test_caps_that_leave_no_time_are_refused(values: dict[str, float]) -> None:
    """A lifetime beyond the plan's, or a floor that eats most of it, cannot work."""
    with pytest.raises(ConfigurationError, match="max_lifetime"):
        TimeoutPolicy(**values)  # type: ignore[arg-type]


# -- pausing ------------------------------------------------------------------------------------------------------


def test_the_end_of_a_life_is_a_pause_and_the_next_use_goes_on(virtual_time: VirtualTime) -> None:
    """With at_end="pause" a session, held or released, comes back with its variables however late it is used."""
    told = list[str]()

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20, at_end="pause")
        async with AsyncSandboxPool(
            endpoint=fake, timeouts=timeouts, on_event=lambda event: told.append(event.name)
        ) as pool:
            session = await pool.session("a")
            first = session.sandbox_id
            await session.run_code("x = 7")
            await anyio.sleep(5000)
            assert (await session.run_code("x")).text == "7"
            await session.close()
            await anyio.sleep(5000)
            async with pool.session("a") as again:
                assert again.sandbox_id == first
                assert (await again.run_code("x")).text == "7"
            assert fake.created == 1
        assert fake.live == frozenset()

    virtual_time.run(main)
    assert "sandbox.lost" not in told


def test_a_pause_that_we_did_not_expect_is_no_loss(virtual_time: VirtualTime) -> None:
    """A sandbox that was paused behind our back, though we thought that it had time left, goes on at the next use."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20, at_end="pause")
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool:
            session = await pool.session("a")
            await session.run_code("x = 7")
            session.sandbox.stop()
            assert (await session.run_code("x")).text == "7"
            assert pool.stats()["paused_total"] == 1
            assert pool.stats()["lost"] == 0
            fake.crash(session.sandbox_id)
            with pytest.raises(SandboxNotFound):
                await session.run_code("x")

    virtual_time.run(main)


def test_renew_never_with_pauses(virtual_time: VirtualTime) -> None:
    """It is prolonged by nothing but going on after a pause."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20, at_end="pause", renew="never")
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool:
            for _ in range(5):
                async with pool.session("a") as session:
                    await session.run_code("1")
            assert fake.calls["extend"] == 0
            await anyio.sleep(150)
            async with pool.session("a") as session:
                assert (await session.run_code("1")).text == "1"
            assert fake.calls["extend"] == 1
            assert fake.created == 1

    virtual_time.run(main)


def test_who_waits_for_a_command_waits_through_pauses(virtual_time: VirtualTime) -> None:
    """The end of a life pauses the sandbox under a wait, again and again: it goes on, to the command's end."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=30, floor=5, at_end="pause")
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool:
            session = await pool.session("a")
            command = await session.run_command("echo 1; sleep 100; echo 2", background=True)
            assert (await command.wait()).stdout == "1\n2\n"
            assert virtual_time.elapsed() == pytest.approx(100, abs=1)
            assert pool.stats()["paused_total"] == 3
            other = await session.run_command("sleep 100", background=True)
            with pytest.raises(CommandTimeout):
                await other.wait(timeout=70)
            assert virtual_time.elapsed() == pytest.approx(170, abs=1)

    virtual_time.run(main)


@BOTH
async def test_a_pause_by_somebody_else_is_no_loss() -> None:
    """Paused through the SDK's object, though lives end by a kill here: it is asked for, and goes on."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        session = await pool.session("a")
        await session.run_code("x = 7")
        await session.sandbox.pause()
        assert (await session.run_code("x")).text == "7"
        assert (fake.created, pool.stats()["lost"], session.losses) == (1, 0, ())
        fake.crash(session.sandbox_id)
        fake.inject("info", Fault(error=ProviderUnavailable("503")))
        assert (await session.run_code("1")).text == "1", "the use has been told that it is gone"
        assert (fake.created, pool.stats()["lost"]) == (2, 1)


@BOTH
async def test_a_paused_session_goes_on_at_its_next_use() -> None:
    """pause() keeps everything; a second one does nothing; any use, also by who opens it again, lets it go on."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        await session.run_code("x = 7")
        await session.pause()
        await session.pause()
        assert pool.stats()["paused"] == 1
        assert (await fake.info(session.sandbox_id)).state == "paused"
        assert (await session.run_code("x")).text == "7"
        assert pool.stats()["paused"] == 0
        await session.pause()
        await session.close()
        async with pool.session("a") as again:
            assert (await again.run_code("x")).text == "7"
        assert fake.created == 1


@BOTH
async def test_work_is_not_paused_away(until: Until) -> None:
    """pause() refuses while something runs in the sandbox; of a sandbox that is gone it raises that."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.run_code, "import time\ntime.sleep(50)")
            await until(lambda: fake.calls["run_code"] == 1)
            with pytest.raises(SessionBusy):
                await session.pause()
            tasks.cancel_scope.cancel()
        fake.crash(session.sandbox_id)
        with pytest.raises(SandboxNotFound):
            await session.pause()


@BOTH
async def test_a_use_that_a_pause_cut_off_is_done_again(until: Until) -> None:
    """A use that began while the pause was under way is carried out after it."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        fake.inject("pause", Fault(delay=0.02, delay_reply=0.02))
        texts = list[str | None]()

        async def use() -> None:
            texts.append((await session.run_code("import time\ntime.sleep(0.03)\n3")).text)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.pause)
            await until(lambda: fake.calls["pause"] == 1)
            tasks.start_soon(use)
        assert texts == ["3"]
        assert pool.stats()["lost"] == 0


# -- interrupting -------------------------------------------------------------------------------------------------


@BOTH
async def test_interrupt_ends_the_code_and_keeps_the_variables(until: Until) -> None:
    """The call returns a KeyboardInterrupt as data; the session goes on; with nothing running it does nothing."""
    fake, done = FakeProvider(), list[Execution]()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        await session.run_code("x = 7")
        assert await session.interrupt() is False

        async def work() -> None:
            done.append(await session.run_code("while True:\n    pass"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await until(lambda: fake.calls["run_code"] == 2)
            await anyio.lowlevel.checkpoint()
            other = await pool.session("a")
            assert await other.interrupt() is True
        (execution,) = done
        assert execution.error is not None
        assert execution.error.name == "KeyboardInterrupt"
        assert (await session.run_code("x")).text == "7"
