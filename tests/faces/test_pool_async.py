"""What a user of the asynchronous pool sees: sessions, their sandboxes, what runs in them, how they end."""

from __future__ import annotations

import functools
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandboxkit._types import CommandResult, TimeoutPolicy
from sandboxkit.errors import (
    CodeTimeout,
    CommandTimeout,
    ConfigurationError,
    KernelDied,
    MissingApiKey,
    PathEscape,
    PoolClosed,
    PoolError,
    ProviderUnavailable,
    SandboxkitError,
    SandboxNotFound,
    SessionConflict,
    UnsupportedOption,
)
from sandboxkit.events import Event
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.pool import AsyncSandboxPool, AsyncSession
from sandboxkit.testing import FakeProvider, Fault

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Above the door everything runs on both."""
    return str(request.param)


@pytest.fixture
def fake() -> FakeProvider:
    return FakeProvider(templates=("base", "code-interpreter-v1", "other"))


async def test_a_session_keeps_its_state() -> None:
    """Closing a session and opening its key again gives the same sandbox, variables and files."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with pool.session("alice") as session:
            assert session.key == "alice"
            assert session.template == "code-interpreter-v1"
            assert (await session.run_code("x = 20\nx + 1")).text == "21"
            await session.files.write("data/x.csv", "x\n1\n")
            first = session.sandbox_id
        async with pool.session("alice") as session:
            assert session.sandbox_id == first
            assert (await session.run_code("x * 2")).text == "40"
            assert await session.files.read_text("data/x.csv") == "x\n1\n"
            assert (await session.tree()).children[0].name == "data"
    assert fake.ended == {first: "killed"}


async def test_w1_concurrent_callers_of_one_session_share_one_sandbox(fake: FakeProvider) -> None:
    """Eight callers who ask for the same session at once make one sandbox, and all get it."""
    seen: list[str] = []

    async def caller(pool: AsyncSandboxPool) -> None:
        async with pool.session("a") as session:
            seen.append(session.sandbox_id)

    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(caller, pool)
        assert fake.created == 1
        assert seen == [next(iter(fake.live))] * 8


async def test_w2_another_template_is_never_the_old_sandbox(fake: FakeProvider) -> None:
    """The same session with another template, variables or metadata is a conflict, and with replace=True a new one."""
    events: list[Event] = []
    async with AsyncSandboxPool(endpoint=fake, on_event=events.append) as pool:
        old = await pool.session("a")
        for different in ({"template": "other"}, {"envs": {"N": "1"}}, {"metadata": {"n": "1"}}):
            with pytest.raises(SessionConflict):
                await pool.session("a", **different)
        assert fake.created == 1
        new = await pool.session("a", template="other", replace=True)
        assert new.template == "other"
        assert new.sandbox_id != old.sandbox_id
        with pytest.raises(SandboxNotFound, match="replaced"):
            await old.run_code("1")
    assert [e.name for e in events].count("session.conflict") == 3
    assert fake.ended[old.sandbox_id] == "killed"


async def test_replace_keeps_a_sandbox_that_fits(fake: FakeProvider) -> None:
    """replace=True replaces what does not fit, and nothing else."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        old = await pool.session("a")
        assert (await pool.session("a", replace=True)).sandbox_id == old.sandbox_id


async def test_w3_a_vanished_sandbox_is_never_handed_out(fake: FakeProvider) -> None:
    """A released session whose sandbox vanished is opened with a new one, and an event says that one was lost."""
    events: list[Event] = []
    async with AsyncSandboxPool(endpoint=fake, on_event=events.append) as pool:
        async with pool.session("a") as session:
            first = session.sandbox_id
        fake.crash(first)
        async with pool.session("a") as session:
            assert session.sandbox_id != first
            assert (await session.run_code("1")).text == "1"
        assert pool.stats()["lost"] == 1
    assert [e.sandbox_id for e in events if e.name == "sandbox.lost"] == [first]


@pytest.mark.parametrize("use", ["code", "command", "file", "restart"])
async def test_a_sandbox_lost_in_use_is_a_typed_error(fake: FakeProvider, use: str) -> None:
    """A use that meets no sandbox raises SandboxNotFound; so does the next; opening the session again makes another."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        fake.crash(session.sandbox_id)
        call: dict[str, Any] = {
            "code": lambda: session.run_code("1"),
            "command": lambda: session.run_command("true"),
            "file": lambda: session.files.read_text("x"),
            "restart": lambda: session.restart(),
        }
        with pytest.raises(SandboxNotFound) as caught:
            await call[use]()
        assert caught.value.sandbox_id == session.sandbox_id
        with pytest.raises(SandboxNotFound):
            await session.run_code("1")
        again = await pool.session("a")
        assert again.sandbox_id != session.sandbox_id
        assert (await again.run_code("1")).text == "1"


