"""The coverage table is current, names tests that exist, and has a line for whatever the installed SDK can ask for."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import e2b
import e2b_code_interpreter
import pytest
from e2b.sandbox.sandbox_api import SandboxLifecycle, SandboxNetworkOpts
from e2b.sandbox_sync.commands.command import Commands
from e2b.sandbox_sync.commands.pty import Pty
from e2b.sandbox_sync.filesystem.filesystem import Filesystem

IN_THE_CLIENT = {
    "self", "cls", "opts", "request_timeout", "logger", "retain_output", "on_stdout", "on_stderr", "on_result",
    "on_error",
}  # fmt: skip
"""Parameters that no server hears of."""

SPELT_OUT = {"Sandbox.create(lifecycle=)", "Sandbox.create(network=)", "Sandbox.run_code(language=)"}
"""Options with a line for each of their values or fields."""

ON_A_SANDBOX = [
    "create", "connect", "pause", "fork", "create_snapshot", "list_snapshots", "delete_snapshot", "list", "kill",
    "set_timeout", "update_network", "get_info", "get_metrics", "get_host", "download_url", "upload_url",
]  # fmt: skip
WITH_CODE = [
    "run_code", "create_code_context", "list_code_contexts", "remove_code_context", "restart_code_context",
]  # fmt: skip


@pytest.fixture(scope="module")
def table(repository: Path) -> set[str]:
    """What has a line."""
    import tomllib

    data = tomllib.loads((repository / "tests" / "e2b-coverage.toml").read_text(encoding="utf-8"))
    return {what for name, part in data.items() if name != "files" for what in part["lines"]}


def test_the_page_is_current_and_its_tests_exist(repository: Path) -> None:
    """`.ci/generate_coverage.py` finds nothing to change and no name of a test that is none."""
    done = subprocess.run(
        [sys.executable, ".ci/generate_coverage.py"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_route_has_its_line(table: set[str]) -> None:
    """Each method and path that the SDK's generated client knows."""
    known = set()
    package = Path(str(e2b.__file__)).parent
    for file in [*package.glob("api/client/api/*/*.py"), *package.glob("volume/client/api/*/*.py")]:
        for method, path in re.findall(r'"method": "(\w+)",\s+"url": f?"([^"]+)"', file.read_text()):
            known.add(f"{method.upper()} {path}")
        for method, path in re.findall(r'"method": "(\w+)",\s+"url": "([^"]+)"\.format', file.read_text()):
            known.add(f"{method.upper()} {path}")
    assert len(known) > 40
    assert not known - table


@pytest.mark.parametrize("service", ["process", "filesystem"])
def test_every_rpc_method_has_its_line(table: set[str], service: str) -> None:
    """Each method of envd's two services."""
    place = Path(str(e2b.__file__)).parent / "envd" / service / f"{service}_connect.py"
    found = set(re.findall(r'name="(\w+)",\s+service_name="([\w.]+)"', place.read_text()))
    assert len(found) > 5
    assert not {f"{owner}/{name}" for name, owner in found} - table


def _options(owner: str, function: Callable[..., Any]) -> set[str]:
    name = function.__name__
    return {f"{owner}.{name}({option}=)" for option in set(inspect.signature(function).parameters) - IN_THE_CLIENT}


def test_every_option_has_its_line(table: set[str]) -> None:
    """Each parameter of the public calls that a server hears of, and each field of the two that have fields."""
    known = set()
    for name in ON_A_SANDBOX:
        known |= _options("Sandbox", getattr(e2b.Sandbox, name))
    for name in WITH_CODE:
        known |= _options("Sandbox", getattr(e2b_code_interpreter.Sandbox, name))
    for owner in (Commands, Pty, Filesystem):
        for name, function in vars(owner).items():
            if inspect.isfunction(function) and not name.startswith("_"):
                known |= _options(owner.__name__, function)
    known = {re.sub(r"Filesystem\.\w+\(user=\)", "Filesystem.*(user=)", option) for option in known - SPELT_OUT}
    known |= {f"Sandbox.create(lifecycle.{name}=)" for name in SandboxLifecycle.__annotations__}
    known |= {f"Sandbox.create(network.{name}=)" for name in SandboxNetworkOpts.__annotations__}
    assert len(known) > 80
    assert not known - table
