"""Processes over the wire: what is started, what comes out, how it ends."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def output(events: list[dict[str, Any]], kind: str = "stdout") -> bytes:
    """All output of one kind, joined."""
    chunks = [event.get("event", {}).get("data", {}).get(kind) for event in events]
    return b"".join(base64.b64decode(chunk) for chunk in chunks if chunk)


def end(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The end event; it must be the last but the end of the stream."""
    assert events[-1] == {}, events[-1]
    found: dict[str, Any] = events[-2]["event"]["end"]
    return found


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


class Live:
    """A streaming call that is read event by event."""

    def __init__(self, envd: Any, make_frame: Callable[[bytes], bytes], method: str, message: object) -> None:
        self._client = envd.client()
        request = self._client.build_request(
            "POST",
            f"/process.{method}",
            content=make_frame(json.dumps(message).encode()),
            headers={"Content-Type": "application/connect+json"},
        )
        self._response = self._client.send(request, stream=True)
        self._bytes = self._response.iter_raw()
        self._buffer = b""

    def __next__(self) -> dict[str, Any]:
        while len(self._buffer) < 5 or len(self._buffer) < 5 + int.from_bytes(self._buffer[1:5], "big"):
            self._buffer += next(self._bytes)
        size = int.from_bytes(self._buffer[1:5], "big")
        payload, self._buffer = self._buffer[5 : 5 + size], self._buffer[5 + size :]
        found: dict[str, Any] = json.loads(payload)
        return found

    def rest(self) -> list[dict[str, Any]]:
        """Everything up to the end of the stream."""
        found = [next(self)]
        while "event" in found[-1]:
            found.append(next(self))
        return found

    def close(self) -> None:
        """Hang up."""
        self._response.close()
        self._client.close()


@pytest.fixture
def live(envd: Any, make_frame: Callable[[bytes], bytes]) -> Iterator[Callable[..., Live]]:
    """Open streams that are closed after the test."""
    opened = []

    def open_stream(method: str, message: object) -> Live:
        opened.append(Live(envd, make_frame, method, message))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.close()


def bash(script: str, **more: Any) -> dict[str, Any]:
    return {"process": {"cmd": "/bin/bash", "args": ["-c", script]}, **more}


# -- starting and ending ------------------------------------------------------------------------------------------


def test_events_come_in_order(envd: Any) -> None:
    """First the start with its pid, then the output, then the end, then the end of the stream."""
    events = envd.bash("echo $$; echo err >&2; exit 3")
    pid = events[0]["event"]["start"]["pid"]
    assert output(events) == f"{pid}\n".encode()
    assert output(events, "stderr") == b"err\n"
    assert end(events) == {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}


def test_success_omits_the_zero(envd: Any) -> None:
    """An exit code of 0 and an absent error are left out of the end event."""
    assert end(envd.bash("true")) == {"exited": True, "status": "exit status 0"}


@pytest.mark.parametrize(("name", "text"), [("KILL", "killed"), ("TERM", "terminated"), ("SEGV", "segmentation fault")])
def test_a_signals_end_is_told_in_gos_words(envd: Any, name: str, text: str) -> None:
    """A process that a signal ended has exit code -1 and did not exit."""
    told = end(envd.bash(f"kill -{name} $$"))
    assert told == {"exitCode": -1, "status": f"signal: {text}", "error": f"signal: {text}"}


def test_output_is_complete_and_in_chunks(envd: Any) -> None:
    """A megabyte arrives byte for byte, in chunks of at most 32 KiB."""
    events = envd.bash("head -c 1000000 /dev/zero | tr '\\0' 'x'; printf end")
    assert output(events) == b"x" * 1_000_000 + b"end"
    sizes = [len(base64.b64decode(e["event"]["data"]["stdout"])) for e in events[1:-2]]
    assert max(sizes) <= 32 * 1024


