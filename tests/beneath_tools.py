"""Trees for the tests of level `enforced`: made on a real file system, with a world outside that must not change."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sandboxkit.local.agent import _beneath, _confined

MARKER = b"only outside of the root"

NAMES = st.sampled_from(
    [b"a", b"b", b"c", b"..a", b"...", b" ", b"-rf", b"\xff", b"e\xcc\x81", b"\xc3\xa9", b"l\n", b"\x1b[2J"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
LEAVING = [b"../", b"../outside", b"../../etc", b"/etc/passwd", b"/proc/self/environ", b"ROOT", b"ROOT/", b"ROOTx"]
LEAVING += [b"ROOT/..", b"/", b"OUT/secret", b"OUT", b"./", b"../root"]
TEXTS = st.one_of(
    PATHS,
    st.lists(st.one_of(NAMES, st.just(b".."), st.just(b".")), min_size=1, max_size=5).map(b"/".join),
    st.tuples(st.sampled_from(LEAVING), st.one_of(st.just(b""), PATHS.map(lambda path: b"/" + path))).map(b"".join),
    st.one_of(PATHS, st.just(b"..")).map(lambda path: path + b"/"),
)
"""What a link says: inside, leaving, leaving and returning, absolute, with a slash at its end."""
ENTRIES = st.dictionaries(
    PATHS,
    st.one_of(
        st.tuples(st.just("file"), st.binary(max_size=8)),
        st.tuples(st.just("dir"), st.just(b"")),
        st.tuples(st.just("link"), TEXTS),
        st.tuples(st.just("fifo"), st.just(b"")),
    ),
    max_size=8,
)


class World:
    """A root with a neighbour, a directory outside and a file there."""

    def __init__(self, base: Path, *, secret: bytes = MARKER, extra: bool = False) -> None:
        self.base = os.fsencode(base)
        self.root = self.base + b"/root"
        self.out = self.base + b"/outside"
        for path in (self.root, self.out, self.base + b"/rootx"):
            os.makedirs(path)
        for path in (self.out + b"/secret", self.base + b"/rootx/secret", self.base + b"/a"):
            with open(path, "wb") as file:
                file.write(secret)
        if extra:
            os.mkdir(self.out + b"/more")
            os.symlink(b"secret", self.out + b"/b")

    def plant(self, entries: dict[bytes, tuple[str, bytes]]) -> None:
        """Make a tree inside; what another entry is in the way of is left out."""
        for path, (kind, content) in entries.items():
            full = self.root + b"/" + path
            try:
                os.makedirs(os.path.dirname(full), exist_ok=True)
                if not os.path.realpath(os.path.dirname(full)).startswith(self.root):
                    continue  # a link planted before leads out
                if kind == "file":
                    fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
                    os.write(fd, content)
                    os.close(fd)
                elif kind == "dir":
                    os.mkdir(full)
                elif kind == "fifo":
                    os.mkfifo(full)
                else:
                    os.symlink(self.meant(content), full)
            except OSError:
                continue

    def meant(self, text: bytes) -> bytes:
        """A path that names this world's directories by words."""
        return text.replace(b"ROOT", self.root).replace(b"OUT", self.out)

    def digest(self) -> Any:
        """All that lies outside of the root: names, kinds, modes, owners, contents."""
        found = []
        for folder, names, files in os.walk(self.base):
            if folder == self.base:
                names.remove(b"root")
            for name in sorted([*names, *files]):
                path = folder + b"/" + name
                info = os.lstat(path)
                content = b""
                if stat.S_ISREG(info.st_mode):
                    with open(path, "rb") as file:
                        content = file.read()
                found.append((path, info.st_mode, info.st_uid, info.st_nlink, info.st_ino, content))
        return sorted(found)

    def do(self, operation: str, path: bytes, *args: bytes | int, kernel: Any = None, confined: Any = _confined) -> Any:
        """One operation; its fields, or the name of its errno."""
        full = self.root + (b"/" + path if path else b"")
        given = [value if isinstance(value, bytes) else b"%d" % value for value in args]
        before = _beneath.KERNEL
        _beneath.KERNEL = kernel or before
        try:
            return errno_of(lambda: _ended(confined.operate(operation.encode(), self.root, b"", [full, *given]))[1:])
        finally:
            _beneath.KERNEL = before


def errno_of(work: Callable[[], Any]) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def _ended(job: Any) -> Any:
    try:
        while True:
            next(job)
    except StopIteration as done:
        return done.value


def exchange(one: bytes, two: bytes) -> None:
    """Exchange two names in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, one, -100, two, 2) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


@contextmanager
def attacked(one: bytes, two: bytes) -> Iterator[None]:
    """A process exchanges the two names as fast as it can."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                libc.renameat2(-100, one, -100, two, 2)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def world(base: Path, **options: Any) -> Iterator[World]:
    """A world that is gone afterwards."""
    base.mkdir(exist_ok=True)
    try:
        yield World(base, **options)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def no_openat2() -> Any:
    """A kernel without openat2: the walk does it all."""
    kernel = _beneath.Kernel()
    kernel.missing = True
    return kernel