async def test_only_a_typed_not_found_replaces(fake: FakeProvider) -> None:
    """When the service cannot answer, the session keeps its sandbox and the caller gets the error."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with pool.session("a") as session:
            first = session.sandbox_id
        fake.inject("extend", Fault(error=ProviderUnavailable("503")))
        with pytest.raises(ProviderUnavailable):
            await pool.session("a")
        assert (await pool.session("a")).sandbox_id == first
        assert fake.created == 1


async def test_an_anonymous_session_dies_at_its_end(fake: FakeProvider) -> None:
    """session(None) is a sandbox of one's own, and is killed when the block is left."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        async with pool.session(None) as one, pool.session(None) as two:
            assert one.sandbox_id != two.sandbox_id
            assert one.key is None
        assert fake.live == frozenset()
        assert pool.stats()["live"] == 0


async def test_holds_are_counted_and_closing_twice_counts_once(fake: FakeProvider) -> None:
    """A shared session is released when its last holder has closed, however often the others did."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        one = await pool.session("a")
        async with pool.session("a") as two:
            await one.close()
            await one.close()
            assert pool.stats()["in_use"] == 1
            assert (await two.run_code("1")).text == "1"
        assert (pool.stats()["in_use"], pool.stats()["idle"]) == (0, 1)
        with pytest.raises(PoolError, match="was closed"):
            await one.run_code("1")
        with pytest.raises(PoolError, match="was closed"):
            await two.files.read_text("x")


async def test_kill_ends_it_for_everyone(fake: FakeProvider) -> None:
    """kill() kills the sandbox, confirmed when it returns; all holders learn it, and the key starts anew."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        one, two = await pool.session("a"), await pool.session("a")
        await one.kill()
        await one.kill()
        assert fake.ended == {one.sandbox_id: "killed"}
        with pytest.raises(SandboxNotFound, match="killed by kill"):
            await two.run_code("1")
        assert (await pool.session("a")).sandbox_id != one.sandbox_id


@pytest.mark.parametrize("met", [KernelDied("It ended."), ProviderUnavailable("The connection broke off.")])
async def test_a_use_that_a_kill_meets_says_so(fake: FakeProvider, met: SandboxkitError) -> None:
    """Whichever part of the sandbox ends first, its user is told that it was killed, or that the pool was closed."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        for end, told in ((AsyncSession.kill, SandboxNotFound), (None, PoolClosed)):
            session = await pool.session("a")
            fake.inject("run_code", Fault(delay=0.05, error=met))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.close) if end is None else tasks.start_soon(end, session)
                with pytest.raises(told) as caught:
                    await session.run_code("1")
            assert caught.value.__cause__ is met


async def test_a_kill_that_is_not_confirmed_says_so(fake: FakeProvider) -> None:
    """kill() raises when the service did not confirm; the sandbox goes on counting towards the cap."""
    fake.inject("kill", Fault(error=ProviderUnavailable("503")))
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        with pytest.raises(ProviderUnavailable, match="not confirmed"):
            await session.kill()
        assert pool.stats()["killing"] == 1
    assert fake.live == frozenset()


async def test_a_session_outlives_no_pool(fake: FakeProvider) -> None:
    """A session opened without a block is held until the pool ends, and refuses every use after that."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        assert (await session.run_code("1")).text == "1"
    assert fake.live == frozenset()
    for use in (session.run_code("1"), session.run_command("true"), session.files.exists("x"), session.restart()):
        with pytest.raises(PoolClosed):
            await use
    await session.close()


async def test_every_sandbox_is_tagged(fake: FakeProvider) -> None:
    """A create request carries pool, owner, session, template, generation, the caller's tags, and the network."""
    async with AsyncSandboxPool(endpoint=fake, name="shop") as pool:
        await pool.session("a", metadata={"team": "blue"}, envs={"N": "1"})
        await pool.session(None)
    one, two = fake.requests
    assert (
        dict(one.metadata).items()
        >= {
            "sandboxkit.pool": "shop",
            "sandboxkit.session": "a",
            "sandboxkit.template": "code-interpreter-v1",
            "team": "blue",
        }.items()
    )
    assert one.metadata["sandboxkit.owner"] == two.metadata["sandboxkit.owner"]
    assert one.metadata["sandboxkit.gen"] != two.metadata["sandboxkit.gen"]
    assert one.idempotency_key != two.idempotency_key
    assert (dict(one.envs), one.network) == ({"N": "1"}, "deny")


