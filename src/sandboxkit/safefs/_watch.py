"""Events of a directory: as the sandbox's server tells them, or by looking again and comparing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final, cast

import anyio

from sandboxkit._confine import confine
from sandboxkit._types import FileEvent, FileInfo
from sandboxkit.errors import Changed, NotADirectory, NotFound, PathError, SafeFSError
from sandboxkit.provider._confined import to_text
from sandboxkit.safefs._levels import EnforcedFiles, LevelFiles

DEEPEST: Final = 64
"""Levels that a recursive look goes down."""
_WAIT: Final = 20
_KINDS: Final = frozenset({b"create", b"write", b"remove", b"rename", b"chmod"})


async def watched(files: LevelFiles, directory: str, *, recursive: bool, interval: float) -> AsyncGenerator[FileEvent]:
    """What happens in a directory, by the better of the two ways that there is."""
    if isinstance(files, EnforcedFiles) and await files.watching() is not None:
        events = told(files, directory, recursive=recursive)
    else:
        events = looked_for(files, directory, recursive=recursive, interval=interval)
    async with aclosing(events):
        async for event in events:
            yield event


async def told(files: EnforcedFiles, directory: str, *, recursive: bool) -> AsyncGenerator[FileEvent]:
    """What the server tells. Its watcher ends with the iteration."""
    began = await files.events("watch", directory, int(recursive))
    if len(began) != 1 or len(began[0]) > 64:
        raise SafeFSError("", reason="What the sandbox answered is no answer (no watcher)")
    name = to_text(began[0])
    try:
        while True:
            fields = await files.events("events", name, _WAIT)
            for kind, below in zip(fields[::2], fields[1::2], strict=False):
                if kind == b"lost":
                    raise Changed("")
                yield _event(directory, kind, to_text(below))
    finally:
        with anyio.move_on_after(5, shield=True):
            await files.events("unwatch", name)


def _event(directory: str, kind: bytes, below: str) -> FileEvent:
    try:
        path = confine(below, directory)
    except PathError:
        path = ""
    if kind not in _KINDS or not path:
        raise SafeFSError("", reason="What the sandbox answered is no answer (an event that cannot be)")
    return FileEvent(cast("Any", kind.decode()), path)


async def looked_for(
    files: LevelFiles, directory: str, *, recursive: bool, interval: float
) -> AsyncGenerator[FileEvent]:
    """What differs between two looks."""
    before = await _look(files, directory, recursive)
    while True:
        await anyio.sleep(interval)
        try:
            after = await _look(files, directory, recursive)
        except (NotFound, NotADirectory):
            yield FileEvent("remove", directory)
            return
        for event in differences(before, after):
            yield event
        before = after


async def _look(files: LevelFiles, directory: str, recursive: bool) -> dict[str, FileInfo]:
    return {entry.path: entry for entry in await files.list(directory, depth=DEEPEST if recursive else 1)}


def differences(before: Mapping[str, FileInfo], after: Mapping[str, FileInfo]) -> list[FileEvent]:
    """What must have happened between two looks, removals first."""
    events = [FileEvent("remove", path) for path in sorted(before.keys() - after.keys(), reverse=True)]
    for path in sorted(after):
        old, new = before.get(path), after[path]
        if old is None:
            events.append(FileEvent("create", path))
            if new.type == "file" and new.size:
                events.append(FileEvent("write", path))
        elif old.type != new.type or old.link_target != new.link_target:
            events += [FileEvent("remove", path), FileEvent("create", path)]
        else:
            if old.type == "file" and (old.size, old.modified) != (new.size, new.modified):
                events.append(FileEvent("write", path))
            if (old.mode, old.owner, old.group) != (new.mode, new.owner, new.group):
                events.append(FileEvent("chmod", path))
    return events
