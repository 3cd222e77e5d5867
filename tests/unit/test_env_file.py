"""The env-file's place is looked at before an engine is started for it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.errors import ConfigurationError
from sandboxkit.local._env_file import EnvFile


def children() -> set[str]:
    """This process's children, without waiting for any: some are other tests'."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.parametrize(
    ("name", "problem"),
    [("nosuch/e.env", "there is no directory"), ("file/e.env", "is not a directory"), ("folder", "it is a directory")],
)
def test_a_place_that_cannot_be_is_refused_at_once(tmp_path: Path, name: str, problem: str) -> None:
    """No writer is forked and no engine started for a path that cannot become a file; the error says why."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = children()
    with pytest.raises(ConfigurationError, match=problem):
        EnvFile(str(tmp_path / name), state_dir=tmp_path)
    assert children() == before


@pytest.mark.slow
def test_a_folder_of_somebody_else_is_refused_at_once(ordinary_user: Any) -> None:
    """A directory that the starter may not write is refused, too."""
    python, env, switch = ordinary_user
    code = "from pathlib import Path\nfrom sandboxkit.local._env_file import EnvFile\n"
    code += "EnvFile('/proc/sys/e.env', state_dir=Path('/tmp'))"
    done = subprocess.run(
        [python, "-c", code], env=env, cwd="/", capture_output=True, text=True, timeout=50, check=False, **switch
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert "ConfigurationError" in done.stderr
