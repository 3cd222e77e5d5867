"""The fake sandbox's file system: a dictionary of absolute paths."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from sandboxkit._types import DEFAULT_ROOT, FileInfo
from sandboxkit.errors import IsADirectory, NoSpace, NotADirectory, NotFound, TooLarge


class Tree:
    """Files and directories in memory, with the errors of the real ones. Not coloured: it never waits."""

    def __init__(self, *, capacity: int) -> None:
        self.capacity = capacity
        self._entries: dict[str, bytes | None] = {"/": None}
        """A file's bytes, or None for a directory."""
        self.make_dir(DEFAULT_ROOT)
        self.make_dir("/tmp")

    def used(self) -> int:
        """Bytes in all files."""
        return sum(len(data) for data in self._entries.values() if data is not None)

    def is_dir(self, path: str) -> bool:
        return path in self._entries and self._entries[path] is None

    def exists(self, path: str) -> bool:
        return path in self._entries

    def read(self, path: str) -> bytes:
        data = self._find(path)
        if data is None:
            raise IsADirectory(f"{path} is a directory.", path=path)
        return data

    def write(self, path: str, data: bytes) -> None:
        if self.is_dir(path):
            raise IsADirectory(f"{path} is a directory.", path=path)
        self.make_dir(posixpath.dirname(path))
        if self.used() - len(self._entries.get(path) or b"") + len(data) > self.capacity:
            raise NoSpace(f"No space left for {path} ({self.capacity} bytes in all).", path=path)
        self._entries[path] = data

    def list(self, path: str, depth: int) -> list[FileInfo]:
        if self._find(path) is not None:
            raise NotADirectory(f"{path} is not a directory.", path=path)
        prefix = path.rstrip("/") + "/"
        below = (name for name in self._entries if name.startswith(prefix) and name != "/")
        return [self.stat(name) for name in below if name.removeprefix(prefix).count("/") < depth]

    def stat(self, path: str) -> FileInfo:
        data = self._find(path)
        return FileInfo(
            name=posixpath.basename(path) or "/",
            path=path,
            type="dir" if data is None else "file",
            size=0 if data is None else len(data),
            mode=0o755 if data is None else 0o644,
            owner="user",
            group="user",
            modified=datetime.fromtimestamp(0, UTC),
        )

    def make_dir(self, path: str) -> bool:
        if self.is_dir(path):
            return False
        parts = path.strip("/").split("/")
        for n in range(1, len(parts) + 1):
            step = "/" + "/".join(parts[:n])
            if self._entries.get(step) is not None:
                raise NotADirectory(f"{step} is not a directory.", path=path)
            self._entries.setdefault(step, None)
        return True

    def remove(self, path: str) -> None:
        self._find(path)
        for name in [n for n in self._entries if n == path or n.startswith(path + "/")]:
            del self._entries[name]

    def rename(self, source: str, target: str) -> None:
        data = self._find(source)
        if self.is_dir(target):
            raise IsADirectory(f"{target} is a directory.", path=target)
        self.make_dir(posixpath.dirname(target))
        if data is not None:
            self._entries[target] = self._entries.pop(source)
            return
        for name in [n for n in self._entries if n == source or n.startswith(source + "/")]:
            self._entries[target + name.removeprefix(source)] = self._entries.pop(name)

    def _find(self, path: str) -> bytes | None:
        if path not in self._entries:
            parent = posixpath.dirname(path)
            while parent not in self._entries:
                parent = posixpath.dirname(parent)
            if self._entries[parent] is not None:
                raise NotADirectory(f"{parent} is not a directory.", path=path)
            raise NotFound(f"{path} was not found.", path=path)
        return self._entries[path]


class FakeFiles:
    """`provider.Files` over a Tree. `gate` runs before each operation: it checks that the sandbox lives, and faults."""

    def __init__(self, tree: Tree, gate: Callable[[], Awaitable[None]]) -> None:
        self._tree = tree
        self._gate = gate

    async def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        await self._gate()
        data = self._tree.read(path)
        if max_bytes is not None and len(data) > max_bytes:
            raise TooLarge(f"{path} is larger than {max_bytes} bytes.", path=path, max_bytes=max_bytes)
        return data

    async def write(self, path: str, data: bytes) -> None:
        await self._gate()
        self._tree.write(path, bytes(data))

    async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
        await self._gate()
        return self._tree.list(path, depth)

    async def stat(self, path: str) -> FileInfo:
        await self._gate()
        return self._tree.stat(path)

    async def exists(self, path: str) -> bool:
        await self._gate()
        return self._tree.exists(path)

    async def make_dir(self, path: str) -> bool:
        await self._gate()
        return self._tree.make_dir(path)

    async def remove(self, path: str) -> None:
        await self._gate()
        self._tree.remove(path)

    async def rename(self, source: str, target: str) -> None:
        await self._gate()
        self._tree.rename(source, target)
