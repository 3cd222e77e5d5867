"""Sandboxes that are there already: handed on, taken up only by their owner, and cleaned up after a crash."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from sandboxkit._types import SessionRef, TimeoutPolicy
from sandboxkit.errors import (
    ConfigurationError,
    PoolError,
    PoolTimeout,
    ProviderUnavailable,
    SandboxNotFound,
    SessionBusy,
    SessionConflict,
)
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.pool._liveness import is_dead, this_process
from sandboxkit.provider._base import CreateRequest
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

BOTH = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def two_pools(fake: FakeProvider, **more: Any) -> tuple[AsyncSandboxPool, AsyncSandboxPool]:
    return (
        AsyncSandboxPool(endpoint=fake, owner="team", **more),
        AsyncSandboxPool(endpoint=fake, owner="team", **more),
    )


@BOTH
@pytest.mark.parametrize("min_warm", [0, 1])
async def test_a_session_is_handed_on_with_all_that_is_in_it(min_warm: int) -> None:
    """detach() leaves the sandbox alive and out of the pool; its reference, as text, brings it into another one."""
    fake = FakeProvider()
    one, two = two_pools(fake, min_warm=min_warm)
    async with two:
        async with one:
            await one.wait_ready()
            session = await one.session("a", envs={"N": "1"})
            await session.run_code("x = 7")
            ref = await session.detach()
            assert one.stats()["in_use"] == one.stats()["idle"] == 0
            with pytest.raises(SandboxNotFound, match="detach"):
                await session.run_code("x")
        assert ref.sandbox_id in fake.live, "the first pool's end does not concern it"
        assert pickle.loads(pickle.dumps(ref)) == ref
        again = await two.attach(SessionRef.from_json(ref.to_json()), envs={"N": "1"}, secrets={"T": "2"})
        assert again.key == "a"
        assert (await again.run_code("import os\n(x, os.environ['N'], os.environ['T'])")).text == "(7, '1', '2')"
        async with two.session("a") as same:
            assert same.sandbox_id == ref.sandbox_id
        await again.close()
        assert (two.stats()["attached"], two.stats()["idle"]) == (1, 1)
    assert fake.live == frozenset()


@BOTH
async def test_only_the_owner_may_attach_and_nothing_is_connected_before() -> None:
    """Somebody else's sandbox is said not to be there, and is neither woken nor prolonged by the question."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool, AsyncSandboxPool(endpoint=fake, owner="x") as theirs:
        theirs_id = (await theirs.session("a")).sandbox_id
        foreign = await fake.create(
            CreateRequest(template="base", lifetime=60, idempotency_key="k", metadata={"sandboxkit.owner": "y"})
        )
        plain = await fake.create(CreateRequest(template="base", lifetime=60, idempotency_key="l"))
        await foreign.pause()
        before = fake.calls.copy()
        for sandbox_id in (theirs_id, foreign.sandbox_id, plain.sandbox_id, "nosuch"):
            with pytest.raises(SandboxNotFound):
                await pool.attach(sandbox_id)
            with pytest.raises(SandboxNotFound):
                await pool.attach(SessionRef(sandbox_id=sandbox_id, template="base", key="a"))
        assert set(fake.calls - before) == {"info"}
        assert foreign.is_paused
        assert pool.stats()["live"] == 0
        for sandbox in (foreign, plain):
            await sandbox.kill()


