"""How long sandboxes live: renewed on use, never probed while idle, lost at the end of their lifetime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import ProviderUnavailable, SandboxExpired
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

POLICY = TimeoutPolicy(lifetime=100, floor=20, code=10, command=10)


def names(events: list[Event]) -> list[str]:
    return [e.name for e in events if e.name in ("sandbox.renewed", "sandbox.lost", "sandbox.created")]


def test_use_renews_and_not_each_time(virtual_time: VirtualTime) -> None:
    """A session in steady use lives far beyond its lifetime, at a small number of renewals."""
    events: list[Event] = []

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=POLICY, on_event=events.append) as pool:
            session = await pool.session("a")
            for _ in range(500):
                await anyio.sleep(1)
                await session.run_command("true")
            assert fake.created == 1

    virtual_time.run(main)
    renewed = names(events).count("sandbox.renewed")
    assert 500 / 100 <= renewed <= 500 / 10


def test_work_longer_than_the_lifetime_gets_its_time(virtual_time: VirtualTime) -> None:
    """Code that may take longer than a lifetime is not cut off by it."""

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=virtual_time.provider(), timeouts=POLICY) as pool:
            session = await pool.session("a")
            code = "import time\ntime.sleep(250)\n'done'"
            assert (await session.run_code(code, timeout=300)).text == "done"

    virtual_time.run(main)


def test_an_idle_session_past_its_end_is_lost_and_replaced(virtual_time: VirtualTime) -> None:
    """A released session is never prolonged; after its lifetime it is lost, with an event, and the key starts anew."""
    events: list[Event] = []

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=POLICY, on_event=events.append) as pool:
            async with pool.session("a") as session:
                first = session.sandbox_id
            await anyio.sleep(99)
            assert fake.live == {first}
            await anyio.sleep(2)
            assert fake.live == frozenset()
            assert pool.stats()["live"] == 0
            assert (await pool.session("a")).sandbox_id != first

    virtual_time.run(main)
    assert names(events) == ["sandbox.created", "sandbox.lost", "sandbox.created"]


def test_a_held_session_past_its_end_raises_expired(virtual_time: VirtualTime) -> None:
    """A holder who did nothing for a lifetime gets SandboxExpired at the next use, and can open the session again."""

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=virtual_time.provider(), timeouts=POLICY) as pool:
            session = await pool.session("a")
            await anyio.sleep(101)
            with pytest.raises(SandboxExpired) as caught:
                await session.run_code("1")
            assert caught.value.sandbox_id == session.sandbox_id
            assert (await (await pool.session("a")).run_code("1")).text == "1"

    virtual_time.run(main)


def test_a_life_prolonged_by_the_user_is_kept(virtual_time: VirtualTime) -> None:
    """Whoever prolongs a held sandbox through `.sandbox` does not lose it to the pool's own bookkeeping."""

    async def main() -> None:
        async with AsyncSandboxPool(endpoint=virtual_time.provider(), timeouts=POLICY) as pool:
            session = await pool.session("a")
            await session.sandbox.extend(1000)
            await anyio.sleep(500)
            assert (await session.run_code("1")).text == "1"

    virtual_time.run(main)


def test_renew_never_leaves_the_end_alone(virtual_time: VirtualTime) -> None:
    """With renew="never" neither use nor reopening prolongs; the sandbox ends when it was said to."""
    timeouts = TimeoutPolicy(lifetime=100, floor=20, renew="never")
    events: list[Event] = []

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts, on_event=events.append) as pool:
            for _ in range(9):
                async with pool.session("a") as session:
                    await session.run_command("true")
                await anyio.sleep(10.5)
            assert fake.created == 1
            await anyio.sleep(10)
            async with pool.session("a"):
                assert fake.created == 2

    virtual_time.run(main)
    assert "sandbox.renewed" not in names(events)


def test_a_renewal_that_hangs_is_a_typed_error(virtual_time: VirtualTime) -> None:
    """A service that does not answer a renewal ends the use with ProviderUnavailable, in time."""

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=POLICY) as pool:
            session = await pool.session("a")
            await anyio.sleep(50)
            fake.inject("extend", Fault(delay=10_000))
            with pytest.raises(ProviderUnavailable, match=r"TimeoutPolicy\.command"):
                await session.run_code("1")

    virtual_time.run(main)
    assert virtual_time.elapsed() < 70


def test_replace_need_not_reach_the_old_sandbox(virtual_time: VirtualTime) -> None:
    """An idle sandbox that nobody can reach is replaced; the cap counts it until its kill is confirmed."""

    async def main() -> None:
        fake = virtual_time.provider()
        for max_live in (1, 2):
            async with AsyncSandboxPool(endpoint=fake, timeouts=POLICY, max_live=max_live) as pool:
                async with pool.session("a") as session:
                    first = session.sandbox_id
                fake.inject("extend", Fault(error=ProviderUnavailable("no answer"), times=2))
                fake.inject("kill", Fault(error=ProviderUnavailable("no answer"), times=2))
                with pytest.raises(ProviderUnavailable):
                    await pool.session("a")
                async with pool.session("a", replace=True) as session:
                    assert session.sandbox_id != first
                    assert (first in fake.live) is (max_live == 2)

    virtual_time.run(main)


def test_replace_waits_for_no_silent_sandbox(virtual_time: VirtualTime) -> None:
    """One that does not answer is given up long before the caller's own time is over."""

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, timeouts=POLICY, acquire_timeout=8) as pool:
            async with pool.session("a") as session:
                first = session.sandbox_id
            fake.inject("extend", Fault(delay=1000))
            async with pool.session("a", replace=True) as session:
                assert session.sandbox_id != first

    virtual_time.run(main)
