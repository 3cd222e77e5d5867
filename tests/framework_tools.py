"""The environments of the agent frameworks: one each, with pinned versions, made once and kept outside the repository.

`SANDBOXKIT_TEST_ENVIRONMENTS` says where; without it they lie in the user's cache. A changed list of requirements,
another Python or another checkout makes a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from doc_blocks import Block, blocks

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "integrations" / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))

THIS_CHECKOUT = "e2b-sandboxkit[local]"
"""The line of a list of requirements that stands for the checkout under test."""


class NotInstallable(Exception):
    """pip could not install what a framework needs; the text is its last word."""


def requirements(name: str) -> list[str]:
    """What is installed for a framework, as pip takes it."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def python_of(name: str) -> Path:
    """The Python of a framework's environment, whether that is made already or not."""
    return _home(name) / "bin" / "python"


def recipe(name: str) -> list[Block]:
    """The Python blocks of a framework's page."""
    page = f"docs/how-to/frameworks/{name}.md"
    return [block for block in blocks() if block.page == page and block.language == "python"]


def make_environment(name: str, say: Callable[[str], object]) -> Path:
    """Make a framework's environment where that has not been done; `say` is told when it takes long.

    Raises:
        NotInstallable: what it needs cannot be had here.
    """
    home, wanted = _home(name), requirements(name)
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests share it
        if (home / "complete").exists():
            return python_of(name)
        say(f"installing {name} into {home.parent} ({', '.join(wanted)}) ...")
        shutil.rmtree(home, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(home)])
        given = [part for line in wanted for part in (["-e", f"{ROOT}[local]"] if line == THIS_CHECKOUT else [line])]
        _run([str(python_of(name)), "-m", "pip", "install", "--quiet", *given])
        (home / "complete").touch()
        return python_of(name)


def _run(argv: list[str]) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise NotInstallable(said[-1] if said else f"{argv[0]}: exit code {done.returncode}")


def _home(name: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("SANDBOXKIT_TEST_ENVIRONMENTS") or Path(cache) / "sandboxkit-test-environments")
    wanted = requirements(name)
    key = [*wanted, sys.version, sys.base_prefix, str(ROOT) if THIS_CHECKOUT in wanted else ""]
    return folder / f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}"
