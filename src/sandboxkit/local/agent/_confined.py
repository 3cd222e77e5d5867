"""What is done with files at level `enforced`: one function for each operation, all on an open root.

Each takes the root and its arguments as byte strings and returns the fields of its answer, after the root's identity.
What may take long is a generator, which yields None wherever it may pause. Failures are OSErrors, whose number alone is
told; the ones that SafeFS has words for:

    EXDEV EBUSY  a link leads out of the root, or a mount lies in the way
    EMLINK       a file with more than one name, where that was to be refused
    EMEDIUMTYPE  neither a regular file nor a directory, or a link that leads nowhere, where something is written
    ESTALE       the tree changed under the operation, or the root is another directory than before
    EFBIG E2BIG  larger than was allowed: a file, a listing

A file is never opened for writing by its own name. What is written lies in a new file beside it (O_EXCL), which then
takes the name: so readers see the old content or the new one, and hard links, FIFOs, devices and links that are put
there meanwhile stay as they are.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import suppress

from . import _described, _removal
from ._beneath import Root, fail

TYPE_CHECKING = False  # the module of that name takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

READING = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
STAGED = b".sandboxkit-%s.part"
PIECE = 1 << 20


def opened(root: Root, path: bytes) -> int:
    """Open a regular file for reading."""
    parts = root.parts_of(path)
    if not parts:
        raise fail(errno.EISDIR)
    try:
        fd = root.reach(parts, READING)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, a device without a driver
            raise fail(errno.EMEDIUMTYPE) from None
        raise
    return required_regular(root, fd)


def required_regular(root: Root, fd: int) -> int:
    """The open file, if it is a regular one; else it is closed."""
    try:
        require_regular(root, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def require_regular(root: Root, info: os.stat_result) -> None:
    """EISDIR for a directory, EMEDIUMTYPE for anything else that is no regular file; EMLINK for one with more names,
    where the root refuses them."""
    if stat.S_ISDIR(info.st_mode):
        raise fail(errno.EISDIR)
    if not stat.S_ISREG(info.st_mode):
        raise fail(errno.EMEDIUMTYPE)
    if root.refuses_hard_links and info.st_nlink > 1:
        raise fail(errno.EMLINK)


def version_of(info: os.stat_result) -> bytes:
    """What changes when a file's content does."""
    return b"%d:%d:%d:%d" % (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)


def read(root: Root, path: bytes, start: bytes, length: bytes, max_bytes: bytes, version: bytes) -> list[bytes | int]:
    """Up to `length` bytes from `start` on: size, version, bytes. EFBIG for a file of more than `max_bytes` (empty:
    any), ESTALE where it is not of the version that was named."""
    fd = opened(root, path)
    try:
        info = os.fstat(fd)
        if version and version != version_of(info):
            raise fail(errno.ESTALE)
        if max_bytes and info.st_size > int(max_bytes):
            raise fail(errno.EFBIG)
        data = b"".join(pieces(fd, int(start), int(length)))
        return [info.st_size, version_of(info), data]
    finally:
        os.close(fd)


def pieces(fd: int, at: int, left: int) -> Generator[bytes, None, None]:
    """The content of an open file from an offset on."""
    while left > 0:
        piece = os.pread(fd, min(left, PIECE), at)
        if not piece:
            return
        at += len(piece)
        left -= len(piece)
        yield piece


class Replacement:
    """A new file beside the one that it will replace. Use it in `with`: what was not put in place is removed."""

    def __init__(self, root: Root, path: bytes) -> None:
        parts = root.parts_of(path)
        if not parts:
            raise fail(errno.EISDIR)
        if len(parts) > 1:
            os.close(root.make_dirs(parts[:-1])[0])
        self.root = root
        self.directory, self.name, self.old = root.place(parts)
        self.part = STAGED % os.urandom(12).hex().encode()
        self.fd = -1
        self.is_in_place = False
        try:
            if self.old is not None:
                require_regular(root, self.old)
            mode = 0o644 if self.old is None else stat.S_IMODE(self.old.st_mode) & 0o777
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(self.part, flags, 0o600, dir_fd=self.directory)
            os.fchmod(self.fd, mode)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Replacement:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Write more of the content."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fd, rest) :]

    def old_content(self) -> int:
        """The file that will be replaced, open for reading."""
        return required_regular(self.root, self.root.step(self.name, self.directory, READING))

    def put_in_place(self) -> None:
        """Give it its name."""
        os.rename(self.part, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        self.is_in_place = True

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            if not self.is_in_place:
                with suppress(OSError):  # somebody else took it away, or its directory
                    os.unlink(self.part, dir_fd=self.directory)
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1


def write(root: Root, path: bytes, data: bytes) -> list[bytes | int]:
    """Replace a file's content, or make it with its missing parents."""
    with Replacement(root, path) as new:
        new.write(data)
        new.put_in_place()
    return []


def append(root: Root, path: bytes, max_bytes: bytes, data: bytes) -> Generator[None, None, list[bytes | int]]:
    """Add to the end of a file, or make it. EFBIG where it is larger than `max_bytes` already."""
    with Replacement(root, path) as new:
        if new.old is not None:
            fd = new.old_content()
            try:
                yield from transfer(fd, new, int(max_bytes))
            finally:
                os.close(fd)
        new.write(data)
        new.put_in_place()
    return []


def copy(root: Root, path: bytes, target: bytes, max_bytes: bytes) -> Generator[None, None, list[bytes | int]]:
    """Copy one file's content."""
    fd = opened(root, path)
    try:
        with Replacement(root, target) as new:
            yield from transfer(fd, new, int(max_bytes))
            new.put_in_place()
    finally:
        os.close(fd)
    return []


def transfer(fd: int, new: Replacement, max_bytes: int) -> Generator[None, None, None]:
    """Copy an open file, at most so many bytes of it: EFBIG for more."""
    if os.fstat(fd).st_size > max_bytes:
        raise fail(errno.EFBIG)
    written = 0
    for piece in pieces(fd, 0, max_bytes + 1):
        written += len(piece)
        if written > max_bytes:
            raise fail(errno.EFBIG)
        new.write(piece)
        yield None


def in_place(root: Root, path: bytes, flags: int, mode: int) -> int:
    """Open a file for writing by its own name, for E2B's own upload, which writes in place. EMLINK where the file has
    another name, which may lie outside."""
    parts = root.parts_of(path)
    if not parts:
        raise fail(errno.EISDIR)
    directory, name, _ = root.place(parts)
    try:
        wanted = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW
        wanted |= flags & (os.O_CREAT | os.O_EXCL | os.O_APPEND)
        fd = os.open(name, wanted, mode, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.ELOOP):
            raise fail(errno.EMEDIUMTYPE) from None
        raise
    finally:
        os.close(directory)
    try:
        info = os.fstat(fd)
        require_regular(root, info)
        if info.st_nlink > 1 or info.st_dev != root.device:
            raise fail(errno.EMLINK)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))  # a watcher of E2B's sees it, as envd gives the file to its user
        if flags & os.O_TRUNC and info.st_size:
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def stage(root: Root, path: bytes) -> tuple[int, bytes]:
    """Open a new file beside the one that it will replace, for a content that comes bit by bit: its descriptor, and the
    name for `commit` or `discard`."""
    with Replacement(root, path) as new:
        fd = os.dup(new.fd)
        new.is_in_place = True
        return fd, new.part


