"""Commands and terminals through the unmodified SDK, in both colours, against the real engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    SandboxNotRunningException,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import PtySize

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def test_a_command_gives_its_output_and_code(colour: Any, box: Any) -> None:
    """stdout, stderr and 0 come back; a failure raises with the same facts."""
    done = colour.do(box.commands.run("echo out; echo err >&2"))
    assert (done.stdout, done.stderr, done.exit_code, done.error) == ("out\n", "err\n", 0, None)
    with pytest.raises(CommandExitException) as caught:
        colour.do(box.commands.run("echo before; exit 3"))
    assert (caught.value.exit_code, caught.value.stdout) == (3, "before\n")
    assert caught.value.error == "exit status 3"


def test_text_passes_unchanged(colour: Any, box: Any) -> None:
    """Letters, lines and broken UTF-8 come through as the SDK promises."""
    assert (
        colour.do(box.commands.run("echo 'Zürich 文 !@#$%^&*()_+\nsecond'")).stdout
        == "Zürich 文 !@#$%^&*()_+\nsecond\n"
    )
    broken = colour.do(box.commands.run("printf '" + "a" * 8191 + "\\xe2'"))
    assert broken.stdout == "a" * 8191 + "�"


def test_output_streams_to_callbacks(colour: Any, box: Any) -> None:
    """Callbacks get everything in order while the command runs, however much it is."""
    seen: list[str] = []
    done = colour.do(box.commands.run("seq 200000; echo end >&2", on_stdout=seen.append, on_stderr=seen.append))
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))
    assert "end\n" in seen
    assert len(seen) > 2


def test_variables_and_directory(colour: Any, box: Any, folder: str) -> None:
    """The sandbox's variables, then the call's; `cwd` relative to the home; HOME and USER are the user's."""
    run = box.commands.run
    assert colour.do(run("echo $FROM_SANDBOX $MINE", envs={"MINE": "1"})).stdout == "yes 1\n"
    assert colour.do(run("echo $FROM_SANDBOX", envs={"FROM_SANDBOX": "changed"})).stdout == "changed\n"
    assert colour.do(run("pwd; echo $HOME $USER; whoami")).stdout == "/home/user\n/home/user user\nuser\n"
    assert colour.do(run("pwd", cwd=folder)).stdout == f"{folder}\n"
    assert colour.do(run("pwd", cwd=folder.removeprefix("/home/user/"))).stdout == f"{folder}\n"
    assert colour.do(run("pwd", cwd="~")).stdout == "/home/user\n"
    told = colour.do(run("echo $E2B_SANDBOX $E2B_SANDBOX_ID $E2B_TEAM_ID $E2B_TEMPLATE_ID")).stdout
    assert told == f"true {box.sandbox_id} local base\n"


def test_a_missing_directory_is_an_invalid_argument(colour: Any, box: Any) -> None:
    """The error names the directory."""
    with pytest.raises(InvalidArgumentException, match="cwd '/no/such' does not exist"):
        colour.do(box.commands.run("true", cwd="/no/such"))


def test_only_user_exists(colour: Any, box: Any) -> None:
    """`user="user"` works; root is refused by name."""
    assert colour.do(box.commands.run("id -un", user="user")).stdout == "user\n"
    with pytest.raises(AuthenticationException, match="invalid username: 'root'"):
        colour.do(box.commands.run("true", user="root"))


def test_a_deadline_is_a_timeout_and_kills(colour: Any, box: Any, folder: str) -> None:
    """Past its timeout a command raises TimeoutException, in both colours, and its children are dead."""
    started = time.monotonic()
    with pytest.raises(TimeoutException):
        colour.do(box.commands.run(f"(while :; do date +%N > {folder}/beat; sleep 0.05; done) & sleep 60", timeout=1))
    assert time.monotonic() - started < 30

    def beats() -> bool:
        before = colour.do(box.files.read(f"{folder}/beat"))
        time.sleep(0.3)
        return bool(colour.do(box.files.read(f"{folder}/beat")) != before)

    until(lambda: not beats())


def test_background_list_kill(colour: Any, box: Any) -> None:
    """A background command is listed by the pid that it has inside, and gone after its kill."""
    handle = colour.do(box.commands.run("sleep 100", background=True))
    listed = {info.pid: info for info in colour.do(box.commands.list())}
    assert listed[handle.pid].cmd == "/bin/bash"
    assert listed[handle.pid].args == ["-l", "-c", "sleep 100"]
    assert colour.do(box.commands.run(f"kill -0 {handle.pid}")).exit_code == 0
    assert colour.do(handle.kill()) is True
    with pytest.raises(CommandExitException) as caught:
        colour.do(handle.wait())
    assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    with pytest.raises(CommandExitException):
        colour.do(box.commands.run(f"kill -0 {handle.pid}"))
    assert handle.pid not in {info.pid for info in colour.do(box.commands.list())}
    assert colour.do(box.commands.kill(handle.pid)) is False


