"""The transport for boxes that cannot pass descriptors: packets and lanes in frames, over one stream socket.

The frames and their rules are told in `agent/_frames.py`. What a caller passes (pipes, sockets) is read and written
here on its behalf; what comes out of the box (a connection, a terminal) is for the caller one end of a socket pair. So
a connection that is reset inside ends here as one that was closed, and a terminal has no size of its own here.

What the box sends is bounded by the grants of each lane, and the lanes by their number; what it does not read, by
MAX_UNREAD. A box that breaks the rules is lost.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import stat
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sandboxkit.local.agent import _codec, _frames
from sandboxkit.local.isolation.link._lanes import Barrier, Lane
from sandboxkit.local.isolation.link._port import OnPacket, close_all

MAX_LANES = 1024
"""Lanes of one box at once."""
FULL = 512 * 1024
"""Bytes that wait to be sent, from which on no lane adds any."""
MAX_UNREAD = 16 * 1024 * 1024
PIECE = 256 * 1024
MAX_HELD = 4096
"""Ends of programs that wait for output which came before them."""
LONGEST_END = 256
"""Bytes of such a packet."""


@dataclass(slots=True)
class _Expected:
    """What an answer will open: lanes of the descriptors that were passed, and of those that it yields."""

    passed: list[Lane]
    yields: list[int]


class FramedPort:
    """One end of the stream; see `_port.Port`. Owns the socket."""

    passes_descriptors = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.unsent_bytes = 0
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[memoryview] = deque()
        self._parser = _frames.Parser()
        self._lanes: dict[int, Lane] = {}
        self._next = 1
        self._expected: dict[int, _Expected] = {}
        self._programs: dict[int, tuple[Lane, ...]] = {}
        """Lanes of a program by the request that started it, until it has ended and so have they."""
        self._held: list[tuple[bytes, Barrier]] = []
        self._ending: set[int] = set()
        """The requests whose end is held: each program has one."""
        self._deaf: dict[int, int] = {}
        """Lanes that are open inside and could not be here, for want of descriptors: bytes that came."""
        self._is_full = False
        self._closed = False
        self._on_packet: OnPacket
        self._on_gone: Callable[[str], None]

    def start(self, on_packet: OnPacket, on_gone: Callable[[str], None]) -> None:
        """Begin to read; see `Port.start`."""
        self._on_packet, self._on_gone = on_packet, on_gone
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for lane in [*self._lanes.values()]:
            lane.close()
        self._lanes.clear()
        self._expected.clear()
        self._programs.clear()
        self._unsent.clear()
        self._held.clear()

    # -- out -----------------------------------------------------------------------------------------------------

    def send(self, cut: Sequence[bytes], fds: Sequence[int], *, yields: int) -> None:
        """Send a message; see `Port.send`. OSError EAGAIN where the box has all its lanes."""
        lanes: list[Lane] = []
        try:
            if len(self._lanes) + len(fds) + yields > MAX_LANES:
                raise OSError(errno.EAGAIN, "too many streams to this sandbox are open")
            ways = [_ways(fd) for fd in fds]
        except OSError:
            close_all(fds)
            raise
        for fd, way in zip(fds, ways, strict=True):
            os.set_blocking(fd, False)
            lanes.append(self._new_lane(fd, way))
        numbers = [self._take_number() for _ in range(yields)]
        if lanes or numbers:
            request = _codec.HEADER.unpack_from(cut[0])[0]
            self._expected[request] = _Expected(lanes, numbers)
        for packet in cut[:-1]:
            self._put(_frames.opening((), packet))
        opened = [(lane.number, lane.ways) for lane in lanes] + [(number, _frames.BOTH) for number in numbers]
        self._put(_frames.opening(opened, cut[-1]))

    def _take_number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number

    def _new_lane(self, fd: int, ways: int, number: int = 0) -> Lane:
        lane = Lane(number or self._take_number(), fd, ways, send=self._put)
        self._lanes[lane.number] = lane
        lane.on_progress = lambda: self._progress(lane)
        return lane

    def _put(self, data: bytes) -> None:
        if self._closed:
            return
        self._unsent.append(memoryview(data))
        self.unsent_bytes += len(data)
        if self.unsent_bytes > MAX_UNREAD:
            self._gone("the agent does not read")
            return
        if len(self._unsent) == 1:
            self._flush()
        if self.unsent_bytes > FULL and not self._is_full:
            self._set_full(True)

    def _flush(self) -> None:
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                self._gone(f"the agent is gone ({error.strerror})")
                return
            self.unsent_bytes -= sent
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][sent:]
        self._loop.remove_writer(self._sock.fileno())
        if self._is_full:
            self._set_full(False)

    def _set_full(self, is_full: bool) -> None:
        self._is_full = is_full
        for lane in [*self._lanes.values()]:
            lane.hold(is_full)

    # -- in ------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = self._sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            self._gone(f"the agent is gone ({error.strerror})")
            return
        if not data:
            self._gone("the agent is gone")
            return
        try:
            for kind, number, payload in self._parser.feed(data):
                if self._closed:
                    return
                self._frame(kind, number, payload)
        except ValueError as error:
            self._gone(f"the agent talked nonsense: {error}")

    def _frame(self, kind: int, number: int, payload: bytes) -> None:
        if kind == _frames.PACKET:
            self._packet(payload)
            return
        lane = self._lanes.get(number)
        if lane is None:
            self._drop(kind, number, payload)
        elif kind == _frames.DATA:
            lane.receive(payload, _behind(lane))
        elif kind == _frames.END:
            lane.ended(_behind(lane))
        elif kind == _frames.GRANT:
            lane.granted(_frames.amount(payload))
        else:
            lane.stopped()

    def _packet(self, packet: bytes) -> None:
        """Pass a packet on; the end of a program only after what it had printed."""
        request, kind, flags = _codec.HEADER.unpack_from(packet)
        if kind == _codec.EXIT:
            barrier = Barrier(_pipes(self._programs.get(request, ())))
            if not barrier.is_reached():
                if len(packet) > LONGEST_END or request in self._ending or len(self._ending) >= MAX_HELD:
                    raise ValueError("an end of a program that cannot be")
                self._ending.add(request)
                self._held.append((packet, barrier))
                return
        if flags or kind not in (_codec.OK, _codec.FAIL):
            self._on_packet(packet, [], False)
            return
        expected = self._expected.pop(request, None)
        if expected is None:
            self._on_packet(packet, [], False)
        elif kind == _codec.FAIL:
            for lane in expected.passed:
                lane.close()
            self._on_packet(packet, [], False)
        else:
            self._open(request, expected, packet)

    def _open(self, request: int, expected: _Expected, packet: bytes) -> None:
        near: list[int] = []
        is_short = False
        if expected.passed:
            self._programs[request] = tuple(expected.passed)
        for lane in expected.passed:
            lane.siblings = tuple(expected.passed)
            lane.open()
        for number in expected.yields:
            try:
                ours, theirs = socket.socketpair()
            except OSError:
                is_short = True
                self._put(_frames.frame(_frames.STOP, number) + _frames.frame(_frames.END, number))
                self._deaf[number] = 0
                continue
            theirs.setblocking(False)
            ours.setblocking(False)
            near.append(ours.detach())
            self._new_lane(theirs.detach(), _frames.BOTH, number).open()
        try:
            self._on_packet(packet, near, is_short)
        except ValueError:
            close_all(near)
            raise

    def _drop(self, kind: int, number: int, payload: bytes) -> None:
        """A frame of a lane that has no descriptor here, or none any more."""
        if number in self._deaf and kind in (_frames.DATA, _frames.END):
            self._deaf[number] += len(payload)
            if self._deaf[number] > _frames.WINDOW:
                raise ValueError("more bytes than were granted")
            if kind == _frames.END:
                del self._deaf[number]
        elif kind in (_frames.DATA, _frames.END) or number >= self._next:
            raise ValueError("a frame of a lane that is not open")
        # Else a grant, or that nobody reads: it was under way when the lane ended.

    def _progress(self, lane: Lane) -> None:
        """A lane has taken something, or is over: what waited for it may go on."""
        if self._closed:
            return
        if lane.is_over and self._lanes.get(lane.number) is lane:
            del self._lanes[lane.number]
        if lane.ways == _frames.OUT_OF:
            for each in lane.siblings:
                if each.ways == _frames.BOTH:
                    each.flush()
        if lane.is_over and all(each.is_over for each in lane.siblings):
            self._programs = {key: lanes for key, lanes in self._programs.items() if lane not in lanes}
        if self._held:
            self._let_go()

    def _let_go(self) -> None:
        """Tell of the ends of programs whose output has been taken."""
        free = [packet for packet, barrier in self._held if barrier.is_reached()]
        self._held = [(packet, barrier) for packet, barrier in self._held if not barrier.is_reached()]
        for packet in free:
            self._ending.discard(_codec.HEADER.unpack_from(packet)[0])
            try:
                self._on_packet(packet, [], False)
            except ValueError as error:
                self._gone(f"the agent talked nonsense: {error}")
                return

    def _gone(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_gone(reason)


def _behind(lane: Lane) -> Barrier:
    """What a program's socket must wait for: what came from its pipes before."""
    return Barrier(_pipes(lane.siblings) if lane.ways == _frames.BOTH else ())


def _pipes(lanes: Iterable[Lane]) -> list[Lane]:
    return [lane for lane in lanes if lane.ways == _frames.OUT_OF]


def _ways(fd: int) -> int:
    """Which ways bytes go through a descriptor that is to be a program's. OSError EOPNOTSUPP where it cannot be waited
    for: a regular file, a directory, a handle."""
    mode = os.fstat(fd).st_mode
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_PATH or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd)):
        raise OSError(errno.EOPNOTSUPP, "only pipes, sockets and terminals can be passed into this sandbox")
    access = flags & os.O_ACCMODE
    return {os.O_RDONLY: _frames.INTO, os.O_WRONLY: _frames.OUT_OF}.get(access, _frames.BOTH)
