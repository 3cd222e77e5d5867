"""Pause, resume, auto-pause and auto-resume through the unmodified SDK, sync and async, on the real engine."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import e2b
import e2b_code_interpreter
import pytest
from e2b.sandbox.sandbox_api import SandboxQuery, SandboxState

pytestmark = [pytest.mark.engine, pytest.mark.slow]

Options = dict[str, str]


@pytest.fixture
def create(sdk: Options) -> Iterator[Callable[..., e2b_code_interpreter.Sandbox]]:
    """Create a sandbox with an interpreter that this test's end kills."""
    made: list[e2b_code_interpreter.Sandbox] = []

    def create(**values: Any) -> e2b_code_interpreter.Sandbox:
        made.append(e2b_code_interpreter.Sandbox.create(timeout=120, **values, **sdk))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_memory_files_and_processes_are_there_after_it(create: Callable[..., Any], sdk: Options) -> None:
    """A variable, a file and a running command go on where they were; meanwhile the sandbox is paused for everybody."""
    sandbox = create(metadata={"test": "memory"})
    sandbox.run_code("x = 41")
    sandbox.files.write("kept", "yes")
    command = sandbox.commands.run(
        "i=0; while true; do i=$((i+1)); echo $i > next; mv next counted; sleep 0.01; done", background=True
    )
    wait_until(lambda: sandbox.files.exists("counted"))
    assert sandbox.pause() is True
    assert sandbox.pause() is False
    assert sandbox.is_running() is False
    assert sandbox.get_info().state is SandboxState.PAUSED
    query = SandboxQuery(metadata={"test": "memory"}, state=[SandboxState.PAUSED])
    assert [one.sandbox_id for one in e2b.Sandbox.list(query, **sdk).next_items()] == [sandbox.sandbox_id]
    with pytest.raises(e2b.TimeoutException):
        sandbox.run_code("x")
    with pytest.raises(e2b.SandboxException):
        sandbox.files.read("kept")
    again = e2b_code_interpreter.Sandbox.connect(sandbox.sandbox_id, timeout=60, **sdk)
    assert again.is_running()
    assert again.run_code("x + 1").text == "42"
    assert again.files.read("kept") == "yes"
    counted = int(again.files.read("counted") or 0)
    wait_until(lambda: int(again.files.read("counted") or 0) > counted)
    assert command.pid in [process.pid for process in again.commands.list()]


