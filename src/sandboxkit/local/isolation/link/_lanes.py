"""One lane, the engine's end: a descriptor here, and frames to and from what stands for it inside.

    into the box:   the descriptor is read while there are grants for it; its end becomes END
    out of the box: what comes is written to the descriptor, as it takes it; grants follow what it took, END closes it

A program's pipes and sockets keep their order: what came through its sockets, and that it has ended, is passed on
only after what it had printed until then (`Barrier`). The interpreter relies on it, as it may where they are the
kernel's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterable

from sandboxkit.local.agent import _frames as wire

GRANT_AT = wire.WINDOW // 4
"""Bytes that are taken before the other end hears of it."""
MAX_PIECES = 4096
"""Pieces that wait, each behind other output. Frames of an interpreter are longer than a window's part of this many."""


class Lane:
    """One lane. Owns the descriptor."""

    def __init__(self, number: int, fd: int, ways: int, *, send: Callable[[bytes], None]) -> None:
        self.number = number
        self.ways = ways
        self.taken = 0
        """Bytes that the descriptor has taken."""
        self.came = 0
        """Bytes that have come from inside."""
        self.siblings: tuple[Lane, ...] = ()
        """The lanes of the same program, this one included."""
        self.on_progress: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._send = send
        self._is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        self._is_open = False
        self._is_held = False
        self._credit = wire.WINDOW
        self._owed = 0
        self._waiting: deque[tuple[bytearray | None, Barrier]] = deque()
        """Pieces for the descriptor, in their order; None is the end."""
        self._into_ended = not ways & wire.INTO
        self._out_ended = not ways & wire.OUT_OF
        """The other side has said END."""
        self._takes = bool(ways & wire.OUT_OF)
        """The descriptor still takes what comes."""
        self._reads = self._writes = False

    @property
    def is_over(self) -> bool:
        """Whether nothing will come or go any more; the descriptor is closed then."""
        return self._fd < 0

    def open(self) -> None:
        """The other end is there: begin."""
        self._is_open = True
        self._watch()

    def hold(self, is_held: bool) -> None:
        """Read no more of the descriptor, or go on: the stream is full, or is not any more."""
        self._is_held = is_held
        self._watch()

    # -- into the box --------------------------------------------------------------------------------------------

    def granted(self, amount: int) -> None:
        """So many bytes more may be sent. ValueError where that is more than there can be."""
        self._credit += amount
        if self._credit > wire.WINDOW:
            raise ValueError("grants for more than was sent")
        self._watch()

    def stopped(self) -> None:
        """Nobody inside reads any more: let the writer here see a broken pipe."""
        self._end_into()

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, min(self._credit, wire.MAX_DATA))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._takes and self._is_socket and _is_hung_up(self._fd):
                self._refuse()
            self._end_into()
            return
        self._credit -= len(data)
        self._send(wire.frame(wire.DATA, self.number, data))
        self._watch()

    def _end_into(self) -> None:
        if self._into_ended:
            return
        self._into_ended = True
        self._send(wire.frame(wire.END, self.number))
        if self._is_socket and self._fd >= 0:
            _shut(self._fd, socket.SHUT_RD)
        self._settle()

    # -- out of the box ------------------------------------------------------------------------------------------

    def receive(self, data: bytes, barrier: Barrier) -> None:
        """Take what came. ValueError where it was not granted, or follows the end."""
        if self._out_ended or not self._is_open:
            raise ValueError("bytes on a lane that is closed")
        self.came += len(data)
        if self.came - self.taken + self._owed > wire.WINDOW:
            raise ValueError("more bytes than were granted")
        if self._takes:
            last, before = self._waiting[-1] if self._waiting else (None, barrier)
            if last is not None and before.is_same(barrier):
                last += data
            elif len(self._waiting) < MAX_PIECES:
                self._waiting.append((bytearray(data), barrier))
            else:
                raise ValueError("bytes that are cut too small")
            self.flush()
        else:
            self._took(len(data))

    def ended(self, barrier: Barrier) -> None:
        """Nothing more will come. ValueError where that was said before."""
        if self._out_ended or not self._is_open:
            raise ValueError("the end of a lane that is closed")
        self._out_ended = True
        if self._takes:
            self._waiting.append((None, barrier))
        self.flush()

    def flush(self) -> None:
        """Pass on what may be passed on."""
        while self._waiting and self._takes:
            piece, barrier = self._waiting[0]
            if not barrier.is_reached():
                break
            if piece is None:
                self._waiting.popleft()
                self._finish()
                break
            try:
                count = os.write(self._fd, piece)
            except BlockingIOError:
                break
            except OSError:
                self._refuse()
                break
            if count == len(piece):
                self._waiting.popleft()
            else:
                del piece[:count]
            self._took(count)
        self._settle()

    def _took(self, count: int) -> None:
        self.taken += count
        self._owed += count
        if self._owed >= GRANT_AT and not self._out_ended:
            self._send(wire.grant(self.number, self._owed))
            self._owed = 0
        self.on_progress()

    def _finish(self) -> None:
        """The descriptor has all: whoever reads it sees the end."""
        self._takes = False
        if self._is_socket and self._fd >= 0:
            _shut(self._fd, socket.SHUT_WR)

    def _refuse(self) -> None:
        """Nobody reads the descriptor any more: say so, and drop what comes until that is known inside."""
        self._takes = False
        dropped = sum(len(piece) for piece, _ in self._waiting if piece is not None)
        self._waiting.clear()
        if not self._out_ended:
            self._send(wire.frame(wire.STOP, self.number))
        self._took(dropped)

    # -- both ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Close the descriptor once it has served, and watch for what is still awaited."""
        if self._fd >= 0 and self._into_ended and self._out_ended and not self._takes:
            self.close()
        else:
            self._watch()

    def _watch(self) -> None:
        if self._fd < 0:
            return
        reads = self._is_open and not self._is_held and not self._into_ended and self._credit > 0
        if reads != self._reads:
            self._reads = reads
            if reads:
                self._loop.add_reader(self._fd, self._readable)
            else:
                self._loop.remove_reader(self._fd)
        writes = bool(self._waiting) and self._takes and self._waiting[0][1].is_reached()
        if writes != self._writes:
            self._writes = writes
            if writes:
                self._loop.add_writer(self._fd, self.flush)
            else:
                self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Close the descriptor, whatever is under way. Idempotent."""
        if self._fd < 0:
            return
        if self._reads:
            self._loop.remove_reader(self._fd)
        if self._writes:
            self._loop.remove_writer(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._takes = False
        self._waiting.clear()
        self.on_progress()


class Barrier:
    """How far some lanes must have come before what follows may be passed on."""

    def __init__(self, lanes: Iterable[Lane] = ()) -> None:
        self._marks = [(lane, lane.came) for lane in lanes if lane.taken < lane.came]

    def is_reached(self) -> bool:
        """Whether all that had come then has been taken, or never will be."""
        while self._marks and (self._marks[-1][0].is_over or self._marks[-1][0].taken >= self._marks[-1][1]):
            self._marks.pop()
        return not self._marks

    def is_same(self, other: Barrier) -> bool:
        """Whether both are reached at the same moment."""
        return self._marks == other._marks


def _shut(fd: int, how: int) -> None:
    """shutdown(2) of a descriptor that stays ours."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as borrowed:
        borrowed.shutdown(how)


def _is_hung_up(fd: int) -> bool:
    """Whether the other end of a socket pair is closed, and not only half."""
    look = select.poll()
    look.register(fd, 0)
    return any(events & select.POLLHUP for _, events in look.poll(0))
