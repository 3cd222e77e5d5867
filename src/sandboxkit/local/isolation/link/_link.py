"""The engine's end of the agent's socket: requests out, answers and descriptors in, nothing believed.

The wire
--------
One SEQPACKET socket pair; the agent has inherited the other end. A message is cut into packets of at most 60,000
bytes of payload behind a header of six: request number (u32), kind (u8), flags (u8: 1 = more packets follow), all in
network order. A payload is a list of byte strings, each behind its length (u32); numbers are written in decimal.
Descriptors ride on the last packet of their message (SCM_RIGHTS), at most 16.

    request      fields                                                              answer
    HELLO        processes, open files, bytes of data (0 = any), nice                agent's pid
    SPAWN        cwd, columns, rows (0, 0 = no terminal), 1 = leads its group, n,    pid; the terminal's master
                 n arguments, m, m of NAME=value,
                 the numbers that the attached descriptors get
    SIGNAL       pid, signal, 1 = its group                                          1, or 0 when there is none
    OPEN         path, flags, mode                                                   a regular file
    STAT         path                                                                one entry
    LIST         path, depth                                                         entries
    MAKE_DIR     path                                                                1 = made
    RENAME       source, target
    REMOVE       path                                                                1 = was there
    SET_XATTRS   path, then names and values
    DIAL         host, port                                                          a connected TCP socket
    PING
    CANCEL       number of a LIST, REMOVE, DIAL, ACCEPT, or the like                 (none of its own)
    LISTEN       port                                                                port (another where it is taken)
    ACCEPT       port of a LISTEN                                                    a connected TCP socket
    FILE_FACTS   file                                                                size, mtime, inode, 1 = marked
    FILE_READ    file, size, position                                                bytes
    FILE_WRITE   file, bytes                                                         how many were written
    FILE_EMPTY   file
    FILE_CLOSE   file
    RESIZE       pid, columns, rows
    SPACE        paths                                                               bytes used of their file systems
    BENEATH      operation, root, identity or "", its arguments                      identity, its fields
    BENEATH_LONG the same, for what may take long
    BENEATH_OPEN read | stage | write, root, identity or "", path, flags, mode       a regular file, and fields
    WATCH        root or "", identity or "", path, 1 = recursive, 1 = with entries   its number
    WATCH_NEXT   number, 1 = wait                                                    events
    WATCH_END    number

Over frames (`_framed`) there are no descriptors: what is a socket, a pipe or a terminal above is a lane there, and a
file is a number at the end of the answer's fields, for the verbs from FILE_FACTS on.

An entry is name, path, mode, size, uid, gid, mtime in ns, resolved link target or "", its mode or "", n, and n pairs
of attribute name and value. An event is its type (0-5), its name, and n: 0, or 10 and as many fields of an entry.
Every request but CANCEL has exactly one answer: OK with fields, or FAIL with errno, text and path. A program that was
started is followed by one EXIT ("code" or "signal", and the number) under the number of the request that started it.

Bounds
------
An answer has at most 256 KiB (a listing 32 MiB, four at once) and belongs to a request that is open; each packet but
the last carries at least 1,024 bytes. At most 1,024 requests are open and 4 MiB are waiting to be sent. An answer takes
at most 60 seconds (a listing or removal 600, the wait for a connection any); a box that is slower counts as lost.
Whatever breaks a rule ends the link: everything that waits gets `AgentLost`, and the owner is told, who kills the box.
Descriptors are close-on-exec from the start; surplus ones and those of an answer that nobody waits for any more are
closed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.isolation._base import AgentError, Entry, ExitStatus, File, OpenHow, WatchEvent
from sandboxkit.local.isolation.link._channel import ANSWER_WITHIN, Channel, to_bytes, to_text
from sandboxkit.local.isolation.link._descriptors import check_file, check_socket, check_terminal
from sandboxkit.local.isolation.link._open_files import DescriptorFile, RemoteFile
from sandboxkit.local.isolation.link._port import PacketPort, Port
from sandboxkit.local.isolation.link._shapes import MOST_MODE, MOST_SIZE, check_beneath, check_opened

TREE_WITHIN = 600.0
LISTINGS = 4
"""Listings that one box may have open at once: each may grow to 32 MiB here."""

LONG: Final = frozenset({"append", "copy", "list", "remove"})
"""Operations below a root that the agent does bit by bit."""
EVENT_KINDS: Final = ("lost", "create", "write", "remove", "rename", "chmod")

Entries = list[Entry]  # `list` is also a method below
Events = list[WatchEvent]
Fields = list[bytes]
Asked = list[bytes | int]


class AgentProcess:
    """A program inside, as `_base.Process` promises."""

    def __init__(self, pid: int, status: asyncio.Future[ExitStatus]) -> None:
        self.pid = pid
        self._status = status

    async def wait(self) -> ExitStatus:
        """Wait until it has ended; see `_base.Process`."""
        return await asyncio.shield(self._status)


class AgentLink:
    """`_base.Agent` over a SEQPACKET socket, or over a port of another kind. `on_lost` is that of `Channel`."""

    def __init__(self, port: socket.socket | Port, *, on_lost: Callable[[str], None]) -> None:
        self._channel = Channel(PacketPort(port) if isinstance(port, socket.socket) else port, on_lost=on_lost)
        self._listings = asyncio.Semaphore(LISTINGS)

    # -- what callers use ----------------------------------------------------------------------------------------

    async def hello(self, *, processes: int, open_files: int, data: int = 0, nice: int = 0) -> None:
        """Tell the agent the limits of each program that it starts; it answers once it serves."""
        await self._channel.ask(wire.HELLO, [processes, open_files, data, nice])

    async def spawn(
        self, argv: Sequence[str], *, envs: Mapping[str, str], cwd: str, fds: Mapping[int, int], leads: bool = True
    ) -> AgentProcess:
        """Run a program; see `_base.Agent.spawn`."""
        if any(not 0 <= target < 64 for target in fds) or len(fds) > wire.MAX_FDS:
            raise ValueError(f"descriptors {sorted(fds)}: at most {wire.MAX_FDS}, numbered 0 to 63")
        process, _ = await self._start(argv, envs, cwd, (0, 0), fds, leads)
        return process

    async def spawn_pty(
        self, argv: Sequence[str], *, envs: Mapping[str, str], cwd: str, cols: int, rows: int
    ) -> tuple[AgentProcess, int]:
        """Run a program on a new terminal; see `_base.Agent.spawn_pty`."""
        size = (min(max(cols, 1), 65535), min(max(rows, 1), 65535))
        process, got = await self._start(argv, envs, cwd, size, {}, leads=True)
        return process, got[0]

    async def signal(self, pid: int, signum: int, *, group: bool = True) -> bool:
        """Signal a program; see `_base.Agent.signal`."""
        fields, _ = await self._channel.ask(wire.SIGNAL, [pid, signum, int(group)])
        return self._channel.number(fields) == 1

    async def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """Open a regular file; see `_base.Agent.open`."""
        if not self._channel.passes_descriptors:
            raise AgentError(errno.EOPNOTSUPP, "this sandbox passes no descriptors", path)
        _, got = await self._channel.ask(
            wire.OPEN, [to_bytes(path), flags, mode], takes=lambda fd: check_file(fd, flags), descriptors=1
        )
        return got[0]

    async def open_file(self, path: str, flags: int, mode: int = 0o644) -> File:
        """Open a regular file; see `_base.Agent.open_file`."""
        return (await self._open(wire.OPEN, [to_bytes(path), flags, mode], flags))[0]

    async def resize(self, pid: int, terminal: int, *, cols: int, rows: int) -> None:
        """Set a terminal's size; see `_base.Agent.resize`."""
        cols, rows = cols & 0xFFFF, rows & 0xFFFF
        if not self._channel.passes_descriptors:
            await self._channel.ask(wire.RESIZE, [pid, cols, rows])
            return
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        except OSError as error:
            raise AgentError(error.errno or errno.EIO, error.strerror or "the terminal is gone") from None

    async def space(self, paths: Sequence[str]) -> int:
        """The bytes that are used of the file systems at these paths, by the word of the box."""
        fields, _ = await self._channel.ask(wire.SPACE, list(map(to_bytes, paths)))
        return self._channel.number(fields)

    async def stat(self, path: str) -> Entry:
        """lstat; see `_base.Agent.stat`."""
        fields, _ = await self._channel.ask(wire.STAT, [to_bytes(path)])
        entries = self._entries(fields)
        if len(entries) != 1:
            raise self._channel.broken("a stat that is not one entry")
        return entries[0]

    async def list(self, path: str, *, depth: int = 1) -> Entries:
        """Entries below a directory; see `_base.Agent.list`."""
        async with self._listings:
            fields, _ = await self._channel.ask(wire.LIST, [to_bytes(path), max(depth, 1)], within=TREE_WITHIN)
        return self._entries(fields)

    async def make_dir(self, path: str) -> bool:
        """mkdir -p; see `_base.Agent.make_dir`."""
        fields, _ = await self._channel.ask(wire.MAKE_DIR, [to_bytes(path)])
        return self._channel.number(fields) == 1

    async def rename(self, source: str, target: str) -> None:
        """Rename; see `_base.Agent.rename`."""
        await self._channel.ask(wire.RENAME, [to_bytes(source), to_bytes(target)], within=TREE_WITHIN)

    async def remove(self, path: str) -> bool:
        """rm -rf; see `_base.Agent.remove`."""
        fields, _ = await self._channel.ask(wire.REMOVE, [to_bytes(path)], within=TREE_WITHIN)
        return self._channel.number(fields) == 1

    async def set_xattrs(self, path: str, values: Mapping[str, str]) -> None:
        """Replace attributes; see `_base.Agent.set_xattrs`."""
        pairs = [part for key, value in values.items() for part in (to_bytes(key), to_bytes(value))]
        await self._channel.ask(wire.SET_XATTRS, [to_bytes(path), *pairs])

    async def dial(self, port: int, *, host: str = "127.0.0.1") -> int:
        """Connect to a port inside; see `_base.Agent.dial`."""
        _, got = await self._channel.ask(wire.DIAL, [to_bytes(host), port], takes=check_socket, descriptors=1)
        return got[0]

    async def listen(self, port: int) -> int:
        """Listen on a loopback port inside; see `_base.Agent.listen`."""
        fields, _ = await self._channel.ask(wire.LISTEN, [port])
        taken = self._channel.number(fields)
        if not 0 < taken < 65536:
            raise self._channel.broken("a port that is none")
        return taken

    async def accept(self, port: int) -> int:
        """Wait for a connection; see `_base.Agent.accept`."""
        _, got = await self._channel.ask(wire.ACCEPT, [port], takes=check_socket, descriptors=1, within=None)
        return got[0]

    async def beneath(self, operation: str, root: str, identity: bytes, args: Sequence[bytes | int]) -> Fields:
        """Carry out one operation below a root; see `_base.Agent.beneath`."""
        asked: Asked = [operation.encode(), to_bytes(root), identity, *args]
        if operation in LONG:
            async with self._listings:
                fields, _ = await self._channel.ask(wire.BENEATH_LONG, asked, within=TREE_WITHIN)
        else:
            fields, _ = await self._channel.ask(wire.BENEATH, asked)
        try:
            check_beneath(operation, args, fields)
        except ValueError as error:
            raise self._channel.broken(str(error)) from None
        return fields

    async def open_beneath(
        self, how: OpenHow, root: str, identity: bytes, path: str, flags: int = 0, mode: int = 0
    ) -> tuple[File, Fields]:
        """Open a regular file below a root; see `_base.Agent.open_beneath`."""
        asked: Asked = [how.encode(), to_bytes(root), identity, to_bytes(path), flags, mode]
        wanted = os.O_RDONLY if how == "read" else os.O_WRONLY | flags
        file, fields = await self._open(wire.BENEATH_OPEN, asked, wanted)
        try:
            check_opened(how, fields)
        except ValueError as error:
            file.close()
            raise self._channel.broken(str(error)) from None
        return file, fields

    async def watch(
        self, path: str, *, root: str = "", identity: bytes = b"", recursive: bool = False, entries: bool = False
    ) -> int:
        """Begin to watch a directory; see `_base.Agent.watch`."""
        asked: Asked = [to_bytes(root), identity, to_bytes(path), int(recursive), int(entries)]
        fields, _ = await self._channel.ask(wire.WATCH, asked, undo=wire.WATCH_END)
        return self._channel.number(fields)

    async def watch_next(self, number: int, *, waits: bool) -> Events:
        """What has happened; see `_base.Agent.watch_next`."""
        within = None if waits else ANSWER_WITHIN
        fields, _ = await self._channel.ask(wire.WATCH_NEXT, [number, int(waits)], within=within)
        return self._events(fields)

    async def unwatch(self, number: int) -> None:
        """End a watcher; see `_base.Agent.unwatch`."""
        await self._channel.ask(wire.WATCH_END, [number])

    async def ping(self) -> None:
        """Return once the agent has answered."""
        await self._channel.ask(wire.PING, [])

    def hold(self) -> None:
        """Expect no answers until `release`: the box is being stopped. Idempotent."""
        self._channel.hold()

    def release(self) -> None:
        """Expect answers again. Idempotent."""
        self._channel.release()

    def close(self) -> None:
        """Let go of the socket; what still waits gets AgentLost. Idempotent; does not call `on_lost`."""
        self._channel.close()

    async def _open(self, kind: int, asked: Sequence[bytes | int], flags: int) -> tuple[File, Fields]:
        """Send a request whose answer is an open file, over frames its number behind the fields. Returns the fields,
        too."""
        if self._channel.passes_descriptors:
            fields, got = await self._channel.ask(kind, asked, takes=lambda fd: check_file(fd, flags), descriptors=1)
            return DescriptorFile(got[0]), fields
        fields, _ = await self._channel.ask(kind, asked, undo=wire.FILE_CLOSE)
        return RemoteFile(self._channel, self._channel.number(fields[-1:])), fields[:-1]

    async def _start(
        self,
        argv: Sequence[str],
        envs: Mapping[str, str],
        cwd: str,
        size: tuple[int, int],
        fds: Mapping[int, int],
        leads: bool,
    ) -> tuple[AgentProcess, Sequence[int]]:
        """Send SPAWN. Cancelled while it waits, the program is killed as soon as its pid is known."""
        if not argv:
            raise ValueError("argv is empty")
        if any("=" in name or not name for name in envs):
            raise AgentError(errno.EINVAL, "a variable's name is empty or has '=' in it")
        pairs = [to_bytes(f"{name}={value}") for name, value in envs.items()]
        words: list[bytes | int] = [len(argv), *map(to_bytes, argv), len(pairs), *pairs]
        fields: list[bytes | int] = [to_bytes(cwd), *size, int(leads), *words, *fds]
        terminal = size != (0, 0)
        told, got, status = await self._channel.start(
            fields,
            fds=tuple(fds.values()),
            takes=check_terminal if terminal else None,
            descriptors=int(terminal),
        )
        return AgentProcess(self._channel.number(told), status), got

    def _events(self, fields: Sequence[bytes]) -> Events:
        """Parse events; breaks the link where they do not parse."""
        events: Events = []
        at = 0
        try:
            while at < len(fields):
                kind, name, count = wire.number(fields[at]), to_text(fields[at + 1]), wire.number(fields[at + 2])
                at += 3
                if count not in (0, 10) or not 0 <= kind < len(EVENT_KINDS):
                    raise ValueError("an event of the wrong shape")
                entries = self._entries(fields[at : at + count])
                at += count
                events.append(WatchEvent(EVENT_KINDS[kind], name, entries[0] if entries else None))
        except (ValueError, IndexError) as error:
            raise self._channel.broken(f"events that do not parse: {error}") from None
        return events

    def _entries(self, fields: Sequence[bytes]) -> Entries:
        """Parse entries; breaks the link where they do not parse."""
        try:
            return entries_of(fields)
        except ValueError as error:
            raise self._channel.broken(f"entries that do not parse: {error}") from None


