"""The engine as a process: how it starts, how it ends, and what is left of it in each case (nothing)."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import e2b
import pytest

from sandboxkit import errors
from sandboxkit._types import Endpoint
from sandboxkit.local import _child
from sandboxkit.local._child import Engine, running_engine, start_engine, stop_engines
from sandboxkit.local._config import EngineConfig

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def options(endpoint: Endpoint) -> dict[str, str]:
    """The SDK's options for an engine."""
    return {
        "api_key": endpoint.api_key,
        "api_url": str(endpoint.api_url),
        "sandbox_url": str(endpoint.sandbox_url),
    }


def alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    """An engine that keeps what it keeps in a directory of this test."""
    return EngineConfig(
        isolation=os.environ["SANDBOXKIT_ISOLATION"],
        state_root=str(tmp_path / "run"),
        log_level="warning",
        shutdown_timeout=5,
    )


@pytest.fixture
def engine_here(config: EngineConfig) -> Iterator[Engine]:
    """An engine of this test alone, as a child of the test's process."""
    engine = start_engine(config)
    yield engine
    engine.stop()
    _child._engines.pop(config, None)


def left_in(config: EngineConfig) -> list[str]:
    """What engines have left in their common directory."""
    root = Path(str(config.state_root))
    return sorted(os.listdir(root)) if root.exists() else []


