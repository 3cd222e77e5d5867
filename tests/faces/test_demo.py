"""`sandboxkit demo`, as a newcomer runs it: everything that it promises to show, and nothing left."""

from __future__ import annotations

import csv
import gzip
import os
import re
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.cli._processes import Watch

DEMO = [sys.executable, "-m", "sandboxkit.cli", "demo"]


@pytest.mark.engine
@pytest.mark.slow
def test_the_demo_shows_the_main_job(tmp_path: Path) -> None:
    """One run shows data, both fragments in one sandbox, the chart's data, the saved picture, the file, the refused
    path and the exception, and leaves nothing but the picture."""
    watch = Watch()
    done = subprocess.run(DEMO, cwd=tmp_path, capture_output=True, text=True, timeout=55, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert watch.left() == ()
    lines = done.stdout.splitlines()
    shown = {line.split()[0]: line for line in lines if line[:1].strip()}
    labels = (
        "engine",
        "sandbox",
        "data",
        "fragment",
        "chart",
        "picture",
        "file",
        "refused",
        "exception",
        "closed",
        "next",
    )
    assert tuple(shown) == labels
    sandbox_id = shown["sandbox"].split()[1].rstrip(",")
    assert re.search(rf"took [\d.]+ m?s in {sandbox_id}", done.stdout)
    assert done.stdout.count(f"in {sandbox_id}") == 3
    assert "27,004 flights, 521 of them cancelled" in done.stdout
    assert "CC0" in done.stdout
    assert "Transportation Statistics" in done.stdout
    assert "worst hour is still 19:00" in done.stdout
    assert "a line chart, 'Delays grow during the day'" in shown["chart"]
    assert "19 points" in done.stdout
    assert "../../etc/passwd" in shown["refused"]
    assert "KeyError" in shown["exception"]
    assert "nothing is left running" in shown["closed"]
    (picture,) = tmp_path.iterdir()
    assert str(picture) in shown["picture"]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_data_is_what_its_notes_say() -> None:
    """The data set has as many rows and columns as its README says, which names source and licence."""
    folder = files("sandboxkit.cli").joinpath("_data")
    with gzip.open(Path(str(folder)) / "flights-2013-01.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    notes = folder.joinpath("README.md").read_text()
    assert f"{len(rows):,}" == "27,004"
    assert "27,004" in notes
    assert all(f"`{column}`" in notes for column in rows[0])
    assert "CC0" in notes
    assert "Bureau of Transportation Statistics" in notes


FORBID = """
import ctypes, os, sys
libc, uid, gid = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
if libc.unshare(0x10000000) != 0:
    sys.exit(77)
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
write("/proc/self/setgroups", "deny")
write("/proc/self/uid_map", f"{uid} {uid} 1")
write("/proc/self/gid_map", f"{gid} {gid} 1")
write("/proc/sys/user/max_user_namespaces", "0")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Runs Python in a user namespace of its own, in which the kernel allows no further one: the nearest to a machine
that forbids them."""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["demo", "doctor"])
def test_where_namespaces_are_forbidden_there_is_one_remedy(
    ordinary_user: tuple[str, dict[str, str], dict[str, Any]], command: str
) -> None:
    """On a machine that forbids namespaces `demo` and `doctor` stop with what to do; the demo builds nothing, and there
    is no traceback."""
    if not sys.platform.startswith("linux"):
        pytest.skip("namespaces are Linux's")
    python, environment, options = ordinary_user
    with tempfile.TemporaryDirectory(prefix="sandboxkit-demo-", dir="/tmp") as directory:
        os.chmod(directory, 0o777)
        done = subprocess.run(
            [python, "-c", FORBID, "-m", "sandboxkit.cli", command],
            cwd=directory,
            env=environment | {"HOME": directory, "SANDBOXKIT_HOME": directory},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
            **options,
        )
        assert list(Path(directory).glob("*.png")) == []
    if done.returncode == 77:
        pytest.skip("this machine forbids even the namespace that the test needs")
    assert "Traceback" not in done.stderr
    if command == "doctor":
        assert done.returncode == 1
        assert "fail  user namespaces" in done.stdout
        assert "max_user_namespaces" in done.stdout
        return
    assert (done.returncode, done.stdout) == (125, "")
    # The remedy stands in the message, or in a line of its own where the message has none.
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("max_user_namespaces") == 1
    assert len(done.stderr.splitlines()) <= 2
