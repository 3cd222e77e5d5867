"""Expands a pattern, directory by directory, through operations that are guarded already."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from sandboxkit._types import FileInfo
from sandboxkit.errors import LinkEscape, NotADirectory, NotFound


class Listing(Protocol):
    """What expanding needs."""

    async def stat(self, path: str) -> FileInfo: ...

    def walk(self, path: str) -> AsyncIterator[FileInfo]: ...

    async def list(self, path: str) -> list[FileInfo]: ...


async def expand(files: Listing, root: str, parts: Sequence[str]) -> list[FileInfo]:
    """The entries that match, each once. What is gone meanwhile, or no directory, matches nothing."""
    found: dict[str, FileInfo] = {}
    directories = [root]
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        following: dict[str, None] = {}
        for directory in directories:
            if part == "**":
                following[directory] = None
            async for entry in _matches(files, directory, part):
                if last:
                    found[entry.path] = entry
                if part != "**" or (entry.type == "dir" and entry.link_target is None):
                    following[entry.path] = None
        directories = list(following)
    return list(found.values())


async def _matches(files: Listing, directory: str, part: str) -> AsyncIterator[FileInfo]:
    try:
        if part == "**":
            async for entry in files.walk(directory):
                yield entry
        elif any(char in part for char in "*?["):
            for entry in await files.list(directory):
                if fnmatch.fnmatchcase(entry.name, part):
                    yield entry
        else:
            yield await files.stat(f"{directory.rstrip('/')}/{part}")
    except (NotFound, NotADirectory, LinkEscape):
        return
