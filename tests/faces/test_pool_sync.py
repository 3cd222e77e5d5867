"""The synchronous pool does what the asynchronous one does, from threads, loops and notebooks."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from sandboxkit import Fragment, SafeFS, SandboxPool, Session, _portal, errors
from sandboxkit.testing import FakeProvider, FakeSandbox, Fault


@pytest.fixture
def fake() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def pool(fake: FakeProvider) -> Iterator[SandboxPool]:
    with SandboxPool(endpoint=fake, max_live=4) as pool:
        yield pool
    assert not fake.live


def test_a_session_runs_code_commands_and_files(pool: SandboxPool) -> None:
    """Code, commands, files and fragments work as in the asynchronous face, one call after the other."""
    with pool.session("alice") as session:
        assert isinstance(session, Session)
        assert session.key == "alice"
        assert session.run_code("x = 20").error is None
        assert session.run_code("x + 1").text == "21"
        assert session.run_command("echo hi; exit 3").exit_code == 3
        session.files.write("data/a.txt", "text")
        assert session.files.read_text("data/a.txt") == "text"
        assert [entry.name for entry in session.files.walk()] == ["data", "a.txt"]
        with pytest.raises(errors.PathEscape):
            session.files.read_text("../../etc/passwd")
        fragment = Fragment(template="code-interpreter-v1", code="x * 2")
        assert [event.name for event in session.stream(fragment)][-1] == "fragment.finished"
        result = session.run(fragment)
        assert result.execution is not None
        assert result.execution.text == "40"
        assert repr(session).startswith("<Session key='alice'")
    assert repr(pool).startswith("<SandboxPool ")


def test_a_session_says_where_it_got_its_sandbox(pool: SandboxPool, fake: FakeProvider) -> None:
    """`source` is the asynchronous face's: created, then reused, also by another hold at the same time."""
    with pool.session("a") as first, pool.session("a") as second:
        assert (first.source, second.source) == ("created", "reused")
    with pool.session("a") as again:
        assert again.source == "reused"
    pool.resize(min_warm=1)
    pool.wait_ready()
    with pool.session("b") as other:
        assert other.source == "warm"


def test_a_session_is_kept_and_single(pool: SandboxPool, fake: FakeProvider) -> None:
    """Many threads that ask for one session at once get one sandbox, and variables live from one to the next."""
    ids: set[str] = set()

    def work() -> None:
        with pool.session("shared") as session:
            ids.add(session.sandbox_id)
            session.run_code("n = globals().get('n', 0) + 1")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ids) == 1
    assert fake.created == 1
    with pool.session("shared") as session:
        assert session.run_code("n").text == "8"


def test_callbacks_run_in_the_calling_thread(pool: SandboxPool) -> None:
    """Callbacks of a call run in the thread that makes it, and their exceptions come out of it."""
    seen: list[tuple[str, str]] = []
    with pool.session("a") as session:
        session.run_code(
            "print('out')\n7",
            on_stdout=lambda message: seen.append((message.text, threading.current_thread().name)),
            on_result=lambda result: seen.append((result.text or "", threading.current_thread().name)),
        )
        here = threading.current_thread().name
        assert seen == [("out\n", here), ("7", here)]
        with pytest.raises(ZeroDivisionError):
            session.run_code("print(1)", on_stdout=lambda _: 1 / 0)
        names: list[str] = []
        fragment = Fragment(template="code-interpreter-v1", code="1")
        session.run(fragment, on_event=lambda event: names.append(threading.current_thread().name))
        assert set(names) == {here}


def test_an_async_listener_is_refused(fake: FakeProvider) -> None:
    """An async on_event, which nobody would await, is refused by name, by the pool and by `session.run`."""

    async def listen(event: object) -> None:
        """Never run."""

    with pytest.raises(errors.ConfigurationError, match=r"on_event=.*listen.*async function"):
        SandboxPool(endpoint=fake, on_event=listen)
    fragment = Fragment(template="code-interpreter-v1", code="1")
    with (
        SandboxPool(endpoint=fake) as pool,
        pool.session("a") as session,
        pytest.raises(errors.ConfigurationError, match=r"on_event=.*listen.*async function"),
    ):
        session.run(fragment, on_event=listen)


def test_a_listener_that_exits_ends_no_pool(caplog: pytest.LogCaptureFixture) -> None:
    """sys.exit() in a listener, which runs in our thread, is logged as any other failure of one."""
    fake, given_up = FakeProvider(), threading.Event()
    fake.inject("create", Fault(error=errors.ProviderUnavailable("503"), times=2))

    def leave(told: object) -> None:
        if isinstance(told, Exception):
            given_up.set()
        sys.exit(3)

    with SandboxPool(endpoint=fake, min_warm=1, give_up_after=0.01, on_give_up=leave, on_event=leave) as pool:
        assert given_up.wait(20)
        with pool.session("a") as session:
            assert session.run_code("1").text == "1"
    said = "\n".join(str(record.exc_info and record.exc_info[1]) for record in caplog.records)
    assert "on_give_up raised SystemExit(3)" in said
    assert "on_event raised SystemExit(3)" in said


