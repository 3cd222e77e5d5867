"""What is kept of a box: a tree goes into a file and comes back as it was, whatever lies in it; and no further."""

from __future__ import annotations

import os
import socket
import stat
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxkit.local.isolation._archive import ArchiveError, Packed, Stopped, TooLarge, pack, unpack

MOST = 1 << 30


@contextmanager
def opened(*paths: Path) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        found = {}
        for path in paths:
            found[path.name] = os.open(path, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, found[path.name])
        yield found


def save(file: Path, *trees: Path, most: int = MOST, stop: Callable[[], bool] = lambda: False) -> Packed:
    with opened(*trees) as tops, file.open("wb") as out:
        return pack(tops, out.fileno(), most=most, stop=stop)


def fill(file: Path, *trees: Path) -> None:
    with opened(*trees) as tops, file.open("rb") as kept:
        unpack(kept.fileno(), tops, stop=lambda: False)


def there_and_back(tmp_path: Path, source: Path) -> Path:
    """A copy of a tree by way of a file."""
    save(tmp_path / "kept", source)
    target = tmp_path / "new" / source.name
    target.mkdir(parents=True)
    fill(tmp_path / "kept", target)
    return target


def look(top: Path) -> dict[bytes, Any]:
    """All that should be the same of a tree."""
    found: dict[bytes, Any] = {}
    for folder, below, files in os.walk(os.fsencode(top)):
        for name in [b"", *below, *files]:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            said: Any = None
            if stat.S_ISREG(info.st_mode):
                said = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                said = os.readlink(path)
            found[os.path.relpath(path, os.fsencode(top))] = (info.st_mode, info.st_mtime_ns, said)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


def test_a_tree_comes_back_as_it_was(tmp_path: Path, home: Path) -> None:
    """Names of any bytes, modes, times, links that lead nowhere or outside, and directories that are closed."""
    (home / "a" / "b").mkdir(parents=True)
    (home / "a" / "file").write_bytes(b"x" * 3_000_000)
    (home / "empty").touch()
    (home / "run").write_text("#!/bin/sh")
    (home / "run").chmod(0o4755)
    Path(os.fsdecode(os.fsencode(home) + b"/odd \n\xff\x01'")).write_text("odd")
    (home / "out").symlink_to("/etc/passwd")
    (home / "loop").symlink_to("loop")
    os.utime(home / "a" / "file", ns=(5, 1_234_567_890_123_456_789))
    (home / "a" / "b").chmod(0o1750)
    os.utime(home / "a", ns=(-1, -7_000_000_001))
    assert look(there_and_back(tmp_path, home)) == look(home)


def test_hard_links_stay_one_file(tmp_path: Path, home: Path) -> None:
    """A file of several names is kept once, and has them all again."""
    (home / "b").mkdir()
    (home / "one").write_bytes(b"x" * 1_000_000)
    os.link(home / "one", home / "b" / "two")
    os.link(home / "one", home / "three")
    new = there_and_back(tmp_path, home)
    assert (tmp_path / "kept").stat().st_size < 1_100_000
    assert (new / "one").stat().st_nlink == 3
    (new / "one").write_text("changed")
    assert (new / "b" / "two").read_text() == (new / "three").read_text() == "changed"


def test_holes_stay_holes(tmp_path: Path, home: Path) -> None:
    """A file of a terabyte with a few bytes in it takes a few bytes."""
    with (home / "huge").open("wb") as file:
        file.seek(1 << 39)
        file.write(b"middle")
        file.truncate(1 << 40)
    new = there_and_back(tmp_path, home)
    assert (tmp_path / "kept").stat().st_size < 1 << 20
    info = (new / "huge").stat()
    assert (info.st_size, info.st_blocks < 100) == (1 << 40, True)
    with (new / "huge").open("rb") as file:
        file.seek(1 << 39)
        assert file.read(7) == b"middle\0"


def test_attributes_are_kept(tmp_path: Path, home: Path) -> None:
    """`user.*` attributes of files and directories."""
    (home / "f").touch()
    try:
        os.setxattr(home / "f", "user.e2b.key", b"value\xff")
        os.setxattr(home, "user.e2b.top", b"1")
    except OSError:
        pytest.skip("this file system keeps none")
    new = there_and_back(tmp_path, home)
    assert os.getxattr(new / "f", "user.e2b.key") == b"value\xff"
    assert os.getxattr(new, "user.e2b.top") == b"1"


