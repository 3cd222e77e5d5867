"""What the agent does with files: describe, list, open, make, rename, remove.

Paths are bytes and every operation acts as the box's user. What may take long is a generator, which the loop advances
a little at a time: it yields None wherever it may pause and returns the fields of its answer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress

from . import _removal
from ._codec import MAX_ENTRIES, MAX_REPLY

Fields = list[bytes | int]
Steps = Generator[None, None, Fields]

XATTR_PREFIX = b"user.e2b."


def fail(number: int, path: bytes) -> OSError:
    """An OSError for `path` with the usual text."""
    return OSError(number, os.strerror(number), path)


def entry(name: bytes, path: bytes) -> Fields:
    """Describe one directory entry by lstat: the fields of `_base.Entry` in order, then names and values of xattrs."""
    info = os.lstat(path)
    target: bytes = b""
    target_mode: bytes | int = b""
    if stat.S_ISLNK(info.st_mode):
        try:
            target = os.path.realpath(path, strict=True)
            target_mode = os.stat(target).st_mode
        except OSError:
            target = path
    xattrs = read_xattrs(path)
    fields: Fields = [name, path, info.st_mode, info.st_size, info.st_uid, info.st_gid, info.st_mtime_ns]
    fields += [target, target_mode, len(xattrs)]
    for key, value in xattrs.items():
        fields += [key, value]
    return fields


def read_xattrs(path: bytes) -> dict[bytes, bytes]:
    """The `user.e2b.*` attributes, without that prefix. Empty where the file system has none."""
    found = {}
    with suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            raw = os.fsencode(name)
            if raw.startswith(XATTR_PREFIX):
                found[raw[len(XATTR_PREFIX) :]] = os.getxattr(path, name, follow_symlinks=False)
    return found


def list_tree(path: bytes, depth: int) -> Steps:
    """Walk below a directory, links not entered. A generator: yields None at points where it may pause, and returns
    the fields of all entries."""
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise fail(errno.ENOTDIR, path)
    fields: Fields = []
    entries = size = 0
    stack = [(path, depth)]
    while stack:
        directory, levels = stack.pop()
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            if directory == path:
                raise
            continue  # gone, or closed to us: the entry itself has been listed
        yield None
        below = []
        for name in names:
            full = os.path.join(directory, name)
            try:
                one = entry(name, full)
            except FileNotFoundError:
                continue  # removed since we read the directory
            entries += 1
            size += 160 + 2 * len(full)
            if entries > MAX_ENTRIES or size > MAX_REPLY // 2:
                raise fail(errno.E2BIG, path)
            fields += one
            if levels > 1 and stat.S_ISDIR(int(one[2])):
                below.append((full, levels - 1))
            yield None
        stack += reversed(below)
    return fields


def remove_tree(path: bytes) -> Steps:
    """Remove a path and all below it, never through a link. A generator like `list_tree`; returns [1], or [0] when
    there was nothing."""
    while path.endswith(b"/") and len(path) > 1:
        path = path[:-1]
    return (yield from _removal.remove(path, None))


# -- the verbs that answer at once -------------------------------------------------------------------------------


def open_file(path: bytes, flags: int, mode: int) -> int:
    """Open a regular file. Truncation waits until the type is known; /proc is never opened for writing, since there
    `self` is this agent."""
    wanted = flags & (os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW)
    wanted |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, wanted, mode)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a FIFO nobody reads, a socket, a device without a driver
            raise fail(errno.EINVAL, path) from None
        if error.errno != errno.EACCES:
            raise
        with _lifted(path, wanted & os.O_NOFOLLOW, error) as own:
            fd = os.open(own, wanted & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            raise fail(errno.EISDIR, path)
        if not stat.S_ISREG(info.st_mode):
            raise fail(errno.EINVAL, path)
        if flags & os.O_ACCMODE != os.O_RDONLY and info.st_dev == os.stat("/proc").st_dev:
            raise fail(errno.EACCES, path)
        if flags & os.O_CREAT:
            with suppress(PermissionError):
                # Watchers of a directory count on it: envd gives a file to its user, which they see as a chmod.
                os.fchmod(fd, stat.S_IMODE(info.st_mode))
        if flags & os.O_TRUNC and flags & os.O_ACCMODE != os.O_RDONLY and info.st_size:
            os.ftruncate(fd, 0)
    except OSError as error:
        os.close(fd)
        raise fail(error.errno or errno.EIO, path) from None
    return fd


@contextmanager
def _lifted(path: bytes, flags: int, refusal: OSError) -> Generator[bytes, None, None]:
    """Another path of a file of the user's, whose mode does not count meanwhile; `refusal` is raised for others.

    At E2B the file API is root's, and a mode that keeps programs from writing keeps it from nothing.
    """
    try:
        handle = os.open(path, flags | os.O_PATH | os.O_CLOEXEC)
    except OSError:
        raise refusal from None
    try:
        own, info = b"/proc/self/fd/%d" % handle, os.fstat(handle)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.getuid():
            raise refusal
        mode = stat.S_IMODE(info.st_mode)
        try:
            os.chmod(own, mode | 0o600)
        except OSError:
            raise refusal from None
        try:
            yield own
        finally:
            os.chmod(own, mode)
    finally:
        os.close(handle)


def make_dir(path: bytes) -> bool:
    """mkdir -p. False when it was there; EEXIST when something else is there, ENOTDIR when it is on the way."""
    missing = []
    at = path.rstrip(b"/") or b"/"
    while True:
        try:
            info = os.stat(at)
        except FileNotFoundError:
            if os.path.islink(at):
                raise fail(errno.ENOTDIR, at) from None
            missing.append(at)
            at = os.path.dirname(at)
            continue
        if not stat.S_ISDIR(info.st_mode):
            raise fail(errno.EEXIST, at)
        break
    made = False
    for one in reversed(missing):
        try:
            os.mkdir(one, 0o755)
            made = True
        except FileExistsError:
            if not os.path.isdir(one):
                raise fail(errno.ENOTDIR, one) from None
            made = False
    return made


def space(paths: list[bytes]) -> int:
    """The bytes that are used of the file systems at some paths."""
    used = 0
    for path in paths:
        info = os.statvfs(path)
        used += (info.f_blocks - info.f_bfree) * info.f_frsize
    return used


def rename(source: bytes, target: bytes) -> Steps:
    """Rename, making the target's missing parents; to another mount by a copy. A generator like `list_tree`."""
    os.lstat(source)
    make_dir(os.path.dirname(target.rstrip(b"/")) or b"/")
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        from ._moving import move  # hardly ever needed

        yield from move(source, target)
    return []


def set_xattrs(path: bytes, pairs: list[bytes]) -> None:
    """Replace the set of `user.e2b.*` attributes by the given names and values."""
    wanted = {XATTR_PREFIX + pairs[at]: pairs[at + 1] for at in range(0, len(pairs), 2)}
    try:
        _set_xattrs(path, wanted)
    except PermissionError as error:
        with _lifted(path, 0, error) as own:
            _set_xattrs(own, wanted)


def _set_xattrs(path: bytes, wanted: dict[bytes, bytes]) -> None:
    for name in read_xattrs(path):
        if XATTR_PREFIX + name not in wanted:
            os.removexattr(path, XATTR_PREFIX + name)
    for full, value in wanted.items():
        os.setxattr(path, full, value)
