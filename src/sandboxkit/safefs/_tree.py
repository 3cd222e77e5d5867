"""Gathers a bounded tree from one listing per directory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import anyio

from sandboxkit._types import FileInfo, FileNode
from sandboxkit.errors import NotADirectory, NotFound

DEFAULT_EXCLUDES = frozenset({".cache", ".git", ".ipython", ".local", ".npm", ".venv", "__pycache__", "node_modules"})
"""Directories that a tree shows but does not open: caches and installed packages, large and nobody's own work."""

_AT_ONCE = 8

ListDirectory = Callable[[str], Awaitable[list[FileInfo]]]


async def gather(
    list_directory: ListDirectory, path: str, *, depth: int, max_entries: int, exclude: Collection[str]
) -> FileNode:
    """Gather the tree below `path`, level by level, so that a cap cuts what is deepest.

    One request per opened directory instead of one deep listing: an excluded directory then costs nothing, and it is
    the excluded ones (`node_modules`) that hold most of the entries.

    Raises:
        SafeFSError: `path` itself could not be listed. A directory further down that is gone meanwhile is empty.
    """
    listed: dict[str, list[FileInfo]] = {path: await list_directory(path)}
    cut: set[str] = set()
    left = max_entries
    level = [path]
    for below in range(depth):
        if below > 0:
            listed.update(await _list_all(list_directory, level))
        following: list[str] = []
        for directory in level:
            entries = listed[directory]
            if len(entries) > left:
                cut.add(directory)
                listed[directory] = entries = entries[:left]
            left -= len(entries)
            opened = [entry.path for entry in entries if is_directory(entry)]
            following += [entry for entry in opened if entry.rpartition("/")[2] not in exclude]
            cut.update(entry for entry in opened if entry.rpartition("/")[2] in exclude)
        level = following
        if not level or left == 0:
            break
    cut.update(level)  # not opened: below the depth, or past the cap
    top = FileInfo(name=path.rpartition("/")[2], path=path, type="dir")
    return _node(top, listed, cut)


def is_directory(entry: FileInfo) -> bool:
    """Whether an entry is a directory itself; a link to one is not (the service reports the type of its target)."""
    return entry.type == "dir" and entry.link_target is None


async def _list_all(list_directory: ListDirectory, paths: Sequence[str]) -> dict[str, list[FileInfo]]:
    listed: dict[str, list[FileInfo]] = {}
    failures: list[Exception] = []

    async def list_one(path: str) -> None:
        async with limiter:
            try:
                listed[path] = await list_directory(path)
            except (NotFound, NotADirectory):
                listed[path] = []
            except Exception as error:  # raised below, on its own instead of in the task group's ExceptionGroup
                failures.append(error)
                tasks.cancel_scope.cancel()

    limiter = anyio.CapacityLimiter(_AT_ONCE)
    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(list_one, path)
    if failures:
        raise failures[0]
    return listed


def _node(entry: FileInfo, listed: Mapping[str, list[FileInfo]], cut: Collection[str]) -> FileNode:
    entries = sorted(listed.get(entry.path, ()), key=lambda each: (not is_directory(each), each.name))
    return FileNode(
        name=entry.name,
        path=entry.path,
        type=entry.type,
        size=entry.size,
        link_target=entry.link_target,
        children=tuple(_node(each, listed, cut) for each in entries),
        complete=entry.path not in cut,
    )
