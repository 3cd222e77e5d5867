"""Describes what lies below a root: one entry, whether there is one, and those of a directory.

These are operations of level `enforced`; `_confined` explains their fields and errors.

A link is described as itself. What is mounted below the root is not described at all, but where it is allowed: even its
size would tell something of what lies outside.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import suppress

from ._beneath import Root, facts, fail, link_text
from ._removal import names_in


def describe(
    root: Root, parts: list[bytes], directory: int, name: bytes, path: bytes, info: os.stat_result
) -> list[bytes | int]:
    """One entry by its lstat: name, path, mode, size, uid, gid, mtime in ns, what a link says or "", the mode of what
    it leads to inside or "", and 0 (attributes)."""
    text = b""
    target: bytes | int = b""
    if stat.S_ISLNK(info.st_mode):
        text = link_text(name, directory) or b""
        with suppress(OSError):  # it leads nowhere, or out: nothing is said of what lies there
            target = facts(root.reach(parts, os.O_PATH)).st_mode
    shown = os.path.basename(path) or b"/"
    return [shown, path, info.st_mode, info.st_size, info.st_uid, info.st_gid, info.st_mtime_ns, text, target, 0]


def looked(root: Root, parts: list[bytes], directory: int, name: bytes) -> os.stat_result:
    """lstat that says nothing of what is mounted there, but where that is allowed: EXDEV."""
    try:
        return facts(root.step(name, directory, os.O_PATH))
    except OSError as error:
        if error.errno != errno.EXDEV or parts not in root.allowed:
            raise
    return facts(root.reach(parts, os.O_PATH))


def status(root: Root, path: bytes) -> list[bytes | int]:
    """Describe one entry; a link is described itself."""
    parts = root.parts_of(path)
    if not parts:
        return describe(root, parts, root.fd, b".", path, os.fstat(root.fd))
    directory = root.parent(parts)
    try:
        return describe(root, parts, directory, parts[-1], path, looked(root, parts, directory, parts[-1]))
    finally:
        os.close(directory)


def exists(root: Root, path: bytes) -> list[bytes | int]:
    """1 where there is something, links followed; 0 where there is nothing, or a link to nothing."""
    try:
        os.close(root.reach(root.parts_of(path), os.O_PATH))
    except (FileNotFoundError, NotADirectoryError):
        return [0]
    return [1]


def listing(root: Root, path: bytes, depth: bytes, max_entries: bytes) -> Generator[None, None, list[bytes | int]]:
    """The entries below a directory, down to `depth` levels; links and mounts are not entered. E2BIG past the cap."""
    fields: list[bytes | int] = []
    above = root.parts_of(path)
    left = int(max_entries)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        has_mounts = bool(root.mounts())
    except OSError:
        has_mounts = True  # the kernel does not say
    top = root.reach(above, flags)
    try:
        pending: list[tuple[list[bytes], int]] = [([], int(depth))]
        while pending:
            below, levels = pending.pop()
            try:
                directory = descend(root, top, below, flags)
            except OSError:
                continue  # gone, closed to us, or no directory any more: the entry itself has been listed
            try:
                names = sorted(names_in(directory))
                left -= len(names)
                if left < 0:
                    raise fail(errno.E2BIG)
                opened = []
                for name in names:
                    within = [*below, name]
                    full = path.rstrip(b"/") + b"/" + b"/".join(within)
                    try:
                        if has_mounts:
                            info = looked(root, above + within, directory, name)
                        else:
                            info = os.lstat(name, dir_fd=directory)
                        one = describe(root, above + within, directory, name, full, info)
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        if error.errno != errno.EXDEV:
                            raise
                        one = [name, full, 0, 0, 0, 0, 0, b"", b"", 0]  # a mount: it is there, and that is all
                    fields += one
                    if levels > 1 and stat.S_ISDIR(int(one[2])):
                        opened.append((within, levels - 1))
                    yield None
                pending += reversed(opened)
            finally:
                os.close(directory)
    finally:
        os.close(top)
    return fields


def descend(root: Root, top: int, names: list[bytes], flags: int) -> int:
    """Open a directory below an open one, through no link and into no other mount."""
    fd = os.dup(top)
    for name in names:
        try:
            below = root.step(name, fd, flags)
        finally:
            os.close(fd)
        fd = below
    return fd
