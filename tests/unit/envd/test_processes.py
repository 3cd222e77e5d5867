"""Processes over the wire: what is started, what comes out, how it ends."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return found


# -- starting and ending ------------------------------------------------------------------------------------------


def test_events_come_in_order(envd: Any) -> None:
    """First the start with its pid, then the output, then the end, then the end of the stream."""
    events = envd.bash("echo $$; echo err >&2; exit 3")
    pid = events[0]["event"]["start"]["pid"]
    assert envd.output(events) == f"{pid}\n".encode()
    assert envd.output(events, "stderr") == b"err\n"
    assert envd.end(events) == {"exitCode": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}


def test_success_omits_the_zero(envd: Any) -> None:
    """An exit code of 0 and an absent error are left out of the end event."""
    assert envd.end(envd.bash("true")) == {"exited": True, "status": "exit status 0"}


@pytest.mark.parametrize(("name", "text"), [("KILL", "killed"), ("TERM", "terminated"), ("SEGV", "segmentation fault")])
def test_a_signals_end_is_told_in_gos_words(envd: Any, name: str, text: str) -> None:
    """A process that a signal ended has exit code -1 and did not exit."""
    told = envd.end(envd.bash(f"kill -{name} $$"))
    assert told == {"exitCode": -1, "status": f"signal: {text}", "error": f"signal: {text}"}


def test_output_is_complete_and_in_chunks(envd: Any) -> None:
    """A megabyte arrives byte for byte, in chunks of at most 32 KiB."""
    events = envd.bash("head -c 1000000 /dev/zero | tr '\\0' 'x'; printf end")
    assert envd.output(events) == b"x" * 1_000_000 + b"end"
    sizes = [len(base64.b64decode(e["event"]["data"]["stdout"])) for e in events[1:-2]]
    assert max(sizes) <= 32 * 1024


def test_the_environment_is_ours_the_sandboxs_and_the_requests(envd: Any) -> None:
    """Base variables, then the sandbox's, then the request's; nothing of the engine's own environment."""
    os.environ["ENGINE_SECRET"] = "leaked"
    try:
        events = envd.bash("env", process={"envs": {"MINE": "1", "FROM_SANDBOX": "changed"}})
    finally:
        del os.environ["ENGINE_SECRET"]
    found = dict(line.split("=", 1) for line in envd.output(events).decode().splitlines())
    assert (found["MINE"], found["FROM_SANDBOX"]) == ("1", "changed")
    assert found["USER"] == found["LOGNAME"] == "user"
    assert found["HOME"] == str(envd.home)
    assert "ENGINE_SECRET" not in found


def test_the_working_directory(envd: Any) -> None:
    """Nothing and `~` are the home, a relative one lies beneath it."""
    (envd.home / "sub").mkdir()
    for cwd, expected in ((None, envd.home), ("", envd.home), ("~", envd.home), ("sub/../sub", envd.home / "sub")):
        process = {} if cwd is None else {"cwd": cwd}
        assert envd.output(envd.bash("pwd", process=process)).decode().strip() == str(expected)


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
            assert envd.end(events)["status"] == "exit status 0"
        else:
            assert events[0]["error"]["code"] == "unauthenticated"
            assert f"invalid username: '{name}'" in events[0]["error"]["message"]


# -- deadlines and survivors --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_deadline_kills_the_whole_group(envd: Any) -> None:
    """When the deadline passes, the call ends with deadline_exceeded and children of the shell are gone as well."""
    events = envd.bash("sleep 300 & echo $!; wait", headers={"Connect-Timeout-Ms": "400"})
    assert events[-1] == {"error": {"code": "deadline_exceeded", "message": "context deadline exceeded"}}
    child = int(envd.output(events))
    until(lambda: not os.path.exists(f"/proc/{child}") or _is_zombie(child))
    until(lambda: envd.call("Process/List", {}).json() == {"processes": []})


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.slow
def test_the_deadline_holds_after_the_client_has_gone(envd: Any, live: Callable[..., Any]) -> None:
    """A client that hangs up leaves the process running, but only until its deadline."""
    stream = envd.client(**{"Connect-Timeout-Ms": "700"})
    with stream as client:
        body = json.dumps(envd.script("sleep 300")).encode()
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
def test_a_client_that_hangs_up_does_not_kill(envd: Any, live: Callable[..., Any]) -> None:
    """The process goes on without a listener, its output discarded, and can be connected to."""
    script = "sleep 0.2; head -c 3000000 /dev/zero; touch wrote; while [ ! -e go ]; do sleep 0.02; done; echo last"
    stream = live("Process/Start", envd.script(script))
    pid = next(stream)["event"]["start"]["pid"]
    stream.close()
    until((envd.home / "wrote").exists)
    second = live("Process/Connect", {"process": {"pid": pid}})
    assert next(second) == {"event": {"start": {"pid": pid}}}
    (envd.home / "go").touch()
    rest = second.rest()
    assert envd.output(rest) == b"last\n"
    assert envd.end(rest)["status"] == "exit status 0"