@BOTH
async def test_attaching_what_the_pool_has_is_opening_it() -> None:
    """An id of this very pool opens its session; an anonymous one that is lent is busy."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with pool.session("a") as session, await pool.attach(session.sandbox_id) as same:
            assert same.key == "a"
            assert pool.stats()["in_use"] == 1
        async with pool.session(None) as session:
            with pytest.raises(SessionBusy):
                await pool.attach(session.sandbox_id)


@BOTH
async def test_a_key_has_one_sandbox_also_by_attaching() -> None:
    """A session that lives elsewhere in this pool is a conflict, and the sandbox is left alone."""
    fake = FakeProvider()
    one, two = two_pools(fake)
    async with one, two:
        ref = await (await one.session("a")).detach()
        async with two.session("a"):
            with pytest.raises(SessionConflict):
                await two.attach(ref)
        with pytest.raises(SessionConflict, match="reference"):
            await two.attach(SessionRef(sandbox_id=ref.sandbox_id, template="base", key="b"))
        assert ref.sandbox_id in fake.live
        await fake.kill(ref.sandbox_id)


@BOTH
async def test_what_is_let_go_of_leaves_nothing_behind(until: Until) -> None:
    """A caller of attach() goes away before it has the sandbox: that lives on, and its session is bound to nothing."""
    fake, told = FakeProvider(), list[str]()
    orphan = await crashed(fake, name="web", owner="me")
    fake.inject("connect", Fault(delay_reply=0.05))
    async with AsyncSandboxPool(endpoint=fake, owner="me", on_event=lambda event: told.append(event.name)) as pool:
        with anyio.move_on_after(0.01):
            await pool.attach(orphan)
        await until(lambda: "sandbox.let_go" in told)
        await anyio.wait_all_tasks_blocked()
        assert fake.live == {orphan}
        assert (await pool._shell.workers.store.rows(), pool.stats()["live"]) == ((), 0)
        async with pool.session("a") as session:
            assert session.sandbox_id != orphan


@BOTH
async def test_no_two_pools_of_a_process_have_one_sandbox(until: Until) -> None:
    """Who comes second is told, also while the first still waits for a place; what was let go of may be had."""
    fake = FakeProvider()
    async with (
        AsyncSandboxPool(endpoint=fake, owner="me", max_live=1) as one,
        AsyncSandboxPool(endpoint=fake, owner="me") as two,
    ):
        mine = await one.session("a")
        with pytest.raises(SessionBusy, match="another pool"):
            await two.attach(mine.sandbox_id)
        theirs = await two.session("b")
        reference = await theirs.detach()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.attach, reference)
            await until(lambda: one.stats()["waiting"] == 1)
            with pytest.raises(SessionBusy, match="another pool"):
                await two.attach(reference)
            await mine.close()
        assert one.stats()["attached"] == 1
        assert len(fake.live) == 1


@BOTH
async def test_attaching_counts_and_waits_as_any_session(until: Until) -> None:
    """It takes a place under the cap; one that is given up while it waits, or connects, is left alive."""
    fake = FakeProvider()
    one, two = two_pools(fake, max_live=1, acquire_timeout=0.05)
    async with one, two:
        ref = await (await one.session("a")).detach()
        async with two.session("b"):
            with pytest.raises(PoolTimeout):
                await two.attach(ref)
        fake.inject("connect", Fault(delay_reply=0.1))
        with pytest.raises(PoolTimeout):
            await two.attach(ref)
        await until(lambda: two.stats()["live"] == 0)
        fake.inject("connect", Fault(error=ProviderUnavailable("503")))
        with pytest.raises(ProviderUnavailable):
            await two.attach(ref, acquire_timeout=5)
        await until(lambda: two.stats()["live"] == 0)
        assert ref.sandbox_id in fake.live
        async with await two.attach(ref, acquire_timeout=5):
            assert two.stats()["live"] == 1
    assert fake.live == frozenset()


@BOTH
async def test_a_closing_pool_kills_no_sandbox_that_it_only_wanted(until: Until) -> None:
    """close() while an attach is under way ends it with an error, and leaves the sandbox to its owner."""
    fake = FakeProvider()
    one, two = two_pools(fake)
    async with one:
        ref = await (await one.session("a")).detach()
        async with two:
            fake.inject("connect", Fault(delay_reply=50))
            async with anyio.create_task_group() as tasks:

                async def attach() -> None:
                    with pytest.raises(PoolError):
                        await two.attach(ref)

                tasks.start_soon(attach)
                await until(lambda: fake.calls["connect"] == 1)
                await two.close()
        assert ref.sandbox_id in fake.live
        await fake.kill(ref.sandbox_id)


@BOTH
async def test_what_others_use_cannot_be_detached() -> None:
    """A second holder, or work under way, makes it SessionBusy; nothing has changed then."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        async with pool.session("a"):
            with pytest.raises(SessionBusy):
                await session.detach()
        assert (await session.run_code("1")).text == "1"
        fake.crash(session.sandbox_id)
        with pytest.raises(SandboxNotFound):
            await session.detach()


