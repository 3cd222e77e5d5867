"""The interpreter's HTTP interface over a real kernel, without a box around it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow]

Events = list[dict[str, Any]]


def kinds(events: Iterable[dict[str, Any]]) -> list[str]:
    """The types of the events, without those that only keep the connection alive."""
    return [event["type"] for event in events if event["type"] != "keepalive"]


def text(events: Iterable[dict[str, Any]], stream: str = "stdout") -> str:
    """All that was printed to one stream."""
    return "".join(event["text"] for event in events if event["type"] == stream)


def main_result(events: Events) -> dict[str, Any]:
    """The value of the cell."""
    (found,) = [event for event in events if event["type"] == "result" and event["is_main_result"]]
    return found


def error_of(events: Events) -> dict[str, Any]:
    """The one error of the cell."""
    (found,) = [event for event in events if event["type"] == "error"]
    return found


def test_a_cell_streams_its_count_output_and_result_and_then_its_end(play: Callable[..., None]) -> None:
    """The events of a cell come in the order that E2B's clients read, and the last one says that it is over."""

    async def scenario(client: Any) -> None:
        events = await client.run("print('a'); print('b'); 'c'")
        assert kinds(events) == ["number_of_executions", "stdout", "result", "end_of_execution"]
        assert events[0]["execution_count"] == 1
        assert text(events) == "a\nb\n"
        assert main_result(events)["text"] == "c"

    play(scenario)


def test_variables_and_the_count_live_on(play: Callable[..., None]) -> None:
    """Cells of one context share their variables and are counted."""

    async def scenario(client: Any) -> None:
        await client.run("x = 41")
        events = await client.run("x += 1; x")
        assert main_result(events)["text"] == "42"
        assert events[0]["execution_count"] == 2

    play(scenario)


def test_output_of_children_keeps_its_place(play: Callable[..., None]) -> None:
    """What a child process or C code prints stands between what Python printed before and after it."""

    async def scenario(client: Any) -> None:
        code = "import os, subprocess\nprint('1')\nsubprocess.run(['echo', '2'])\nos.write(1, b'3\\n')\nprint('4')"
        assert text(await client.run(code)) == "1\n2\n3\n4\n"

    play(scenario)


def test_output_arrives_while_the_cell_runs(play: Callable[..., None], tmp_path: Path) -> None:
    """Output is sent before the cell is over, also a line that has no end yet."""

    async def scenario(client: Any) -> None:
        code = "import os, time\nprint('now', end='')\nwhile not os.path.exists('go'):\n    time.sleep(0.005)"
        events = client.start(code).events()
        assert (await anext(events))["type"] == "number_of_executions"
        assert (await anext(events))["text"] == "now"
        (tmp_path / "go").touch()
        assert [event["type"] async for event in events] == ["end_of_execution"]

    play(scenario)


def test_an_exception_is_one_error_event(play: Callable[..., None]) -> None:
    """An exception comes once, with its name, its value and a traceback without colours or our own frames."""

    async def scenario(client: Any) -> None:
        error = error_of(await client.run("def f():\n    return 1 / 0\nf()"))
        assert (error["name"], error["value"]) == ("ZeroDivisionError", "division by zero")
        assert "return 1 / 0" in error["traceback"]
        assert "\x1b" not in error["traceback"]
        assert "kernel_" not in error["traceback"]

    play(scenario)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def f(:", "SyntaxError"),
        ("%no_such_magic", "UsageError"),
        ("raise ExceptionGroup('g', [ValueError(1)])", "ExceptionGroup"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("input()", "StdinNotImplementedError"),
        ("import asyncio; asyncio.run(asyncio.sleep(0))", "RuntimeError"),
    ],
)
def test_every_failure_is_an_error_and_leaves_the_context_usable(
    play: Callable[..., None], code: str, name: str
) -> None:
    """However a cell fails, there is one error event that names it, and the next cell runs."""

    async def scenario(client: Any) -> None:
        assert error_of(await client.run(code))["name"] == name
        assert main_result(await client.run("1 + 1"))["text"] == "2"

    play(scenario)