def test_a_background_command_calls_back(pool: SandboxPool) -> None:
    """The callback of a background command, which outlives its call, runs in another thread and blocks nobody."""
    seen: list[str] = []
    with pool.session("a") as session:
        handle = session.run_command("echo hi", background=True, on_stdout=lambda message: seen.append(message.text))
        assert handle.wait(timeout=40).exit_code == 0
        assert seen == ["hi\n"]
        assert handle.kill() is False
        assert repr(handle).startswith("<CommandHandle pid=")


def test_works_while_a_loop_runs(pool: SandboxPool) -> None:
    """The pool may be used where an event loop is running, as in a notebook's cell."""

    async def cell() -> str | None:
        with pool.session("a") as session:
            return session.run_code("6 * 7").text

    assert asyncio.run(cell()) == "42"


def test_an_event_handler_cannot_deadlock(fake: FakeProvider) -> None:
    """A handler that uses the pool from the loop's thread is refused, and the pool goes on."""
    refused: list[BaseException] = []
    pools: list[SandboxPool] = []

    def handler(event: object) -> None:
        if pools:
            try:
                pools[0].stats()
            except errors.ConfigurationError as error:
                refused.append(error)

    with SandboxPool(endpoint=fake, on_event=handler) as pool:
        pools.append(pool)
        with pool.session("a") as session:
            assert session.run_code("1").text == "1"
    assert refused


def test_closing(fake: FakeProvider) -> None:
    """close() kills everything, may be called again, and what is used afterwards says so."""
    pool = SandboxPool(endpoint=fake)
    session = pool.session("a")
    assert len(fake.live) == 1
    assert pool.close() == ()
    assert pool.close() == ()
    assert not fake.live
    with pytest.raises(errors.PoolClosed):
        session.run_code("1")
    with pytest.raises(errors.PoolClosed):
        pool.session("b")
    pool = SandboxPool(endpoint=fake)
    with pool, pool.session(None):
        assert len(fake.live) == 1
    assert not fake.live


def test_bad_arguments_are_refused_at_once(fake: FakeProvider) -> None:
    """A pool that cannot work is not made, and leaves no task behind."""
    with pytest.raises(errors.ConfigurationError, match="max_live"):
        SandboxPool(endpoint=fake, max_live=0)
    with pytest.raises(errors.ConfigurationError, match="min_warm"):
        SandboxPool(endpoint=fake, min_warm=-1)


def test_waiting_callers_time_out(fake: FakeProvider) -> None:
    """A caller whom no sandbox becomes free for gets PoolTimeout within its own limit."""
    with (
        SandboxPool(endpoint=fake, max_live=1) as pool,
        pool.session("a"),
        pytest.raises(errors.PoolTimeout),
    ):
        pool.session("b", acquire_timeout=0.05)


def _sdk_sandbox(colour: str) -> object:
    import e2b
    import e2b_code_interpreter as sdk
    from packaging.version import Version

    kind = sdk.AsyncSandbox if colour == "async" else sdk.Sandbox
    return kind(
        sandbox_id="abc",
        sandbox_domain="x.invalid",
        envd_version=Version("0.6.13"),
        envd_access_token="token",
        traffic_access_token=None,
        connection_config=e2b.ConnectionConfig(
            api_key="k", api_url="http://127.0.0.1:1", sandbox_url="http://127.0.0.1:1"
        ),
    )


def test_colours_do_not_mix() -> None:
    """SafeFS takes the SDK's Sandbox and AsyncSafeFS its AsyncSandbox; the wrong one names the right class."""
    from sandboxkit import AsyncSafeFS

    SafeFS(_sdk_sandbox("sync"))
    AsyncSafeFS(_sdk_sandbox("async"))
    with pytest.raises(errors.ConfigurationError, match="use AsyncSafeFS"):
        SafeFS(_sdk_sandbox("async"))
    with pytest.raises(errors.ConfigurationError, match="use SafeFS"):
        AsyncSafeFS(_sdk_sandbox("sync"))
    with pytest.raises(errors.ConfigurationError, match="object"):
        SafeFS(object())


def test_twins_are_the_same_sandbox() -> None:
    """The object of the other colour is made without a request, and stands for the same sandbox."""
    from sandboxkit.provider import _e2b

    here = _sdk_sandbox("async")
    twin = _e2b.sync_twin(here)
    back = _e2b.async_twin(twin)
    for other in (twin, back):
        assert other.sandbox_id == "abc"  # type: ignore[attr-defined]
        assert other.get_host(3000) == "3000-abc.x.invalid"  # type: ignore[attr-defined]
        assert other.download_url("/a") == here.download_url("/a")  # type: ignore[attr-defined]


def test_the_fakes_object_is_given_as_it_is(pool: SandboxPool) -> None:
    """`session.sandbox` is the provider's own object; on the fake that is the fake's."""
    with pool.session("a") as session:
        assert isinstance(session.sandbox, FakeSandbox)


def test_an_interrupted_close_gives_the_hold_back(pool: SandboxPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the call of close() has begun: it goes on, and the session is not held for ever."""
    session = pool.session("a")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(_portal.Portal, "call", interrupted)  # a signal cannot be sent to that very moment
        session.close()
    pool.wait_ready()  # behind the close that goes on
    assert (pool.stats()["in_use"], pool.stats()["idle"]) == (0, 1)
