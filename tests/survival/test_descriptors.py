"""An engine without descriptors, without room for its files or log, and with a clock that jumps: it goes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import e2b
import e2b_code_interpreter as interpreter
import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]


LIMITED_ON_DEMAND = """
import os, resource, signal, sys
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def lower(*_):
    allowed = int(Path({path!r}).read_text())
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))

def restore(*_):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

signal.signal(signal.SIGUSR1, lower)
signal.signal(signal.SIGUSR2, restore)
from sandboxkit.local.__main__ import main
sys.exit(main())
"""
"""Another process's limit is not ours to set everywhere (it takes CAP_SYS_RESOURCE), so the engine sets its own."""


@pytest.fixture
def start_limited(start: Any) -> Iterator[Callable[..., Any]]:
    """Start an engine whose limit `limited` can set."""
    wish = Path(f"/tmp/sandboxkit-limit-{os.getpid()}-{time.monotonic_ns()}")

    def start_one(**options: Any) -> Any:
        wish.write_text("0")
        run = start(wrapper=LIMITED_ON_DEMAND.format(path=str(wish)), **options)
        run.wish = wish
        return run

    yield start_one
    wish.unlink(missing_ok=True)


def soft_limit(pid: int) -> int:
    """The soft limit of open files that is in force."""
    (line,) = (each for each in Path(f"/proc/{pid}/limits").read_text().splitlines() if each.startswith("Max open"))
    return int(line.split()[3])


@contextlib.contextmanager
def limited(run: Any, tools: Any, *, more: int) -> Iterator[int]:
    """Leave an engine that runs only so many more descriptors than it has; gives back the rest at the end."""
    pid = run.pid
    before = soft_limit(pid)
    # The limit is on numbers, and a number that was given back is had again: so count the gaps, too.
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    gaps = (number for number in itertools.count() if number not in used)
    allowed = next(itertools.islice(gaps, more, None))
    run.wish.write_text(str(allowed))
    os.kill(pid, signal.SIGUSR1)
    tools.wait_until(lambda: soft_limit(pid) == allowed)
    try:
        yield allowed
    finally:
        os.kill(pid, signal.SIGUSR2)
        tools.wait_until(lambda: soft_limit(pid) == before)


def no_tracebacks(run: Any) -> None:
    """Nothing unexpected happened."""
    assert "Traceback" not in run.log(), run.log()[-4000:]


# -- descriptors --------------------------------------------------------------------------------------------------


def test_the_limit_is_raised_at_the_start(start: Any) -> None:
    """A shell's soft limit of 256 does not bind the engine: it takes what the hard one allows."""
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))\n"
    run = start(wrapper=code + "import sys; from sandboxkit.local.__main__ import main; sys.exit(main())")
    assert soft_limit(run.pid) == hard


def test_creates_are_refused_and_sandboxes_go_on(start_limited: Any, tools: Any, who: str) -> None:
    """With few descriptors left, a create gets a 503 in JSON that names the cause, the sandbox that is there goes on
    working, and creates work again once there are more."""
    run = start_limited(who=who)
    with run.client() as client:
        old = run.create(client)
        with limited(run, tools, more=40):
            for _ in range(3):
                answer = client.post("/v2/sandboxes", json={"templateID": run.template})
                assert (answer.status_code, answer.json()["error_code"]) == (503, "no_descriptors")
                assert answer.headers["Should-Retry"] == "false"
            assert "data" in run.run(client, old, "echo still here")
            assert len(client.get("/v2/sandboxes").json()) == 1
        assert "data" in run.run(client, run.create(client), "echo again")
        assert len(client.get("/v2/sandboxes").json()) == 2
    no_tracebacks(run)