@pytest.mark.parametrize("text", ["", "5", "{}", '{"sandbox_id": 5, "template": "t", "key": null}', "[]"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    """A text that to_json() has not written is a ConfigurationError."""
    with pytest.raises(ConfigurationError):
        SessionRef.from_json(text)


# -- cleaning up --------------------------------------------------------------------------------------------------


async def crashed(fake: FakeProvider, *, name: str, process: str | None = None, **more: Any) -> str:
    """What a pool of a process that died has left: a sandbox with its tags."""
    pool = AsyncSandboxPool(endpoint=fake, name=name, **more)
    async with pool:
        if process is not None:
            pool._shell.workers._process = process
        session = await pool.session("a")
        ref = await session.detach()  # nobody's from here on, as after a crash
    return ref.sandbox_id


def a_dead_process() -> str:
    """The name of a process of this host that has ended."""
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    return f"{this_process().partition(':')[0]}:{child.pid}:5"


@BOTH
@pytest.mark.slow
async def test_orphans_of_dead_processes_are_killed_and_no_others() -> None:
    """Of the sandboxes with the pool's name go those whose process, or whose pool in this process, is gone."""
    fake, told = FakeProvider(), list[Event]()
    dead = await crashed(fake, name="web", process=a_dead_process())
    gone_here = await crashed(fake, name="web")
    elsewhere = await crashed(fake, name="web", process="0123456789abcdef:1:5")
    other_name = await crashed(fake, name="batch", process=a_dead_process())
    async with (
        AsyncSandboxPool(endpoint=fake, name="web") as colleague,
        AsyncSandboxPool(endpoint=fake, name="web", on_event=told.append) as pool,
    ):
        theirs = (await colleague.session("a")).sandbox_id
        mine = (await pool.session("a")).sandbox_id
        assert set(await pool.reap()) == {dead, gone_here}
        assert {theirs, mine, elsewhere, other_name} <= fake.live
        assert pool.stats()["reaped"] == 2
        assert [e.name for e in told].count("sandbox.reaped") == 2
        await fake.kill(elsewhere)
        await fake.kill(other_name)


@BOTH
async def test_a_pool_cleans_up_before_it_opens(until: Until) -> None:
    """reap=True does so at the start; that it fails is told, and the pool opens all the same."""
    fake, told = FakeProvider(limit=1), list[str]()
    await crashed(fake, name="web")
    async with AsyncSandboxPool(endpoint=fake, name="web", reap=True) as pool, pool.session("a") as session:
        assert fake.live == {session.sandbox_id}, "there is room for it"
    fake.inject("list", Fault(error=ProviderUnavailable("503")))
    pool = AsyncSandboxPool(endpoint=fake, name="web", reap=True, on_event=lambda event: told.append(event.name))
    async with pool, pool.session("a"):
        pass
    assert told[:2] == ["pool.reap_failed", "pool.opened"]


def test_age_tells_orphans_of_other_hosts(virtual_time: VirtualTime) -> None:
    """older_than kills what is that old, whoever made it; never what this pool has."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=10_000)
        old = await crashed(fake, name="web", process="0123456789abcdef:1:5", timeouts=timeouts)
        async with AsyncSandboxPool(endpoint=fake, name="web", timeouts=timeouts) as pool:
            await pool.session("mine")
            await anyio.sleep(1000)
            young = await crashed(fake, name="web", process="0123456789abcdef:1:5")
            assert await pool.reap() == ()
            assert await pool.reap(older_than=900) == (old,)
            assert len(fake.live) == 2
            await fake.kill(young)

    virtual_time.run(main)


@BOTH
async def test_an_owner_cleans_up_after_itself_only() -> None:
    """With owner= set, sandboxes of another owner's pool of the same name stay."""
    fake = FakeProvider()
    theirs = await crashed(fake, name="web", owner="them")
    ours = await crashed(fake, name="web", owner="us")
    async with AsyncSandboxPool(endpoint=fake, name="web", owner="us") as pool:
        assert await pool.reap() == (ours,)
        assert theirs in fake.live
        await fake.kill(theirs)


@pytest.mark.slow
def test_liveness_is_known_of_this_host_only() -> None:
    """This process runs, an ended one does not; of what cannot be known, nothing is said."""
    me = this_process()
    host, pid, started = me.split(":")
    assert is_dead(me, "no such pool")
    assert is_dead(f"{host}:{pid}:{int(started) - 1}", "x"), "the number was used again"
    assert is_dead(a_dead_process(), "x")
    other = "0" * len(host)
    for name in ("", "x", host, f"{host}:x:1", f"{host}:{pid}:-", f"{other}:999999:1", f"{host}:-1:1"):
        assert not is_dead(name, "x")


@BOTH
async def test_what_a_pool_has_attached_is_no_orphan() -> None:
    """Its tags name the pool that made it, which is gone: neither its new pool nor another of this process kills it,
    by whatever rule."""
    fake = FakeProvider()
    attached = await crashed(fake, name="web", owner="me")
    other = await crashed(fake, name="web", owner="me")
    async with (
        AsyncSandboxPool(endpoint=fake, name="web", owner="me") as pool,
        AsyncSandboxPool(endpoint=fake, name="web", owner="me") as colleague,
    ):
        session = await pool.attach(attached)
        assert await colleague.reap(older_than=1e-9) == (other,)
        assert await pool.reap() == ()
        assert (await session.run_code("1")).text == "1"


@BOTH
async def test_an_orphan_that_cannot_be_killed_keeps_no_other() -> None:
    """The rest is killed all the same; then the failure is raised, and the event says which it was."""
    fake, told = FakeProvider(), list[Event]()
    orphans = [await crashed(fake, name="web") for _ in range(3)]
    fake.inject("kill", Fault(error=ProviderUnavailable("503")))
    async with AsyncSandboxPool(endpoint=fake, name="web", on_event=told.append) as pool:
        with pytest.raises(ProviderUnavailable):
            await pool.reap()
        assert len(fake.live) == 1
        failed = [event.sandbox_id for event in told if event.name == "sandbox.kill_failed"]
        assert fake.live == set(failed) < set(orphans)
        assert await pool.reap() == tuple(failed)
