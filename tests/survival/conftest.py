"""Engines of a test's own, which may be hurt: started as a child, looked at from outside, and searched for remains."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

TEMPLATE = "code-interpreter-v1"


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0, what: str = "it did not come about") -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def parents() -> dict[int, int]:
    """The parent of each process that runs (zombies do not)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                found[int(entry.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    """A process and all that came from it and still hang on it."""
    tree = parents()
    found = {pid} & tree.keys()
    while more := {child for child, parent in tree.items() if parent in found} - found:
        found |= more
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that run."""
    return pids & parents().keys()


def _engines_in(folder: Path) -> list[str]:
    """The directories that belong to one engine each."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("kept-")) if folder.exists() else []


def no_tracebacks(run: EngineRun) -> None:
    """Nothing happened that the engine did not expect."""
    assert "Traceback" not in run.log(), run.log()[max(0, run.log().find("Traceback") - 500) :][:6000]


@dataclass(frozen=True)
class Size:
    """How large an engine is: descriptors, resident bytes, mounts, threads, processes that hang on it."""

    descriptors: int
    memory: int
    mounts: int
    threads: int
    processes: int


class EngineRun:
    """One engine, as a child of the test's process."""

    def __init__(
        self,
        root: Path,
        command: Sequence[str],
        *,
        env: dict[str, str],
        switch: dict[str, Any],
        config: dict[str, Any],
        template: str,
        wrapper: str | None,
        stderr: int | None,
    ) -> None:
        self.root = root
        self.template = template
        self.log_file = root / f"log-{time.monotonic_ns()}"
        program = ["-c", wrapper] if wrapper else ["-P", "-m", "sandboxkit.local"]
        values = {
            "isolation": os.environ["SANDBOXKIT_ISOLATION"],
            "state_root": str(root / "run"),
            "log_level": "info",
            "shutdown_timeout": 5,
            **config,
        }
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *program, "--child", "--config-json", json.dumps(values)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log if stderr is None else stderr,
                env=env,
                cwd="/",
                start_new_session=True,
                **switch,
            )
        assert self.process.stdout is not None
        report = json.loads(self.process.stdout.readline() or "{}")
        self.error: dict[str, str] | None = report.get("error")
        self.sdk: dict[str, str] = report.get("endpoint", {})
        self.url = self.sdk.get("api_url", "")
        self.headers = {"X-API-KEY": self.sdk.get("api_key", "")}

    # -- using it --

    def client(self, **options: Any) -> httpx.Client:
        """A client of the REST API with the key."""
        return httpx.Client(base_url=self.url, headers=self.headers, **{"timeout": 30.0, **options})

    def create(self, client: httpx.Client, **fields: Any) -> dict[str, Any]:
        """Make a sandbox by the REST API."""
        answer = client.post("/v2/sandboxes", json={"templateID": self.template, **fields})
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def to(self, sandbox: dict[str, Any], port: int = 49983) -> dict[str, str]:
        """The headers that reach a sandbox."""
        return {
            "E2b-Sandbox-Id": sandbox["sandboxID"],
            "E2b-Sandbox-Port": str(port),
            "X-Access-Token": sandbox["envdAccessToken"],
        }

    def run(self, client: httpx.Client, sandbox: dict[str, Any], command: str) -> str:
        """Run a shell command in a sandbox by envd's API, and return the last message of the stream as text."""
        message = json.dumps({"process": {"cmd": "/bin/sh", "args": ["-c", command]}}).encode()
        answer = client.post(
            "/process.Process/Start",
            content=b"\0" + len(message).to_bytes(4, "big") + message,
            headers={**self.to(sandbox), "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"},
        )
        assert answer.status_code == 200, answer.text
        return answer.text

    # -- looking at it --

    @property
    def pid(self) -> int:
        """The process that does the work; where root started it, not the supervisor."""
        if os.stat(f"/proc/{self.process.pid}").st_uid != 0:
            return self.process.pid
        for child, parent in parents().items():
            if parent == self.process.pid and os.stat(f"/proc/{child}").st_uid != 0:
                return child
        raise AssertionError("the supervisor has no engine")

    def size(self) -> Size:
        """Measure it."""
        at = Path(f"/proc/{self.pid}")
        status = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines() if ":" in line)
        return Size(
            descriptors=len(os.listdir(at / "fd")),
            memory=int(status["VmRSS"].split()[0]) * 1024,
            # Those that come from the host (an unprivileged engine sees them come and go) are not the engine's.
            mounts=sum(" master:" not in line for line in (at / "mountinfo").read_text().splitlines()),
            threads=int(status["Threads"]),
            processes=len(descendants(self.process.pid)),
        )

    def all_pids(self) -> set[int]:
        """It, its supervisor, its writer, and every process in its sandboxes."""
        return descendants(self.process.pid)

    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text(errors="replace")

    def state_directories(self) -> list[str]:
        """What engines with this state root keep, or left."""
        return _engines_in(self.root / "run")

    def kept(self) -> list[str]:
        """What lies in the store that outlives engines, but for its lock."""
        folders = (self.root / "run").glob("kept-*")
        files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return sorted(path.name for path in files if path.name != "claim")

    def cgroups(self) -> list[str]:
        """Control groups, whatever they belong to, that are named after this engine."""
        name = f"sandboxkit-engine-{self.process.pid}"
        found = []
        for folder, below, _files in os.walk("/sys/fs/cgroup"):
            found += [os.path.join(folder, each) for each in below if each == name or each.startswith(f"{name}-")]
        return found

    # -- its end --

    def kill(self, *pids: int) -> None:
        """kill -9, all at once."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """Let it end in an orderly way; returns its exit code. Idempotent."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)