def test_none_left_at_all(start_limited: Any, tools: Any) -> None:
    """With none left, each call on a sandbox gets a typed answer in JSON and harms nothing: the sandbox lives, and
    afterwards every kind of call works and the engine has no more descriptors than before."""
    run = start_limited()
    one_connection = httpx.Limits(max_connections=1)  # a second one could not be accepted
    with run.client(limits=one_connection) as client:
        sandbox = run.create(client)
        envd, kernel = run.to(sandbox), run.to(sandbox, 49999)

        def stream(process: dict[str, Any]) -> httpx.Response:
            message = json.dumps(process).encode()
            headers = {**envd, "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
            framed = b"\0" + len(message).to_bytes(4, "big") + message
            return client.post("/process.Process/Start", content=framed, headers=headers)

        calls: dict[str, Callable[[], httpx.Response]] = {
            "command": lambda: stream({"process": {"cmd": "/bin/true"}}),
            "terminal": lambda: stream({"process": {"cmd": "/bin/true"}, "pty": {"size": {"rows": 9, "cols": 9}}}),
            "write": lambda: client.post(
                "/files?path=f", content=b"kept", headers={**envd, "Content-Type": "application/octet-stream"}
            ),
            "read": lambda: client.get("/files?path=f", headers=envd),
            "list": lambda: client.post("/filesystem.Filesystem/ListDir", json={"path": "/home/user"}, headers=envd),
            "context": lambda: client.post("/contexts", json={}, headers=kernel),
            "cell": lambda: client.post("/execute", json={"code": "6 * 7"}, headers=kernel),
        }
        for name, call in calls.items():
            assert call().status_code == 200, name
        with contextlib.suppress(httpx.TransportError):
            client.get("/health")
        before = run.size()
        refused = set()
        # What each of them may need, from nothing to almost enough: each shortage meets another line of code.
        for more in range(8):
            with limited(run, tools, more=more):
                for name, call in calls.items():
                    answer = call()
                    failed = (
                        answer.status_code != 200 or "resource_exhausted" in answer.text or "Unavail" in answer.text
                    )
                    if failed:
                        refused.add(name)
                        assert answer.status_code in (200, 429, 500, 503), (name, more, answer.text)
                        assert "descriptors" in answer.text or "open files" in answer.text, (name, more, answer.text)
                assert len(client.get("/v2/sandboxes").json()) == 1
        assert {"command", "terminal", "write", "read", "context"} <= refused
        for context in client.get("/contexts", headers=kernel).json()[1:]:
            client.delete(f"/contexts/{context['id']}", headers=kernel)
        for name, call in calls.items():
            if name != "context":
                assert call().status_code == 200, name
        assert "42" in calls["cell"]().text
        no_tracebacks(run)
        tools.wait_until(lambda: run.size().descriptors <= before.descriptors, what=f"{run.size()} after {before}")


def test_connections_are_bounded(start_limited: Any, tools: Any) -> None:
    """Whoever opens connections without end gets a 503 on the surplus ones, before any descriptor is missing to
    others: a sandbox is made meanwhile."""
    run = start_limited()
    host, port = httpx.URL(run.url).host, httpx.URL(run.url).port
    with contextlib.ExitStack() as stack, limited(run, tools, more=300) as allowed:
        opened = [stack.enter_context(socket.create_connection((host, port), timeout=10)) for _ in range(allowed)]
        refused = 0
        for connection in opened[-20:]:
            connection.settimeout(5)
            refused += connection.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert refused == 20
        for connection in opened[-40:]:
            connection.close()
        opened[0].sendall(
            b"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: %s\r\nContent-Length: 21\r\n\r\n"
            b'{"templateID":"base"}' % run.headers["X-API-KEY"].encode()
        )
        opened[0].settimeout(20)
        assert opened[0].recv(1000).startswith(b"HTTP/1.1 201 ")
    with run.client() as client:
        assert client.get("/health").status_code == 200
    no_tracebacks(run)


def test_accepting_goes_on_after_a_shortage(start_limited: Any, tools: Any) -> None:
    """Where not even a connection can be accepted, the engine waits, and accepts again when it can."""
    run = start_limited()
    with limited(run, tools, more=0), contextlib.suppress(httpx.TransportError), run.client(timeout=0.5) as client:
        client.get("/health")
    with run.client() as client:
        assert client.get("/health").status_code == 200
    assert "engine.no_descriptors" in run.log()
    no_tracebacks(run)


# -- the log ------------------------------------------------------------------------------------------------------


def test_nobody_reads_the_log(start: Any, tools: Any) -> None:
    """Standard error is a pipe that is full: the engine answers, and says later how many lines it dropped."""
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        run = start(stderr=writing, log_level="debug")
        with run.client(timeout=10) as client:
            client.delete(f"/sandboxes/{run.create(client)['sandboxID']}")
            os.set_blocking(reading, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.read(reading, 65_536)
            os.set_blocking(reading, True)
            client.delete(f"/sandboxes/{run.create(client)['sandboxID']}")
        said = b""
        while b"sandbox.killed" not in said and b"sandbox.ended" not in said:
            said += os.read(reading, 65_536)
        assert b"lines of this log were dropped" in said
        assert run.stop() == 0
    finally:
        os.close(reading)
        os.close(writing)


def test_the_log_is_closed_or_full(start: Any) -> None:
    """Standard error on a full device: the engine works as ever."""
    with Path("/dev/full").open("wb") as full:
        run = start(stderr=full.fileno(), log_level="debug")
        with run.client() as client:
            assert "data" in run.run(client, run.create(client), "echo here")
        assert run.stop() == 0


# -- the clock ----------------------------------------------------------------------------------------------------

CLOCK = """
import datetime as real, sys, time
from pathlib import Path

given = Path({path!r})
true_time = time.time

def stepped():
    return true_time() + float(given.read_text())

class Stepped(real.datetime):
    @classmethod
    def now(cls, tz=None):
        return real.datetime.fromtimestamp(stepped(), tz)

time.time = stepped
real.datetime = Stepped
from sandboxkit.local.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("step", [-400 * 86_400.0, -60.0, 60.0, 400 * 86_400.0])
def test_a_clock_that_jumps(start: Any, tools: Any, tmp_path: Path, step: float) -> None:
    """The wall clock is stepped back or forth: sandboxes live as long as they were given and no longer, commands keep
    their deadlines, and what runs goes on."""
    root = Path(f"/tmp/sandboxkit-clock-{os.getpid()}-{time.monotonic_ns()}")
    root.mkdir()
    offset = root / "offset"
    offset.write_text("0")
    try:
        # The clock of Python, which is where wall time enters the engine: the host's own is not ours to step.
        run = start(wrapper=CLOCK.format(path=str(offset)), env={"PYTHONPATH": ":".join(sys.path)})
        sandbox = interpreter.Sandbox.create(timeout=120, **run.sdk)
        running = sandbox.commands.run("sleep 1.5; echo done", background=True)
        short = e2b.Sandbox.create(timeout=3, **run.sdk)
        created = time.monotonic()
        offset.write_text(str(step))
        assert running.wait().stdout == "done\n"
        assert sandbox.run_code("6 * 7").text == "42"
        assert short.is_running() or time.monotonic() > created + 2.5
        with pytest.raises(e2b.TimeoutException):
            sandbox.commands.run("sleep 100", timeout=1)
        tools.wait_until(lambda: not short.is_running())
        assert 2.5 < time.monotonic() - created < 6
        sandbox.set_timeout(100)
        info = sandbox.get_info()
        assert 95 < info.end_at.timestamp() - (time.time() + step) < 101
        assert len(e2b.Sandbox.list(**run.sdk).next_items()) == 1
        no_tracebacks(run)
    finally:
        offset.unlink()
        root.rmdir()


# -- the disk -----------------------------------------------------------------------------------------------------

ON_A_FULL_DISK = """
import ctypes, os, subprocess, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
if os.getuid() != 0:
    uid, gid = os.getuid(), os.getgid()
    assert libc.unshare(0x10000000 | 0x20000) == 0
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
else:
    assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, 16384 | (1 << 18), None) == 0
state = sys.argv[1].encode()
assert libc.mount(b"tmpfs", state, b"tmpfs", 0, sys.argv[2].encode()) == 0, os.strerror(ctypes.get_errno())
os.chmod(state, 0o755)
for fill in (sys.argv[3],) if sys.argv[3] else ():
    with open(os.path.join(sys.argv[1], "fill"), "wb", 0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
done = subprocess.run(sys.argv[4:], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=40)
print(done.stdout + done.stderr, sorted(os.listdir(sys.argv[1])), sep="|")
"""


def on_a_full_disk(ordinary_user: Any, options: str, *, fill: bool, config: str) -> tuple[str, str]:
    """Try to run an engine whose state directory and env-file are on a tiny disk: what it says, and what is left."""
    python, env, switch = ordinary_user
    place = Path(f"/tmp/sandboxkit-full-{os.getpid()}-{time.monotonic_ns()}")
    place.mkdir()
    if switch:
        os.chown(place, switch["user"], switch["group"])
    program = ["-c", ON_A_FULL_DISK, str(place), options, "1" if fill else ""]
    engine = [python, "-m", "sandboxkit.local", "--config-json", config.replace("PLACE", str(place))]
    try:
        done = subprocess.run(
            [python, *program, *engine],
            env={**env, "SANDBOXKIT_HOME": str(place), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
            **switch,
        )
        assert done.returncode == 0, done.stderr
    finally:
        place.rmdir()
    said, left = done.stdout.split("|")
    return said, left.strip()


def test_no_room_for_the_state_directory(ordinary_user: Any) -> None:
    """Not one inode is left where the engine keeps its files: it does not start, says so, and leaves nothing."""
    said, left = on_a_full_disk(ordinary_user, "nr_inodes=2,size=64k", fill=True, config="{}")
    assert said.startswith("sandboxkit: The engine cannot keep its files: [Errno 28] No space left"), said
    assert "Traceback" not in said
    assert left == "['fill']"


def test_no_room_for_the_env_file(ordinary_user: Any) -> None:
    """The disk of the env-file is full: the engine does not start, names the file, and leaves not half of it."""
    config = '{"env_file": "PLACE/engine.env", "log_level": "debug"}'
    said, left = on_a_full_disk(ordinary_user, "size=64k", fill=True, config=config)
    assert "/engine.env' cannot be written: No space left" in said, said
    assert "Traceback" not in said
    assert left in ("['fill']", "['fill', 'run']")


# -- the sandbox's own disk ---------------------------------------------------------------------------------------


def test_a_sandbox_without_room(start: Any) -> None:
    """With the sandbox's disk full each upload is refused by its typed error and leaves no half file, cells and
    commands see ENOSPC and go on, and all works again once there is room."""
    run = start()
    sandbox = interpreter.Sandbox.create(**run.sdk)
    assert sandbox.run_code("x = 1; x").text == "1"
    sandbox.commands.run("head -c 100G /dev/zero > fill; true", timeout=60)
    big = b"y" * (1 << 20)
    for write in (
        lambda: sandbox.files.write("a.bin", big),
        lambda: sandbox.files.write_files([{"path": "b.bin", "data": big}, {"path": "c.bin", "data": big}]),
        lambda: sandbox.files.write("d.bin", big, gzip=True),
        lambda: sandbox.files.write("e.bin", big, use_octet_stream=True),
    ):
        with pytest.raises(e2b.NotEnoughSpaceException):
            write()
    sizes = {entry.name: entry.size for entry in sandbox.files.list("/home/user") if entry.name.endswith(".bin")}
    assert set(sizes.values()) <= {0}, sizes
    full = sandbox.run_code("open('z', 'wb', 0).write(b'z' * 65536)")
    assert full.error is not None or sandbox.run_code("import os; os.path.getsize('z')").text != "65536"
    assert sandbox.run_code("x + 1").text == "2"
    figure = sandbox.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2]})")
    assert figure.error is None
    assert sandbox.commands.run("echo out; echo err >&2").stdout == "out\n"
    context = sandbox.create_code_context()
    assert sandbox.run_code("6 * 7", context=context).text == "42"
    sandbox.commands.run("rm -f fill")
    sandbox.files.write("a.bin", big)
    assert sandbox.files.read("a.bin", format="bytes") == bytearray(big)
    no_tracebacks(run)


def test_a_sandbox_without_inodes(start: Any) -> None:
    """With its inodes used up, an upload is refused by its typed error, and the engine's others are unharmed."""
    run = start()
    sandbox, other = e2b.Sandbox.create(**run.sdk), e2b.Sandbox.create(**run.sdk)
    code = "import itertools\ntry:\n for n in itertools.count(): open(f'/tmp/{n}', 'x').close()\nexcept OSError: pass"
    sandbox.commands.run(f'python3 -c "{code}"', timeout=50)
    with pytest.raises(e2b.NotEnoughSpaceException):
        sandbox.files.write("new.txt", "new")
    with pytest.raises(e2b.SandboxException):
        sandbox.files.make_dir("new")
    other.files.write("new.txt", "new")
    assert other.files.read("new.txt") == "new"
    no_tracebacks(run)
