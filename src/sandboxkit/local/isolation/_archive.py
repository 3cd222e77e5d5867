"""A box's files as one inert file: written from a tree that nobody trusts, unpacked into a new one; bounded, checked.

One file and no tree, because a tree on the host's disk would have the box's own links, modes and names in it, for
whoever walks there next. Of a tree are kept: directories, regular files with their holes and hard links, symbolic links
as links, modes, times, and `user.*` attributes. Sockets, pipes and devices are passed over and counted.

The file
--------
MAGIC, records, and the SHA-256 of all that lies before it. A record is a kind (one byte), a count (u16), and so many
byte strings, each behind its length (u32); numbers are written in decimal. Paths begin with the name of their tree.

    d    path, mode, mtime in ns, n, n pairs of attribute name and value     a directory, before what is in it
    f    the same, and size; then segments                                   a regular file
    h    path, path of a file before it                                      a hard link
    l    path, target, mtime in ns                                           a symbolic link
    e    records, what was passed over                                       the end

A segment is an offset (u64), a length (u64) and so many bytes; one of length 0 ends them. What lies in none is a hole.

Reading a tree follows no link: each directory is opened from the top, one name at a time, and each file's type is
looked at again when it is open. Nothing is ever run, and nothing is opened that opening could change.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

MAGIC = b"sandboxkit files 1\n"
DEEPEST = 256
"""Directories below each other; a tree that is deeper is refused."""
CHUNK = 1 << 20
LONGEST_FIELD = 1 << 20
MOST_ATTRIBUTES = 256
MOST_FIELDS = 5 + 2 * MOST_ATTRIBUTES
LONGEST_RECORD = 20 << 20
"""Bytes of all its fields. As many attributes as there may be have 17 MiB, with names and values as long as can be."""
DIGEST = hashlib.sha256().digest_size

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ArchiveError(Exception):
    """Files could not be kept, or what was kept cannot be used; the message says why."""


class TooLarge(ArchiveError):
    """There is more than may be kept."""


class Unkeepable(ArchiveError):
    """What isolates here keeps the files to itself; the message has its name."""


class Stopped(ArchiveError):
    """Somebody wants it no more."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written: bytes in all, entries, and entries that were passed over."""

    size: int
    entries: int
    passed_over: int


Asked = Callable[[], bool]
"""Whether to stop."""


# -- writing ------------------------------------------------------------------------------------------------------


def pack(trees: Mapping[str, int], descriptor: int, *, most: int, stop: Asked) -> Packed:
    """Write trees to an open, empty file. Blocks.

    Args:
        trees: open directories by name; they stay the caller's.
        most: bytes that may be written.

    Raises:
        TooLarge, Stopped, ArchiveError: see the message; what was written is of no use.
        OSError: the disk is full, or a file cannot be read.
    """
    with open(descriptor, "wb", buffering=CHUNK, closefd=False) as file:
        packing = _Packing(_Sink(file, most), stop)
        for name, top in trees.items():
            packing.tree(os.fsencode(name), top)
        return packing.end()


