"""Watching directories through the unmodified SDK: streams (async) and polling (sync), exact events."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from e2b import FileNotFoundException, FilesystemEventType, InvalidArgumentException, SandboxException

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CREATE, WRITE, REMOVE = FilesystemEventType.CREATE, FilesystemEventType.WRITE, FilesystemEventType.REMOVE
RENAME, CHMOD = FilesystemEventType.RENAME, FilesystemEventType.CHMOD


class Watched:
    """A watcher in either colour, and what it has told."""

    def __init__(self, colour: Any, box: Any, path: str, **options: Any) -> None:
        self.events: list[Any] = []
        self._colour = colour
        if colour.name == "sync":
            self._handle = box.files.watch_dir(path, **options)
        else:
            self._handle = colour.on_loop(lambda: box.files.watch_dir(path, on_event=self.events.append, **options))

    def until(self, found: Callable[[list[tuple[str, Any]]], bool]) -> list[tuple[str, Any]]:
        """Wait until what was told is so."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._colour.name == "sync":
                self.events += self._handle.get_new_events()
            told = [(event.name, event.type) for event in self.events]
            if found(told):
                return told
            time.sleep(0.02)
        raise AssertionError(f"told only {told}")

    def stop(self) -> None:
        self._colour.do(self._handle.stop())


def test_a_new_file_is_exactly_three_events(colour: Any, box: Any, folder: str) -> None:
    """A file created through /files is told as created, changed in mode, and written: three events, in this order."""
    watched = Watched(colour, box, folder)
    colour.do(box.files.write(f"{folder}/new.txt", "content"))
    colour.do(box.files.make_dir(f"{folder}/end"))
    told = watched.until(lambda told: ("end", CREATE) in told)
    assert told == [("new.txt", CREATE), ("new.txt", CHMOD), ("new.txt", WRITE), ("end", CREATE)]
    watched.stop()


def test_changes_of_every_kind(colour: Any, box: Any, folder: str) -> None:
    """Renames are a rename and a creation; chmod, writing in place and removal are told by their names."""
    colour.do(box.commands.run("touch a b", cwd=folder))
    watched = Watched(colour, box, folder)
    colour.do(box.files.rename(f"{folder}/a", f"{folder}/c"))
    colour.do(box.commands.run("chmod 600 b; echo x >> b; rm b; mkdir end", cwd=folder))
    told = watched.until(lambda told: ("end", CREATE) in told)
    assert told == [("a", RENAME), ("c", CREATE), ("b", CHMOD), ("b", WRITE), ("b", REMOVE), ("end", CREATE)]
    watched.stop()


def test_only_recursive_watchers_see_what_is_below(colour: Any, box: Any, folder: str) -> None:
    """Without `recursive` only the directory's own entries are told; with it those of new directories, too, also in
    one that has moved."""
    colour.do(box.files.make_dir(f"{folder}/sub"))
    flat, deep = Watched(colour, box, folder), Watched(colour, box, folder, recursive=True)
    colour.do(box.files.write(f"{folder}/sub/x", "1"))
    colour.do(box.files.make_dir(f"{folder}/fresh"))
    deep.until(lambda told: ("fresh", CREATE) in told)
    colour.do(box.files.write(f"{folder}/fresh/y", "1"))
    deep.until(lambda told: ("fresh/y", WRITE) in told)
    colour.do(box.files.rename(f"{folder}/fresh", f"{folder}/moved"))
    deep.until(lambda told: ("moved", CREATE) in told)
    colour.do(box.files.write(f"{folder}/moved/z", "1"))
    told = deep.until(lambda told: ("moved/z", WRITE) in told)
    assert told[:3] == [("sub/x", CREATE), ("sub/x", CHMOD), ("sub/x", WRITE)]
    assert ("moved/z", CREATE) in told
    seen = flat.until(lambda told: ("moved", CREATE) in told)
    assert {name for name, _ in seen} == {"fresh", "moved"}
    flat.stop()
    deep.stop()


def test_trees_that_come_at_once(colour: Any, box: Any, folder: str) -> None:
    """Of a tree that is made in one go every entry is told as created, once."""
    watched = Watched(colour, box, folder, recursive=True)
    colour.do(box.commands.run("mkdir -p a/b/c && touch a/1 a/b/2 a/b/c/3 && mkdir end", cwd=folder))
    told = watched.until(lambda told: ("end", CREATE) in told and ("a/b/c/3", CREATE) in told)
    created = sorted(name for name, kind in told if kind == CREATE)
    assert created == ["a", "a/1", "a/b", "a/b/2", "a/b/c", "a/b/c/3", "end"]
    watched.stop()


def test_entries_come_with_events(colour: Any, box: Any, folder: str) -> None:
    """With `include_entry` an event describes what it is about, where that is still there."""
    watched = Watched(colour, box, folder, include_entry=True)
    colour.do(box.files.write(f"{folder}/f", "four"))
    watched.until(lambda told: ("f", WRITE) in told)
    entry = watched.events[-1].entry
    assert (entry.name, entry.path, entry.size) == ("f", f"{folder}/f", 4)
    colour.do(box.files.remove(f"{folder}/f"))
    watched.until(lambda told: ("f", REMOVE) in told)
    assert watched.events[-1].entry is None
    watched.stop()


def test_what_cannot_be_watched(colour: Any, box: Any, folder: str) -> None:
    """A missing directory and a file are refused, each in its own way."""
    colour.do(box.files.write(f"{folder}/f", ""))
    with pytest.raises(FileNotFoundException):
        Watched(colour, box, f"{folder}/none")
    with pytest.raises(InvalidArgumentException):
        Watched(colour, box, f"{folder}/f")


def test_watchers_are_bounded(colour: Any, folder: str) -> None:
    """A sandbox has thirty-two watchers at most, and one that was stopped gives its place back."""
    own = colour.create()
    watched = [Watched(colour, own, "/home/user") for _ in range(32)]
    with pytest.raises(SandboxException):
        Watched(colour, own, "/home/user")
    watched.pop().stop()

    def again() -> bool:
        try:
            watched.append(Watched(colour, own, "/home/user"))
        except SandboxException:
            return False
        return True

    # A stream's end reaches the engine when its connection has closed.
    deadline = time.monotonic() + 30
    while not again():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for each in watched:
        each.stop()