def test_disconnect_and_connect(colour: Any, box: Any, folder: str) -> None:
    """Disconnecting leaves the command running; connecting again hears the rest and the end."""
    script = f"while [ ! -e {folder}/go ]; do sleep 0.05; done; echo last; exit 6"
    handle = colour.do(box.commands.run(script, background=True, timeout=0))
    colour.do(handle.disconnect())
    again = colour.do(box.commands.connect(handle.pid, timeout=0))
    assert again.pid == handle.pid
    colour.do(box.files.write(f"{folder}/go", ""))
    with pytest.raises(CommandExitException) as caught:
        colour.do(again.wait())
    assert (caught.value.stdout, caught.value.exit_code) == ("last\n", 6)
    replayed = colour.do(box.commands.connect(handle.pid))
    with pytest.raises(CommandExitException) as caught:
        colour.do(replayed.wait())
    assert caught.value.exit_code == 6
    with pytest.raises(NotFoundException, match="process with pid 424242 not found"):
        colour.do(box.commands.connect(424242))


def test_stdin(colour: Any, box: Any) -> None:
    """Input by pid and by handle, and end-of-file by close_stdin; without stdin there is none."""
    handle = colour.do(box.commands.run("cat", background=True, stdin=True))
    colour.do(box.commands.send_stdin(handle.pid, "by pid, "))
    colour.do(handle.send_stdin(b"by handle\n"))
    colour.do(handle.close_stdin())
    assert colour.do(handle.wait()).stdout == "by pid, by handle\n"
    assert colour.do(box.commands.run("cat; echo done", stdin=False)).stdout == "done\n"
    silent = colour.do(box.commands.run("sleep 100", background=True, stdin=False))
    with pytest.raises(SandboxException, match="stdin not enabled or closed"):
        colour.do(box.commands.send_stdin(silent.pid, "x"))
    colour.do(silent.kill())
    with pytest.raises(NotFoundException):
        colour.do(box.commands.send_stdin(424242, "x"))


def test_streamed_input(colour: Any, box: Any) -> None:
    """A stream of input arrives whole and in order, also where the pipe is smaller than it."""
    handle = colour.do(box.commands.run("cat | md5sum; echo end", background=True, stdin=True, timeout=0))
    pieces = [f"{n}\n" * 1000 for n in range(100)]
    if colour.name == "sync":
        box.commands.stream_input(handle.pid, pieces)
    else:
        stream = colour.on_loop(lambda: box.commands.stream_input(handle.pid))
        for piece in pieces:
            colour.do(stream.send(piece))
        colour.do(stream.close())
    colour.do(handle.close_stdin())
    import hashlib

    expected = hashlib.md5("".join(pieces).encode()).hexdigest()
    assert colour.do(handle.wait()).stdout == f"{expected}  -\nend\n"


def test_terminal(colour: Any, box: Any) -> None:
    """A PTY has its size and variables, is resized, takes input, and is connected to again."""
    seen: list[bytes] = []

    def shown(*texts: bytes) -> bool:
        return all(text in b"".join(seen) for text in texts)

    def create() -> Any:
        if colour.name == "sync":
            return box.pty.create(PtySize(cols=91, rows=31), envs={"ABC": "123"}, timeout=0)
        return box.pty.create(PtySize(cols=91, rows=31), on_data=seen.append, envs={"ABC": "123"}, timeout=0)

    terminal = colour.do(create())
    follower = None
    if colour.name == "sync":
        follower = threading.Thread(target=lambda: terminal.wait(on_pty=seen.append))
        follower.start()
    send = lambda data: colour.do(box.pty.send_stdin(terminal.pid, data))  # noqa: E731
    send(b"echo =$ABC=$TERM=; stty size\n")
    until(lambda: shown(b"=123=xterm-256color=", b"31 91"))
    colour.do(box.pty.resize(terminal.pid, PtySize(cols=120, rows=40)))
    send(b"stty size\n")
    until(lambda: shown(b"40 120"))
    send(b"exit\n")
    if follower is None:
        assert colour.do(terminal.wait()).exit_code == 0
    else:
        follower.join(20)
        assert not follower.is_alive()
    assert colour.do(box.pty.kill(terminal.pid)) is False


def test_a_killed_terminal(colour: Any, box: Any) -> None:
    """Killing a PTY returns True once, and its shell is gone."""
    size = PtySize(cols=80, rows=24)
    options = {} if colour.name == "sync" else {"on_data": lambda _: None}
    terminal = colour.do(box.pty.create(size, **options))
    assert colour.do(box.pty.kill(terminal.pid)) is True
    with pytest.raises(CommandExitException):
        colour.do(terminal.wait())
    assert colour.do(box.pty.kill(terminal.pid)) is False


def test_many_at_once(colour: Any, box: Any) -> None:
    """Twenty commands at the same time each get their own output."""
    found: dict[int, str] = {}

    def run(number: int) -> None:
        found[number] = colour.do(box.commands.run(f"sleep 0.1; echo {number}")).stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert found == {number: f"{number}\n" for number in range(20)}


def test_a_sandbox_killed_under_a_command(colour: Any) -> None:
    """A command under way when its sandbox is killed ends with SandboxNotRunningException, as do later calls."""
    own = colour.create()
    handle = colour.do(own.commands.run("sleep 100", background=True, timeout=0))
    assert colour.do(own.is_running()) is True
    colour.do(own.kill())
    with pytest.raises(SandboxNotRunningException):
        colour.do(handle.wait())
    assert colour.do(own.is_running()) is False
    with pytest.raises(SandboxNotRunningException):
        colour.do(own.commands.run("true"))
    with pytest.raises(SandboxNotRunningException):
        colour.do(own.files.read("x"))
