"""Watches directories by inotify: one instance for the whole box, shared by all watchers.

A watcher is a directory, and with `recursive` every directory below it, also those that come later. What happened is
kept until the engine asks for it. Names of events are relative to the watcher's directory, types are envd's:

    created, or moved in   CREATE      moved away, or from here   RENAME      content   WRITE
    removed                REMOVE      mode, owner, attributes    CHMOD

A directory is watched by its open descriptor, so what a path means cannot change between the look and the watch.
Where events were lost, the last event is LOST, and the watcher is over.
"""

from __future__ import annotations

import errno
import os
import select
import struct

from . import _files
from ._beneath import Root, fail
from ._codec import FAIL, OK

TYPE_CHECKING = False  # the module of that name takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from ._loop import Agent

LOST, CREATE, WRITE, REMOVE, RENAME, CHMOD = range(6)
MODIFY, ATTRIB, MOVED_FROM, MOVED_TO, CREATED, DELETED, DELETE_SELF, MOVE_SELF = 2, 4, 64, 128, 256, 512, 1024, 2048
OVERFLOW, IGNORED, ONLY_DIRECTORIES, IS_DIRECTORY = 0x4000, 0x8000, 0x1000000, 0x40000000
MASK = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATED | DELETED | DELETE_SELF | MOVE_SELF | ONLY_DIRECTORIES
MEANS = (
    (CREATED | MOVED_TO, CREATE),
    (DELETED | DELETE_SELF, REMOVE),
    (MODIFY, WRITE),
    (MOVED_FROM | MOVE_SELF, RENAME),
    (ATTRIB, CHMOD),
)
EVENT = struct.Struct("iIII")
OPENING = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

MAX_WATCHERS = 32
MAX_DIRECTORIES = 4096
MAX_KEPT = 8192
"""Events of one watcher that wait for the engine."""
MAX_BATCH = 100_000
"""Bytes of one answer, about."""


class Watcher:
    """One watcher, and what happened since it was last asked."""

    def __init__(self, directory: int, root: Root | None, path: bytes, recursive: bool, with_entries: bool) -> None:
        self.directory = directory
        self.root = root
        self.path = path.rstrip(b"/") or b"/"
        self.recursive = recursive
        self.with_entries = with_entries
        self.events: list[tuple[int, bytes]] = []
        self.waiting = 0
        self.is_over = False

    def step(self, name: bytes, here: int) -> int:
        """Open a directory in one that is watched, through no link; beneath a root, on no other mount."""
        if self.root is not None:
            return self.root.step(name, here, OPENING)
        return os.open(name, OPENING | os.O_NOFOLLOW, dir_fd=here)

    def close(self) -> None:
        """Let go of the directory and the root."""
        os.close(self.directory)
        if self.root is not None:
            self.root.close()

    def tell(self, kind: int, name: bytes) -> None:
        """Keep an event."""
        if self.is_over:
            return
        if len(self.events) >= MAX_KEPT:
            kind = LOST
        self.is_over = kind == LOST
        self.events.append((kind, name))


