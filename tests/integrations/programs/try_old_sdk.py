"""The calls that CrewAI's tools make of E2B's SDK, with the one that its extra pins: all but the interpreter's.

That one goes to a name of E2B's own by https, whatever the variables say: the first that heeds them is 2.9.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from e2b import AsyncSandbox, CommandExitException, Sandbox


def calls(of: Any) -> None:
    loop = asyncio.new_event_loop()

    def do(value: Any) -> Any:
        return loop.run_until_complete(value) if inspect.isawaitable(value) else value

    sandbox = do(of.create(timeout=60, envs={"FROM": "create"}, metadata={"mark": "old"}))
    try:
        found = do(of.connect(sandbox.sandbox_id, timeout=60))
        for one in (sandbox, found):
            assert do(one.commands.run("printf %s $FROM", timeout=5)).stdout == "create"
            assert do(one.files.make_dir(f"notes/{id(one)}")) is True
            do(one.files.write("notes/a.bin", b"\x00\xff"))
            assert bytes(do(one.files.read("notes/a.bin", format="bytes"))) == b"\x00\xff"
            assert do(one.files.get_info("notes/a.bin")).size == 2
            assert "a.bin" in [entry.name for entry in do(one.files.list("notes", depth=1))]
            do(one.files.remove("notes"))
            assert do(one.files.exists("notes")) is False
            assert do(one.is_running()) is True
        try:
            do(found.commands.run("exit 3"))
        except CommandExitException as error:
            code = error.exit_code
        assert code == 3
    finally:
        assert do(sandbox.kill()) is True
    assert do(found.is_running()) is False
    print(of.__name__)


calls(Sandbox)
calls(AsyncSandbox)
print("all")