def test_the_environment_is_ours_the_sandboxs_and_the_requests(envd: Any) -> None:
    """Base variables, then the sandbox's, then the request's; nothing of the engine's own environment."""
    os.environ["ENGINE_SECRET"] = "leaked"
    try:
        events = envd.bash("env", process={"envs": {"MINE": "1", "FROM_SANDBOX": "changed"}})
    finally:
        del os.environ["ENGINE_SECRET"]
    found = dict(line.split("=", 1) for line in output(events).decode().splitlines())
    assert (found["MINE"], found["FROM_SANDBOX"]) == ("1", "changed")
    assert found["USER"] == found["LOGNAME"] == "user"
    assert found["HOME"] == str(envd.home)
    assert "ENGINE_SECRET" not in found


def test_the_working_directory(envd: Any) -> None:
    """Nothing and `~` are the home, a relative one lies beneath it."""
    (envd.home / "sub").mkdir()
    for cwd, expected in ((None, envd.home), ("", envd.home), ("~", envd.home), ("sub/../sub", envd.home / "sub")):
        process = {} if cwd is None else {"cwd": cwd}
        assert output(envd.bash("pwd", process=process)).decode().strip() == str(expected)


@pytest.mark.parametrize(
    ("start", "code", "message"),
    [
        ({"process": {"cmd": "true", "cwd": "/no/such"}}, "invalid_argument", "cwd '/no/such' does not exist"),
        ({"process": {"cmd": "true", "cwd": "~bob"}}, "invalid_argument", "cannot expand user-specific home dir"),
        ({"process": {"cmd": "no-such-program"}}, "invalid_argument", "error starting process 'no-such-program'"),
        ({"process": {"cmd": "/etc/passwd"}}, "invalid_argument", "error starting process '/etc/passwd'"),
        ({"process": {"cmd": ""}}, "invalid_argument", "no command"),
        ({}, "invalid_argument", "no command"),
        ({"process": {"cmd": "true", "envs": {"A=B": "c"}}}, "invalid_argument", "'A=B'"),
        ({"process": {"cmd": "true", "args": ["a\0b"]}}, "invalid_argument", "NUL"),
        ({"process": {"cmd": "true", "args": "no list"}}, "invalid_argument", "process.args"),
        ({"process": {"cmd": "true"}, "stdin": "yes"}, "invalid_argument", "stdin"),
    ],
)
def test_what_cannot_be_started_is_told(envd: Any, start: dict[str, Any], code: str, message: str) -> None:
    """A bad request ends the stream with a typed error that names what is wrong, and starts nothing."""
    (only,) = envd.stream("Process/Start", start)
    assert only["error"]["code"] == code
    assert message in only["error"]["message"]
    assert envd.call("Process/List", {}).json() == {"processes": []}


def test_another_user_is_refused(envd: Any) -> None:
    """`user` may be named, any other user is unauthenticated, root with the reason."""
    for name, passes in (("user", True), ("", True), ("root", False), ("bob", False)):
        credentials = base64.b64encode(f"{name}:".encode()).decode()
        events = envd.bash("true", headers={"Authorization": f"Basic {credentials}"})
        if passes:
            assert end(events)["status"] == "exit status 0"
        else:
            assert events[0]["error"]["code"] == "unauthenticated"
            assert f"invalid username: '{name}'" in events[0]["error"]["message"]


