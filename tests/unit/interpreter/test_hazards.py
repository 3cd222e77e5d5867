"""Clients that leave, kernels that die or do not let go, output without end: over a real kernel, without a box."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local.interpreter._kernel import Kernel
from sandboxkit.local.interpreter._languages import PYTHON

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize(
    "code",
    [
        "import time\nprint('on', flush=True)\ntime.sleep(60)",
        "import asyncio\nprint('on')\nawait asyncio.sleep(60)",
        "print('on')\nwhile True:\n    pass",
        "!echo on; sleep 60",
        "import os\nos.system('echo on; sleep 60')",
        "while True:\n    print('on' * 1000)",
    ],
)
def test_a_client_that_leaves_interrupts_its_cell(play: Callable[..., None], code: str) -> None:
    """When the client goes away the cell is interrupted, and the variables are still there for the next one."""

    async def scenario(client: Any) -> None:
        await client.run("kept = 7")
        response = client.start(code)
        async for event in response.events():
            if event["type"] == "stdout":
                break
        await response.leave()
        async with asyncio.timeout(10):
            assert (await client.run("kept")).main["text"] == "7"

    play(scenario)


def test_a_cell_that_does_not_let_go_costs_the_context_its_kernel(
    play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that ignores every interrupt is ended with its kernel, and the context works again."""
    from sandboxkit.local.interpreter import _contexts

    # The real patience is seconds; what happens after it is the same.
    monkeypatch.setattr(_contexts, "ATTEMPTS", (_contexts.Attempt(False, 0.1), _contexts.Attempt(True, 0.1)))

    async def scenario(client: Any) -> None:
        code = (
            "import signal, time\nkept = 7\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('on')\ntime.sleep(60)"
        )
        response = client.start(code)
        async for event in response.events():
            if event["type"] == "stdout":
                break
        await response.leave()
        assert (await client.run("kept")).error["name"] == "NameError"

    play(scenario)


def test_calls_of_one_context_queue(play: Callable[..., None], tmp_path: Path) -> None:
    """A second call waits until the first one is over; one whose client leaves while it waits never runs."""

    async def scenario(client: Any) -> None:
        first = client.start("import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.005)")
        assert (await anext(first.events()))["type"] == "number_of_executions"
        second, third = client.start("ran = 2"), client.start("ran = 3; ran")
        assert [await second.status, await third.status] == [200, 200]
        await second.leave()
        (tmp_path / "go").touch()
        events = await third.rest()
        assert events[0] == {"type": "number_of_executions", "execution_count": 2}
        assert events.main["text"] == "3"
        assert "end_of_execution" in [event["type"] async for event in first.events()]

    play(scenario)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; print('last words'); os._exit(3)", "exit code 3"),
        ("import os, signal; print('last words'); os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os; print('last words'); os.write(3, b'\\xff' * 100); input()", "nonsense"),
    ],
)
def test_a_kernel_that_dies_is_an_error_and_is_replaced(play: Callable[..., None], code: str, how: str) -> None:
    """The end of the kernel is an error that says how it ended, after its output; the next cell has a fresh one."""

    async def scenario(client: Any) -> None:
        events = await client.run(code)
        assert events.kinds == ["number_of_executions", "stdout", "error", "unexpected_end_of_execution"]
        assert events.error["name"] == "ContextRestarting"
        assert how in events.error["value"]
        again = await client.run("1 + 1")
        assert again.main["text"] == "2"
        assert again[0]["execution_count"] == 1

    play(scenario)


def test_a_kernel_that_died_between_cells_is_told(play: Callable[..., None]) -> None:
    """Where the kernel ended while nothing ran, the next cell runs on a fresh one and its stderr says so."""

    async def scenario(client: Any) -> None:
        await client.run("import os, threading\nthreading.Timer(0.05, lambda: os._exit(1)).start()")
        await client.agent.processes[0].wait()
        events = await client.run("1")
        assert "without its variables" in events.stderr
        assert events.main["text"] == "1"

    play(scenario)


