"""The part of an agent that the file routes need; `Agent` has it, and the one that keeps to a root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sandboxkit.local.isolation._base import Entry, File


class FileAgent(Protocol):
    """The file verbs of `isolation._base.Agent`, as they are told there."""

    async def open_file(self, path: str, flags: int, mode: int = 0o644) -> File: ...

    async def stat(self, path: str) -> Entry: ...

    async def make_dir(self, path: str) -> bool: ...

    async def rename(self, source: str, target: str) -> None: ...

    async def remove(self, path: str) -> bool: ...

    async def set_xattrs(self, path: str, values: Mapping[str, str]) -> None: ...

    async def list(self, path: str, *, depth: int = 1) -> list[Entry]: ...
