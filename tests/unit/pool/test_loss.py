"""A lost sandbox is an event: raised, replaced, or replaced with its files, and the caller is told what is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from sandboxkit._types import TimeoutPolicy
from sandboxkit.errors import PoolTimeout, ProviderUnavailable, SandboxLost, SandboxNotFound
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

BOTH = pytest.mark.anyio


@BOTH
async def test_fail_raises_and_tells_how_much_was_lost() -> None:
    """With on_loss="fail" each use raises SandboxNotFound; the event says how many files are gone."""
    fake, told = FakeProvider(), list[Event]()
    async with AsyncSandboxPool(endpoint=fake, on_event=told.append) as pool:
        session = await pool.session("a")
        await session.files.write("x", "1")
        fake.crash(session.sandbox_id)
        for _ in range(2):
            with pytest.raises(SandboxNotFound):
                await session.run_code("1")
        assert session.losses == ()
        assert fake.created == 1
    lost = [event for event in told if event.name == "sandbox.lost"]
    assert [event.data["files_lost"] for event in lost] == [1]


@BOTH
async def test_recreate_gives_the_session_a_new_sandbox() -> None:
    """The use that met the loss is done in the new sandbox; the files of the opening are there, later ones are told."""
    fake, told = FakeProvider(), list[Event]()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate", on_event=told.append) as pool:
        session = await pool.session("a", files={"seed": "s"}, envs={"N": "1"}, secrets={"T": "2"})
        await session.files.write("later", "l")
        await session.run_code("x = 1")
        old = session.sandbox_id
        fake.crash(old)
        assert (await session.run_code("import os\nos.environ['N'] + os.environ['T']")).text == "12"
        assert session.sandbox_id != old
        assert (await session.run_code("x")).error is not None
        assert await session.files.read_text("seed") == "s"
        assert not await session.files.exists("later")
        (loss,) = session.losses
        assert (loss.sandbox_id, loss.error) == (old, "sandbox_not_found")
        assert (loss.restored, loss.lost) == (("/home/user/seed",), ("/home/user/later",))
        assert pool.stats()["recovered"] == pool.stats()["lost"] == 1
    recovered = next(event for event in told if event.name == "session.recovered")
    assert (recovered.data["lost_sandbox_id"], recovered.data["files_lost"]) == (old, 1)
    assert fake.created == len(fake.ended) == 2


@BOTH
async def test_replay_writes_again_what_was_written() -> None:
    """Files as they were left through the session come back: written, changed, moved, and not those removed."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="replay", min_warm=1) as pool:
        await pool.wait_ready()
        session = await pool.session("a", files={"seed": "s"})
        await session.files.write("seed", "changed")
        await session.files.write("d/one", "1")
        await session.files.append("d/one", "1")
        await session.files.write("d/two", "2")
        await session.files.rename("d", "e")
        await session.files.remove("e/two")
        await session.files.make_dir("empty")
        for _ in range(2):  # and once more, in the sandbox that it came back in
            fake.crash(session.sandbox_id)
            assert await session.files.read_text("seed") == "changed"
            assert await session.files.read_text("e/one") == "11"
            assert not await session.files.exists("e/two")
            assert not await session.files.exists("d")
            assert await session.files.exists("empty")
        assert len(session.losses) == 2
        assert session.losses[0].lost == ()


@BOTH
async def test_all_holders_of_a_session_go_on_in_one_new_sandbox() -> None:
    """Two holders of one key meet the loss at once: one sandbox is made, and both use it."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="replay") as pool:
        one, two = await pool.session("a"), await pool.session("a")
        await one.files.write("x", "1")
        fake.crash(one.sandbox_id)
        async with anyio.create_task_group() as tasks:
            for session in (one, two, one, two):
                tasks.start_soon(session.files.read_text, "x")
        assert one.sandbox_id == two.sandbox_id
        assert fake.created == 2
        await one.close()
        assert (await two.run_code("1")).text == "1"
        await two.close()
        assert pool.stats()["idle"] == 1


@BOTH
async def test_what_has_shown_output_is_not_run_twice() -> None:
    """Code that printed before its sandbox went is not carried out again; its loss is raised, the session goes on."""
    fake, printed = FakeProvider(), list[str]()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        session = await pool.session("a")

        def crash(message: object) -> None:
            printed.append(str(message))
            fake.crash(session.sandbox_id)

        with pytest.raises(SandboxLost):
            await session.run_code("print(1)\nimport time\ntime.sleep(5)", on_stdout=crash)
        assert len(printed) == 1
        assert (await session.run_code("2")).text == "2"


@BOTH
async def test_only_a_loss_permits_a_replacement() -> None:
    """A service that does not answer, or limits, is raised; the sandbox stays the session's."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        session = await pool.session("a")
        fake.inject("run_code", Fault(error=ProviderUnavailable("503")))
        with pytest.raises(ProviderUnavailable):
            await session.run_code("1")
        await session.run_code("1")
        assert fake.created == 1
        await session.kill()
        with pytest.raises(SandboxNotFound):  # by its user's own will
            await session.run_code("1")
        assert fake.created == 1


