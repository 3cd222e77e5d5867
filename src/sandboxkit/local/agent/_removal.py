"""Removes an entry with all that is below it, never through a link; the same text runs in SafeFS's helper.

It works relative to open directories, so that a directory which is exchanged for a link under its hands is not
entered. At most DEPTH_OF_DESCRIPTORS are open: what lies deeper is first moved up to the top.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import suppress

TYPE_CHECKING = False  # the module of that name takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[bytes, int, int], int]

DEPTH_OF_DESCRIPTORS = 64
"""Directories that a removal keeps open at once."""


def remove(name: bytes, parent: int | None, step: Step | None = None) -> Generator[None, None, list[bytes | int]]:
    """Remove `name` in the open directory `parent` (None: `name` is a path). A generator that yields None wherever it
    may pause; returns [1], or [0] when there was nothing.

    Args:
        step: what opens a name in an open directory, where it may not do so on another mount; EXDEV there.
    """
    try:
        info = os.lstat(name, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return [0]
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=parent)
        return [1]
    top = open_directory(name, parent, step)
    lifted = 0
    more = False
    open_fds = [top]
    try:
        frames = [(top, b"", names_in(top))]
        while frames:
            directory, inside, names = frames[-1]
            yield None
            if not names:
                frames.pop()
                if frames:
                    above = frames[-1][0]
                    open_fds.remove(directory)
                    os.close(directory)
                    with suppress(FileNotFoundError):
                        os.rmdir(inside, dir_fd=above)
                elif more:
                    frames = [(top, b"", names_in(top))]
                    more = False
                continue
            child = names.pop()
            try:
                if not stat.S_ISDIR(os.lstat(child, dir_fd=directory).st_mode):
                    os.unlink(child, dir_fd=directory)
                    continue
                inner = open_directory(child, directory, step)
            except FileNotFoundError:
                continue
            if len(frames) >= DEPTH_OF_DESCRIPTORS:
                os.close(inner)
                lifted += 1  # never reused: an earlier one may just be on its way out
                more = True
                place = b".sandboxkit-lifted-%d-%d" % (os.getpid(), lifted)
                os.rename(child, place, src_dir_fd=directory, dst_dir_fd=top)
                continue
            open_fds.append(inner)
            frames.append((inner, child, names_in(inner)))
        os.rmdir(name, dir_fd=parent)
    finally:
        for fd in open_fds:
            os.close(fd)
    return [1]


def names_in(directory: int) -> list[bytes]:
    """The names in an open directory."""
    return [os.fsencode(name) for name in os.listdir(directory)]


def open_directory(name: bytes, parent: int | None, step: Step | None) -> int:
    """Open a directory for emptying, not through a link; make it accessible first where its mode forbids it."""
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    if step is None or parent is None:
        handle = os.open(name, flags | os.O_PATH, dir_fd=parent)
    else:
        handle = step(name, parent, flags | os.O_PATH)
    try:
        info = os.fstat(handle)
        mode = stat.S_IMODE(info.st_mode)
        if mode & 0o700 != 0o700 and info.st_uid == os.getuid():
            os.chmod(f"/proc/self/fd/{handle}", mode | 0o700)
        return os.open(b".", flags & ~os.O_NOFOLLOW | os.O_RDONLY, dir_fd=handle)
    finally:
        os.close(handle)