def test_exit_ends_the_cell_well_and_starts_afresh(play: Callable[..., None]) -> None:
    """`exit()` is no error, as in a notebook; the next cell has a fresh kernel."""

    async def scenario(client: Any) -> None:
        assert (await client.run("x = 1\nexit()")).kinds == ["number_of_executions", "end_of_execution"]
        assert (await client.run("x")).error["name"] == "NameError"

    play(scenario)


def test_a_lost_sandbox_drops_the_connection(play: Callable[..., None]) -> None:
    """When the box ends under a cell, the application ends with AgentLost instead of inventing an end."""
    from sandboxkit.local.isolation._base import AgentLost

    async def scenario(client: Any) -> None:
        response = client.start("import time; time.sleep(60)")
        events = response.events()
        assert (await anext(events))["type"] == "number_of_executions"
        await client.agent.end_box()
        with pytest.raises(AgentLost):
            async for event in events:
                assert event["type"] == "keepalive"

    play(scenario)


def test_restarting_a_context_ends_the_code_that_runs_in_it(play: Callable[..., None]) -> None:
    """A restart does not wait for running code: that ends with an error that says what happened."""

    async def scenario(client: Any) -> None:
        context = await client.context()
        running = client.start("while True: pass", context_id=context)
        assert (await anext(running.events()))["type"] == "number_of_executions"
        await client.request("POST", f"/contexts/{context}/restart").text()
        assert (await running.rest()).error["name"] == "ContextRestarting"
        assert (await client.run("5", context_id=context)).main["text"] == "5"

    play(scenario)


def test_a_slow_client_holds_the_kernel_and_not_the_engine(play: Callable[..., None], tmp_path: Path) -> None:
    """Where nobody reads, the user's code waits in its print: the engine keeps little, and nothing is lost."""
    size = 30_000_000

    async def scenario(client: Any) -> None:
        code = f"import sys\nfor i in range({size // 1000}):\n    print('x' * 999)\nopen('done', 'w').close()"
        events = client.start(code).events()
        assert (await anext(events))["type"] == "number_of_executions"
        await asyncio.sleep(0.2)
        assert not os.path.exists(tmp_path / "done")
        read = 0
        async for event in events:
            read += len(event.get("text", ""))
        assert read == size
        assert os.path.exists(tmp_path / "done")

    play(scenario)


def test_a_process_that_prints_for_ever_between_cells_holds_up_nobody(play: Callable[..., None]) -> None:
    """What comes between cells is thrown away, at a bounded pace, and the next cell runs as usual."""

    async def scenario(client: Any) -> None:
        await client.run("import subprocess\nflood = subprocess.Popen(['yes'])")
        used, begun = time.process_time(), time.monotonic()
        await asyncio.sleep(0.5)
        assert time.process_time() - used < (time.monotonic() - begun) / 2
        assert (await client.run("flood.kill()\nflood.wait()")).main["text"] == "-9"
        assert (await client.run("print('quiet')")).stdout == "quiet\n"

    play(scenario)


def test_many_empty_messages_take_no_more_memory_than_large_ones(play: Callable[..., None]) -> None:
    """A kernel that floods the wire is not read any faster than its client reads."""

    async def scenario(client: Any) -> None:
        code = "for i in range(20_000):\n    display({'text/plain': ''}, raw=True)"
        events = client.start(code).events()
        assert (await anext(events))["type"] == "number_of_executions"
        kernel = client.service._defaults["python"]._kernel.result()
        most = 0
        async for event in events:
            if event["type"] == "result":
                most = max(most, len(kernel._items))
        assert 0 < most < 20_000 / 2

    play(scenario)