@BOTH
async def test_a_replacement_that_fails_is_raised_and_tried_again() -> None:
    """The next use tries anew; closing gives everything back."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        session = await pool.session("a")
        fake.crash(session.sandbox_id)
        fake.inject("create", Fault(error=ProviderUnavailable("503")))
        with pytest.raises(ProviderUnavailable):
            await session.run_code("1")
        assert (await session.run_code("1")).text == "1"
        await session.close()
        assert (pool.stats()["in_use"], pool.stats()["idle"]) == (0, 1)


@BOTH
async def test_a_background_command_is_not_carried_over() -> None:
    """A handle belongs to the sandbox that it was started in."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        session = await pool.session("a")
        handle = await session.run_command("sleep 100", background=True)
        fake.crash(session.sandbox_id)
        await session.run_code("1")
        with pytest.raises(SandboxLost):
            await handle.wait()


@BOTH
async def test_an_anonymous_session_recovers_too() -> None:
    """It gets a new sandbox of its own, which dies with it."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        async with pool.session(None) as session:
            fake.crash(session.sandbox_id)
            assert (await session.run_code("1")).text == "1"
        assert fake.live == frozenset()


def test_an_end_of_life_is_a_loss_too(virtual_time: VirtualTime) -> None:
    """Who did nothing for a lifetime goes on in a new sandbox, and is told that the old one expired."""

    async def main() -> None:
        fake = virtual_time.provider()
        timeouts = TimeoutPolicy(lifetime=100, floor=20)
        async with AsyncSandboxPool(endpoint=fake, on_loss="replay", timeouts=timeouts) as pool:
            session = await pool.session("a")
            await session.files.write("x", "1")
            await anyio.sleep(200)
            assert await session.files.read_text("x") == "1"
            assert [loss.error for loss in session.losses] in (["sandbox_expired"], ["sandbox_not_found"])

    virtual_time.run(main)


def test_recovering_takes_acquire_timeout_at_most(virtual_time: VirtualTime) -> None:
    """A provider that makes no new sandbox ends the use with PoolTimeout."""

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, on_loss="recreate", acquire_timeout=5) as pool:
            session = await pool.session("a")
            fake.crash(session.sandbox_id)
            fake.inject("create", Fault(delay=50))
            with pytest.raises(PoolTimeout):
                await session.run_code("1")

    virtual_time.run(main)


@BOTH
async def test_whoever_meets_the_loss_the_sessions_files_are_there_again() -> None:
    """A hold that named no files, or others, meets the loss: what the session had started with is written again."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, on_loss="recreate") as pool:
        first = await pool.session("a", files={"x": "1"})
        second = await pool.session("a", files={"y": "2"})
        for _ in range(2):  # the new sandbox has them from then on
            fake.crash(second.sandbox_id)
            assert await second.files.read_text("x") == "1"
            assert not await second.files.exists("y")
        assert await first.files.read_text("x") == "1"
        assert [loss.lost for loss in second.losses] == [(), ()]


@BOTH
async def test_replay_brings_back_nothing_that_was_removed() -> None:
    """Of the files that the session had started with, too: what was renamed or removed since comes back as it was."""
    fake = FakeProvider(disk=128 * 1024 * 1024)
    large = bytes(64 * 1024 * 1024 + 1)
    async with AsyncSandboxPool(endpoint=fake, on_loss="replay") as pool:
        files = {"large": large, "in/moved": "1", "in/gone": "2", "in/new": "3"}
        session = await pool.session("a", files=files)
        await session.files.rename("in/moved", "moved")
        await session.files.remove("in/gone")
        await session.files.write("in/new", "4")
        for _ in range(2):
            fake.crash(session.sandbox_id)
            assert {entry.name async for entry in session.files.walk()} == {"large", "moved", "in", "new"}
            assert await session.files.read_text("in/new") == "4"
        assert [loss.lost for loss in session.losses] == [(), ()]
        assert (await session.files.stat("large")).size == len(large)
