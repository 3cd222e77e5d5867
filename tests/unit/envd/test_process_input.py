"""What goes into processes over the wire: by pipe and by terminal."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import pytest

# -- input --------------------------------------------------------------------------------------------------------


def test_without_stdin_it_is_empty(envd: Any) -> None:
    """`stdin: false` gives /dev/null, so that nothing waits for input."""
    events = envd.bash("readlink /proc/self/fd/0; cat", stdin=False)
    assert envd.output(events) == b"/dev/null\n"


@pytest.mark.slow
def test_input_reaches_the_process_in_order(envd: Any, live: Callable[..., Any]) -> None:
    """A streamed input is written in order, through a pipe that is smaller than it, and ends with CloseStdin."""
    stream = live("Process/Start", envd.script("cat > got; wc -c < got"))
    pid = next(stream)["event"]["start"]["pid"]
    pieces = [os.urandom(50_000) for _ in range(20)]
    data = [{"data": {"input": {"stdin": base64.b64encode(piece).decode()}}} for piece in pieces]
    answer = envd.stream("Process/StreamInput", {"start": {"process": {"pid": pid}}}, *data, {"keepalive": {}})
    assert answer == [{}, {}]
    assert envd.call("Process/CloseStdin", {"process": {"pid": pid}}).json() == {}
    assert envd.call("Process/CloseStdin", {"process": {"pid": pid}}).status_code in (200, 404)
    assert envd.output(stream.rest()) == b"1000000\n"
    assert (envd.home / "got").read_bytes() == b"".join(pieces)


@pytest.mark.slow
def test_input_waits_for_its_reader(envd: Any, live: Callable[..., Any]) -> None:
    """Input that nobody reads is not kept here: the call waits, until its deadline."""
    stream = live("Process/Start", envd.script("sleep 300"))
    pid = next(stream)["event"]["start"]["pid"]
    big = base64.b64encode(b"x" * 1_000_000).decode()
    answer = envd.call(
        "Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": big}}, **{"Connect-Timeout-Ms": "300"}
    )
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": 9})
    assert envd.end(stream.rest())["status"] == "signal: killed"


def test_input_that_nobody_can_take_is_refused(envd: Any, live: Callable[..., Any]) -> None:
    """Each wrong way to feed a process has its own sentence."""
    plain = live("Process/Start", envd.script("exec 0<&-; echo closed; sleep 300"))
    pid = next(plain)["event"]["start"]["pid"]
    next(plain)
    nothing = live("Process/Start", envd.script("sleep 300", stdin=False))
    no_stdin = next(nothing)["event"]["start"]["pid"]
    terminal = live("Process/Start", envd.script("cat", pty={"size": {"cols": 80, "rows": 24}}))
    tty = next(terminal)["event"]["start"]["pid"]
    data = base64.b64encode(b"x").decode()
    cases = [
        (pid, "stdin", "broken pipe"),
        (pid, "pty", "tty not assigned to process"),
        (no_stdin, "stdin", "stdin not enabled or closed"),
        (tty, "stdin", "input should be written to the pty"),
    ]
    for target, kind, message in cases:
        answer = envd.call("Process/SendInput", {"process": {"pid": target}, "input": {kind: data}})
        assert answer.json()["code"] == "failed_precondition"
        assert message in answer.json()["message"]
    closing = envd.call("Process/CloseStdin", {"process": {"pid": tty}}).json()
    assert "send Ctrl+D (0x04) instead" in closing["message"]
    assert envd.call("Process/SendInput", {"process": {"pid": pid}, "input": {}}).json()["code"] == "unimplemented"
    (only,) = envd.stream("Process/StreamInput", {"data": {"input": {"stdin": data}}})
    assert only["error"]["code"] == "invalid_argument"
    for target in (pid, no_stdin, tty):
        envd.call("Process/SendSignal", {"process": {"pid": target}, "signal": "SIGNAL_SIGKILL"})


# -- terminals ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_terminal_is_one(envd: Any, live: Callable[..., Any]) -> None:
    """A PTY has a size, a TERM, echoes what is typed, is resized, and ends like a process."""
    stream = live(
        "Process/Start",
        envd.script("tty; stty size; echo $TERM; read; stty size; exit 4", pty={"size": {"cols": 91, "rows": 31}}),
    )
    pid = next(stream)["event"]["start"]["pid"]
    seen = b""
    while b"xterm" not in seen:
        seen += base64.b64decode(next(stream)["event"]["data"]["pty"])
    assert b"/dev/pts/" in seen
    assert b"31 91" in seen
    resized = envd.call("Process/Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 120, "rows": 40}}})
    assert resized.json() == {}
    typed = base64.b64encode(b"typed\n").decode()
    assert envd.call("Process/SendInput", {"process": {"pid": pid}, "input": {"pty": typed}}).json() == {}
    rest = stream.rest()
    assert b"typed" in envd.output(rest, "pty")
    assert b"40 120" in envd.output(rest, "pty")
    assert envd.end(rest)["exitCode"] == 4


def test_only_a_terminal_has_a_size(envd: Any, live: Callable[..., Any]) -> None:
    """Resizing what is no terminal is an error that says so."""
    stream = live("Process/Start", envd.script("cat"))
    pid = next(stream)["event"]["start"]["pid"]
    answer = envd.call("Process/Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 1, "rows": 1}}})
    assert "tty not assigned to process" in answer.json()["message"]
    envd.call("Process/CloseStdin", {"process": {"pid": pid}})
    stream.rest()
