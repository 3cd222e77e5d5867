"""The walk of level `enforced` where the kernel does not tell on which mount a file lies: it lets nothing through."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts are Linux's")

WALK = """
import errno, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("beneath", sys.argv[1])
beneath = importlib.util.module_from_spec(spec)
spec.loader.exec_module(beneath)
kernel = beneath.Kernel()
kernel.missing = True
with beneath.Root(os.fsencode(sys.argv[2]), kernel=kernel) as root:
    for path in sys.argv[3:]:
        try:
            os.close(root.reach(os.fsencode(path).split(b"/"), os.O_RDONLY))
            print(path, "reached")
        except OSError as error:
            print(path, errno.errorcode[error.errno])
"""


def walk(top: Path, *, before: str) -> list[str]:
    """Walk to a file and to one on another mount of the same file system, in mount namespaces of their own."""
    from sandboxkit.local.agent import _beneath

    if shutil.which("unshare") is None:
        pytest.skip("no unshare (util-linux)")
    (top / "root" / "way").mkdir(parents=True)
    (top / "root" / "here").mkdir()
    (top / "root" / "here" / "file").write_text("x")
    (top / "outside").mkdir()
    (top / "outside" / "secret").write_text("x")
    script = f'mount --bind "$1/outside" "$1/root/way" && {before} shift && exec "$@"'
    python = [sys.executable, "-I", "-S", "-c", WALK, str(_beneath.__file__), str(top / "root")]
    become = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", *become, "--mount", "sh", "-c", script, "sh", str(top), *python, "here/file", "way/secret"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_kernel_says_it(tmp_path: Path) -> None:
    """A bind mount below the root is a way out, and is refused; the rest is reached."""
    assert walk(tmp_path, before="") == ["here/file reached", "way/secret EXDEV"]


def test_nobody_says_it(tmp_path: Path) -> None:
    """Without /proc any file may be one of another mount."""
    told = walk(tmp_path, before="mount -t tmpfs none /proc &&")
    assert told == ["here/file EXDEV", "way/secret EXDEV"]


def test_the_device_says_it(tmp_path: Path) -> None:
    """Where a device is mounted once, it tells as much as the mount would; where twice, it does not."""
    twice = 'mount -t tmpfs none /proc && mkdir -p /proc/self && printf "%s" "$I" > /proc/self/mountinfo &&'
    number = os.stat(tmp_path).st_dev
    line = f"1 0 {os.major(number)}:{os.minor(number)} / / rw - ext4 none rw"
    one = f"I='{line}' && " + twice
    assert walk(tmp_path / "one", before=one)[0] == "here/file reached"
    two = f"I='{line}\n{line}' && " + twice
    assert walk(tmp_path / "two", before=two) == ["here/file EXDEV", "way/secret EXDEV"]
