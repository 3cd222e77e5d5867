"""A new sandbox is made its session's own by the same arguments, warm or cold; what is secret shows nowhere."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from sandboxkit.errors import ConfigurationError, PathEscape, PoolTimeout, ProviderUnavailable, SessionConflict
from sandboxkit.events import Event
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime

pytestmark = pytest.mark.anyio
Until = Callable[[Callable[[], bool]], Awaitable[None]]
READ = "import os\n(os.environ.get('NAME'), os.environ.get('TOKEN'))"


@pytest.fixture(params=[0, 1], ids=["cold", "warm"])
def min_warm(request: pytest.FixtureRequest) -> int:
    return int(request.param)


async def test_the_same_arguments_work_warm_and_cold(min_warm: int) -> None:
    """Environment, files and secrets are there for code and commands, again and again, and for this session alone."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=min_warm) as pool:
        await pool.wait_ready()
        opening = pool.session(
            "a", envs={"NAME": "n"}, files={"in/x.txt": "x\n", "y.bin": b"\0y"}, secrets={"TOKEN": "s3cret"}
        )
        async with opening as session:
            assert pool.stats()["from_warm"] == min_warm
            for _ in range(2):
                assert (await session.run_code(READ)).text == "('n', 's3cret')"
            assert (await session.run_command("echo $NAME $TOKEN")).stdout == "n s3cret\n"
            assert await session.files.read_text("in/x.txt") == "x\n"
            assert await session.files.read_bytes("y.bin") == b"\0y"
            assert (await session.run_code(READ, envs={"NAME": "own"})).text == "('own', 's3cret')"
        async with pool.session("b") as other:
            assert (await other.run_code(READ)).text == "(None, None)"


async def test_one_that_is_still_being_made_for_the_stock_becomes_the_sessions_own() -> None:
    """Who takes a blank sandbox that is not ready yet gets the environment, secrets, files and tags as well."""
    fake, told = FakeProvider(create_delay=0.2), list[Event]()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1, on_event=told.append) as pool:
        with anyio.move_on_after(0.05):
            await pool.wait_ready()
        async with pool.session("a", envs={"NAME": "n"}, secrets={"TOKEN": "t"}, files={"x": "x"}) as session:
            assert (await session.run_code(READ)).text == "('n', 't')"
            assert await session.files.read_text("x") == "x"
            assert fake.created <= 2
    (opened,) = [event for event in told if event.name == "session.opened"]
    assert (opened.session, opened.data["source"]) == ("a", "warm")


async def test_two_who_share_one_that_is_still_being_made_have_the_same_session(until: Until) -> None:
    """Both asked for the key while its sandbox was being made for the stock: it is the session's own for both."""
    fake, told = FakeProvider(create_delay=0.05), list[Event]()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1, on_event=told.append) as pool:
        await until(lambda: pool.stats()["creating"] == 1)

        async def caller() -> None:
            async with pool.session("a", envs={"NAME": "n"}, secrets={"TOKEN": "t"}) as session:
                assert session.key == "a"
                assert (await session.run_code(READ)).text == "('n', 't')"

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(caller)
        assert pool.stats()["idle"] == 1
    opened = [event for event in told if event.name == "session.opened"]
    assert [(event.session, event.data["source"]) for event in opened] == [("a", "warm")] * 2


async def test_who_joins_one_that_its_first_caller_left_has_the_environment(until: Until) -> None:
    """The first is cancelled while it makes sure of a warm one; the second, who asked for the key meanwhile, gets it
    with all that belongs to the session."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1) as pool:
        await pool.wait_ready()
        fake.inject("extend", Fault(delay=0.1))
        first, answers = anyio.CancelScope(), list[tuple[str | None, str | None]]()

        async def leaves() -> None:
            with first:
                await pool.session("a", envs={"NAME": "n"})

        async def joins() -> None:
            async with pool.session("a", envs={"NAME": "n"}) as session:
                answers.append((session.key, (await session.run_code(READ)).text))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leaves)
            await until(lambda: fake.calls["extend"] == 1)
            tasks.start_soon(joins)
            await anyio.sleep(0.01)
            first.cancel()
        assert answers == [("a", "('n', None)")]


async def test_files_are_for_a_new_sandbox_only(min_warm: int) -> None:
    """Who comes back to a session finds it as it was left."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), min_warm=min_warm) as pool:
        await pool.wait_ready()
        async with pool.session("a", files={"x": "first"}) as session:
            await session.files.write("x", "changed")
        async with pool.session("a", files={"x": "first"}) as session:
            assert await session.files.read_text("x") == "changed"


