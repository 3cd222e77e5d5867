"""What every test stands on: Hypothesis profiles, the built template, and the check that nothing is left running."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sandboxkit._types import Endpoint
from sandboxkit.local._child import start_engine, stop_engines

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = "code-interpreter-v1"

# -- Hypothesis ---------------------------------------------------------------------------------------------------

# Deadlines measure the machine, not the code: each test has pytest-timeout's limit instead.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("full", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

# -- the environment of the tests ---------------------------------------------------------------------------------

# Settings of the person who runs the tests must not decide what the tests see.
for _name in ("E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_DOMAIN", "E2B_DEBUG", "SANDBOXKIT_ENDPOINT"):
    os.environ.pop(_name, None)

RUN_TOKEN = f"SANDBOXKIT_TEST_RUN={uuid.uuid4().hex}"
"""In the environment of every process that the tests start, so that those that outlive their parent are known."""
os.environ.update([RUN_TOKEN.split("=")])


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--full` runs what `nox -s full` runs."""
    parser.addoption("--full", action="store_true", help="also run the tests marked `full`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs more than the package index, by name, unless it was asked for."""
    skip_full = pytest.mark.skip(reason="runs in nox -s full only")
    skip_cloud = pytest.mark.skip(reason="needs an E2B account (SANDBOXKIT_TEST_E2B_API_KEY)")
    for item in items:
        if item.get_closest_marker("full") and not config.getoption("--full"):
            item.add_marker(skip_full)
        if item.get_closest_marker("cloud") and not os.environ.get("SANDBOXKIT_TEST_E2B_API_KEY"):
            item.add_marker(skip_cloud)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the interpreter's environment once, before any test's clock runs, with its progress in sight.

    Where this machine cannot isolate, the engine's tests are skipped with the remedy; CI fails instead, since a green
    run that tried nothing would say nothing.
    """
    items = [item for item in session.items if item.get_closest_marker("engine")]
    if not items or session.config.option.collectonly:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    capture = session.config.pluginmanager.get_plugin("capturemanager")
    if reporter is not None:
        reporter.write_line(f"building template {TEMPLATE} if needed ...")
    if capture is not None:
        capture.suspend_global_capture(in_=False)
    build = subprocess.run(
        [sys.executable, "-m", "sandboxkit.cli", "templates", "build", TEMPLATE],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if capture is not None:
        capture.resume_global_capture()
    if build.returncode == 0:
        return
    reason = build.stderr.strip() or f"exit code {build.returncode}"
    if os.environ.get("CI"):
        pytest.exit(f"the template {TEMPLATE} could not be built: {reason}", returncode=1)
    for item in items:
        item.add_marker(pytest.mark.skip(reason=f"no engine here: {reason.splitlines()[-1]}"))


# -- nothing is left ----------------------------------------------------------------------------------------------


def _our_processes() -> dict[int, str]:
    """Processes that the tests started and that still run: pid and command line.

    Found two ways, since each has a gap: by descent from this process (misses orphans) and by the run's token in the
    environment (misses sandboxes, which start with none).
    """
    parents: dict[int, int] = {}
    alive: dict[int, str] = {}
    marked: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            parents[int(entry.name)] = int(parent)
            if state not in "ZX":
                alive[int(entry.name)] = command
            if RUN_TOKEN.encode() in (entry / "environ").read_bytes():
                marked.add(int(entry.name))
        except OSError:
            continue  # it ended while we looked, or belongs to somebody else
    me = os.getpid()
    found = {}
    for pid, command in alive.items():
        ancestor = pid
        while ancestor not in (me, 0, 1) and ancestor not in marked:
            ancestor = parents.get(ancestor, 0)
        if pid != me and ancestor not in (0, 1):
            found[pid] = command
    return found


def _wait_until_gone(before: dict[int, str], *, seconds: float) -> dict[int, str]:
    """What was not there before and is still there after a grace time."""
    deadline = time.monotonic() + seconds
    while True:
        left = {pid: command for pid, command in _our_processes().items() if pid not in before}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """After the last test, no process that any test started is left: no engine, no sandbox, no orphan."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = _our_processes()
    yield
    left = _wait_until_gone(before, seconds=10)
    assert not left, f"left running after the tests: {left}"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """This one test leaves no process, thread or open descriptor behind."""
    processes, threads, descriptors = _our_processes(), set(threading.enumerate()), _descriptors()
    yield
    left = _wait_until_gone(processes, seconds=5)
    assert not left, f"left running: {left}"
    more_threads = {t.name for t in threading.enumerate() if t not in threads}
    assert not more_threads, f"threads left: {more_threads}"
    more = {k: v for k, v in _descriptors().items() if descriptors.get(k) != v}
    assert not more, f"descriptors left: {more}"


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except OSError:
            continue  # the one that lists the directory
    return {k: v for k, v in found.items() if not v.startswith("/proc/")}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this checkout."""
    return ROOT


# -- the engine ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def engine(nothing_left_running: None) -> Iterator[Endpoint]:
    """Where the session's one engine answers: a real child process, started by the first test that asks for it."""
    started = start_engine()
    yield started.endpoint
    stop_engines()


@pytest.fixture(scope="session")
def sdk(engine: Endpoint) -> dict[str, str]:
    """The options that make the unmodified E2B SDK talk to that engine: `Sandbox.create(**sdk)`."""
    assert engine.api_url is not None
    assert engine.sandbox_url is not None
    return {"api_key": engine.api_key, "api_url": engine.api_url, "sandbox_url": engine.sandbox_url}
