"""The laws of level `enforced`, on real trees, with the kernel as judge: the numbers are those of the threat model."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("the resolver is Linux's", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1]))

from beneath_tools import ENTRIES, MARKER, PATHS, World, no_openat2, world

from sandboxkit.local.agent import _beneath

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HAS_OPENAT2 = True
try:
    with _beneath.Root(os.fsencode(os.path.realpath(tempfile.gettempdir()))) as _root:
        os.close(_beneath.Kernel().open(_root.fd, b".", os.O_PATH))
except OSError:
    HAS_OPENAT2 = False

ANY_NAME = st.binary(min_size=1, max_size=40).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))
OPERATIONS = st.one_of(
    st.tuples(st.just("read"), PATHS, st.just((0, 100, b"", b""))),
    st.tuples(st.just("write"), PATHS, st.tuples(st.binary(max_size=5))),
    st.tuples(st.just("append"), PATHS, st.tuples(st.just(100), st.binary(max_size=5))),
    st.tuples(st.sampled_from(["stat", "exists", "make_dir", "remove"]), PATHS, st.just(())),
    st.tuples(st.just("list"), st.one_of(PATHS, st.just(b"")), st.tuples(st.integers(1, 3), st.just(1000))),
    st.tuples(st.sampled_from(["rename", "copy"]), PATHS, st.tuples(PATHS)),
)


def _done(made: World, operation: tuple[str, bytes, tuple[Any, ...]], **options: Any) -> Any:
    name, path, args = operation
    if name in ("rename", "copy"):
        args = (made.root + b"/" + args[0], *((100,) if name == "copy" else ()))
    return made.do(name, path, *args, **options)


def _plain(made: World, told: Any) -> Any:
    """An answer without what differs between two worlds anyway: paths above the root, inodes, times."""
    if isinstance(told, str):
        return told
    plain = []
    for field in told:
        if isinstance(field, bytes):
            field = field.replace(made.base, b"BASE")
            if field.count(b":") == 3 and field.replace(b":", b"").isdigit():
                field = b"VERSION"
        plain.append(None if isinstance(field, int) and field > 10**15 else field)
    return plain


EXAMPLES = min(settings.default.max_examples, 1000)
"""Each example makes a tree; the laws have many operations in each."""


@pytest.fixture
def base() -> Iterator[Path]:
    """A place for trees, in memory where that can be: they are made and removed by the thousand."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sandboxkit-trees-", dir=place) as folder:
        yield Path(os.path.realpath(folder), "world")


@pytest.mark.skipif(not HAS_OPENAT2, reason="this kernel has no openat2")
def test_the_walk_and_the_kernel_agree(base: Path) -> None:
    """9, 10: what the walk reaches without openat2 is what openat2 reaches, and what openat2 reaches the walk does; the
    walk only knows absolute links under the root besides."""

    @settings(max_examples=EXAMPLES)
    @given(entries=ENTRIES, paths=st.lists(PATHS, min_size=1, max_size=6))
    def check(entries: dict[bytes, tuple[str, bytes]], paths: list[bytes]) -> None:
        with world(base) as made:
            made.plant(entries)
            with _beneath.Root(made.root) as root, _beneath.Root(made.root, kernel=no_openat2()) as walking:
                for path in [*paths, *entries]:
                    parts = path.split(b"/")
                    kernel = _reached(lambda parts=parts: _beneath.Kernel().open(root.fd, b"/".join(parts), os.O_PATH))
                    walk = _reached(lambda parts=parts: walking.reach(parts, os.O_PATH))
                    assert _reached(lambda parts=parts: root.reach(parts, os.O_PATH)) == walk
                    if isinstance(kernel, tuple) or isinstance(walk, int):
                        assert kernel == walk or (kernel, walk) == (40, 2), (path, kernel, walk)
                    else:
                        assert kernel == 18, (path, kernel, walk)
                        assert os.path.realpath(made.root + b"/" + path).startswith(made.root)

    check()


def _reached(reach: Any) -> tuple[int, int] | int:
    try:
        fd = reach()
    except OSError as error:
        return error.errno or 0
    info = os.fstat(fd)
    os.close(fd)
    return info.st_dev, info.st_ino


@pytest.mark.parametrize("way", ["openat2", "walk"])
def test_nothing_outside_changes_or_shows(base: Path, way: str) -> None:
    """12, 13, 14: whatever is done in whatever tree, nothing outside changes; two worlds that are the same inside and
    differ outside give the same answers, and none has a byte of what is outside only."""

    @settings(max_examples=EXAMPLES)
    @given(entries=ENTRIES, operations=st.lists(OPERATIONS, max_size=8))
    def check(entries: dict[bytes, tuple[str, bytes]], operations: list[tuple[str, bytes, tuple[Any, ...]]]) -> None:
        kernel = no_openat2() if way == "walk" else None
        one, two = base.with_name("one"), base.with_name("two")
        with world(one) as first, world(two, secret=b"another", extra=True) as second:
            first.plant(entries)
            second.plant(entries)
            # Not before: what is planted below a link that leads out lies outside.
            before = first.digest(), second.digest()
            for operation in operations:
                told = _done(first, operation, kernel=kernel)
                assert _plain(first, told) == _plain(second, _done(second, operation, kernel=kernel)), operation
                assert MARKER not in repr(told).encode()
            assert (first.digest(), second.digest()) == before
            assert os.path.isdir(first.root)

    check()


