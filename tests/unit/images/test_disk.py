"""What a step has written is found wherever it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandboxkit.local.images._disk import DEEPEST, TooDeep, written_below

SIZE = 1 << 20
MANY = 1000


def nest(top: Path, names: list[str]) -> int:
    """Make directories one below the other, however long the path gets; the last one, open."""
    at = os.open(top, os.O_RDONLY)
    for name in names:
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    return at


def write(directory: int, name: str) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=directory)
    os.write(fd, os.urandom(SIZE))
    os.close(fd)


def test_files_count_once(tmp_path: Path) -> None:
    """By the blocks that they take, holes apart, and once for all their names; links lead nowhere."""
    top = os.open(tmp_path, os.O_RDONLY)
    write(top, "one")
    os.close(top)
    os.link(tmp_path / "one", tmp_path / "two")
    os.symlink("/usr", tmp_path / "link")
    with open(tmp_path / "holes", "w") as file:
        file.truncate(1 << 40)
    size, entries = written_below(tmp_path, most_entries=MANY)
    assert SIZE <= size < 2 * SIZE
    assert entries == 4


def test_a_path_that_is_too_long_for_the_kernel(tmp_path: Path) -> None:
    """What lies past PATH_MAX counts as anything else does."""
    deep = nest(tmp_path, ["x" * 250] * 20)
    write(deep, "hidden")
    os.close(deep)
    size, entries = written_below(tmp_path, most_entries=MANY)
    assert size >= SIZE
    assert entries == 21


def test_what_is_too_deep_is_refused(tmp_path: Path) -> None:
    """Where we do not look there may be anything; no descriptor is left, either way."""
    before = os.listdir("/proc/self/fd")
    os.close(nest(tmp_path, ["d"] * (DEEPEST - 1)))
    assert written_below(tmp_path, most_entries=MANY) == (0, DEEPEST - 1)
    os.close(nest(tmp_path / "/".join(["d"] * (DEEPEST - 1)), ["d"]))
    with pytest.raises(TooDeep):
        written_below(tmp_path, most_entries=MANY)
    assert os.listdir("/proc/self/fd") == before


def test_entries_are_bounded(tmp_path: Path) -> None:
    """The walk ends where there are too many."""
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "x").mkdir()
    assert written_below(tmp_path, most_entries=10)[1] == 11
