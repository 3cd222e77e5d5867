"""A session's whole life on the engine, over the synchronous face."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest

from sandboxkit import NullSandboxPool, SandboxPool, TimeoutPolicy
from sandboxkit._types import Endpoint
from sandboxkit.errors import CommandTimeout


@pytest.mark.engine
@pytest.mark.slow
def test_a_session_on_the_engine_survives_all_of_it(engine: Endpoint) -> None:
    """Warm with environment, secret and files; paused and gone on; interrupted; handed on; killed and replayed."""
    timeouts = TimeoutPolicy(lifetime=120, renew="heartbeat")
    with (
        SandboxPool(endpoint=engine, min_warm=1, on_loss="replay", timeouts=timeouts, owner="crowd") as pool,
        NullSandboxPool(endpoint=engine, owner="crowd") as other,
    ):
        pool.wait_ready(timeout=50)
        read = "import os\n(os.environ.get('N'), os.environ.get('T'), open('in/x.txt').read())"
        session = pool.session("a", envs={"N": "1"}, secrets={"T": "2"}, files={"in/x.txt": "x"})
        assert pool.stats()["from_warm"] == 1
        assert session.run_code(read).text == "('1', '2', 'x')"
        session.run_code("y = 5")
        session.pause()
        assert session.run_code("y").text == "5"
        interrupted: list[Any] = []
        worker = threading.Thread(
            target=lambda: interrupted.append(session.run_code("import time\nwhile True:\n    time.sleep(0.01)"))
        )
        worker.start()
        while not session.interrupt():
            time.sleep(0.01)
        worker.join(30)
        assert interrupted[0].error.name == "KeyboardInterrupt"
        assert session.run_code("y").text == "5"
        first = session.sandbox_id
        assert other.attach(session.detach()).run_code("y").text == "5"
        session = pool.session("a", envs={"N": "1"}, secrets={"T": "2"}, files={"in/x.txt": "x"})
        assert session.sandbox_id != first
        session.sandbox.kill()
        assert session.run_code(read).text == "('1', '2', 'x')"
        assert session.losses[0].restored == ("/home/user/in/x.txt",)


@pytest.mark.engine
@pytest.mark.slow
def test_runs_share_one_http_client(engine: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a session's sandbox runs goes through one HTTP client: making one takes longer than all else of ours."""
    import httpx

    made: list[httpx.AsyncClient] = []
    make = httpx.AsyncClient.__init__

    def counted(client: httpx.AsyncClient, *args: Any, **options: Any) -> None:
        made.append(client)
        make(client, *args, **options)

    with NullSandboxPool(endpoint=engine) as pool, pool.session(None) as session:
        assert session.run_code("1 + 1").text == "2"
        monkeypatch.setattr(httpx.AsyncClient, "__init__", counted)
        assert [session.run_code("1 + 1").text for _ in range(3)] == ["2"] * 3
        assert made == []
        assert type(session._async.sandbox).__name__ == "AsyncSandbox", "users see the SDK's name"


@pytest.mark.engine
@pytest.mark.slow
def test_files_go_on_in_the_sandbox_that_replaces_a_lost_one(engine: Endpoint) -> None:
    """The root there is another directory, which is no change of the tree under whoever holds the session."""
    with SandboxPool(endpoint=engine, on_loss="recreate") as pool, pool.session("a") as session:
        for number in range(4):
            session.files.write("x", str(number))
            assert session.files.read_text("x") == str(number)
            session.sandbox.kill()
        session.files.write("y", "last")
        assert [entry.name for entry in session.files.list()] == ["y"]
        assert len(session.losses) == 4


@pytest.mark.engine
@pytest.mark.slow
def test_a_background_command_outlives_a_pause(engine: Endpoint) -> None:
    """A pause cuts the stream of its output off: whoever waits for it lets both go on, and the sandbox is not given up
    for lost."""
    with SandboxPool(endpoint=engine) as pool, pool.session("a") as session:
        command = session.run_command("echo before; sleep 2; echo after", background=True)
        with pytest.raises(CommandTimeout):
            command.wait(timeout=0.3)
        session.pause()
        result = command.wait()
        assert (result.exit_code, result.stdout) == (0, "before\nafter\n")
        assert (pool.stats()["paused_total"], pool.stats()["lost"]) == (1, 0)
        sleeper = session.run_command("sleep 1000", background=True)
        session.pause()
        assert sleeper.kill()
        assert sleeper.wait().exit_code != 0


@pytest.mark.engine
@pytest.mark.slow
def test_a_command_whose_limit_meets_its_start_is_killed(engine: Endpoint, caplog: pytest.LogCaptureFixture) -> None:
    """However short the limit, the command does not go on, and nobody's log hears of it."""
    with SandboxPool(endpoint=engine) as pool, pool.session("a") as session:
        session.run_code("from pathlib import Path")
        for step in range(40):
            with pytest.raises(CommandTimeout, match=r"ran longer than timeout=0\.0"):
                session.run_command("sleep 1071", timeout=0.0005 + step * 0.0003)
        left = "[p for p in Path('/proc').glob('[0-9]*/cmdline') if b'sleep\\0001071' in p.read_bytes()]"
        assert session.run_code(left).text == "[]"
    gc.collect()  # asyncio tells of a failure that nobody asked for when its task is collected
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
