"""What each supported Python client must do against the engine. Runs in that client's own environment.

    python program.py sync|async

Only calls that the oldest supported client has. Prints one line for each thing done; any difference is an exception.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import uuid
from collections.abc import Callable
from typing import Any

from e2b.exceptions import NotFoundException
from e2b_code_interpreter import AsyncSandbox, Sandbox


class Steps:
    """One colour of the client: `do` waits for what a call returns, so that a step reads the same in both."""

    def __init__(self, colour: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.sandbox_class: Any = Sandbox if colour == "sync" else AsyncSandbox

    def do(self, value: Any) -> Any:
        return self.loop.run_until_complete(value) if inspect.isawaitable(value) else value

    def life(self, mark: str) -> None:
        do = self.do
        sandbox = do(self.sandbox_class.create(timeout=120, metadata={"mark": mark}, envs={"FROM": "create"}))
        try:
            self.code(sandbox)
            self.commands(sandbox)
            self.files(sandbox)
            self.state(sandbox, mark)
        finally:
            killed = do(sandbox.kill())
        assert killed is True
        assert do(sandbox.is_running()) is False
        done("kill")

    def code(self, sandbox: Any) -> None:
        do, seen = self.do, []
        first = do(
            sandbox.run_code("x = 20; print('hello')\nx + 1", on_stdout=lambda line: seen.append(str(line.line)))
        )
        assert first.text == "21", first
        assert "".join(seen) == "hello\n", seen
        assert do(sandbox.run_code("x * 2")).text == "40"
        failed = do(sandbox.run_code("1 / 0"))
        assert failed.error.name == "ZeroDivisionError"
        assert do(sandbox.run_code("import os; os.environ['FROM']")).text == "create"
        done("run_code")
        context = do(sandbox.create_code_context(cwd="/tmp"))
        assert do(sandbox.run_code("import os; os.getcwd()", context=context)).text == "/tmp"
        done("contexts")
        table = do(sandbox.run_code("import pandas; pandas.DataFrame({'a': [1, 2]})")).results[0]
        assert "<table" in table.html
        chart = do(
            sandbox.run_code("import matplotlib.pyplot as plt; _ = plt.bar(['p', 'q'], [1, 2]); plt.show()")
        ).results[0]
        assert chart.png
        assert chart.chart.type.value == "bar", chart.chart
        done("rich results")

    def commands(self, sandbox: Any) -> None:
        do, seen = self.do, []
        result = do(sandbox.commands.run("echo out; echo err >&2; exit 0", on_stdout=seen.append))
        assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
        assert "".join(seen) == "out\n"
        done("command")
        handle = do(sandbox.commands.run("read line; echo got $line; sleep 30", background=True, stdin=True))
        assert handle.pid in [process.pid for process in do(sandbox.commands.list())]
        do(sandbox.commands.send_stdin(handle.pid, "this\n"))
        assert do(sandbox.commands.kill(handle.pid)) is True
        done("background command")

    def files(self, sandbox: Any) -> None:
        do, text = self.do, "grün\n" * 1000
        do(sandbox.files.write("folder/a.txt", text))
        assert do(sandbox.files.read("folder/a.txt")) == text
        assert bytes(do(sandbox.files.read("folder/a.txt", format="bytes"))) == text.encode()
        assert [entry.name for entry in do(sandbox.files.list("folder"))] == ["a.txt"]
        assert do(sandbox.files.exists("folder/a.txt")) is True
        do(sandbox.files.rename("folder/a.txt", "folder/b.txt"))
        do(sandbox.files.remove("folder/b.txt"))
        assert do(sandbox.files.exists("folder/b.txt")) is False
        assert do(sandbox.files.make_dir("folder/deeper")) is True
        try:
            do(sandbox.files.read("folder/b.txt"))
        except NotFoundException:
            pass
        else:
            raise AssertionError("a missing file was read")
        done("files")

    def state(self, sandbox: Any, mark: str) -> None:
        do = self.do
        assert do(sandbox.is_running()) is True
        info = do(sandbox.get_info())
        assert info.sandbox_id == sandbox.sandbox_id
        assert info.metadata["mark"] == mark
        do(sandbox.set_timeout(200))
        again = do(self.sandbox_class.connect(sandbox.sandbox_id))
        assert do(again.run_code("x")).text == "20"
        done("connect")


def done(what: str) -> None:
    """Say that something was seen to work."""
    print(what, flush=True)


def listed(mark: str) -> None:
    """The paged list finds it by its metadata."""
    from e2b.sandbox.sandbox_api import SandboxQuery

    sandbox = Sandbox.create(timeout=60, metadata={"mark": mark})
    try:
        pages = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}))
        assert [info.sandbox_id for info in pages.next_items()] == [sandbox.sandbox_id]
    finally:
        sandbox.kill()
    done("list")


def paused(mark: str) -> None:
    """Pause and resume keep memory, under the name that this client has for them."""
    sandbox: Any = Sandbox.create(timeout=60, metadata={"mark": mark})
    try:
        sandbox.run_code("kept = 'yes'")
        pause: Callable[[], Any] = getattr(sandbox, "pause", None) or sandbox.beta_pause
        pause()
        again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
        assert again.run_code("kept").text == "yes", again
    finally:
        Sandbox.kill(sandbox.sandbox_id)
    done("pause and resume")


if __name__ == "__main__":
    Steps(sys.argv[1]).life(f"a b&{uuid.uuid4().hex}=ü")
    if sys.argv[1] == "sync":
        listed(f"c d&{uuid.uuid4().hex}=ö")
        paused(uuid.uuid4().hex)
    done("all")