def entries_of(fields: Sequence[bytes]) -> Entries:
    """Parse entries. ValueError where they do not parse."""
    entries = []
    at = 0
    while at < len(fields):
        name, path, mode, size, uid, gid, mtime, target, target_mode, count = fields[at : at + 10]
        at += 10
        pairs = fields[at : at + 2 * wire.number(count)]
        if wire.number(count) < 0 or len(pairs) != 2 * wire.number(count):
            raise ValueError("attributes are cut off")
        at += len(pairs)
        entries.append(
            Entry(
                name=to_text(name),
                path=to_text(path),
                mode=_within(mode, MOST_MODE),
                size=_within(size, MOST_SIZE),
                uid=wire.number(uid),
                gid=wire.number(gid),
                mtime_ns=wire.number(mtime),
                link_target=to_text(target) if target else None,
                target_mode=_within(target_mode, MOST_MODE) if target_mode else None,
                xattrs={to_text(k): to_text(v) for k, v in zip(pairs[::2], pairs[1::2], strict=True)},
            )
        )
    if len(entries) > wire.MAX_ENTRIES:
        raise ValueError("too many entries")
    return entries


def _within(field: bytes, most: int) -> int:
    value = wire.number(field)
    if not 0 <= value <= most:
        raise ValueError("a mode or a size that no file has")
    return value
