"""CrewAI: its three E2B tools, with a sandbox for each call, with one kept, and in one that was there before."""

from __future__ import annotations

import base64

from crewai_tools import E2BExecTool, E2BFileTool, E2BPythonTool
from e2b import CommandExitException
from e2b_code_interpreter import Sandbox


def for_each_call() -> None:
    done = E2BPythonTool().run(code="print('hello')\n6 * 7")
    assert (done["text"], done["stdout"], done["error"]) == ("42", ["hello\n"], None), done
    failed = E2BPythonTool().run(code="1 / 0")
    assert failed["error"]["name"] == "ZeroDivisionError", failed
    done = E2BExecTool(envs={"FROM": "create"}).run(command="echo $FROM $CALL", envs={"CALL": "call"}, cwd="/tmp")
    assert (done["exit_code"], done["stdout"], done["stderr"]) == (0, "create call\n", ""), done
    try:
        E2BExecTool().run(command="exit 3")
    except CommandExitException as error:
        code = error.exit_code
    assert code == 3
    print("for each call")


def kept() -> None:
    python = E2BPythonTool(persistent=True)
    try:
        python.run(code="x = 20")
        assert python.run(code="x + 1")["text"] == "21"
    finally:
        python.close()
    print("kept")


def attached() -> None:
    with Sandbox.create(timeout=60) as sandbox:
        files = E2BFileTool(sandbox_id=sandbox.sandbox_id)
        given = base64.b64encode(b"\x00\xff").decode()
        files.run(action="write", path="/home/user/notes/a.bin", content=given, binary=True)
        # Its `append` gives this SDK a bytearray, which that refuses, whoever serves it.
        read = files.run(action="read", path="/home/user/notes/a.bin", binary=True)
        assert base64.b64decode(read["content"]) == b"\x00\xff"
        files.run(action="mkdir", path="/home/user/notes/deeper")
        listed = files.run(action="list", path="/home/user/notes")["entries"]
        assert sorted(entry["name"] for entry in listed) == ["a.bin", "deeper"], listed
        assert files.run(action="info", path="/home/user/notes/a.bin")["size"] == 2
        files.run(action="delete", path="/home/user/notes")
        assert files.run(action="exists", path="/home/user/notes")["exists"] is False
        assert sandbox.is_running()
    print("attached")


for_each_call()
kept()
attached()
print("all")
