"""17, 18: a process that exchanges what lies at a path, against each operation; and guards that are known to be wrong,
which the same race, or the same tree, has to catch."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the resolver is Linux's", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1]))

from beneath_tools import MARKER, World, attacked, no_openat2, world

pytestmark = [pytest.mark.slow]

SECONDS = 6.0 if os.environ.get("HYPOTHESIS_PROFILE") == "full" else 0.5
INSIDE = b"inside"
PLACES = ("a file and a link", "a directory and a link", "a file and a pipe", "a directory that moves out")


@pytest.fixture
def made() -> Iterator[World]:
    """A world with a pair of things at `x` and `y` for each place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="sandboxkit-trees-", dir=place) as folder,
        world(Path(os.path.realpath(folder), "world")) as there,
    ):
        yield there


def _pair(made: World, place: str) -> tuple[bytes, bytes, bytes]:
    """Two names that are exchanged, and the path that an operation is after."""
    one, two = made.root + b"/x", made.root + b"/y"
    if place == "a file and a link":
        _write(one, INSIDE)
        os.symlink(made.out + b"/secret", two)
        return one, two, b"x"
    if place == "a file and a pipe":
        _write(one, INSIDE)
        os.mkfifo(two)
        return one, two, b"x"
    os.mkdir(one)
    _write(one + b"/secret", INSIDE)
    if place == "a directory and a link":
        os.symlink(made.out, two)
        return one, two, b"x/secret"
    os.mkdir(made.out + b"/dir")
    _write(made.out + b"/dir/secret", INSIDE)
    return one, made.out + b"/dir", b"x/secret"


def _write(path: bytes, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _contents(made: World) -> list[tuple[bytes, bytes]]:
    """The files outside that hold the marker, with their contents."""
    names = [made.out + b"/secret", made.base + b"/rootx/secret", made.base + b"/a"]
    return [(name, Path(os.fsdecode(name)).read_bytes()) for name in names]


@pytest.mark.parametrize("way", ["openat2", "walk"])
@pytest.mark.parametrize("place", PLACES)
def test_no_race_is_won(made: World, place: str, way: str) -> None:
    """Reads give an inside content or a refusal, nothing outside changes, and every call comes back."""
    one, two, path = _pair(made, place)
    before = _contents(made)
    kernel = no_openat2() if way == "walk" else None
    allowed = {INSIDE, b"written", INSIDE + b"more", b"writtenmore"}
    done = refused = 0
    with attacked(one, two):
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline or not done or done + refused <= 20:
            told = made.do("read", path, 0, 100, b"", b"", kernel=kernel)
            assert isinstance(told, str) or told[2] in allowed or told[2].endswith(b"more"), told
            done, refused = done + (not isinstance(told, str)), refused + isinstance(told, str)
            listed = made.do("list", b"", 3, 100, kernel=kernel)
            assert MARKER not in repr(listed).encode()
            made.do("write", path, b"written", kernel=kernel)
            made.do("stat", path, kernel=kernel)
            made.do("make_dir", path + b"/new", kernel=kernel)
            made.do("remove", path + b"/new", kernel=kernel)
            if done % 50 == 0:
                made.do("append", path, 100, b"more", kernel=kernel)
                made.do("copy", path, made.root + b"/copied", 1000, kernel=kernel)
    assert _contents(made) == before


# -- guards that are wrong ----------------------------------------------------------------------------------------


def realpath_then_open(made: World, path: bytes) -> bytes:
    """Look where the path leads, then open the path."""
    full = made.root + b"/" + path
    if not os.path.realpath(full).startswith(made.root + b"/"):
        raise PermissionError
    return _read(full)


def no_fstat(made: World, path: bytes) -> bytes:
    """O_NOFOLLOW at the last name only, and no look at what was opened."""
    fd = os.open(made.root + b"/" + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def nofollow_with_a_slash(made: World, path: bytes) -> bytes:
    """O_NOFOLLOW for a directory that is named with a slash at its end, which follows."""
    directory, _, name = path.rpartition(b"/")
    fd = os.open(made.root + b"/" + directory + b"/", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    try:
        return _read(name, fd)
    finally:
        os.close(fd)


def prefix_without_separator(made: World, path: bytes) -> bytes:
    """The real path has to begin with the root's text."""
    full = os.path.realpath(made.root + b"/" + path)
    if not full.startswith(made.root):
        raise PermissionError
    return _read(full)


def normpath_only(made: World, path: bytes) -> bytes:
    """The text is normalised, and that is all."""
    return _read(os.path.normpath(made.root + b"/" + path))


def realpath_that_stops(made: World, path: bytes) -> bytes:
    """realpath(strict=False) says nothing about what comes after a name that it could not look at."""
    full = os.path.realpath(made.root + b"/" + path)  # resolves as far as it can, and keeps the rest as it is
    if not full.startswith(made.root + b"/"):
        raise PermissionError
    return _read(made.root + b"/" + path)


def _read(path: bytes, directory: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK, dir_fd=directory)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def _leaks(made: World, read: Callable[[World, bytes], bytes], path: bytes, *, seconds: float = 20.0) -> bool:
    """Whether a guard gives the outside content away, within some time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if read(made, path) == MARKER:
                return True
        except OSError:
            continue
    return False


def ours(made: World, path: bytes) -> bytes:
    """The guard that is tested here."""
    told = made.do("read", path, 0, 100, b"", b"")
    if isinstance(told, str):
        raise PermissionError(told)
    return bytes(told[2])


@pytest.mark.parametrize("mutant", [realpath_then_open, no_fstat, realpath_that_stops], ids=lambda each: each.__name__)
def test_the_race_catches(made: World, mutant: Any) -> None:
    """A guard that looks first and opens then loses the race over a directory within a moment; ours does not."""
    one, two, path = _pair(made, "a directory and a link")
    with attacked(one, two):
        assert _leaks(made, mutant, path)
        assert not _leaks(made, ours, path, seconds=SECONDS)


@pytest.mark.parametrize(
    ("mutant", "target", "path"),
    [
        (prefix_without_separator, "../rootx", b"l/secret"),
        (normpath_only, "../outside/secret", b"l"),
        (nofollow_with_a_slash, "../outside", b"l/secret"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_the_tree_catches(made: World, mutant: Any, target: str, path: bytes) -> None:
    """A guard that judges the text, or the wrong thing, gives a planted link's target away; ours does not."""
    os.symlink(os.fsencode(target), made.root + b"/l")
    assert _leaks(made, mutant, path, seconds=1)
    assert made.do("read", path, 0, 100, b"", b"") == "EXDEV"


def test_writing_in_place_is_caught(made: World) -> None:
    """A write into the file itself changes its other name outside; ours does not."""
    os.link(made.out + b"/secret", made.root + b"/hard")
    before = _contents(made)
    assert made.do("write", b"hard", b"new") == []
    assert _contents(made) == before
    os.link(made.base + b"/a", made.root + b"/again")
    _write(made.root + b"/again", b"new")
    assert _contents(made) != before


def test_opening_without_a_look_at_the_type_is_caught(made: World) -> None:
    """A guard without fstat takes a pipe for a file; ours refuses it at once."""
    os.mkfifo(made.root + b"/p")
    assert no_fstat(made, b"p") == b""
    assert made.do("read", b"p", 0, 100, b"", b"") == "EMEDIUMTYPE"
