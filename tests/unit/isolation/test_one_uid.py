"""A root that has no other uid to give: the engine says so instead of falling over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="namespaces need Linux")

CODE = """
import os, sys
from sandboxkit.local.isolation import enter
from sandboxkit.local.isolation.host import _kernel
uid, gid = os.getuid(), os.getgid()
try:
    _kernel.unshare(_kernel.CLONE_NEWUSER)
except OSError:
    sys.exit(77)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
assert os.getuid() == 0
try:
    enter(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error, error.remedy)
"""


@pytest.mark.slow
def test_root_of_one_uid(tmp_path: Path) -> None:
    """Under `unshare -r` and the like, where the uid to drop to does not exist, the refusal is typed and says what to
    do, and nothing is left."""
    state = tmp_path / "run" / "engine"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(state)], capture_output=True, text=True, timeout=50, check=False
    )
    if done.returncode == 77:
        pytest.skip("no user namespaces here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("IsolationUnavailable ")
    assert "start the engine as an ordinary user" in done.stdout
    assert not state.exists()
