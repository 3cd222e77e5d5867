"""What the tests of other people's frameworks stand on: their environments, and one engine as `serve` starts it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import framework_tools

HERE = Path(__file__).resolve().parent


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the environments that the tests need before any test's clock runs, with the progress in sight.

    The tests of a framework that cannot be installed here are skipped with pip's reason.
    """
    if session.config.option.collectonly or not session.config.getoption("--full"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    capture = session.config.pluginmanager.get_plugin("capturemanager")
    needed: dict[str, list[pytest.Item]] = {}
    for item in session.items:
        marker = item.get_closest_marker("framework")
        if marker is not None:
            needed.setdefault(marker.args[0], []).append(item)
    for name, items in sorted(needed.items()):
        if capture is not None:
            capture.suspend_global_capture(in_=False)
        try:
            framework_tools.make_environment(name, reporter.write_line if reporter is not None else print)
        except framework_tools.NotInstallable as error:
            for item in items:
                item.add_marker(pytest.mark.skip(reason=f"{name} cannot be installed here: {error}"))
        finally:
            if capture is not None:
                capture.resume_global_capture()


@pytest.fixture(scope="session")
def served(nothing_left_running: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of an engine that `sandboxkit serve` runs: what its `--env-file` says."""
    home = tmp_path_factory.mktemp("served")
    file, log = home / "engine.env", home / "serve.log"
    command = [sys.executable, "-m", "sandboxkit.cli", "serve", "--env-file", str(file)]
    with log.open("wb") as out, subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=out) as server:
        try:
            while not file.exists() or not file.stat().st_size:
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            lines = (shlex.split(line)[0] for line in file.read_text().splitlines() if line)
            yield dict(line.split("=", 1) for line in lines)
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def in_framework(served: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Run Python in a framework's environment with that engine's variables, and return what it printed.

    `in_framework(name, *argv, ok=(0,))` fails with the program's own words at another exit code. After the test, no
    sandbox is left on the engine.
    """

    more = {
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(HERE / "at_start"),
        "SANDBOXKIT_TEST_FOREIGN": str(framework_tools.ROOT / "src" / "sandboxkit" / "_foreign.py"),
    }

    def run(name: str, *argv: str, ok: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            [str(framework_tools.python_of(name)), *argv],
            cwd=tmp_path,
            env={**os.environ, **served, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in ok, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    yield run
    assert left_on(served) == []


def left_on(variables: dict[str, str]) -> list[str]:
    """The sandboxes that live on an engine."""
    from e2b import Sandbox

    pages = Sandbox.list(
        api_key=variables["E2B_API_KEY"], api_url=variables["E2B_API_URL"], sandbox_url=variables["E2B_SANDBOX_URL"]
    )
    return [info.sandbox_id for info in pages.next_items()]