async def test_commands_run_by_line_or_by_arguments(fake: FakeProvider) -> None:
    """A text goes to the shell; a sequence reaches the program as it is; a non-zero exit is data."""
    async with AsyncSandboxPool(endpoint=fake) as pool, pool.session("a") as session:
        assert (await session.run_command("echo one; false")) == CommandResult(exit_code=1, stdout="one\n")
        assert (await session.run_command(["echo", "a  b; false"])).stdout == "a  b; false\n"
        with pytest.raises(CommandTimeout):
            await session.run_command("sleep infinity", timeout=0.01)
        for wrong in ([], [1], 5):
            with pytest.raises(ConfigurationError, match="cmd="):
                await session.run_command(wrong)  # type: ignore[call-overload]


async def test_a_background_command_can_be_waited_for_and_killed(fake: FakeProvider) -> None:
    """background=True returns a handle at once; waiting has a limit of its own; a kill ends it."""
    async with AsyncSandboxPool(endpoint=fake) as pool, pool.session("a") as session:
        done = await session.run_command("echo hi", background=True)
        assert (await done.wait()).stdout == "hi\n"
        running = await session.run_command("sleep infinity", background=True)
        with pytest.raises(CommandTimeout, match="it goes on"):
            await running.wait(timeout=0.01)
        assert await running.kill()
        assert (await running.wait()).exit_code != 0
        with pytest.raises(UnsupportedOption):
            await session.run_command("true", background=True, timeout=1)  # type: ignore[call-overload]


async def test_limits_are_the_policys_unless_given(fake: FakeProvider) -> None:
    """Code and commands have the pool's time limits, and a call's own where it gives one."""
    timeouts = TimeoutPolicy(code=0.01, command=0.01)
    async with AsyncSandboxPool(endpoint=fake, timeouts=timeouts) as pool, pool.session("a") as session:
        with pytest.raises(CommandTimeout):
            await session.run_command("sleep infinity")
        with pytest.raises(CodeTimeout):
            await session.run_code("while True: pass")
        for wrong in (0, -1, float("nan"), float("inf"), True, "5"):
            with pytest.raises(ConfigurationError, match="timeout="):
                await session.run_code("1", timeout=wrong)  # type: ignore[arg-type]


async def test_a_fragment_runs_in_its_session(fake: FakeProvider) -> None:
    """session.run carries a fragment out, session.stream tells its steps; another template's is a conflict."""
    heard: list[str] = []
    fragment = Fragment(template="code-interpreter-v1", code="y = 3\ny + 1")
    async with AsyncSandboxPool(endpoint=fake) as pool, pool.session("a") as session:
        result = await session.run(fragment, on_event=lambda event: heard.append(event.name))
        assert result.execution is not None
        assert result.execution.text == "4"
        assert heard[-1] == "fragment.finished"
        assert (await session.run_code("y")).text == "3"
        events = [event async for event in session.stream(fragment)]
        assert isinstance(events[-1].data["result"], FragmentResult)
        assert {event.session for event in events} == {"a"}
        with pytest.raises(SessionConflict):
            await session.run(Fragment(template="other", code="1"))
        with pytest.raises(ConfigurationError, match="Fragment"):
            await session.run({"template": "code-interpreter-v1"})  # type: ignore[arg-type]


async def test_a_refused_path_is_an_event(fake: FakeProvider) -> None:
    """A path that leads out is refused without a request, and the pool's listener is told."""
    events: list[Event] = []
    async with AsyncSandboxPool(endpoint=fake, on_event=events.append) as pool, pool.session("a") as session:
        with pytest.raises(PathEscape):
            await session.files.read_text("../../etc/passwd")
    refused = [e for e in events if e.name == "path.refused"]
    assert [(e.session, e.data["code"]) for e in refused] == [("a", "path_escape")]


