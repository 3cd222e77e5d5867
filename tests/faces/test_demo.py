"""`sandboxkit demo`, as a newcomer runs it: everything that it promises to show, and nothing left."""

from __future__ import annotations

import csv
import gzip
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

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
    labels = ("sandbox", "data", "fragment", "chart", "picture", "file", "refused", "exception", "closed", "next")
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


@pytest.mark.slow
def test_where_namespaces_are_forbidden_there_is_one_remedy(tmp_path: Path) -> None:
    """On a machine that forbids namespaces the demo stops with what to do, and neither builds nor shows a traceback."""
    if not sys.platform.startswith("linux"):
        pytest.skip("namespaces are Linux's")
    # A user namespace of its own, in which the kernel allows no further one: the nearest to such a machine.
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine forbids even the namespace that the test needs")
    done = subprocess.run([*command, *DEMO], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("fix: ") == 1
    assert "building" not in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