Start = Callable[..., EngineRun]


@pytest.fixture(params=["as-started", "as-ordinary-user"])
def who(request: pytest.FixtureRequest) -> str:
    """Whose engine it is. Where an ordinary user runs the tests, both would be the same: the second is left out."""
    if request.param == "as-ordinary-user" and os.getuid() != 0:
        pytest.skip("the tests are run by an ordinary user already")
    return str(request.param)


@contextlib.contextmanager
def starter(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start engines with one state root, end them, and see that nothing is left."""
    root = Path(tempfile.mkdtemp(prefix="sandboxkit-survival-", dir="/tmp"))
    root.chmod(0o755)
    started: list[EngineRun] = []

    def start_one(
        *,
        who: str = "as-started",
        wrapper: str | None = None,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
        succeeds: bool = True,
        **config: Any,
    ) -> EngineRun:
        command, variables, switch, template = [sys.executable], dict(os.environ), {}, TEMPLATE
        if who == "as-ordinary-user":
            python, variables, switch = request.getfixturevalue("ordinary_user")
            command, variables = [python], {**variables, "SANDBOXKIT_HOME": str(root / "home")}
            template = "base"  # a cache of its own, in which nothing is built
            os.chown(root, switch["user"], switch["group"])
        run = EngineRun(
            root,
            command,
            env={**variables, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
            switch=switch,
            config={"warm": 0, **config},  # what is made in the background would disturb what is counted
            template=template,
            wrapper=wrapper,
            stderr=stderr,
        )
        started.append(run)
        if succeeds:
            assert run.error is None, run.error
        return run

    yield start_one
    for run in started:
        run.stop()
    left = {pid for run in started for pid in alive(run.all_pids())}
    directories = _engines_in(root / "run")
    groups = [group for run in started for group in run.cgroups()]
    shutil.rmtree(root, ignore_errors=True)
    assert not left, f"left running: {left}"
    assert directories == []
    assert groups == []


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """`start(who="as-started", wrapper=None, stderr=None, env=None, **config)` starts an engine; all of one test have
    one state root. A `wrapper` is Python code that is run in the place of the engine's program."""
    with starter(request) as start_one:
        yield start_one


@pytest.fixture(scope="module")
def steady(request: pytest.FixtureRequest) -> Iterator[EngineRun]:
    """One engine for a file of tests that throw nonsense at it: in the end its log holds no traceback, it still makes
    sandboxes, and it ends in an orderly way."""
    with starter(request) as start_one:
        run = start_one(max_sandboxes=20)
        yield run
        with run.client() as client:
            for left in client.get("/v2/sandboxes").json():
                client.delete(f"/sandboxes/{left['sandboxID']}")
            assert "data" in run.run(client, run.create(client), "echo here")
        assert run.stop() == 0
        assert "Traceback" not in run.log(), run.log()[max(0, run.log().find("Traceback") - 500) :][:6000]
        assert "engine.ended in_time=True" in run.log()


@pytest.fixture
def tools() -> Any:
    """The functions of this file, for tests: importlib mode lets them import no neighbour."""
    return sys.modules[__name__]