async def test_events_tell_a_session_from_beginning_to_end(fake: FakeProvider) -> None:
    """Each thing that happens is told once, in order, with its session, sandbox and template; never code or values."""
    events: list[Event] = []
    async with (
        AsyncSandboxPool(endpoint=fake, on_event=events.append, name="p") as pool,
        pool.session("a", envs={"TOKEN": "secret-1"}) as session,
    ):
        await session.run_code("'secret-2'; 1 / 0")
        await session.run_command("echo secret-3")
    assert [e.name for e in events] == [
        "pool.opened",
        "session.queued",
        "sandbox.creating",
        "sandbox.created",
        "session.opened",
        "code.started",
        "code.finished",
        "command.started",
        "command.finished",
        "session.released",
        "sandbox.killed",
        "pool.closed",
    ]
    assert events[6].data["error"] == "ZeroDivisionError"
    assert {(e.session, e.sandbox_id, e.template) for e in events[3:-1]} == {
        ("a", session.sandbox_id, "code-interpreter-v1")
    }
    assert "secret" not in repr(events)


async def test_a_listener_that_raises_changes_nothing(fake: FakeProvider, caplog: pytest.LogCaptureFixture) -> None:
    """What on_event raises is logged, and the pool goes on."""

    def broken(event: Event) -> None:
        raise RuntimeError("listener")

    async with AsyncSandboxPool(endpoint=fake, on_event=broken) as pool, pool.session("a") as session:
        assert (await session.run_code("1")).text == "1"
    assert fake.live == frozenset()
    assert "on_event raised" in caplog.text


class AsyncListener:
    """A listener of the wrong kind that is no function itself."""

    async def __call__(self, event: Event) -> None:
        """Never run."""


@pytest.mark.parametrize(
    "on_event", [AsyncListener(), AsyncListener().__call__, functools.partial(AsyncListener.__call__, AsyncListener())]
)
async def test_an_async_listener_is_refused(fake: FakeProvider, on_event: Any) -> None:
    """An async on_event, which nobody would await, is refused by name, by the pool and by `session.run`."""
    with pytest.raises(ConfigurationError, match=r"on_event=.*async function"):
        AsyncSandboxPool(endpoint=fake, on_event=on_event)
    async with AsyncSandboxPool(endpoint=fake) as pool, pool.session("a") as session:
        fragment = Fragment(template="code-interpreter-v1", code="1")
        with pytest.raises(ConfigurationError, match=r"on_event=.*async function"):
            await session.run(fragment, on_event=on_event)


async def test_what_is_wrong_is_refused_at_construction() -> None:
    """An argument that cannot work raises ConfigurationError naming it, before anything is asked of anybody."""
    wrong: list[dict[str, Any]] = [
        {"max_live": 0},
        {"max_live": 1.5},
        {"max_live": True},
        {"max_waiting": -1},
        {"min_warm": -1},
        {"acquire_timeout": 0},
        {"acquire_timeout": float("inf")},
        {"template": ""},
        {"name": ""},
        {"network": "everything"},
        {"on_loss": "cry"},
        {"on_event": 5},
        {"timeouts": 60},
        {"endpoint": "cloud"},
    ]
    for argument in wrong:
        (name,) = argument
        with pytest.raises(ConfigurationError, match=f"{name}="):
            AsyncSandboxPool(**{"endpoint": FakeProvider(), **argument})


async def test_e2b_without_a_key_is_refused_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """endpoint="e2b" needs a key; without one nothing is opened and nothing is asked."""
    monkeypatch.delenv("E2B_API_KEY", raising=False)
    with pytest.raises(MissingApiKey):
        AsyncSandboxPool(endpoint="e2b")


async def test_a_pool_is_opened_by_its_block_and_once(fake: FakeProvider) -> None:
    """A pool that was not opened says how to; one that was opened cannot be opened again; closing is always fine."""
    pool = AsyncSandboxPool(endpoint=fake)
    with pytest.raises(PoolError, match="async with"):
        await pool.session("a")
    assert await AsyncSandboxPool(endpoint=fake).close() == ()
    async with pool:
        with pytest.raises(PoolError, match="opened before"):
            await pool.__aenter__()
        assert "open: in_use=0" in repr(pool)
    with pytest.raises(PoolClosed):
        await pool.session("a")
    with pytest.raises(PoolError):
        await pool.__aenter__()
    assert fake.requests == []


async def test_a_pool_is_refused_on_another_loop(fake: FakeProvider) -> None:
    """A loop in another thread is told, before anything is touched; this one goes on."""
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        for use in (session.run_code, lambda _: pool.session("a").open(), lambda _: pool.close()):
            with pytest.raises(PoolError, match="another thread"):
                await anyio.to_thread.run_sync(anyio.run, use, "1")
        assert (await session.run_code("1")).text == "1"
