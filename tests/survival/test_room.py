"""No room: for the log, for the engine's files, on a sandbox's own disk."""

from __future__ import annotations

import ast
import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import e2b
import e2b_code_interpreter as interpreter
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

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
        with run.client(timeout=30) as client:
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
    assert set(ast.literal_eval(left)) <= {"built", "fill", "run"}


# -- the sandbox's own disk ---------------------------------------------------------------------------------------


def test_a_sandbox_without_room(start: Any, tools: Any) -> None:
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
    tools.no_tracebacks(run)


def test_a_sandbox_without_inodes(start: Any, tools: Any) -> None:
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
    tools.no_tracebacks(run)
