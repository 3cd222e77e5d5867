"""Every supported client of E2B, unmodified and in an environment of its own, against one engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.full, pytest.mark.engine, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
PYTHON_CLIENTS = [("2.31.0", "2.9.0"), ("2.48.0", "2.9.1"), ("2.55.1", "2.10.5"), ("", "")]
"""Versions of e2b and e2b-code-interpreter; empty is the newest. 2.50 and older speak the first REST dialect."""


def run(argv: list[str], cwd: Path, envs: dict[str, str] | None = None) -> str:
    """Run a program to its end and return what it printed; its words are the failure's."""
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **(envs or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def variables(sdk: dict[str, str]) -> dict[str, str]:
    """The engine, as the environment variables that every client reads."""
    return {"E2B_API_KEY": sdk["api_key"], "E2B_API_URL": sdk["api_url"], "E2B_SANDBOX_URL": sdk["sandbox_url"]}


@pytest.fixture(scope="module", params=PYTHON_CLIENTS, ids=lambda versions: versions[0] or "newest")
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that holds one client and nothing of ours."""
    core, interpreter = request.param
    home = tmp_path_factory.mktemp("client")
    run([sys.executable, "-m", "venv", str(home / "venv")], home)
    found = str(home / "venv/bin/python")
    wanted = [f"e2b=={core}", f"e2b-code-interpreter=={interpreter}"] if core else ["e2b", "e2b-code-interpreter"]
    run([found, "-m", "pip", "install", "--quiet", *wanted], home)
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_the_python_client_notices_no_difference(
    python: str, colour: str, variables: dict[str, str], tmp_path: Path
) -> None:
    """Code, contexts, rich results, commands, files, lists, pause and kill work as that client expects."""
    assert run([python, str(HERE / "program.py"), colour], tmp_path, variables).splitlines()[-1] == "all"


@pytest.mark.timeout(300)
def test_the_javascript_client_notices_no_difference(variables: dict[str, str], tmp_path: Path) -> None:
    """The same, with the newest client on this machine's Node."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("Node and npm are not installed here")
    (tmp_path / "package.json").write_text('{"private": true}')
    run([npm, "install", "--no-audit", "--no-fund", "@e2b/code-interpreter"], tmp_path)
    shutil.copy(HERE / "program.mjs", tmp_path)
    assert run([node, "program.mjs"], tmp_path, variables).splitlines()[-1] == "all"