def run_script(source: str, *arguments: str) -> subprocess.Popen[str]:
    """Run a program that uses the library, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# -- as a child ---------------------------------------------------------------------------------------------------


def test_stopping_leaves_nothing(config: EngineConfig) -> None:
    """After stop() the process and its directory are gone, sandboxes and all."""
    engine = start_engine(config)
    sandbox = e2b.Sandbox.create(**options(engine.endpoint))
    assert sandbox.is_running()
    assert left_in(config)
    engine.stop()
    engine.stop()
    assert not engine.is_alive()
    assert left_in(config) == []


def test_callers_share_one_engine(config: EngineConfig) -> None:
    """All threads that ask get the same process; after stop_engines() the next one gets a new one."""
    with ThreadPoolExecutor(4) as threads:
        engines = list(threads.map(lambda _: start_engine(config), range(4)))
    try:
        assert len({engine.pid for engine in engines}) == 1
    finally:
        engines[0].stop()
    again = start_engine(config)
    try:
        assert again.pid != engines[0].pid
        assert again.endpoint.api_key != engines[0].endpoint.api_key
    finally:
        again.stop()
        _child._engines.pop(config, None)


def test_an_engine_killed_outright_is_replaced_and_leaves_nothing(config: EngineConfig, engine_here: Engine) -> None:
    """After kill -9 the boxes die, the next use notices and starts another, which removes what was left."""
    sandbox = e2b.Sandbox.create(**options(engine_here.endpoint))
    running = sandbox.commands.run("sleep 1000.126", background=True)
    assert running.pid
    os.kill(engine_here.pid, signal.SIGKILL)
    wait_until(lambda: not engine_here.is_alive())
    second = start_engine(config)
    try:
        assert second.pid != engine_here.pid
        assert len(left_in(config)) == 1
        assert e2b.Sandbox.list(**options(second.endpoint)).next_items() == []
        wait_until(lambda: not any("sleep 1000.126" in line for line in _commands()))
    finally:
        second.stop()
    assert left_in(config) == []


def _commands() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip())
            except OSError:
                continue
    return [line for line in found if line == "sleep 1000.126"]


START_AND_WAIT = """
    import json, os, sys
    from sandboxkit.local._child import start_engine
    from sandboxkit.local._config import EngineConfig
    engine = start_engine(EngineConfig.from_json(sys.argv[1]))
    endpoint = engine.endpoint
    print(json.dumps([engine.pid, endpoint.api_key, endpoint.api_url]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_engine_ends_with_its_app(config: EngineConfig, how: str) -> None:
    """Whether the app exits or is killed outright, with a sandbox open: its engine ends by itself and cleans up."""
    app = run_script(START_AND_WAIT, config.to_json())
    assert app.stdin is not None
    assert app.stdout is not None
    pid, key, url = json.loads(app.stdout.readline())
    e2b.Sandbox.create(api_key=key, api_url=url, sandbox_url=url)
    if how == "kill":
        app.kill()
    app.stdin.close()
    app.wait(10)
    app.stdout.close()
    wait_until(lambda: not alive(pid))
    wait_until(lambda: left_in(config) == [])


def test_a_forked_child_neither_uses_nor_holds_the_engine(config: EngineConfig) -> None:
    """A fork of the app starts an engine of its own when it needs one, and does not keep its parent's alive."""
    app = run_script(
        """
        import json, os, sys
        from sandboxkit.local import _child
        from sandboxkit.local._config import EngineConfig
        config = EngineConfig.from_json(sys.argv[1])
        engine = _child.start_engine(config)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            own = _child.start_engine(config)
            os.write(writing, json.dumps([os.getpid(), own.pid]).encode())
            sys.stdin.read()  # lives on until the test has looked
            os._exit(0)
        print(json.dumps([engine.pid, *json.loads(os.read(reading, 1000))]), flush=True)
        os._exit(0)
        """,
        config.to_json(),
    )
    assert app.stdin is not None
    assert app.stdout is not None
    engine, fork, engine_of_fork = json.loads(app.stdout.readline())
    app.wait(10)
    wait_until(lambda: not alive(engine))
    assert alive(fork)
    assert alive(engine_of_fork)
    app.stdin.close()
    app.stdout.close()
    wait_until(lambda: not alive(fork) and not alive(engine_of_fork))
    wait_until(lambda: left_in(config) == [])


def test_a_start_that_takes_too_long_is_given_up(config: EngineConfig) -> None:
    """Past the caller's limit there is a typed error that names it, and no process."""
    before = set(_children())
    with pytest.raises(errors.EngineUnavailable, match=r"0\.01 seconds"):
        start_engine(config, timeout=0.01)
    wait_until(lambda: set(_children()) <= before)
    assert left_in(config) == []


def _children() -> list[int]:
    me = os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == me:
                found.append(int(entry.name))
    return found


def test_a_port_in_use_is_named(config: EngineConfig) -> None:
    """The child's reason reaches the caller as a typed error that names the port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = EngineConfig(port=port, state_root=config.state_root)
        with pytest.raises(errors.ConfigurationError, match=str(port)):
            start_engine(busy)


def test_without_values_there_is_one_engine_for_all() -> None:
    """start_engine() without values is the one that this whole process shares, and running_engine() finds it."""
    first = start_engine()
    assert start_engine() is first
    assert running_engine() is first


# -- in the foreground --------------------------------------------------------------------------------------------

SERVE = """
    import sys
    from sandboxkit.errors import SandboxkitError
    from sandboxkit.local._child import serve_foreground
    from sandboxkit.local._config import EngineConfig
    try:
        sys.exit(serve_foreground(EngineConfig.from_json(sys.argv[1]), on_ready=lambda e: print("ready", flush=True)))
    except SandboxkitError as error:
        print(error.code, error, flush=True)
        sys.exit(1)
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_the_env_file_is_whole_private_and_gone_at_the_end(
    config: EngineConfig, tmp_path: Path, ending: signal.Signals
) -> None:
    """The file appears only when requests are answered, is mode 0600, works, and goes with the engine."""
    file = tmp_path / "engine.env"
    values = {**json.loads(config.to_json()), "env_file": str(file)}
    served = run_script(SERVE, json.dumps(values))
    assert served.stdin is not None
    assert served.stdout is not None
    assert served.stdout.readline() == "ready\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    lines = dict(line.split("=", 1) for line in file.read_text().splitlines())
    assert set(lines) == {"E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"}
    key, url = (lines[name].strip("'") for name in ("E2B_API_KEY", "E2B_API_URL"))
    assert key.startswith("e2b_")
    assert len(key) == 44
    sandbox = e2b.Sandbox.create(api_key=key, api_url=url, sandbox_url=lines["E2B_SANDBOX_URL"].strip("'"))
    assert sandbox.is_running()
    served.send_signal(ending)
    assert served.wait(15) == 0
    served.stdin.close()
    served.stdout.close()
    assert not file.exists()
    assert left_in(config) == []


def test_the_env_file_goes_even_if_the_engine_is_killed(config: EngineConfig, tmp_path: Path) -> None:
    """kill -9 leaves no stale key behind."""
    file = tmp_path / "engine.env"
    served = run_script(SERVE, json.dumps({**json.loads(config.to_json()), "env_file": str(file)}))
    assert served.stdin is not None
    assert served.stdout is not None
    assert served.stdout.readline() == "ready\n"
    served.kill()
    served.wait(10)
    served.stdin.close()
    served.stdout.close()
    wait_until(lambda: not file.exists())


def test_the_log_tells_no_secrets(config: EngineConfig) -> None:
    """At its most talkative the log names sandboxes and templates, and no key, token, code, output or environment."""
    values = {**json.loads(config.to_json()), "log_level": "debug"}
    served = subprocess.Popen(
        [sys.executable, "-m", "sandboxkit.local", "--child", "--config-json", json.dumps(values)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.stdout is not None
    endpoint = json.loads(served.stdout.readline())["endpoint"]
    sandbox = e2b.Sandbox.create(envs={"PASSWORD": "hunter2"}, metadata={"note": "private"}, **endpoint)
    assert sandbox.commands.run("echo tell$((40 + 2))tale").stdout == "tell42tale\n"
    sandbox.files.write("diary.txt", "dear diary")
    sandbox.kill()
    _, log = served.communicate(timeout=45)
    assert sandbox.sandbox_id in log
    secrets = [endpoint["api_key"], str(sandbox._envd_access_token), "hunter2", "private", "tell42", "diary", "echo"]
    assert [secret for secret in secrets if secret in log] == []


def test_an_env_file_that_cannot_be_written_is_named(config: EngineConfig, tmp_path: Path) -> None:
    """The engine does not start without what its starter asked for."""
    file = tmp_path / "nosuch" / "engine.env"
    served = run_script(SERVE, json.dumps({**json.loads(config.to_json()), "env_file": str(file)}))
    output, _ = served.communicate(timeout=45)
    assert served.returncode == 1
    assert output.startswith("configuration_error")
    assert str(file) in output
    assert left_in(config) == []


def test_a_port_in_use_ends_the_foreground(config: EngineConfig, tmp_path: Path) -> None:
    """`serve` with a port that is taken says so, names it, exits with 1, and writes no env-file."""
    file = tmp_path / "engine.env"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        values = {**json.loads(config.to_json()), "env_file": str(file), "port": port}
        served = run_script(SERVE, json.dumps(values))
        output, _ = served.communicate(timeout=45)
    assert served.returncode == 1
    assert output.startswith("configuration_error")
    assert str(port) in output
    assert not file.exists()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"nosuch": 1}', '{"port": "x"}', '{"port": 70000}', '{"host": "example"}']
)
def test_a_malformed_configuration_is_refused(text: str) -> None:
    """The program says what is wrong with its values, and exits with 1."""
    ran = subprocess.run(
        [sys.executable, "-m", "sandboxkit.local", "--config-json", text], capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("sandboxkit: ")
    assert "Traceback" not in ran.stderr


def test_stopping_when_nothing_runs_is_harmless() -> None:
    """stop_engines() in a process that has none does nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "from sandboxkit.local._child import stop_engines; stop_engines()"], timeout=50
    )
    assert done.returncode == 0
    assert callable(stop_engines)