def test_environment_variables_of_a_call_are_gone_after_it(play: Callable[..., None]) -> None:
    """`env_vars` are set for one cell, whatever characters they hold, and put back as they were."""

    async def scenario(client: Any) -> None:
        await client.run("import os; os.environ['KEPT'] = 'before'")
        value = 'it\'s "quoted" \\ é\n'
        events = await client.run("os.environ['NEW'], os.environ['KEPT']", env_vars={"NEW": value, "KEPT": "x"})
        assert main_result(events)["text"] == repr((value, "x"))
        events = await client.run("os.environ.get('NEW'), os.environ['KEPT']")
        assert main_result(events)["text"] == "(None, 'before')"

    play(scenario)


def test_top_level_await_and_background_tasks_share_one_loop(play: Callable[..., None]) -> None:
    """A task that one cell started goes on while a later one waits, on the loop that both see."""

    async def scenario(client: Any) -> None:
        await client.run(
            "import asyncio\ndone = asyncio.Event()\nasync def f():\n    await asyncio.sleep(0); done.set()"
        )
        await client.run("task = asyncio.create_task(f())")
        events = await client.run("await done.wait()\ntask.get_loop() is asyncio.get_running_loop()")
        assert main_result(events)["text"] == "True"

    play(scenario)


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
            assert main_result(await client.run("kept"))["text"] == "7"

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
        assert error_of(await client.run("kept"))["name"] == "NameError"

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
        events = [event async for event in third.events()]
        assert events[0] == {"type": "number_of_executions", "execution_count": 2}
        assert main_result(events)["text"] == "3"
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
        assert kinds(events) == ["number_of_executions", "stdout", "error", "unexpected_end_of_execution"]
        assert error_of(events)["name"] == "ContextRestarting"
        assert how in error_of(events)["value"]
        again = await client.run("1 + 1")
        assert main_result(again)["text"] == "2"
        assert again[0]["execution_count"] == 1

    play(scenario)


def test_a_kernel_that_died_between_cells_is_told(play: Callable[..., None]) -> None:
    """Where the kernel ended while nothing ran, the next cell runs on a fresh one and its stderr says so."""

    async def scenario(client: Any) -> None:
        await client.run("import os, threading\nthreading.Timer(0.05, lambda: os._exit(1)).start()")
        await client.agent.processes[0].wait()
        events = await client.run("1")
        assert "without its variables" in text(events, "stderr")
        assert main_result(events)["text"] == "1"

    play(scenario)


def test_exit_ends_the_cell_well_and_starts_afresh(play: Callable[..., None]) -> None:
    """`exit()` is no error, as in a notebook; the next cell has a fresh kernel."""

    async def scenario(client: Any) -> None:
        assert kinds(await client.run("x = 1\nexit()")) == ["number_of_executions", "end_of_execution"]
        assert error_of(await client.run("x"))["name"] == "NameError"

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


def test_contexts_are_apart_and_can_be_listed_restarted_and_removed(play: Callable[..., None], tmp_path: Path) -> None:
    """A context has its own variables and directory; a restart empties it, a removal makes it unknown."""

    async def scenario(client: Any) -> None:
        (tmp_path / "sub").mkdir()
        one = await client.context(cwd=str(tmp_path / "sub"))
        listed = json.loads(await client.request("GET", "/contexts").text())
        assert [c["cwd"] for c in listed] == [str(tmp_path), str(tmp_path / "sub")]
        assert {c["language"] for c in listed} == {"python"}
        await client.run("y = 1", context_id=one)
        assert error_of(await client.run("y"))["name"] == "NameError"
        assert main_result(await client.run("import os; os.getcwd()", context_id=one))["text"] == str(tmp_path / "sub")

        restart = client.request("POST", f"/contexts/{one}/restart")
        await restart.text()
        assert await restart.status == 200
        assert error_of(await client.run("y", context_id=one))["name"] == "NameError"

        await client.request("DELETE", f"/contexts/{one}").text()
        for response in (
            client.start("1", context_id=one),
            client.request("DELETE", f"/contexts/{one}"),
            client.request("POST", f"/contexts/{one}/restart"),
        ):
            assert await response.text() == f"Context {one} not found"
            assert await response.status == 404

    play(scenario)