def test_restarts_at_the_same_time_are_all_well(play: Callable[..., None]) -> None:
    """Whoever restarts a context that is just being restarted gets a context that works."""

    async def scenario(client: Any) -> None:
        context = await client.context()
        restarts = [client.request("POST", f"/contexts/{context}/restart") for _ in range(3)]
        running = client.start("'on'", context_id=context)
        for restart in restarts:
            await restart.text()
            assert await restart.status == 200
        assert (await running.rest()).main["text"] == "on"

    play(scenario)


def test_a_result_beyond_the_limit_is_an_error(play: Callable[..., None]) -> None:
    """A result that is too large is refused by name, in the cell that showed it."""

    async def scenario(client: Any) -> None:
        error = (await client.run("'x' * (65 << 20)")).error
        assert error["name"] == "ResultTooLarge"
        assert "65 MiB" in error["value"]
        assert (await client.run("len('x' * (1 << 20))")).main["text"] == "1048576"

    play(scenario)


def test_a_large_result_arrives_whole(play: Callable[..., None]) -> None:
    """A result of many megabytes is one line, unharmed."""

    async def scenario(client: Any) -> None:
        events = await client.run("'é' * (4 << 20)")
        assert events.main["text"] == "é" * (4 << 20)

    play(scenario)


def test_code_that_a_dead_kernel_never_began_runs_in_the_next_one(play: Callable[..., None]) -> None:
    """A kernel may die just before it is asked: nothing has run, so the code runs in a fresh one, and says so."""

    async def scenario(client: Any) -> None:
        await client.run("lost = 1")
        kernel = client.service._defaults["python"]._kernel.result()
        # Stopped first, so that it cannot have begun when it dies with the code in its socket.
        pid = kernel._process.pid
        os.kill(pid, signal.SIGSTOP)
        events = client.start("'lost' in globals()").events()
        killing = asyncio.get_running_loop().call_later(0.1, os.kill, pid, signal.SIGKILL)
        heard = [event async for event in events]
        killing.cancel()
        kinds = [event["type"] for event in heard]
        assert kinds[0] == "stderr"
        assert "fresh one" in heard[0]["text"]
        assert [event["text"] for event in heard if event["type"] == "result"] == ["False"]
        assert kinds[-1] == "end_of_execution"

    play(scenario)


def test_a_kernel_that_reads_nothing_leaves_nothing_in_the_loop(play: Callable[..., None], tmp_path: Path) -> None:
    """Not even a descriptor's number, which is another connection's next: a sandbox would have broken that one."""

    async def scenario(client: Any) -> None:
        language = dataclasses.replace(PYTHON, interrupted_by="frame")
        kernel = await Kernel.start(client.agent, language, envs={}, cwd=str(tmp_path))
        os.kill(kernel._process.pid, signal.SIGSTOP)
        number = kernel._socket.fileno()
        kernel.execute("x" * 4_000_000, {})
        await asyncio.sleep(0.01)
        await kernel.interrupt(client.agent, group=False)
        await asyncio.sleep(0.01)
        kernel.close()
        await client.agent.signal(kernel._process.pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert number in (ours.fileno(), theirs.fileno())
            for end in (ours, theirs):
                asyncio.get_running_loop().add_reader(end, lambda: None)
                asyncio.get_running_loop().remove_reader(end)
        assert not [task for task in asyncio.all_tasks() if "_send_after" in repr(task)]

    play(scenario)


def test_a_language_without_a_kernel_leaves_nothing(open_client: Any, tmp_path: Path) -> None:
    """Neither a context nor a directory in the sandbox's /tmp."""
    (tmp_path / "tmp").mkdir()

    async def ask() -> None:
        async with open_client(TMPDIR=str(tmp_path / "tmp")) as client:
            response = client.start("1", language="fortran")
            assert "no Jupyter kernel called 'fortran'" in await response.text()
            assert response.status.result() == 400

    asyncio.run(ask())
    assert list((tmp_path / "tmp").iterdir()) == []