class Watches:
    """All watchers of a box."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.fd = -1
        self.libc: Any = None
        self.last = 0
        self.watchers: dict[int, Watcher] = {}
        self.places: dict[int, dict[int, bytes]] = {}
        """inotify's number -> watcher -> the directory's name there, relative; empty for its own"""
        self.known: dict[tuple[int, int], set[bytes]] = {}
        """(inotify's number, watcher) -> names told already, since they were there when the directory was found"""

    # -- requests ------------------------------------------------------------------------------------------------

    def add(self, root: bytes, identity: bytes, path: bytes, recursive: bytes, with_entries: bytes) -> int:
        """Begin to watch a directory, beneath `root` where that is not empty. EMFILE where there are too many."""
        if len(self.watchers) >= MAX_WATCHERS:
            raise fail(errno.EMFILE, path)
        self.start()
        confined = Root(root, identity) if root else None
        try:
            directory = os.open(path, OPENING) if confined is None else confined.reach(confined.parts_of(path), OPENING)
        except OSError:
            if confined is not None:
                confined.close()
            raise
        self.last += 1
        watcher = Watcher(directory, confined, path, recursive == b"1", with_entries == b"1")
        self.watchers[self.last] = watcher
        try:
            self.watch(self.last, watcher, directory, b"", tells=False)
        except OSError:
            self.remove(self.last)
            raise
        return self.last

    def next(self, request: int, number: int, waits: bool) -> None:
        """Answer with what happened: at once, or when something does."""
        watcher = self.watchers.get(number)
        if watcher is None or watcher.waiting:
            raise fail(errno.ENOENT)
        self.readable()
        watcher.waiting = request
        if watcher.events or not waits or watcher.is_over:
            self.answer(watcher)

    def remove(self, number: int) -> None:
        """End a watcher. Idempotent."""
        watcher = self.watchers.pop(number, None)
        if watcher is None:
            return
        self.give_up(watcher)
        watcher.close()
        for wd in [wd for wd, places in self.places.items() if number in places]:
            self.leave(wd, number)

    def cancel(self, request: int) -> None:
        """Give up a request that waits."""
        for watcher in self.watchers.values():
            if watcher.waiting == request:
                self.give_up(watcher)

    def give_up(self, watcher: Watcher) -> None:
        """Tell whoever waits that nothing will come."""
        if watcher.waiting:
            code = errno.ECANCELED
            self.agent.send(watcher.waiting, FAIL, [code, os.strerror(code).encode(), b""])
            watcher.waiting = 0

    def answer(self, watcher: Watcher) -> None:
        """Send what is kept, as much as an answer holds: type, name, 0 or 10, the fields of an entry."""
        fields: list[bytes | int] = []
        size = taken = 0
        for kind, name in watcher.events:
            entry: list[bytes | int] = []
            if watcher.with_entries and kind not in (REMOVE, RENAME, LOST):
                try:
                    path = watcher.path + b"/" + name
                    entry = [*_files.entry(os.path.basename(name), path)[:9], 0]
                except OSError:
                    pass  # it is gone again
            size += 64 + len(name) + sum(len(field) for field in entry if isinstance(field, bytes))
            if size > MAX_BATCH and taken:
                break
            fields += [kind, name, len(entry), *entry]
            taken += 1
        del watcher.events[:taken]
        request, watcher.waiting = watcher.waiting, 0
        self.agent.send(request, OK, fields)

    # -- inotify -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the instance when it is first needed."""
        if self.fd >= 0:
            return
        import ctypes

        self.libc = ctypes.CDLL(None, use_errno=True)
        self.errno = ctypes.get_errno
        fd = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise fail(self.errno())
        self.fd = fd
        self.agent.poll.register(fd, select.EPOLLIN)

    def watch(self, number: int, watcher: Watcher, directory: int, name: bytes, *, tells: bool) -> None:
        """Watch an open directory, and with `recursive` what is below; `tells` reports the entries found there."""
        pending = [(os.dup(directory), name)]
        try:
            while pending:
                fd, within = pending.pop()
                try:
                    wd = self.libc.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % fd, MASK)
                    if wd < 0:
                        raise fail(self.errno())
                    self.places.setdefault(wd, {})[number] = within
                    if len(self.places) > MAX_DIRECTORIES:
                        raise fail(errno.ENOSPC)
                    if not watcher.recursive:
                        return
                    for child in sorted(names_in(fd)):
                        path = within + b"/" + child if within else child
                        if tells:
                            watcher.tell(CREATE, path)
                            self.known.setdefault((wd, number), set()).add(child)
                        try:
                            pending.append((watcher.step(child, fd), path))
                        except OSError:
                            continue  # no directory, or gone, or closed to us
                        if len(pending) > 512:
                            raise fail(errno.ENOSPC)
                finally:
                    os.close(fd)
        finally:
            for fd, _ in pending:
                os.close(fd)

    def leave(self, wd: int, number: int) -> None:
        """Watch a directory no more, unless another watcher does."""
        self.known.pop((wd, number), None)
        places = self.places[wd]
        del places[number]
        if not places:
            del self.places[wd]
            self.libc.inotify_rm_watch(self.fd, wd)

    def readable(self) -> None:
        """Take what inotify has, and answer those who wait."""
        while self.fd >= 0:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                wd, mask, _cookie, size = EVENT.unpack_from(data, at)
                at += EVENT.size + size
                self.happened(wd, mask, data[at - size : at].rstrip(b"\0"))
        for watcher in tuple(self.watchers.values()):
            if watcher.waiting and watcher.events:
                self.answer(watcher)

    def happened(self, wd: int, mask: int, name: bytes) -> None:
        """Sort one event of the kernel's."""
        if mask & OVERFLOW:
            for watcher in self.watchers.values():
                watcher.tell(LOST, b"")
            return
        for number, within in tuple(self.places.get(wd, {}).items()):
            watcher = self.watchers[number]
            if mask & IGNORED:
                self.known.pop((wd, number), None)
                continue
            if not name and within:
                continue  # its parent's event tells it
            told = self.known.get((wd, number), set())
            if mask & (CREATED | MOVED_TO) and name in told:
                told.discard(name)
                continue
            if mask & (DELETED | MOVED_FROM):
                told.discard(name)
            path = (within + b"/" + name if within else name) or b"."
            for bits, kind in MEANS:
                if mask & bits:
                    watcher.tell(kind, path)
            if watcher.recursive and mask & IS_DIRECTORY:
                if mask & MOVED_FROM:
                    self.moved(number, path)
                elif mask & (CREATED | MOVED_TO):
                    self.found(number, watcher, path, tells=bool(mask & CREATED))
        if mask & IGNORED:
            self.places.pop(wd, None)

    def moved(self, number: int, path: bytes) -> None:
        """Forget a directory that went away, with what is below it; where it comes to, it is found anew."""
        for wd, places in tuple(self.places.items()):
            within = places.get(number)
            if within is not None and (within == path or within.startswith(path + b"/")):
                self.leave(wd, number)

    def found(self, number: int, watcher: Watcher, path: bytes, *, tells: bool) -> None:
        """Watch a directory that has appeared; `tells` reports what is in it by now as created."""
        try:
            directory = os.dup(watcher.directory)
            for name in path.split(b"/"):
                try:
                    below = watcher.step(name, directory)
                finally:
                    os.close(directory)
                directory = below
        except OSError:
            return
        try:
            self.watch(number, watcher, directory, path, tells=tells)
        except OSError:
            watcher.tell(LOST, path)
        finally:
            os.close(directory)


def names_in(directory: int) -> list[bytes]:
    """The names in a directory that is open by O_PATH."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)