def test_what_is_written_is_read(base: Path) -> None:
    """11: for every name that the kernel takes, the content comes back, the listing has the name, the size is right."""

    @settings(max_examples=EXAMPLES)
    @given(names=st.lists(ANY_NAME, min_size=1, max_size=3), data=st.binary(max_size=50))
    def check(names: list[bytes], data: bytes) -> None:
        with world(base) as made:
            path = b"/".join(names)
            assert made.do("write", path, data) == []
            assert made.do("read", path, 0, 100, b"", b"")[2] == data
            listed = made.do("list", b"/".join(names[:-1]), 1, 10)
            assert listed[0] == names[-1]
            assert listed[3] == len(data)

    check()


def test_removal_spares_what_links_lead_to(base: Path) -> None:
    """15: after a removal the entry is gone, targets of links are untouched, and the root stays."""

    @settings(max_examples=EXAMPLES)
    @given(entries=ENTRIES)
    def check(entries: dict[bytes, tuple[str, bytes]]) -> None:
        with world(base) as made:
            made.plant(entries)
            before = made.digest()
            for name in os.listdir(made.root):
                assert made.do("remove", name) == []
                assert not os.path.lexists(made.root + b"/" + name)
            assert made.do("remove", b"") == "EXDEV"
            assert made.digest() == before

    check()


def test_a_tree_too_deep_for_paths_is_removed(base: Path) -> None:
    """A tree that is deeper than a path may be long goes, too, with few descriptors."""
    with world(base) as made:
        fd = os.open(made.root, os.O_RDONLY)
        for _ in range(300):
            os.mkdir(b"x" * 100, dir_fd=fd)
            below = os.open(b"x" * 100, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
        assert made.do("remove", b"x" * 100) == []
        assert os.listdir(made.root) == []


def test_writes_replace_and_never_write_through(base: Path) -> None:
    """A write takes the file's place: other names of the old file, also outside, keep the old content, and its mode is
    kept; a FIFO is refused without waiting for a reader; nothing is left beside it."""
    with world(base) as made:
        os.link(made.out + b"/secret", made.root + b"/hard")
        os.chmod(made.root + b"/hard", 0o750)
        before = made.digest()
        for operation in (("write", b"new"), ("append", 100, b"more")):
            assert made.do(operation[0], b"hard", *operation[1:]) == []
        assert made.do("read", b"hard", 0, 100, b"", b"")[2] == b"newmore"
        assert stat.S_IMODE(os.stat(made.root + b"/hard").st_mode) == 0o750
        os.mkfifo(made.root + b"/fifo")
        for name, args in (("write", (b"x",)), ("append", (9, b"x")), ("read", (0, 9, b"", b""))):
            assert made.do(name, b"fifo", *args) == "EMEDIUMTYPE"
        assert sorted(os.listdir(made.root)) == [b"fifo", b"hard"]
        now = [entry[:3] + entry[4:] for entry in made.digest()]
        assert now == [entry[:3] + entry[4:] for entry in before], "only the count of its names is less"


def test_the_root_is_the_one_it_was(base: Path) -> None:
    """The root is reached through no link, and another directory in its place is ESTALE."""
    with world(base) as made:
        os.symlink(made.root, made.base + b"/link")
        for path in (made.base + b"/link", made.base + b"/link/a"):
            with pytest.raises(OSError, match="cross-device"):
                _beneath.Root(path)
        with _beneath.Root(made.root) as root:
            identity = root.identity
        os.rename(made.root, made.base + b"/away")
        os.mkdir(made.root)
        with pytest.raises(OSError, match=r"[Ss]tale"):
            _beneath.Root(made.root, identity)
        with _beneath.Root(made.base + b"/away", identity):
            pass


def test_bounds_are_kept(base: Path) -> None:
    """Reads, copies and listings stop at what they were allowed, with one errno each."""
    with world(base) as made:
        made.do("write", b"f", b"12345")
        assert made.do("read", b"f", 0, 10, 4, b"") == "EFBIG"
        assert made.do("read", b"f", 1, 2, 5, b"")[2] == b"23"
        assert made.do("copy", b"f", made.root + b"/g", 4) == "EFBIG"
        assert made.do("append", b"f", 4, b"6") == "EFBIG"
        assert made.do("list", b"", 1, 0) == "E2BIG"
        version = made.do("read", b"f", 0, 0, b"", b"")[1]
        made.do("write", b"f", b"other")
        assert made.do("read", b"f", 0, 10, b"", version) == "ESTALE"
        assert sorted(os.listdir(made.root)) == [b"f"]