class _Sink:
    """Counts, sums up and bounds what is written."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most
        self._sum = hashlib.sha256()
        self.size = 0
        self.write(MAGIC)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge(f"there is more than {self._most >> 20} MiB to keep")
        self._sum.update(data)
        self._file.write(data)

    def record(self, kind: bytes, fields: Sequence[bytes | int]) -> None:
        parts = [kind, struct.pack("!H", len(fields))]
        for field in fields:
            data = b"%d" % field if isinstance(field, int) else field
            parts += [struct.pack("!I", len(data)), data]
        self.write(b"".join(parts))

    def finish(self) -> None:
        self.write(self._sum.digest())
        self._file.flush()


class _Packing:
    """One run of `pack`."""

    def __init__(self, sink: _Sink, stop: Asked) -> None:
        self._sink = sink
        self._stop = stop
        self._links: dict[tuple[int, int], bytes] = {}
        self._entries = 0
        self._passed_over = 0

    def tree(self, name: bytes, top: int) -> None:
        device = os.fstat(top).st_dev
        waiting: list[tuple[bytes, ...]] = [()]
        while waiting:
            below = waiting.pop()
            if len(below) > DEEPEST:
                raise ArchiveError(f"directories lie more than {DEEPEST} deep")
            directory = open_below(top, below)
            try:
                info = os.fstat(directory)
                if info.st_dev != device:
                    self._passed_over += 1
                    continue
                path = b"/".join((name, *below))
                self._sink.record(b"d", [path, *_facts(directory, info)])
                self._entries += 1
                for entry in sorted(map(os.fsencode, os.listdir(directory))):
                    if self._stop():
                        raise Stopped("it is wanted no more")
                    if self._entry(directory, entry, path):
                        waiting.append((*below, entry))
            finally:
                os.close(directory)

    def _entry(self, directory: int, name: bytes, above: bytes) -> bool:
        """Write one entry; True for a directory, which is written when its turn comes."""
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISDIR(info.st_mode):
            return True
        path = above + b"/" + name
        if stat.S_ISLNK(info.st_mode):
            self._sink.record(b"l", [path, os.readlink(name, dir_fd=directory), info.st_mtime_ns])
        elif stat.S_ISREG(info.st_mode):
            self._file(directory, name, path)
        else:
            self._passed_over += 1
            return False
        self._entries += 1
        return False

    def _file(self, directory: int, name: bytes, path: bytes) -> None:
        file = os.open(name, _FILE, dir_fd=directory)
        try:
            info = os.fstat(file)
            if not stat.S_ISREG(info.st_mode):
                raise ArchiveError("a file was exchanged while it was read")
            if info.st_nlink > 1:
                first = self._links.setdefault((info.st_dev, info.st_ino), path)
                if first != path:
                    self._sink.record(b"h", [path, first])
                    return
            self._sink.record(b"f", [path, *_facts(file, info), info.st_size])
            for offset, length in _segments(file, info.st_size):
                self._segment(file, offset, length)
            self._sink.write(struct.pack("!QQ", info.st_size, 0))
        finally:
            os.close(file)

    def _segment(self, file: int, offset: int, length: int) -> None:
        self._sink.write(struct.pack("!QQ", offset, length))
        while length:
            if self._stop():
                raise Stopped("it is wanted no more")
            data = os.pread(file, min(CHUNK, length), offset)
            if not data:
                raise ArchiveError("a file became shorter while it was read")
            self._sink.write(data)
            offset += len(data)
            length -= len(data)

    def end(self) -> Packed:
        self._sink.record(b"e", [self._entries, self._passed_over])
        self._sink.finish()
        return Packed(self._sink.size, self._entries, self._passed_over)


def open_below(top: int, names: Sequence[bytes]) -> int:
    """Open a directory below an open one, by one name at a time and through no link. OSError where there is none."""
    at = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
    for name in names:
        try:
            below = os.open(name, _DIRECTORY, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at


def _facts(descriptor: int, info: os.stat_result) -> list[bytes | int]:
    attributes: list[tuple[bytes, bytes]] = []
    with suppress(OSError):
        for name in os.listxattr(descriptor):
            if name.startswith("user.") and len(attributes) < MOST_ATTRIBUTES:
                attributes.append((os.fsencode(name), os.getxattr(descriptor, name)))
    pairs = [part for pair in attributes for part in pair]
    return [stat.S_IMODE(info.st_mode), info.st_mtime_ns, len(attributes), *pairs]


def _segments(file: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file has data: (offset, length)."""
    at = 0
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: a hole to the end
        end = min(os.lseek(file, at, os.SEEK_HOLE), size)
        if end <= at:
            return
        yield at, end - at
        at = end


# -- reading ------------------------------------------------------------------------------------------------------


def unpack(descriptor: int, trees: Mapping[str, int], *, stop: Asked) -> None:
    """Make what `pack` has written again, in open, empty directories of these names. Blocks. The file is read from its
    beginning by a handle of its own, so that several may read it at once.

    Raises:
        ArchiveError: it is not whole, or names what cannot be; what was made is of no use.
        Stopped, OSError: as for `pack`.
    """
    with open(f"/proc/self/fd/{descriptor}", "rb", buffering=CHUNK) as file:
        unpacking = _Unpacking(_Source(file), {os.fsencode(name): top for name, top in trees.items()}, stop)
        try:
            unpacking.run()
        except (ValueError, IndexError, struct.error, OverflowError) as error:
            raise ArchiveError(f"what was kept is damaged: {error}") from error
        finally:
            unpacking.close()