def test_what_is_no_file_is_passed_over(tmp_path: Path, home: Path) -> None:
    """Pipes and sockets are neither opened nor kept; they are counted."""
    os.mkfifo(home / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    (home / "file").touch()
    packed = save(tmp_path / "kept", home)
    assert (packed.entries, packed.passed_over) == (2, 2)
    assert packed.size == (tmp_path / "kept").stat().st_size
    target = tmp_path / "new" / "home"
    target.mkdir(parents=True)
    fill(tmp_path / "kept", target)
    assert os.listdir(target) == ["file"]


def test_it_is_bounded(tmp_path: Path, home: Path) -> None:
    """More than may be kept, a tree without end, or nobody who wants it: a typed error, and not much was written."""
    (home / "big").write_bytes(b"x" * 5_000_000)
    with pytest.raises(TooLarge):
        save(tmp_path / "kept", home, most=4_000_000)
    assert (tmp_path / "kept").stat().st_size <= 4_000_000
    with pytest.raises(Stopped):
        save(tmp_path / "kept", home, stop=lambda: True)


def test_a_tree_that_is_too_deep_is_refused(tmp_path: Path, home: Path) -> None:
    """Directories below each other have a bound, too; as many as that are fine, and cost no descriptors."""
    at = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    for depth in range(1, 258):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
        if depth == 256:
            there_and_back(tmp_path, home)
    os.close(at)
    with pytest.raises(ArchiveError, match="deep"):
        save(tmp_path / "kept", home)


def test_a_link_in_the_place_of_a_directory_is_not_followed(tmp_path: Path, home: Path) -> None:
    """A top that leads elsewhere by a link below it shows nothing of there."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    (home / "way").symlink_to(tmp_path / "secret")
    save(tmp_path / "kept", home)
    assert b"key" not in (tmp_path / "kept").read_bytes()


@settings(max_examples=60)
@given(at=st.integers(min_value=0, max_value=1), data=st.data())
def test_what_is_damaged_is_refused(tmp_path_factory: pytest.TempPathFactory, at: int, data: st.DataObject) -> None:
    """A changed byte or a cut anywhere: a typed error (or the kernel's), never another, and nothing outside is made."""
    tmp_path = tmp_path_factory.mktemp("damaged")
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    (home / "below" / "file").write_text("content")
    (home / "link").symlink_to("/nowhere")
    save(tmp_path / "kept", home)
    kept = bytearray((tmp_path / "kept").read_bytes())
    place = data.draw(st.integers(min_value=0, max_value=len(kept) - 1))
    if at:
        kept[place] ^= data.draw(st.integers(min_value=1, max_value=255))
    else:
        del kept[place:]
    (tmp_path / "kept").write_bytes(kept)
    target = tmp_path / "new" / "home"
    target.mkdir(parents=True)
    with pytest.raises((ArchiveError, OSError)):
        fill(tmp_path / "kept", target)
    assert sorted(os.listdir(tmp_path)) == ["home", "kept", "new"]
    assert os.listdir(tmp_path / "new") == ["home"]


@pytest.mark.parametrize("path", [b"home/../x", b"home//x", b"/x", b"other/x", b"home/.", b"home/a\0b"])
def test_a_forged_path_is_refused(tmp_path: Path, path: bytes) -> None:
    """A file that somebody else wrote, sums and all, makes nothing outside of its trees."""
    import hashlib

    def field(value: bytes) -> bytes:
        return struct.pack("!I", len(value)) + value

    body = b"sandboxkit files 1\n"
    body += b"l" + struct.pack("!H", 3) + field(path) + field(b"/etc") + field(b"0")
    body += b"e" + struct.pack("!H", 2) + field(b"1") + field(b"0")
    (tmp_path / "kept").write_bytes(body + hashlib.sha256(body).digest())
    target = tmp_path / "new" / "home"
    target.mkdir(parents=True)
    with pytest.raises(ArchiveError):
        fill(tmp_path / "kept", target)
    assert list(target.iterdir()) == []
    assert os.listdir(tmp_path / "new") == ["home"]


@pytest.mark.parametrize(("count", "length"), [(64, 1 << 20), (600, 1 << 16)])
def test_a_forged_record_is_refused_before_it_is_read(tmp_path: Path, count: int, length: int) -> None:
    """However large it says that it is, little of it comes into memory."""
    with open(tmp_path / "kept", "wb") as file:
        file.write(b"sandboxkit files 1\n" + b"d" + struct.pack("!H", count))
        for _ in range(count):
            file.write(struct.pack("!I", length))
            file.seek(length, os.SEEK_CUR)  # a hole: a forger needs no disk for it
        file.truncate()
    (tmp_path / "home").mkdir()
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="damaged"):
            fill(tmp_path / "kept", tmp_path / "home")
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [b"d", b"f", b"h", b"l"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_record_with_too_few_fields_is_refused(tmp_path: Path, kind: bytes, count: int) -> None:
    """By the same typed error as any other damage."""
    fields = [b"home/x", b"0", b"0"][:count]
    body = b"sandboxkit files 1\n" + kind + struct.pack("!H", count)
    (tmp_path / "kept").write_bytes(body + b"".join(struct.pack("!I", len(one)) + one for one in fields))
    (tmp_path / "home").mkdir()
    with pytest.raises(ArchiveError):
        fill(tmp_path / "kept", tmp_path / "home")
