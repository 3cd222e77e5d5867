"""Every code block of the README and the docs runs alone, as a reader pastes it, and prints what the page shows."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from doc_blocks import Block, blocks

WHY_NOT = {"needs an E2B account", "needs runsc", "downloads the whole environment again"}
"""The reasons for which a block may stay unrun."""

INSTALLS = ("uv run --extra", "python3 -m venv", "uvx nox")
"""Blocks that set a machine up: `.ci/run` runs the README's, which a test inside the suite cannot."""


IN_ENVIRONMENTS_OF_THEIR_OWN = "docs/how-to/frameworks/"
"""The pages whose blocks `tests/integrations` runs."""

BLOCKS = list(blocks())
RUN = [
    block
    for block in BLOCKS
    if block.why_not is None
    and not block.text.startswith(INSTALLS)
    and not block.page.startswith(IN_ENVIRONMENTS_OF_THEIR_OWN)
]


def _id(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("block", RUN, ids=_id)
def test_block_runs_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    """A pasted block ends well in an empty directory, says nothing on stderr, and prints what the page shows."""
    command = [sys.executable, "block.py"] if block.language == "python" else ["bash", "-eu", "block.sh"]
    (tmp_path / command[-1]).write_text(block.text, encoding="utf-8")
    scripts = str(Path(sys.executable).parent)
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONWARNINGS": "error"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if block.language == "python":
        assert done.stderr == ""
    if block.shown is not None:
        checker = doctest.OutputChecker()
        assert checker.check_output(block.shown, done.stdout, doctest.ELLIPSIS), done.stdout


def test_every_block_is_of_a_kind_that_is_run() -> None:
    """A block is Python or shell, or its output; a block that is not run says why, with a reason that is known."""
    assert len(RUN) >= 8
    assert {block.language for block in BLOCKS} <= {"python", "sh"}
    assert {block.why_not for block in BLOCKS if block.why_not} <= WHY_NOT


def test_every_python_block_shows_its_output() -> None:
    """A reader sees what each Python block prints."""
    assert [_id(block) for block in BLOCKS if block.language == "python" and block.shown is None] == []


def test_the_readme_starts_with_a_program_that_needs_no_account() -> None:
    """The first Python block of the README is run here, so it needs no account."""
    first = next(block for block in BLOCKS if block.page == "README.md" and block.language == "python")
    assert first in RUN
    assert first.shown