def test_streams_are_cut_off_and_their_processes_go_on(create: Callable[..., Any]) -> None:
    """Who waits for a command or a cell when the sandbox is paused is told; both come to their end after it."""
    sandbox = create()
    met: dict[str, BaseException] = {}

    def tried(name: str, work: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                met[name] = error

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    code = (
        "import os, time\nopen('/tmp/began', 'w')\nwhile not os.path.exists('/tmp/go'): time.sleep(0.02)\ny = 'ended'"
    )
    command = "touch /tmp/ran; while [ ! -e /tmp/go ]; do sleep 0.02; done; touch /tmp/done"
    threads = [
        tried("cell", lambda: sandbox.run_code(code)),
        tried("command", lambda: sandbox.commands.run(command)),
    ]
    wait_until(lambda: sandbox.files.exists("/tmp/began") and sandbox.files.exists("/tmp/ran"))
    sandbox.pause()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert set(met) == {"cell", "command"}
    assert isinstance(met["command"], e2b.SandboxException)
    sandbox.connect(timeout=60)
    sandbox.files.write("/tmp/go", "")
    assert sandbox.run_code("y").text == "ended"
    wait_until(lambda: sandbox.files.exists("/tmp/done"))


def test_a_paused_sandbox_can_be_killed(create: Callable[..., Any], sdk: Options) -> None:
    """kill() of a paused sandbox says True, then False; connecting to it is a typed not-found."""
    sandbox = create()
    sandbox.pause()
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    with pytest.raises(e2b.NotFoundException):
        e2b.Sandbox.connect(sandbox.sandbox_id, **sdk)


def test_its_time_being_up_pauses_it(create: Callable[..., Any]) -> None:
    """With on_timeout "pause" the end of its life is a pause, out of which connect() brings it back with its memory."""
    sandbox = create(lifecycle={"on_timeout": "pause", "auto_resume": False})
    assert sandbox.get_info().lifecycle is not None
    sandbox.run_code("x = 1")
    sandbox.set_timeout(1)
    wait_until(lambda: sandbox.get_info().state is SandboxState.PAUSED)
    with pytest.raises(e2b.TimeoutException):
        sandbox.run_code("x")
    sandbox.connect(timeout=60)
    assert sandbox.run_code("x").text == "1"


def test_traffic_brings_it_back_where_wanted(create: Callable[..., Any]) -> None:
    """With auto_resume the next call resumes a paused sandbox, and is answered; is_running() does not."""
    sandbox = create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.run_code("x = 1")
    sandbox.pause()
    assert sandbox.is_running() is False
    assert sandbox.run_code("x").text == "1"
    assert sandbox.get_info().state is SandboxState.RUNNING
    sandbox.pause()
    assert sandbox.commands.run("echo back").stdout == "back\n"


def test_a_pause_of_the_files_alone(create: Callable[..., Any]) -> None:
    """A pause that forgets the memory keeps the files, and ends every process; so does a connect that starts anew."""
    sandbox = create(envs={"A": "b"})
    sandbox.run_code("x = 1")
    sandbox.files.write("/home/user/dir/kept", "yes")
    sandbox.files.write("/tmp/kept", "too")
    assert sandbox.pause(mode="filesystem") is True
    assert sandbox.pause(mode="filesystem") is False
    assert sandbox.get_info().state is SandboxState.PAUSED
    assert sandbox.is_running() is False
    sandbox.connect(timeout=60)
    assert sandbox.run_code("'x' in dir()").text == "False"
    assert sandbox.files.read("dir/kept") == "yes"
    assert sandbox.files.read("/tmp/kept") == "too"
    assert sandbox.commands.run("echo $A").stdout == "b\n"
    sandbox.run_code("x = 1")
    sandbox.pause()
    sandbox.connect(timeout=60, on_resume="reboot")
    assert sandbox.run_code("'x' in dir()").text == "False"
    assert sandbox.files.read("dir/kept") == "yes"


def test_its_time_being_up_keeps_the_files_alone(create: Callable[..., Any]) -> None:
    """With `on_timeout` of the mode "filesystem" the end of its life keeps the files; connect() brings them back."""
    sandbox = create(lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    sandbox.run_code("open('f', 'w').write('here')")
    sandbox.set_timeout(0)
    assert sandbox.get_info().state is SandboxState.PAUSED
    sandbox.connect(timeout=60)
    assert sandbox.run_code("open('f').read()").text == "here"


def test_a_strict_pause_is_a_pause(create: Callable[..., Any]) -> None:
    """A sandbox that answers can be paused with `strict`, and one that is paused already is a False."""
    sandbox = create()
    assert sandbox.pause(strict=True) is True


def test_the_async_sdk_does_the_same(sdk: Options) -> None:
    """Many at once: pause and resume of several sandboxes, each with its own memory."""

    async def scenario() -> list[str | None]:
        made = await asyncio.gather(
            *(e2b_code_interpreter.AsyncSandbox.create(timeout=120, **sdk) for _ in range(3))  # type: ignore[arg-type]
        )
        try:
            for number, sandbox in enumerate(made):
                await sandbox.run_code(f"x = {number}")
            assert await asyncio.gather(*(sandbox.pause() for sandbox in made)) == [True] * 3
            await asyncio.gather(*(sandbox.connect(timeout=60) for sandbox in made))
            return [(await sandbox.run_code("x")).text for sandbox in made]
        finally:
            await asyncio.gather(*(sandbox.kill() for sandbox in made))

    assert asyncio.run(scenario()) == ["0", "1", "2"]


def parents() -> dict[int, int]:
    """The parent of each process that has not ended."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                found[int(entry.name)] = int(parent)
    return found


def below(pid: int) -> set[int]:
    """All that hang on a process, itself included: its sandboxes' programs, or on gVisor what runs them."""
    tree, found = parents(), {pid}
    while more := {child for child, parent in tree.items() if parent in found} - found:
        found |= more
    return found


def test_a_killed_engine_leaves_no_paused_sandbox(tmp_path: Path) -> None:
    """Processes that are stopped end too when the engine is killed outright."""
    import signal

    from sandboxkit.local._child import start_engine
    from sandboxkit.local._config import EngineConfig

    engine = start_engine(
        EngineConfig(
            isolation=os.environ["SANDBOXKIT_ISOLATION"],
            state_root=str(tmp_path / "run"),
            warm=0,
            log_level="warning",
        )
    )
    endpoint = engine.endpoint
    options = {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}
    sandbox = e2b.Sandbox.create("base", timeout=120, **options)  # type: ignore[arg-type]
    sandbox.commands.run("sleep 1000", background=True)
    own = below(engine.pid)
    sandbox.pause()
    assert own <= below(engine.pid), "all are there, and stand still"
    os.kill(engine.pid, signal.SIGKILL)
    wait_until(lambda: not own & set(parents()))
    engine.stop()