class _Source:
    """Reads exactly, and sums up what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        if self.read(len(MAGIC)) != MAGIC:
            raise ArchiveError("what was kept is of another form")

    def read(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise ArchiveError("what was kept is cut off")
        self._sum.update(data)
        return data

    def record(self) -> tuple[bytes, list[bytes]]:
        kind = self.read(1)
        (count,) = struct.unpack("!H", self.read(2))
        if count > MOST_FIELDS:
            raise ArchiveError("what was kept is damaged: a record with too many fields")
        fields = []
        left = LONGEST_RECORD
        for _ in range(count):
            (length,) = struct.unpack("!I", self.read(4))
            left -= length
            if length > LONGEST_FIELD or left < 0:
                raise ArchiveError("what was kept is damaged: a record that is too long")
            fields.append(self.read(length))
        return kind, fields

    def is_whole(self) -> bool:
        digest = self._sum.digest()
        return self._file.read(DIGEST + 1) == digest


class _Unpacking:
    """One run of `unpack`."""

    def __init__(self, source: _Source, tops: Mapping[bytes, int], stop: Asked) -> None:
        self._source = source
        self._tops = tops
        self._stop = stop
        self._parent: tuple[tuple[bytes, ...], int] | None = None
        self._directories: list[tuple[tuple[bytes, ...], int, int]] = []

    def close(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    def run(self) -> None:
        while True:
            if self._stop():
                raise Stopped("it is wanted no more")
            kind, fields = self._source.record()
            if kind == b"e":
                break
            if kind == b"d":
                self._directory(fields)
            elif kind == b"f":
                self._file(fields)
            elif kind == b"h":
                self._link(fields)
            elif kind == b"l":
                path = _names(fields[0])
                os.symlink(fields[1], path[-1], dir_fd=self._in(path[:-1]))
                _set_times(path[-1], int(fields[2]), dir_fd=self._in(path[:-1]))
            else:
                raise ArchiveError("what was kept is damaged: a record of no kind")
        if not self._source.is_whole():
            raise ArchiveError("what was kept is damaged: its sum is not its content's")
        # Last, and the deepest first: a mode may close a directory, and what is made in one changes its time.
        for path, mode, mtime in reversed(self._directories):
            descriptor = self._in(path)
            os.fchmod(descriptor, mode)
            _set_times(descriptor, mtime)

    def _directory(self, fields: list[bytes]) -> None:
        path = _names(fields[0])
        if len(path) > 1:
            os.mkdir(path[-1], 0o700, dir_fd=self._in(path[:-1]))
        _set_attributes(self._in(path), fields, 3)
        self._directories.append((path, int(fields[1]) & 0o7777, int(fields[2])))

    def _file(self, fields: list[bytes]) -> None:
        path = _names(fields[0])
        file = os.open(path[-1], _NEW, 0o600, dir_fd=self._in(path[:-1]))
        try:
            size = int(fields[-1])
            os.ftruncate(file, size)
            while True:
                offset, length = struct.unpack("!QQ", self._source.read(16))
                if not length:
                    break
                if offset + length > size:
                    raise ArchiveError("what was kept is damaged: a segment past its file's end")
                while length:
                    if self._stop():
                        raise Stopped("it is wanted no more")
                    data = self._source.read(min(CHUNK, length))
                    _write_all(file, data, offset)
                    offset += len(data)
                    length -= len(data)
            _set_attributes(file, fields, 3)
            os.fchmod(file, int(fields[1]) & 0o7777)
            _set_times(file, int(fields[2]))
        finally:
            os.close(file)

    def _link(self, fields: list[bytes]) -> None:
        path, first = _names(fields[0]), _names(fields[1])
        source = open_below(self._top(first[0]), first[1:-1])
        try:
            os.link(first[-1], path[-1], src_dir_fd=source, dst_dir_fd=self._in(path[:-1]), follow_symlinks=False)
        finally:
            os.close(source)

    def _in(self, path: tuple[bytes, ...]) -> int:
        """The directory of this path, open until another is asked for."""
        if self._parent is None or self._parent[0] != path:
            self.close()
            self._parent = path, open_below(self._top(path[0]), path[1:])
        return self._parent[1]

    def _top(self, name: bytes) -> int:
        if name not in self._tops:
            raise ArchiveError("what was kept is damaged: a tree of no name that is known")
        return self._tops[name]


def _names(path: bytes) -> tuple[bytes, ...]:
    names = tuple(path.split(b"/"))
    if len(names) > DEEPEST + 2 or any(name in (b"", b".", b"..") or b"\0" in name for name in names):
        raise ArchiveError("what was kept is damaged: a path that is none")
    return names


def _set_attributes(descriptor: int, fields: list[bytes], at: int) -> None:
    count = int(fields[at])
    if not 0 <= count <= MOST_ATTRIBUTES:
        raise ArchiveError("what was kept is damaged: attributes without end")
    pairs = fields[at + 1 : at + 1 + 2 * count]
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not name.startswith(b"user."):
            raise ArchiveError("what was kept is damaged: an attribute that is not a user's")
        os.setxattr(descriptor, name, value)


def _set_times(what: bytes | int, mtime: int, *, dir_fd: int | None = None) -> None:
    if dir_fd is None:
        os.utime(what, ns=(mtime, mtime))
    else:
        os.utime(what, ns=(mtime, mtime), dir_fd=dir_fd, follow_symlinks=False)


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(file, view, offset)
        offset += done
        view = view[done:]
