"""Things below a closed home reach a box only where they were let, and under neutral names."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]


@pytest.fixture
def closed_home() -> Iterator[Path]:
    """A directory of mode 0700 with a layer behind a link, a skeleton, and a secret in it."""
    home = Path(tempfile.mkdtemp(prefix="sandboxkit-home-", dir="/tmp"))
    (home / "versions" / "1.2" / "bin").mkdir(parents=True)
    (home / "versions" / "1.2" / "bin" / "tool").write_text("#!/bin/sh\necho from the layer\n")
    (home / "versions" / "1.2" / "bin" / "tool").chmod(0o755)
    (home / "current").symlink_to("versions/1.2")
    (home / "skeleton" / "notes").mkdir(parents=True)
    (home / "skeleton" / "notes" / "hello.txt").write_text("hello\n")
    (home / "secret").write_text("secret")
    home.chmod(0o700)
    yield home
    shutil.rmtree(home)


async def use_layer(isolation: Any, home: str) -> Any:
    """Make a box with the layer and the skeleton."""
    from box_tools import run

    from sandboxkit.local.isolation import BoxSpec, Layer

    spec = BoxSpec(
        box_id="layered",
        layers=(Layer(source=f"{home}/current", target="/opt/sandboxkit/env"),),
        skeleton=f"{home}/skeleton",
    )
    box = await isolation.create(spec)
    tool = await run(box, ["/opt/sandboxkit/env/bin/tool"])
    write = await run(box, ["sh", "-c", "echo x > /opt/sandboxkit/env/bin/new"])
    notes = await run(
        box, ["sh", "-c", "cat notes/hello.txt && echo more >> notes/hello.txt && find notes -prune -printf '%u\\n'"]
    )
    mounts = await run(box, ["cat", "/proc/self/mountinfo", "/proc/1/mountinfo", "/proc/1/maps"])
    secret = os.path.exists(f"{home}/secret") if os.stat(home).st_uid != os.getuid() else False
    return [tool.output, write.status.code, notes.output, mounts.output, secret]


def test_layer_below_a_closed_home(box_runner: Any, closed_home: Path) -> None:
    """A layer below a 0700 directory, reached through a link, works read-only and names no host path; the engine that
    root starts cannot reach what lies beside it."""
    readable = [str(closed_home / "current"), str(closed_home / "skeleton")]
    tool, write, notes, mounts, secret = box_runner(use_layer, home=str(closed_home), readable=readable)
    assert tool == "from the layer\n"
    assert write != 0
    assert notes == "hello\nuser\n"
    assert closed_home.name not in mounts
    assert not secret


LEAVE = """
import os, signal, sys, time
from sandboxkit.local.isolation import enter
namespace = enter(sys.argv[1])
assert os.getuid() != 0
def stop(*_):
    os.write(1, b'stopped\\n')  # a print could meet the one below in its middle
    sys.exit(9)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
if sys.argv[2] == 'exit':
    sys.exit(7)
time.sleep(60)
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 7), ("term", 9)])
def test_exit_code_and_signals_pass(how: str, code: int) -> None:
    """Whoever started the engine sees its exit code, and its SIGTERM arrives, also when root's supervisor is between;
    the supervisor removes the state directory."""
    root = Path(tempfile.mkdtemp(prefix="sandboxkit-boxes-", dir="/tmp"))
    child = subprocess.Popen(
        [sys.executable, "-c", LEAVE, str(root / "engine"), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    try:
        assert child.stdout is not None
        first = child.stdout.readline()
        if not first and b"IsolationUnavailable" in (child.stderr.read() if child.stderr else b""):
            pytest.skip("no boxes here")
        assert first == b"ready\n"
        if how == "term":
            child.send_signal(signal.SIGTERM)
        output, errors = child.communicate(timeout=50)
        assert child.returncode == code, errors.decode()
        assert output == (b"stopped\n" if how == "term" else b"")
        if os.getuid() == 0:
            assert list(root.iterdir()) == []
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
        shutil.rmtree(root, ignore_errors=True)


IN_A_CHECKOUT = """
import sys
from pathlib import Path
import e2b, sandboxkit
from sandboxkit.local._child import start_engine, stop_engines
assert Path(sandboxkit.__file__).is_relative_to(sys.argv[1])
found = start_engine().endpoint
with e2b.Sandbox.create(
    "code-interpreter-v1", api_key=found.api_key, api_url=found.api_url, sandbox_url=found.sandbox_url
) as sandbox:
    print(sandbox.get_info().template_id)
stop_engines()
"""


@pytest.mark.engine
def test_a_checkout_below_a_closed_home(closed_home: Path, repository: Path) -> None:
    """An engine whose code and templates lie in a checkout below a 0700 directory, such as root's home, serves them."""
    for name in ("src", "sandbox-templates"):
        shutil.copytree(repository / name, closed_home / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CHECKOUT, str(closed_home)],
        env={**os.environ, "PYTHONPATH": str(closed_home / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        cwd="/",
        timeout=55,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("code-interpreter-v1\n", 0), done.stderr