# -- deadlines and survivors --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_deadline_kills_the_whole_group(envd: Any) -> None:
    """When the deadline passes, the call ends with deadline_exceeded and children of the shell are gone as well."""
    events = envd.bash("sleep 300 & echo $!; wait", headers={"Connect-Timeout-Ms": "400"})
    assert events[-1] == {"error": {"code": "deadline_exceeded", "message": "context deadline exceeded"}}
    child = int(output(events))
    until(lambda: not os.path.exists(f"/proc/{child}") or _is_zombie(child))
    until(lambda: envd.call("Process/List", {}).json() == {"processes": []})


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.slow
def test_the_deadline_holds_after_the_client_has_gone(envd: Any, live: Callable[..., Live]) -> None:
    """A client that hangs up leaves the process running, but only until its deadline."""
    stream = envd.client(**{"Connect-Timeout-Ms": "700"})
    with stream as client:
        body = json.dumps(bash("sleep 300")).encode()
        request = client.build_request(
            "POST",
            "/process.Process/Start",
            content=b"\0" + len(body).to_bytes(4, "big") + body,
            headers={"Content-Type": "application/connect+json"},
        )
        client.send(request, stream=True).close()
    until(lambda: envd.call("Process/List", {}).json()["processes"])
    until(lambda: not envd.call("Process/List", {}).json()["processes"])


@pytest.mark.slow
def test_a_client_that_hangs_up_does_not_kill(envd: Any, live: Callable[..., Live]) -> None:
    """The process goes on without a listener, its output discarded, and can be connected to."""
    script = "sleep 0.2; head -c 3000000 /dev/zero; touch wrote; while [ ! -e go ]; do sleep 0.02; done; echo last"
    stream = live("Process/Start", bash(script))
    pid = next(stream)["event"]["start"]["pid"]
    stream.close()
    until((envd.home / "wrote").exists)
    second = live("Process/Connect", {"process": {"pid": pid}})
    assert next(second) == {"event": {"start": {"pid": pid}}}
    (envd.home / "go").touch()
    rest = second.rest()
    assert output(rest) == b"last\n"
    assert end(rest)["status"] == "exit status 0"


