"""Measures what a step of a build has written: every file below a directory, however long its path is.

The tree belongs to a step that is at work in it, and is hostile: directories are opened one below the other, through no
link, so that no path is too long and none leads elsewhere. What is as deep as to be out of reach is refused.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

DEEPEST = 256
"""Directories below each other. One descriptor is open for each."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooDeep(Exception):
    """Directories lie deeper than can be looked into."""


def written_below(top: str | os.PathLike[str], *, most_entries: int) -> tuple[int, int]:
    """Bytes and entries below a directory, whose walk ends early past `most_entries`. A file with several names counts
    once.

    Raises:
        TooDeep: there may be any amount below.
        OSError: a directory cannot be looked into; the same.
    """
    tree = _Tree(most_entries)
    chain: list[tuple[int, list[str]]] = []
    try:
        chain.append((os.open(top, _DIRECTORY), []))
        chain[0][1].extend(tree.look(chain[0][0]))
        while chain and tree.entries <= most_entries:
            above, names = chain[-1]
            if not names:
                os.close(chain.pop()[0])
                continue
            if len(chain) >= DEEPEST:
                raise TooDeep
            try:
                fd = os.open(names.pop(), _DIRECTORY, dir_fd=above)
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone, or another thing, since we looked
            chain.append((fd, []))
            chain[-1][1].extend(tree.look(fd))
        return tree.bytes, tree.entries
    finally:
        for fd, _ in chain:
            os.close(fd)


class _Tree:
    """The sums of one walk."""

    def __init__(self, most_entries: int) -> None:
        self.bytes = 0
        self.entries = 0
        self._most_entries = most_entries
        self._seen: set[tuple[int, int]] = set()

    def look(self, directory: int) -> list[str]:
        """Add what lies in an open directory; the names of the directories in it."""
        below: list[str] = []
        with os.scandir(directory) as found:
            for entry in found:
                self.entries += 1
                if self.entries > self._most_entries:
                    break
                with suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(info.st_mode):
                        below.append(entry.name)
                    elif info.st_nlink == 1 or (info.st_dev, info.st_ino) not in self._seen:
                        if info.st_nlink > 1:
                            self._seen.add((info.st_dev, info.st_ino))
                        self.bytes += info.st_blocks * 512
        return below
