"""Folders of this machine: what is exchanged for a link while they are read and written is refused."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxkit.errors import TooLarge
from sandboxkit.safefs._local import LocalFolder

if sys.platform != "linux":
    pytest.skip("renameat2 is Linux's", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[2]))

from beneath_tools import attacked


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder, with a neighbour that nothing of it may reach."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "sub" / "f").write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f").write_bytes(b"secret")
    return tmp_path


def test_reads_and_writes(tree: Path) -> None:
    """Files come and go by names below the folder, with bounds; special files and links are refused."""
    folder = LocalFolder(tree / "in")
    assert folder.read(["sub", "f"], 9) == b"mine"
    with pytest.raises(TooLarge):
        folder.read(["sub", "f"], 3)
    folder.make_dir(["new"])
    folder.make_dir(["new"])
    folder.put(["new", "g"], b"1", overwrite=False)
    with pytest.raises(FileExistsError):
        folder.put(["new", "g"], b"2", overwrite=False)
    folder.put(["new", "g"], b"3", overwrite=True)
    assert (tree / "in" / "new" / "g").read_bytes() == b"3"
    os.mkfifo(tree / "in" / "pipe")
    with pytest.raises(OSError, match="regular"):
        folder.read(["pipe"], 9)
    (tree / "in" / "l").symlink_to(tree / "out")
    for refused in (
        lambda: folder.read(["l", "f"], 9),
        lambda: folder.put(["l", "g"], b"", overwrite=True),
        lambda: folder.make_dir(["l"]),
        lambda: folder.make_dir(["l", "x"]),
    ):
        with pytest.raises(OSError, match=r"."):
            refused()
    assert sorted(path.name for path in (tree / "in" / "new").iterdir()) == ["g"]
    assert [path.name for path in (tree / "out").iterdir()] == ["f"]


def test_what_cannot_be_written_leaves_nothing(tree: Path) -> None:
    """As when the disk is full: not even the part that was written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            LocalFolder(tree / "in").put(["sub", "f"], b"x" * 100_000, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tree / "in" / "sub").iterdir()] == ["f"]
    assert (tree / "in" / "sub" / "f").read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("work", ["read", "put"])
def test_no_race_is_won(tree: Path, work: str) -> None:
    """While a folder is exchanged for a link, nothing is read or written where the link leads."""
    (tree / "l").symlink_to(tree / "out")
    folder = LocalFolder(tree / "in")
    works: dict[str, Callable[[], object]] = {
        "read": lambda: folder.read(["sub", "f"], 9),
        "put": lambda: folder.put(["sub", "g"], b"new", overwrite=True),
    }
    done = refused = 0
    with attacked(os.fsencode(tree / "in" / "sub"), os.fsencode(tree / "l")):
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline or not done or not refused:
            try:
                assert works[work]() in (b"mine", None)
                done += 1
            except OSError:
                refused += 1
    assert [path.name for path in (tree / "out").iterdir()] == ["f"]
    assert (tree / "out" / "f").read_bytes() == b"secret"