def test_restarting_a_context_ends_the_code_that_runs_in_it(play: Callable[..., None]) -> None:
    """A restart does not wait for running code: that ends with an error that says what happened."""

    async def scenario(client: Any) -> None:
        context = await client.context()
        running = client.start("while True: pass", context_id=context).events()
        assert (await anext(running))["type"] == "number_of_executions"
        await client.request("POST", f"/contexts/{context}/restart").text()
        assert error_of([event async for event in running])["name"] == "ContextRestarting"
        assert main_result(await client.run("5", context_id=context))["text"] == "5"

    play(scenario)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"code": 1}, 400),
        ([], 400),
        ({"code": "1", "language": "ruby"}, 400),
        ({"code": "1", "language": "python", "context_id": "x"}, 400),
        ({"code": "1", "env_vars": {"A=B": "c"}}, 400),
        ({"code": "1", "env_vars": {"A": 1}}, 400),
        ({"code": "1", "context_id": "nobody"}, 404),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(play: Callable[..., None], body: Any, status: int) -> None:
    """What is wrong with a request is said with a status of its own."""

    async def scenario(client: Any) -> None:
        response = client.request("POST", "/execute", body)
        assert await response.text()
        assert await response.status == status

    play(scenario)


def test_the_token_is_demanded_where_code_runs_and_nowhere_else(play: Callable[..., None]) -> None:
    """E2B's clients send the token with /execute only."""

    async def scenario(client: Any) -> None:
        refused = client.request("POST", "/execute", {"code": "1"}, token="guess")
        await refused.text()
        assert await refused.status == 401
        for path in ("/contexts", "/health"):
            assert await client.request("GET", path, token="").status == 200

    play(scenario)


def test_a_context_in_a_missing_directory_is_refused(play: Callable[..., None]) -> None:
    """The error names the directory, and no context is left."""

    async def scenario(client: Any) -> None:
        response = client.request("POST", "/contexts", {"cwd": "/no/such/place"})
        assert "/no/such/place" in await response.text()
        assert await response.status == 400
        assert len(json.loads(await client.request("GET", "/contexts").text())) == 1

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
        assert main_result(await client.run("flood.kill()\nflood.wait()"))["text"] == "-9"
        assert text(await client.run("print('quiet')")) == "quiet\n"

    play(scenario)


def test_many_empty_messages_take_no_more_memory_than_large_ones(play: Callable[..., None]) -> None:
    """A kernel that floods the wire is not read any faster than its client reads."""

    async def scenario(client: Any) -> None:
        code = "for i in range(20_000):\n    display({'text/plain': ''}, raw=True)"
        events = client.start(code).events()
        assert (await anext(events))["type"] == "number_of_executions"
        kernel = client.service._default._kernel.result()
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
        assert main_result([event async for event in running.events()])["text"] == "on"

    play(scenario)


def test_a_result_beyond_the_limit_is_an_error(play: Callable[..., None]) -> None:
    """A result that is too large is refused by name, in the cell that showed it."""

    async def scenario(client: Any) -> None:
        error = error_of(await client.run("'x' * (65 << 20)"))
        assert error["name"] == "ResultTooLarge"
        assert "65 MiB" in error["value"]
        assert main_result(await client.run("len('x' * (1 << 20))"))["text"] == "1048576"

    play(scenario)


def test_a_large_result_arrives_whole(play: Callable[..., None]) -> None:
    """A result of many megabytes is one line, unharmed."""

    async def scenario(client: Any) -> None:
        events = await client.run("'é' * (4 << 20)")
        assert main_result(events)["text"] == "é" * (4 << 20)

    play(scenario)


def test_lines_hold_no_character_that_clients_cut_at(play: Callable[..., None]) -> None:
    """Clients split the stream at every Unicode line break, so that none may stand in it unescaped."""

    async def scenario(client: Any) -> None:
        response = client.start("print('a\\u2028b\\x85c\\x0cd'); {'é': 'x\\u2029y'}")
        raw = await response.text()
        assert raw.isascii()
        events = [json.loads(line) for line in raw.splitlines()]
        assert text(events) == "a\u2028b\x85c\x0cd\n"
        assert main_result(events)["json"] == {"é": "x\u2029y"}

    play(scenario)