async def test_the_environment_of_a_session_is_compared_warm_and_cold(min_warm: int) -> None:
    """Another environment under the same key is a conflict, however the sandbox got it; other secrets are none."""
    async with AsyncSandboxPool(endpoint=FakeProvider(), min_warm=min_warm) as pool:
        await pool.wait_ready()
        async with pool.session("a", envs={"NAME": "n"}, secrets={"TOKEN": "1"}) as session:
            with pytest.raises(SessionConflict):
                await pool.session("a", envs={"NAME": "m"})
            async with pool.session("a", secrets={"TOKEN": "2"}) as second:
                assert (await second.run_code(READ)).text == "('n', '2')"
            assert (await session.run_code(READ)).text == "('n', '1')"


async def test_what_is_secret_shows_nowhere(min_warm: int, caplog: pytest.LogCaptureFixture) -> None:
    """No value of an environment, a secret or a file is in metadata, events, logs, or any repr; secrets reach the
    service with the runs alone."""
    caplog.set_level(logging.DEBUG)
    fake, told = FakeProvider(), list[Event]()
    async with AsyncSandboxPool(endpoint=fake, min_warm=min_warm, on_event=told.append) as pool:
        await pool.wait_ready()
        opening = pool.session("a", envs={"NAME": "v4lue"}, secrets={"TOKEN": "s3cret"}, files={"f": "c0ntent"})
        shown = [repr(opening)]
        async with opening as session:
            await session.run_code("1")
            shown += [repr(session), repr(pool), repr(session._lease.request), repr(pool.stats())]
        requests = list(fake.requests)
        shown += [str(r.metadata) for r in requests] + [repr(e) for e in told]
    assert not any("s3cret" in value for r in requests for value in [*r.envs.values(), *r.metadata.values()])
    shown += [repr(r) for r in requests]
    assert caplog.text
    for secret in ("v4lue", "s3cret", "c0ntent"):
        assert secret not in caplog.text
        assert not any(secret in text for text in shown)


async def test_a_file_that_cannot_be_written_kills_the_sandbox(min_warm: int, until: Until) -> None:
    """A sandbox that is half made for a session is nobody's: it is killed, its place is free, the caller is told."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=min_warm, max_live=2) as pool:
        await pool.wait_ready()
        first = set(fake.live)
        fake.inject("files", Fault(error=ProviderUnavailable("503")))
        with pytest.raises(ProviderUnavailable):
            await pool.session("a", files={"x": "1", "y": "2", "z": "3"})
        await until(lambda: pool.stats()["killing"] == pool.stats()["in_use"] == 0)
        assert not first & fake.live
        async with pool.session("a", files={"x": "1"}) as session:
            assert await session.files.read_text("x") == "1"


async def test_who_joins_meanwhile_waits_until_it_is_prepared(min_warm: int, until: Until) -> None:
    """The second caller of a key gets the sandbox with its files in it, or, if that fails, one of its own."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=min_warm) as pool:
        await pool.wait_ready()
        fake.inject("files", Fault(delay=0.03, error=ProviderUnavailable("503")))
        got = list[Any]()

        async def first() -> None:
            with pytest.raises(ProviderUnavailable):
                await pool.session("a", files={"x": "1"})

        async def second() -> None:
            session = await pool.session("a", files={"x": "2"})
            got.append(await session.files.read_text("x"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await until(lambda: fake.calls["files"] == 1)
            tasks.start_soon(second)
        assert got == ["2"]


def test_preparing_counts_towards_the_deadline(virtual_time: VirtualTime) -> None:
    """acquire_timeout covers the files, too; what is not ready in time is killed."""

    async def main() -> None:
        fake = virtual_time.provider()
        async with AsyncSandboxPool(endpoint=fake, min_warm=1, acquire_timeout=5) as pool:
            await pool.wait_ready()
            first = set(fake.live)
            fake.inject("files", Fault(delay=100))
            with pytest.raises(PoolTimeout):
                await pool.session("a", files={"x": "1"})
            await anyio.sleep(1)
            assert not first & fake.live

    virtual_time.run(main)
    assert virtual_time.elapsed() < 20


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"files": {"../x": "1"}}, PathEscape),
        ({"files": {"/etc/passwd": "1"}}, PathEscape),
        ({"files": {"x": 5}}, ConfigurationError),
        ({"files": {".": "1"}}, ConfigurationError),
        ({"files": ["x"]}, ConfigurationError),
        ({"files": {"x": "\ud800"}}, ConfigurationError),
        ({"secrets": {"A=B": "1"}}, ConfigurationError),
        ({"secrets": {"A": "s3cret\0"}}, ConfigurationError),
    ],
    ids=str,
)
async def test_what_cannot_be_prepared_is_refused_at_once(arguments: Any, error: type[Exception]) -> None:
    """A wrong file or secret is refused before anything is asked of anybody, and its value is not told."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        with pytest.raises(error) as caught:
            pool.session("a", **arguments)
        assert "s3cret" not in str(caught.value)
        assert fake.requests == []
