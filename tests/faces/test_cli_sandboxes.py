"""`sandboxkit ls` and `sandboxkit kill`, against an engine that another program has started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxkit import SandboxPool
from sandboxkit._types import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def command(endpoint: Endpoint, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command, told of the engine as a person tells it."""
    file = directory / "engine.env"
    file.write_text(
        f"E2B_API_KEY='{endpoint.api_key}'\nE2B_API_URL='{endpoint.api_url}'\nE2B_SANDBOX_URL='{endpoint.sandbox_url}'\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "sandboxkit.cli", *arguments],
        env={**os.environ, "SANDBOXKIT_ENDPOINT": str(file)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_sandboxes_are_listed_and_killed_by_id_and_by_pool(engine: Endpoint, tmp_path: Path) -> None:
    """A pool's sandboxes are told with their session; kill takes ids, or all of a pool, and nothing else."""
    with SandboxPool(endpoint=engine, name="cli-a") as one, SandboxPool(endpoint=engine, name="cli-b") as two:
        first, second = one.session("alice"), one.session("bob\x1b[2J")
        other = two.session("carol")
        listed = command(engine, tmp_path, "ls", "--pool", "cli-a")
        assert (listed.returncode, listed.stderr) == (0, "")
        lines = listed.stdout.splitlines()
        assert len(lines) == 2
        assert "\x1b" not in listed.stdout
        assert lines[0].split()[:3] == [first.sandbox_id, "running", "code-interpreter-v1"]
        assert "'alice'" in lines[0]
        first.pause()
        objects = [json.loads(line) for line in command(engine, tmp_path, "ls", "--json").stdout.splitlines()]
        states = {found["sandbox_id"]: found["state"] for found in objects}
        assert states[first.sandbox_id] == "paused"
        assert states[other.sandbox_id] == "running"
        killed = command(engine, tmp_path, "kill", first.sandbox_id, "nosuchsandbox")
        assert killed.returncode == 1
        assert killed.stdout.split() == [first.sandbox_id]
        assert "nosuchsandbox was not found" in killed.stderr
        every = command(engine, tmp_path, "kill", "--all", "--pool", "cli-a")
        assert (every.returncode, every.stdout.split()) == (0, [second.sandbox_id])
        assert other.run_code("1 + 1").text == "2"


@pytest.mark.parametrize("arguments", [[], ["--all"], ["x", "--all", "--pool", "p"], ["x", "--pool", "p"]], ids=str)
def test_kill_says_what_it_needs(arguments: list[str], engine: Endpoint, tmp_path: Path) -> None:
    """Without ids, or with half of what --all needs, nothing is killed."""
    done = command(engine, tmp_path, "kill", *arguments)
    assert done.returncode == 2
    assert "--all --pool NAME" in done.stderr
