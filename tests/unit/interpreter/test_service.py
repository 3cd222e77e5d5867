"""The interpreter's HTTP interface over a real kernel, without a box around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow]


def test_a_cell_streams_its_count_output_and_result_and_then_its_end(play: Callable[..., None]) -> None:
    """The events of a cell come in the order that E2B's clients read, and the last one says that it is over."""

    async def scenario(client: Any) -> None:
        events = await client.run("print('a'); print('b'); 'c'")
        assert events.kinds == ["number_of_executions", "stdout", "result", "end_of_execution"]
        assert events[0]["execution_count"] == 1
        assert events.stdout == "a\nb\n"
        assert events.main["text"] == "c"

    play(scenario)


def test_variables_and_the_count_live_on(play: Callable[..., None]) -> None:
    """Cells of one context share their variables and are counted."""

    async def scenario(client: Any) -> None:
        await client.run("x = 41")
        events = await client.run("x += 1; x")
        assert events.main["text"] == "42"
        assert events[0]["execution_count"] == 2

    play(scenario)


def test_output_of_children_keeps_its_place(play: Callable[..., None]) -> None:
    """What a child process or C code prints stands between what Python printed before and after it."""

    async def scenario(client: Any) -> None:
        code = "import os, subprocess\nprint('1')\nsubprocess.run(['echo', '2'])\nos.write(1, b'3\\n')\nprint('4')"
        assert (await client.run(code)).stdout == "1\n2\n3\n4\n"

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


def test_a_quick_cell_comes_in_one_piece(play: Callable[..., None]) -> None:
    """A reader has one turn with a quick cell, not one for its count, its result, its end and the answer's end."""

    async def scenario(client: Any) -> None:
        answers = []
        for _ in range(10):
            answer = client.start("print('a'); 1 + 1")
            assert (await answer.rest()).kinds == ["number_of_executions", "stdout", "result", "end_of_execution"]
            answers.append(answer.pieces)
        for pieces in answers:
            assert pieces[-1][0].endswith(b'{"type": "end_of_execution"}\n')
            assert [more for _, more in pieces] == [True] * (len(pieces) - 1) + [False]
        assert min(len(pieces) for pieces in answers) == 1, "a busy machine may tear one apart, not all"

    play(scenario)


def test_a_result_does_not_wait_for_the_end_of_its_cell(play: Callable[..., None], tmp_path: Path) -> None:
    """What a cell shows is sent while it goes on."""

    async def scenario(client: Any) -> None:
        code = "import os, time\ndisplay('now')\nwhile not os.path.exists('go'):\n    time.sleep(0.005)"
        events = client.start(code).events()
        assert (await anext(events))["type"] == "number_of_executions"
        assert (await anext(events))["text"] == "now"
        (tmp_path / "go").touch()
        assert [event["type"] async for event in events] == ["end_of_execution"]

    play(scenario)


def test_an_exception_is_one_error_event(play: Callable[..., None]) -> None:
    """An exception comes once, with its name, its value and a traceback without colours or our own frames."""

    async def scenario(client: Any) -> None:
        error = (await client.run("def f():\n    return 1 / 0\nf()")).error
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
        ("import getpass; getpass.getpass('Password: ')", "StdinNotImplementedError"),
        ("import asyncio; asyncio.run(asyncio.sleep(0))", "RuntimeError"),
    ],
)
def test_every_failure_is_an_error_and_leaves_the_context_usable(
    play: Callable[..., None], code: str, name: str
) -> None:
    """However a cell fails, there is one error event that names it, and the next cell runs."""

    async def scenario(client: Any) -> None:
        assert (await client.run(code)).error["name"] == name
        assert (await client.run("1 + 1")).main["text"] == "2"

    play(scenario)


def test_environment_variables_of_a_call_are_gone_after_it(play: Callable[..., None]) -> None:
    """`env_vars` are set for one cell, whatever characters they hold, and put back as they were."""

    async def scenario(client: Any) -> None:
        await client.run("import os; os.environ['KEPT'] = 'before'")
        value = 'it\'s "quoted" \\ é\n'
        events = await client.run("os.environ['NEW'], os.environ['KEPT']", env_vars={"NEW": value, "KEPT": "x"})
        assert events.main["text"] == repr((value, "x"))
        events = await client.run("os.environ.get('NEW'), os.environ['KEPT']")
        assert events.main["text"] == "(None, 'before')"

    play(scenario)


def test_top_level_await_and_background_tasks_share_one_loop(play: Callable[..., None]) -> None:
    """A task that one cell started goes on while a later one waits, on the loop that both see."""

    async def scenario(client: Any) -> None:
        await client.run(
            "import asyncio\ndone = asyncio.Event()\nasync def f():\n    await asyncio.sleep(0); done.set()"
        )
        await client.run("task = asyncio.create_task(f())")
        events = await client.run("await done.wait()\ntask.get_loop() is asyncio.get_running_loop()")
        assert events.main["text"] == "True"

    play(scenario)


def test_contexts_are_apart_and_can_be_listed_restarted_and_removed(play: Callable[..., None], tmp_path: Path) -> None:
    """A context has its own variables and directory; a restart empties it, a removal makes it unknown."""

    async def scenario(client: Any) -> None:
        (tmp_path / "sub").mkdir()
        one = await client.context(cwd=str(tmp_path / "sub"))
        listed = json.loads(await client.request("GET", "/contexts").text())
        assert [c["cwd"] for c in listed] == [str(tmp_path), str(tmp_path), str(tmp_path / "sub")]
        # Both languages' default contexts are listed from the start, as E2B lists them.
        assert [c["language"] for c in listed] == ["python", "javascript", "python"]
        await client.run("y = 1", context_id=one)
        assert (await client.run("y")).error["name"] == "NameError"
        assert (await client.run("import os; os.getcwd()", context_id=one)).main["text"] == str(tmp_path / "sub")

        restart = client.request("POST", f"/contexts/{one}/restart")
        await restart.text()
        assert await restart.status == 200
        assert (await client.run("y", context_id=one)).error["name"] == "NameError"

        await client.request("DELETE", f"/contexts/{one}").text()
        for response in (
            client.start("1", context_id=one),
            client.request("DELETE", f"/contexts/{one}"),
            client.request("POST", f"/contexts/{one}/restart"),
        ):
            assert await response.text() == f"Context {one} not found"
            assert await response.status == 404

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
        listed = json.loads(await client.request("GET", "/contexts").text())
        assert [context["language"] for context in listed] == ["python", "javascript"]

    play(scenario)


def test_lines_hold_no_character_that_clients_cut_at(play: Callable[..., None]) -> None:
    """Clients split the stream at every Unicode line break, so that none may stand in it unescaped."""

    async def scenario(client: Any) -> None:
        code = "print('a\\u2028b\\x85c\\x0cd'); {'é': 'x\\u2029y'}"
        assert (await client.start(code).text()).isascii()
        events = await client.run(code)
        assert events.stdout == "a\u2028b\x85c\x0cd\n"
        assert events.main["json"] == {"é": "x\u2029y"}

    play(scenario)
