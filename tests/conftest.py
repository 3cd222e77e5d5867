"""What every test stands on: Hypothesis profiles, the built template, and the check that nothing is left running."""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from sandboxkit._types import Endpoint
from sandboxkit.errors import TemplateNotBuilt
from sandboxkit.local import images
from sandboxkit.local._child import start_engine, stop_engines
from sandboxkit.local._config import EngineConfig

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
# Whether a mutant fails is all that is asked: what makes it fail is not made simple.
settings.register_profile(
    "mutation", max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

# -- the environment of the tests ---------------------------------------------------------------------------------

ISOLATION = os.environ.get("SANDBOXKIT_TEST_ISOLATION", "auto")
"""What makes the boxes of all tests: `gvisor` tries gVisor as bubblewrap is tried, but for `gvisor-exceptions.toml`."""
os.environ["SANDBOXKIT_ISOLATION"] = ISOLATION

if os.environ.get("SANDBOXKIT_TEST_LOOP") == "asyncio":  # the synchronous face as it is where there is no uvloop
    sys.modules["uvloop"] = None  # type: ignore[assignment]

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
    exceptions: dict[str, str] = {}
    if ISOLATION == "gvisor":
        exceptions = tomllib.loads((ROOT / "tests" / "gvisor-exceptions.toml").read_text())
    skip_full = pytest.mark.skip(reason="runs in nox -s full only")
    skip_cloud = pytest.mark.skip(reason="needs an E2B account (SANDBOXKIT_TEST_E2B_API_KEY)")
    for item in items:
        if item.get_closest_marker("full") and not config.getoption("--full"):
            item.add_marker(skip_full)
        for pattern, reason in exceptions.items():
            if fnmatch.fnmatchcase(item.nodeid, pattern):
                item.add_marker(pytest.mark.skip(reason=f"gVisor: {reason}"))
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


def _our_processes(but_below: Collection[int] = ()) -> dict[int, str]:
    """Processes that the tests started and that still run: pid and command line.

    Those below one of `but_below` are left out: an engine that was there before makes sandboxes in the background.

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
        is_anothers = False
        while ancestor not in (me, 0, 1) and ancestor not in marked:
            ancestor = parents.get(ancestor, 0)
            is_anothers = is_anothers or ancestor in but_below
        if pid != me and ancestor not in (0, 1) and not is_anothers:
            found[pid] = command
    return found


def _wait_until_gone(before: dict[int, str], *, seconds: float) -> dict[int, str]:
    """What was not there before and is still there after a grace time."""
    deadline = time.monotonic() + seconds
    while True:
        left = {pid: command for pid, command in _our_processes(before).items() if pid not in before}
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
    stop_engines()
    left = _wait_until_gone(before, seconds=30)
    assert not left, f"left running after the tests: {left}"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """This one test leaves no process, thread or open descriptor behind."""
    processes, threads, descriptors = _our_processes(), set(threading.enumerate()), _descriptors()
    yield
    left = _wait_until_gone(processes, seconds=30)
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


_KEEPS_AN_ENGINE = """
import json, sys
from sandboxkit.local._child import start_engine, stop_engines
found = start_engine().endpoint
print(json.dumps([found.api_key, found.api_url, found.sandbox_url]), flush=True)
sys.stdin.read()
stop_engines()
"""


@pytest.fixture(scope="session")
def engine(nothing_left_running: None) -> Iterator[Endpoint]:
    """Where the session's one engine answers: a real engine, started by the first test that asks for it. It is the
    child of a process of its own: tests stop and kill the one that this process's pools share."""
    with subprocess.Popen(
        [sys.executable, "-c", _KEEPS_AN_ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        try:
            key, api_url, sandbox_url = json.loads(keeper.stdout.readline())
            yield Endpoint(key, api_url=api_url, sandbox_url=sandbox_url)
        finally:
            keeper.stdin.close()
            keeper.wait(30)


@pytest.fixture(scope="module", autouse=True)
def templates_are_as_they_were() -> Iterator[None]:
    """What a module's tests register is known to them alone: others would have their sandboxes wait for an app."""
    from sandboxkit import template

    registered = template._registered()
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


@pytest.fixture(scope="session")
def web_engine(nothing_left_running: None) -> Iterator[Endpoint]:
    """An engine for tests of the library's web templates, which are built, once, into the machine's cache."""
    for name in ("gradio-developer", "nextjs-developer", "streamlit-developer", "vue-developer"):
        try:
            images.find(name)
        except TemplateNotBuilt:
            command = [sys.executable, "-m", "sandboxkit.cli", "templates", "build", name]
            subprocess.run(command, check=True, timeout=900)
    wide = EngineConfig(isolation=ISOLATION, log_level="warning", warm=0, max_sandboxes=20, internet_ceiling="packages")
    engine = start_engine(wide)
    yield engine.endpoint
    engine.stop()


@pytest.fixture(scope="session")
def sdk(engine: Endpoint) -> dict[str, str]:
    """The options that make the unmodified E2B SDK talk to that engine: `Sandbox.create(**sdk)`."""
    assert engine.api_url is not None
    assert engine.sandbox_url is not None
    return {"api_key": engine.api_key, "api_url": engine.api_url, "sandbox_url": engine.sandbox_url}


# -- boxes --------------------------------------------------------------------------------------------------------

ORDINARY_UID = 60999
"""An ordinary user of no name, for tests that root runs."""


def _python_for_anybody() -> tuple[str, dict[str, str]] | None:
    """A Python of this version that an ordinary user can start, and the variables that show it our packages."""
    packages = [str(ROOT / "src"), *(path for path in sys.path if path.endswith("site-packages"))]
    shown = {"PYTHONPATH": ":".join(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        try:
            subprocess.run(
                [python, "-c", "import sandboxkit, pytest"],
                user=ORDINARY_UID,
                group=ORDINARY_UID,
                extra_groups=[],
                env=shown,
                cwd="/",
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python, shown
    return None


@pytest.fixture(scope="session")
def ordinary_user() -> tuple[str, dict[str, str], dict[str, Any]]:
    """How to start Python as an ordinary user, also where root runs the tests: the program, its environment, and the
    options of `subprocess.run`."""
    if os.getuid() != 0:
        return sys.executable, dict(os.environ), {}
    found = _python_for_anybody()
    if found is None:
        pytest.skip("no Python of this version that an ordinary user can start")
    return found[0], {**os.environ, **found[1]}, {"user": ORDINARY_UID, "group": ORDINARY_UID, "extra_groups": []}


@pytest.fixture
def box_runner(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Run an `async def` of the test's own file with real boxes, in a process of its own, and return what it returns.

    `box_runner(scenario, key=value)` calls `scenario(isolation, key=value)` there; values and result are JSON. With
    `as_ordinary_user=True` it runs as one even if root runs the tests; `isolation="gvisor"` names that. A scenario
    that raises fails the test with its traceback. See `tests/box_child.py`.
    """

    def run(
        scenario: Callable[..., Any],
        *,
        as_ordinary_user: bool = False,
        readable: Sequence[str] = (),
        isolation: str = ISOLATION,
        **arguments: Any,
    ) -> Any:
        python = sys.executable
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "SANDBOXKIT_ISOLATION": isolation}
        switch: dict[str, Any] = {}
        root = Path(tempfile.mkdtemp(prefix="sandboxkit-boxes-", dir="/tmp"))
        if as_ordinary_user and os.getuid() == 0:
            found = _python_for_anybody()
            if found is None:
                shutil.rmtree(root)
                pytest.skip("no Python of this version that an ordinary user can start")
            python, shown = found
            env |= shown
            switch = {"user": ORDINARY_UID, "group": ORDINARY_UID, "extra_groups": []}
            os.chown(root, ORDINARY_UID, ORDINARY_UID)
        given = json.dumps({**arguments, "readable": list(readable)})
        script, file = str(ROOT / "tests" / "box_child.py"), str(request.path)
        try:
            done = subprocess.run(
                [python, script, file, scenario.__name__, str(root / "engine"), given],
                env=env,
                cwd="/",
                capture_output=True,
                text=True,
                timeout=50,
                check=False,
                **switch,
            )
            left = sorted(path.name for path in root.iterdir())
        finally:
            shutil.rmtree(root, ignore_errors=True)
        if done.returncode == 77 and not os.environ.get("CI"):
            pytest.skip(f"no boxes here: {done.stderr.strip()}")
        if done.returncode != 0:
            pytest.fail(f"the scenario failed (exit {done.returncode}):\n{done.stderr[-6000:]}", pytrace=False)
        assert left == [], f"left in the state directory: {left}"
        return json.loads(done.stdout)

    return run
