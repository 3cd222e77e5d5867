"""Remembers what was written into a sandbox through its session, for the case that it is lost; pure.

The names are kept in any case, so that a loss can be told; the contents only where they are to be written again, and
only so many bytes of them. What a program in the sandbox wrote by itself is known to nobody here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MOST_NAMES = 10_000
MOST_BYTES = 64 * 1024 * 1024


class Journal:
    """Files by absolute path; None for the content of one that is not kept."""

    def __init__(self, *, keeps_content: bool, most_bytes: int = MOST_BYTES) -> None:
        self.keeps_content = keeps_content
        self.most_bytes = most_bytes
        self._files: dict[str, bytes | None] = {}
        self._directories: dict[str, None] = {}
        self._bytes = 0

    def wrote(self, path: str, data: bytes) -> None:
        """Take in that a file was written whole."""
        self._drop(path)
        if len(self._files) >= MOST_NAMES:
            return
        keeps = self.keeps_content and self._bytes + len(data) <= self.most_bytes
        self._files[path] = data if keeps else None
        self._bytes += len(data) if keeps else 0

    def made(self, path: str) -> None:
        """Take in that a directory was made."""
        if len(self._directories) < MOST_NAMES:
            self._directories[path] = None

    def removed(self, path: str) -> None:
        """Take in that an entry was removed, with all beneath it."""
        for name in [*self._beneath(path, self._files)]:
            self._drop(name)
        for name in [*self._beneath(path, self._directories)]:
            del self._directories[name]

    def renamed(self, source: str, target: str) -> None:
        """Take in that an entry has another name."""
        self.removed(target)
        for name in [*self._beneath(source, self._files)]:
            data = self._files.pop(name)
            self._files[target + name[len(source) :]] = data
        for name in [*self._beneath(source, self._directories)]:
            del self._directories[name]
            self._directories[target + name[len(source) :]] = None

    @property
    def files(self) -> dict[str, bytes]:
        """What can be written again."""
        return {path: data for path, data in self._files.items() if data is not None}

    @property
    def directories(self) -> tuple[str, ...]:
        return tuple(self._directories)

    @property
    def names(self) -> tuple[str, ...]:
        """All files that are known of."""
        return tuple(self._files)

    def _drop(self, path: str) -> None:
        self._bytes -= len(self._files.pop(path, None) or b"")

    @staticmethod
    def _beneath(path: str, names: Mapping[str, object]) -> Iterator[str]:
        below = path.rstrip("/") + "/"
        return (name for name in names if name == path or name.startswith(below))