@pytest.mark.slow
def test_a_process_left_behind_does_not_hold_back_the_end(envd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes although a grandchild still holds the pipe; what it writes later does not kill it."""
    # Our own bound is shortened: five seconds of silence is a fact about people's patience, not about the code.
    monkeypatch.setattr("sandboxkit.local.envd._processes.SILENCE", 0.3)
    events = envd.bash("(while [ ! -e go ]; do sleep 0.05; done; echo late && touch survived) & echo started")
    assert output(events) == b"started\n"
    assert end(events)["status"] == "exit status 0"
    (envd.home / "go").touch()
    until((envd.home / "survived").exists)


@pytest.mark.slow
def test_output_of_a_process_left_behind_is_waited_for(envd: Any) -> None:
    """As in envd, output that a background child writes soon after the shell's end belongs to the command."""
    events = envd.bash("(sleep 0.3; echo late) & echo first")
    assert output(events) == b"first\nlate\n"


@pytest.mark.slow
def test_an_endless_writer_left_behind_does_not_hold_back_the_end(envd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild that never stops writing delays the end for a bounded time only."""
    monkeypatch.setattr("sandboxkit.local.envd._processes.LINGER", 0.3)
    monkeypatch.setattr("sandboxkit.local.envd._processes.SILENCE", 0.3)
    events = envd.bash("(while [ ! -e stop ]; do echo y; done) & true")
    (envd.home / "stop").touch()
    assert end(events)["status"] == "exit status 0"


# -- listening ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_listeners_hear_the_same(envd: Any, live: Callable[..., Live]) -> None:
    """Each that is connected gets all output from then on, and the end."""
    first = live("Process/Start", bash("read line; echo $line; echo err >&2; exit 7", tag="both"))
    pid = next(first)["event"]["start"]["pid"]
    second = live("Process/Connect", {"process": {"tag": "both"}})
    assert next(second) == {"event": {"start": {"pid": pid}}}
    line = base64.b64encode(b"hello\n").decode()
    assert envd.call("Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": line}}).json() == {}
    for stream in (first, second):
        rest = stream.rest()
        assert output(rest) == b"hello\n"
        assert output(rest, "stderr") == b"err\n"
        assert end(rest)["exitCode"] == 7


def test_an_ended_process_is_remembered_for_a_while(envd: Any) -> None:
    """Connecting to a process that has just ended replays its start and its end; it is not listed any more."""
    events = envd.bash("exit 5", tag="short")
    pid = events[0]["event"]["start"]["pid"]
    assert envd.call("Process/List", {}).json() == {"processes": []}
    for selector in ({"pid": pid}, {"tag": "short"}):
        again = envd.stream("Process/Connect", {"process": selector})
        assert again[0] == {"event": {"start": {"pid": pid}}}
        assert end(again)["exitCode"] == 5
    signal = envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert signal.status_code == 404


def test_it_is_not_remembered_for_ever(envd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time is over the pid is unknown."""
    monkeypatch.setattr("sandboxkit.local.envd._processes.REMEMBERED", 0.0)
    pid = envd.bash("true")[0]["event"]["start"]["pid"]
    (only,) = envd.stream("Process/Connect", {"process": {"pid": pid}})
    assert only == {"error": {"code": "not_found", "message": f"process with pid {pid} not found"}}


@pytest.mark.parametrize(
    ("selector", "code", "message"),
    [
        ({"pid": 4242424}, "not_found", "process with pid 4242424 not found"),
        ({"tag": "none"}, "not_found", "process with tag none not found"),
        ({}, "unimplemented", "selector"),
        ({"pid": 1, "tag": "x"}, "invalid_argument", "only one"),
    ],
)
def test_selectors_that_select_nothing(envd: Any, selector: dict[str, Any], code: str, message: str) -> None:
    """Every method that takes a selector says the same about a wrong one."""
    for method in ("Process/SendInput", "Process/CloseStdin", "Process/SendSignal", "Process/Update"):
        answer = envd.call(method, {"process": selector}).json()
        assert answer["code"] == code
        assert message in answer["message"]
    for method in ("Process/Connect", "Process/StreamInput"):
        request = {"process": selector} if method == "Process/Connect" else {"start": {"process": selector}}
        (only,) = envd.stream(method, request)
        assert only["error"]["code"] == code


@pytest.mark.slow
def test_silence_is_filled_with_keepalives(envd: Any) -> None:
    """A stream without output sends a keepalive each interval that the client asked for."""
    events = envd.bash("sleep 1.3", headers={"Keepalive-Ping-Interval": "1"})
    assert {"event": {"keepalive": {}}} in events


@pytest.mark.slow
def test_connects_deadline_ends_the_stream_alone(envd: Any, live: Callable[..., Live]) -> None:
    """A listener's deadline does not touch the process."""
    first = live("Process/Start", bash("cat"))
    pid = next(first)["event"]["start"]["pid"]
    events = envd.stream("Process/Connect", {"process": {"pid": pid}}, **{"Connect-Timeout-Ms": "200"})
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    assert envd.call("Process/List", {}).json()["processes"][0]["pid"] == pid
    envd.call("Process/CloseStdin", {"process": {"pid": pid}})
    assert end(first.rest())["status"] == "exit status 0"


@pytest.mark.slow
def test_a_listener_that_does_not_read_holds_the_process_back(envd: Any, live: Callable[..., Live]) -> None:
    """Endless output to a client that reads nothing stops in bounded memory: the writer blocks, and ends when the
    client goes."""
    stream = live("Process/Start", bash("yes | while read x; do echo $((n+=1)) > count; echo " + "y" * 8000 + "; done"))
    pid = next(stream)["event"]["start"]["pid"]
    count = envd.home / "count"

    def stands_still() -> bool:
        before = count.read_text() if count.exists() else ""
        time.sleep(0.3)
        return bool(before) and count.read_text() == before

    until(stands_still, 20)
    # 256 KiB of ours, 64 KiB of pipe, and what sockets take: far less than a writer makes in this time.
    assert int(count.read_text()) * 8001 < 32 * 1024 * 1024
    envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    stream.close()
    until(lambda: envd.call("Process/List", {}).json() == {"processes": []})


@pytest.mark.slow
def test_a_stalled_listener_does_not_stop_the_others(
    envd: Any, live: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two listeners that takes nothing is cut off after a while; the other gets everything."""
    monkeypatch.setattr("sandboxkit.local.envd._subscribers.deliver.__kwdefaults__", {"stalled": 0.3})
    script = "read; for i in {1..1000}; do printf %020000d 0; done; echo; echo done"
    stalled = live("Process/Start", bash(script))
    pid = next(stalled)["event"]["start"]["pid"]
    reading = live("Process/Connect", {"process": {"pid": pid}})
    next(reading)
    newline = base64.b64encode(b"\n").decode()
    envd.call("Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": newline}})
    rest = reading.rest()
    assert len(output(rest)) == 20_000_000 + len("\ndone\n")
    assert end(rest)["status"] == "exit status 0"
    assert stalled.rest()[-1]["error"]["code"] == "aborted"


# -- input --------------------------------------------------------------------------------------------------------


def test_without_stdin_it_is_empty(envd: Any) -> None:
    """`stdin: false` gives /dev/null, so that nothing waits for input."""
    events = envd.bash("readlink /proc/self/fd/0; cat", stdin=False)
    assert output(events) == b"/dev/null\n"


@pytest.mark.slow
def test_input_reaches_the_process_in_order(envd: Any, live: Callable[..., Live]) -> None:
    """A streamed input is written in order, through a pipe that is smaller than it, and ends with CloseStdin."""
    stream = live("Process/Start", bash("cat > got; wc -c < got"))
    pid = next(stream)["event"]["start"]["pid"]
    pieces = [os.urandom(50_000) for _ in range(20)]
    data = [{"data": {"input": {"stdin": base64.b64encode(piece).decode()}}} for piece in pieces]
    answer = envd.stream("Process/StreamInput", {"start": {"process": {"pid": pid}}}, *data, {"keepalive": {}})
    assert answer == [{}, {}]
    assert envd.call("Process/CloseStdin", {"process": {"pid": pid}}).json() == {}
    assert envd.call("Process/CloseStdin", {"process": {"pid": pid}}).status_code in (200, 404)
    assert output(stream.rest()) == b"1000000\n"
    assert (envd.home / "got").read_bytes() == b"".join(pieces)


@pytest.mark.slow
def test_input_waits_for_its_reader(envd: Any, live: Callable[..., Live]) -> None:
    """Input that nobody reads is not kept here: the call waits, until its deadline."""
    stream = live("Process/Start", bash("sleep 300"))
    pid = next(stream)["event"]["start"]["pid"]
    big = base64.b64encode(b"x" * 1_000_000).decode()
    answer = envd.call(
        "Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": big}}, **{"Connect-Timeout-Ms": "300"}
    )
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": 9})
    assert end(stream.rest())["status"] == "signal: killed"


def test_input_that_nobody_can_take_is_refused(envd: Any, live: Callable[..., Live]) -> None:
    """Each wrong way to feed a process has its own sentence."""
    plain = live("Process/Start", bash("exec 0<&-; echo closed; sleep 300"))
    pid = next(plain)["event"]["start"]["pid"]
    next(plain)
    nothing = live("Process/Start", bash("sleep 300", stdin=False))
    no_stdin = next(nothing)["event"]["start"]["pid"]
    terminal = live("Process/Start", bash("cat", pty={"size": {"cols": 80, "rows": 24}}))
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
def test_a_terminal_is_one(envd: Any, live: Callable[..., Live]) -> None:
    """A PTY has a size, a TERM, echoes what is typed, is resized, and ends like a process."""
    stream = live(
        "Process/Start",
        bash("tty; stty size; echo $TERM; read; stty size; exit 4", pty={"size": {"cols": 91, "rows": 31}}),
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
    assert b"typed" in output(rest, "pty")
    assert b"40 120" in output(rest, "pty")
    assert end(rest)["exitCode"] == 4


def test_only_a_terminal_has_a_size(envd: Any, live: Callable[..., Live]) -> None:
    """Resizing what is no terminal is an error that says so."""
    stream = live("Process/Start", bash("cat"))
    pid = next(stream)["event"]["start"]["pid"]
    answer = envd.call("Process/Update", {"process": {"pid": pid}, "pty": {"size": {"cols": 1, "rows": 1}}})
    assert "tty not assigned to process" in answer.json()["message"]
    envd.call("Process/CloseStdin", {"process": {"pid": pid}})
    stream.rest()


# -- signals, lists, limits ---------------------------------------------------------------------------------------


def test_the_list_shows_what_was_asked_for(envd: Any, live: Callable[..., Live]) -> None:
    """Each running process with its command, arguments, variables, directory and tag as they were given."""
    process = {"cmd": "cat", "args": ["-u"], "envs": {"A": "1"}, "cwd": "~"}
    stream = live("Process/Start", {"process": process, "tag": "listed"})
    pid = next(stream)["event"]["start"]["pid"]
    listed = envd.call("Process/List", {}).json()
    assert listed == {"processes": [{"config": process, "pid": pid, "tag": "listed"}]}
    envd.call("Process/CloseStdin", {"process": {"tag": "listed"}})
    stream.rest()


def test_signals_reach_the_group(envd: Any, live: Callable[..., Live]) -> None:
    """SIGTERM can be caught, SIGKILL cannot; other signals do not exist in the protocol."""
    stream = live("Process/Start", bash("trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"))
    pid = next(stream)["event"]["start"]["pid"]
    next(stream)
    unknown = envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": 2})
    assert unknown.json()["code"] == "unimplemented"
    assert envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}).json() == {}
    rest = stream.rest()
    assert output(rest) == b"caught\n"
    assert end(rest)["exitCode"] == 9


@pytest.mark.slow
def test_a_kill_ends_promptly_although_children_escaped(envd: Any, live: Callable[..., Live]) -> None:
    """SIGKILL ends the stream at once, even when a child in a session of its own holds the pipe."""
    stream = live("Process/Start", bash("setsid bash -c 'while [ ! -e stop ]; do sleep 0.05; done' & echo ready; wait"))
    pid = next(stream)["event"]["start"]["pid"]
    next(stream)
    started = time.monotonic()
    envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert end(stream.rest())["status"] == "signal: killed"
    assert time.monotonic() - started < 2
    (envd.home / "stop").touch()


def test_processes_of_a_sandbox_are_counted(
    envd: Any, live: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound a start is refused as resource_exhausted, and possible again when one has ended."""
    monkeypatch.setattr("sandboxkit.local.envd._processes.MAX_RUNNING", 1)
    stream = live("Process/Start", bash("cat"))
    pid = next(stream)["event"]["start"]["pid"]
    assert envd.bash("true")[0]["error"]["code"] == "resource_exhausted"
    envd.call("Process/CloseStdin", {"process": {"pid": pid}})
    stream.rest()
    assert end(envd.bash("true"))["status"] == "exit status 0"


# -- a lost sandbox -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_sandbox_ends_streams_as_unavailable(envd: Any, live: Callable[..., Live]) -> None:
    """When the agent dies, a stream under way ends with `unavailable`, and later calls say that it was not found."""
    stream = live("Process/Start", bash("echo ready; cat"))
    next(stream)
    next(stream)
    envd.kill_agent()
    assert stream.rest()[-1]["error"]["code"] == "unavailable"
    answer = until(lambda: (got := envd.call("Filesystem/Stat", {"path": "/"})).status_code == 502 and got)
    assert answer.json() == {"sandboxId": "sbxtest", "message": "The sandbox was not found", "code": 502}
    with envd.client() as client:
        assert client.get("/files", params={"path": "/etc/passwd"}).status_code == 502


@pytest.mark.slow
def test_closing_ends_everything(envd: Any, live: Callable[..., Live]) -> None:
    """After aclose every stream has ended as unavailable, health says not found, and no descriptor is left."""
    stream = live("Process/Start", bash("echo ready; cat"))
    next(stream)
    next(stream)
    envd.run(envd.service.aclose())
    envd.run(envd.service.aclose())
    assert stream.rest()[-1]["error"]["code"] == "unavailable"
    with envd.client() as client:
        assert client.get("/health").status_code == 502


# -- the protocol's edges -----------------------------------------------------------------------------------------


def test_wrong_requests_have_their_status(envd: Any) -> None:
    """Unknown methods, verbs and codecs, and bad JSON, each get the protocol's answer."""
    with envd.client() as client:
        json_type = {"Content-Type": "application/json"}
        assert client.post("/process.Process/Nothing", headers=json_type).status_code == 404
        assert client.get("/process.Process/List").status_code == 405
        proto = client.post("/process.Process/List", headers={"Content-Type": "application/proto"})
        assert (proto.status_code, proto.headers["accept-post"]) == (415, "application/json")
        wrong = client.post("/process.Process/Start", headers=json_type, content=b"{}")
        assert (wrong.status_code, wrong.headers["accept-post"]) == (415, "application/connect+json")
        bad = client.post("/process.Process/List", headers=json_type, content=b"{")
        assert (bad.status_code, bad.json()["code"]) == (400, "invalid_argument")
        zipped = client.post("/process.Process/List", headers={**json_type, "Content-Encoding": "gzip"}, content=b"{}")
        assert (zipped.status_code, zipped.json()["code"]) == (501, "unimplemented")
        assert "gzip" in zipped.json()["message"]


@pytest.mark.parametrize("messages", [[], [{"process": {"cmd": "true"}}] * 2])
def test_a_server_stream_has_one_request(envd: Any, messages: list[Any]) -> None:
    """No message, or two, is a protocol error."""
    (only,) = envd.stream("Process/Start", *messages)
    assert only["error"]["code"] == "invalid_argument"


def test_everything_needs_the_token(envd: Any) -> None:
    """Without the token, or with another, every call is a 401 in envd's words; /health alone is open."""
    for token in ({}, {"X-Access-Token": "wrong"}):
        with envd.client() as client:
            del client.headers["X-Access-Token"]
            client.headers.update(token)
            for path in ("/process.Process/List", "/filesystem.Filesystem/Stat", "/envs", "/metrics"):
                answer = client.post(path, headers={"Content-Type": "application/json"}, content=b"{}")
                assert answer.status_code == 401
                assert answer.json() == {
                    "code": 401,
                    "message": "unauthorized access, please provide a valid access token "
                    "or method signing if supported",
                }
            health = client.get("/health")
            assert (health.status_code, health.content) == (204, b"")
    with envd.client() as client:
        assert client.get("/envs").json() == {"FROM_SANDBOX": "yes"}
        assert client.get("/metrics").status_code == 404


@pytest.mark.slow
def test_a_broken_body_starts_nothing(envd: Any) -> None:
    """A connection that breaks inside the request leaves no process and no error of ours."""
    host, _, port = envd.base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            b"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nX-Access-Token: "
            + envd.token.encode()
            + b"\r\nContent-Type: application/connect+json\r\nContent-Length: 1000\r\n\r\n\0\0"
        )
    assert envd.call("Process/List", {}).json() == {"processes": []}


@pytest.mark.slow
def test_many_at_once(envd: Any) -> None:
    """Forty commands at the same time each get their own output."""
    results: dict[int, bytes] = {}

    def run(number: int) -> None:
        results[number] = output(envd.bash(f"echo {number}"))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: f"{number}\n".encode() for number in range(40)}