@pytest.mark.slow
def test_a_process_left_behind_does_not_hold_back_the_end(envd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end comes although a grandchild still holds the pipe; what it writes later does not kill it."""
    # Our own bound is shortened: five seconds of silence is a fact about people's patience, not about the code.
    monkeypatch.setattr("sandboxkit.local.envd._processes.SILENCE", 0.3)
    events = envd.bash("(while [ ! -e go ]; do sleep 0.05; done; echo late && touch survived) & echo started")
    assert envd.output(events) == b"started\n"
    assert envd.end(events)["status"] == "exit status 0"
    (envd.home / "go").touch()
    until((envd.home / "survived").exists)


@pytest.mark.slow
def test_output_of_a_process_left_behind_is_waited_for(envd: Any) -> None:
    """As in envd, output that a background child writes soon after the shell's end belongs to the command."""
    events = envd.bash("(sleep 0.3; echo late) & echo first")
    assert envd.output(events) == b"first\nlate\n"


@pytest.mark.slow
def test_an_endless_writer_left_behind_does_not_hold_back_the_end(envd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grandchild that never stops writing delays the end for a bounded time only."""
    monkeypatch.setattr("sandboxkit.local.envd._processes.LINGER", 0.3)
    monkeypatch.setattr("sandboxkit.local.envd._processes.SILENCE", 0.3)
    events = envd.bash("(while [ ! -e stop ]; do echo y; done) & true")
    (envd.home / "stop").touch()
    assert envd.end(events)["status"] == "exit status 0"


# -- listening ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_listeners_hear_the_same(envd: Any, live: Callable[..., Any]) -> None:
    """Each that is connected gets all output from then on, and the end."""
    first = live("Process/Start", envd.script("read line; echo $line; echo err >&2; exit 7", tag="both"))
    pid = next(first)["event"]["start"]["pid"]
    second = live("Process/Connect", {"process": {"tag": "both"}})
    assert next(second) == {"event": {"start": {"pid": pid}}}
    line = base64.b64encode(b"hello\n").decode()
    assert envd.call("Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": line}}).json() == {}
    for stream in (first, second):
        rest = stream.rest()
        assert envd.output(rest) == b"hello\n"
        assert envd.output(rest, "stderr") == b"err\n"
        assert envd.end(rest)["exitCode"] == 7


def test_an_ended_process_is_remembered_for_a_while(envd: Any) -> None:
    """Connecting to a process that has just ended replays its start and its end; it is not listed any more."""
    events = envd.bash("exit 5", tag="short")
    pid = events[0]["event"]["start"]["pid"]
    assert envd.call("Process/List", {}).json() == {"processes": []}
    for selector in ({"pid": pid}, {"tag": "short"}):
        again = envd.stream("Process/Connect", {"process": selector})
        assert again[0] == {"event": {"start": {"pid": pid}}}
        assert envd.end(again)["exitCode"] == 5
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
def test_connects_deadline_ends_the_stream_alone(envd: Any, live: Callable[..., Any]) -> None:
    """A listener's deadline does not touch the process."""
    first = live("Process/Start", envd.script("cat"))
    pid = next(first)["event"]["start"]["pid"]
    events = envd.stream("Process/Connect", {"process": {"pid": pid}}, **{"Connect-Timeout-Ms": "200"})
    assert events[-1]["error"]["code"] == "deadline_exceeded"
    assert envd.call("Process/List", {}).json()["processes"][0]["pid"] == pid
    envd.call("Process/CloseStdin", {"process": {"pid": pid}})
    assert envd.end(first.rest())["status"] == "exit status 0"


@pytest.mark.slow
def test_a_listener_that_does_not_read_holds_the_process_back(envd: Any, live: Callable[..., Any]) -> None:
    """Endless output to a client that reads nothing stops in bounded memory: the writer blocks, and ends when the
    client goes."""
    stream = live(
        "Process/Start", envd.script("yes | while read x; do echo $((n+=1)) > count; echo " + "y" * 8000 + "; done")
    )
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
    envd: Any, live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two listeners that takes nothing is cut off after a while; the other gets everything."""
    monkeypatch.setattr("sandboxkit.local.envd._subscribers.deliver.__kwdefaults__", {"stalled": 0.3})
    script = "read; for i in {1..1000}; do printf %020000d 0; done; echo; echo done"
    stalled = live("Process/Start", envd.script(script))
    pid = next(stalled)["event"]["start"]["pid"]
    reading = live("Process/Connect", {"process": {"pid": pid}})
    next(reading)
    newline = base64.b64encode(b"\n").decode()
    envd.call("Process/SendInput", {"process": {"pid": pid}, "input": {"stdin": newline}})
    rest = reading.rest()
    assert len(envd.output(rest)) == 20_000_000 + len("\ndone\n")
    assert envd.end(rest)["status"] == "exit status 0"
    assert stalled.rest()[-1]["error"]["code"] == "aborted"


# -- signals, lists, limits ---------------------------------------------------------------------------------------


def test_the_list_shows_what_was_asked_for(envd: Any, live: Callable[..., Any]) -> None:
    """Each running process with its command, arguments, variables, directory and tag as they were given."""
    process = {"cmd": "cat", "args": ["-u"], "envs": {"A": "1"}, "cwd": "~"}
    stream = live("Process/Start", {"process": process, "tag": "listed"})
    pid = next(stream)["event"]["start"]["pid"]
    listed = envd.call("Process/List", {}).json()
    assert listed == {"processes": [{"config": process, "pid": pid, "tag": "listed"}]}
    envd.call("Process/CloseStdin", {"process": {"tag": "listed"}})
    stream.rest()


def test_signals_reach_the_group(envd: Any, live: Callable[..., Any]) -> None:
    """SIGTERM can be caught, SIGKILL cannot; other signals do not exist in the protocol."""
    stream = live(
        "Process/Start", envd.script("trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done")
    )
    pid = next(stream)["event"]["start"]["pid"]
    next(stream)
    unknown = envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": 2})
    assert unknown.json()["code"] == "unimplemented"
    assert envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGTERM"}).json() == {}
    rest = stream.rest()
    assert envd.output(rest) == b"caught\n"
    assert envd.end(rest)["exitCode"] == 9


def test_a_command_leads_no_process_group(envd: Any) -> None:
    """As under E2B, so that setsid(1) need not fork and its end is the program's; yet each has a group of its own."""
    events = envd.bash("exec setsid sh -c 'echo $$; exec sh -c \"exit 7\"'")
    assert int(envd.output(events)) == next(event["event"]["start"]["pid"] for event in events)
    assert envd.end(events)["exitCode"] == 7
    groups = [envd.output(envd.bash("cut -d' ' -f1,5 /proc/self/stat; echo $$")).split() for _ in range(2)]
    assert all(pid != group != shell for pid, group, shell in groups)
    assert groups[0][1] != groups[1][1]


@pytest.mark.slow
def test_a_kill_ends_promptly_although_children_escaped(envd: Any, live: Callable[..., Any]) -> None:
    """SIGKILL ends the stream at once, even when a child in a session of its own holds the pipe."""
    stream = live(
        "Process/Start", envd.script("setsid bash -c 'while [ ! -e stop ]; do sleep 0.05; done' & echo ready; wait")
    )
    pid = next(stream)["event"]["start"]["pid"]
    next(stream)
    started = time.monotonic()
    envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert envd.end(stream.rest())["status"] == "signal: killed"
    assert time.monotonic() - started < 4.5  # silence alone would have ended it after 5
    (envd.home / "stop").touch()


def test_processes_of_a_sandbox_are_counted(
    envd: Any, live: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the bound a start is refused as resource_exhausted, and possible again when one has ended."""
    monkeypatch.setattr("sandboxkit.local.envd._processes.MAX_RUNNING", 1)
    stream = live("Process/Start", envd.script("cat"))
    pid = next(stream)["event"]["start"]["pid"]
    assert envd.bash("true")[0]["error"]["code"] == "resource_exhausted"
    envd.call("Process/CloseStdin", {"process": {"pid": pid}})
    stream.rest()
    assert envd.end(envd.bash("true"))["status"] == "exit status 0"


# -- a lost sandbox -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_sandbox_ends_streams_as_unavailable(envd: Any, live: Callable[..., Any]) -> None:
    """When the agent dies, a stream under way ends with `unavailable`, and later calls say that it was not found."""
    stream = live("Process/Start", envd.script("echo ready; cat"))
    next(stream)
    next(stream)
    envd.kill_agent()
    assert stream.rest()[-1]["error"]["code"] == "unavailable"
    answer = until(lambda: (got := envd.call("Filesystem/Stat", {"path": "/"})).status_code == 502 and got)
    assert answer.json() == {"sandboxId": "sbxtest", "message": "The sandbox was not found", "code": 502}
    with envd.client() as client:
        assert client.get("/files", params={"path": "/etc/passwd"}).status_code == 502


@pytest.mark.slow
def test_closing_ends_everything(envd: Any, live: Callable[..., Any]) -> None:
    """After aclose every stream has ended as unavailable, health says not found, and no descriptor is left."""
    stream = live("Process/Start", envd.script("echo ready; cat"))
    next(stream)
    next(stream)
    envd.run(envd.service.aclose())
    envd.run(envd.service.aclose())
    assert stream.rest()[-1]["error"]["code"] == "unavailable"
    with envd.client() as client:
        assert client.get("/health").status_code == 502