def commit(root: Root, path: bytes, part: bytes) -> list[bytes | int]:
    """Give a staged file its name. ESTALE where it does not lie there any more."""
    with Staged(root, path, part) as new:
        try:
            new.put_in_place()
        except FileNotFoundError:
            raise fail(errno.ESTALE) from None
    return []


def discard(root: Root, path: bytes, part: bytes) -> list[bytes | int]:
    """Remove a staged file. It may be gone."""
    with Staged(root, path, part) as new, suppress(FileNotFoundError):
        os.unlink(part, dir_fd=new.directory)
    return []


class Staged(Replacement):
    """The place of a file that `stage` made, found anew."""

    def __init__(self, root: Root, path: bytes, part: bytes) -> None:
        head, tail = STAGED.split(b"%s")
        if not part.startswith(head) or not part.endswith(tail) or b"/" in part:
            raise fail(errno.EINVAL)
        self.directory, self.name, self.old = root.place(root.parts_of(path))
        self.part = part
        self.fd = -1
        self.is_in_place = False


def make_dir(root: Root, path: bytes) -> list[bytes | int]:
    """mkdir -p: 1 where it was made."""
    fd, made = root.make_dirs(root.parts_of(path))
    os.close(fd)
    return [int(made)]


def remove(root: Root, path: bytes) -> Generator[None, None, list[bytes | int]]:
    """Remove an entry and all below it; ENOENT where there is nothing, EXDEV for the root itself."""
    parts = root.parts_of(path)
    if not parts:
        raise fail(errno.EXDEV)
    directory = root.parent(parts)
    try:
        if (yield from _removal.remove(parts[-1], directory, root.step)) == [0]:
            raise fail(errno.ENOENT)
    finally:
        os.close(directory)
    return []


def rename(root: Root, path: bytes, target: bytes) -> list[bytes | int]:
    """Rename an entry, a link itself, making the target's parents. EISDIR where a directory has the target's name."""
    source, other = root.parts_of(path), root.parts_of(target)
    if not source or not other:
        raise fail(errno.EXDEV)
    before = root.parent(source)
    try:
        if root.look(source[-1], before) is None:
            raise fail(errno.ENOENT)
        after = root.make_dirs(other[:-1])[0]
        try:
            there = root.look(other[-1], after)
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise fail(errno.EISDIR)
            os.rename(source[-1], other[-1], src_dir_fd=before, dst_dir_fd=after)
        finally:
            os.close(after)
    finally:
        os.close(before)
    return []


QUICK: dict[bytes, Any] = {
    b"read": read,
    b"write": write,
    b"commit": commit,
    b"discard": discard,
    b"stat": _described.status,
    b"exists": _described.exists,
    b"make_dir": make_dir,
    b"rename": rename,
}
LONG: dict[bytes, Any] = {b"append": append, b"copy": copy, b"list": _described.listing, b"remove": remove}
MAKES_ROOT = (b"write", b"append", b"make_dir", b"copy")


def operate(name: bytes, path: bytes, identity: bytes, args: list[bytes]) -> Generator[None, None, list[bytes | int]]:
    """Carry one operation out below the root `path`; the fields of its answer begin with the root's identity."""
    with Root(path, identity, make=name in MAKES_ROOT) as root:
        if name in LONG:
            fields = yield from LONG[name](root, *args)
        else:
            fields = QUICK[name](root, *args)
        return [root.identity, *fields]
