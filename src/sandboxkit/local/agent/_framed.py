"""The agent where no descriptor can be passed: the same loop, with its packets and lanes in frames over one stream.

The rules are told in `_frames`. A program's descriptors are pipes and socket pairs made here; this end of each is a
lane. What a program printed goes out before what came later through its sockets, and before its end: the engine's
callers rely on an order that pipes and sockets of one kernel have by themselves.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import stat
import struct
import termios

from . import _files, _frames
from ._codec import EXIT, HEADER, SPAWN, pack, packets
from ._handles import raise_limit
from ._loop import Agent
from ._programs import heed_signals

PIECE = 262_144
GRANT_AT = _frames.WINDOW // 4


class Lane:
    """One lane, from inside. Owns the descriptor."""

    def __init__(self, number: int, fd: int, ways: int) -> None:
        self.number = number
        self.fd = fd
        self.ways = ways
        self.is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        self.credit = _frames.WINDOW
        self.sent = 0
        """Bytes that were read here and sent."""
        self.owed = 0
        self.waiting = bytearray()
        self.is_last = not ways & _frames.INTO
        """Nothing more will come from the engine."""
        self.takes = bool(ways & _frames.INTO)
        self.gives = bool(ways & _frames.OUT_OF)
        self.pipes: list[Lane] = []
        """Of a program's socket: the pipes that go before it."""
        self.behind: list[tuple[Lane, int]] = []
        """How far those must have come before this one may be read."""
        self.is_next = False
        """It has waited for them, and is not to wait for what they print meanwhile."""
        self.promised = 0
        """Bytes of it that were there when it was looked how far they are."""
        self.is_hung_up = False
        """A terminal whose first program has ended."""
        self.events: int | None = None
        """What is waited for; None when the descriptor is not watched."""

    def available(self) -> int:
        """Bytes that can be read now."""
        told = bytearray(4)
        try:
            fcntl.ioctl(self.fd, termios.FIONREAD, told)
        except OSError:
            return 0
        return int(struct.unpack("i", told)[0])


def reached(marks: list[tuple[Lane, int]]) -> bool:
    """Whether lanes have sent all that they had to; what is reached is taken from the list."""
    while marks and (not marks[-1][0].gives or marks[-1][0].sent >= marks[-1][1]):
        marks.pop()
    return not marks


class FramedAgent(Agent):
    """The loop over a stream."""

    def __init__(self, sock: _socket.socket) -> None:
        super().__init__(sock)
        self.parser = _frames.Parser()
        self.lanes: dict[int, Lane] = {}
        self.by_fd: dict[int, Lane] = {}
        self.opened: list[tuple[int, int]] = []
        """Lanes that the request at hand opens."""
        self.awaited: dict[int, int] = {}
        """request that waits for a connection -> the lane that this gets"""
        self.programs: dict[int, list[Lane]] = {}
        """request -> the pipes that its program prints to"""
        self.terminals: dict[int, Lane] = {}
        """pid -> the terminal of its own that it was started on"""
        self.ends: list[tuple[int, _files.Fields, list[tuple[Lane, int]]]] = []

    # packets

    def send(self, request: int, kind: int, fields: _files.Fields, fds: tuple[int, ...] = ()) -> None:
        """Send one message. A descriptor with it becomes a lane, or, where it is a file, a number at the end of the
        fields; the caller closes its own."""
        if fds and stat.S_ISREG(os.fstat(fds[0]).st_mode):
            fields, fds = [*fields, self.files.keep(fds[0])], ()
        if kind == EXIT:
            marks = [(pipe, pipe.sent + pipe.available()) for pipe in self.programs.pop(request, ()) if pipe.gives]
            for pipe, _ in marks:
                self.readable(pipe)
            if not reached(marks):
                self.ends.append((request, fields, marks))
                return
        for packet in packets(request, kind, pack(fields)):
            self.write(_frames.frame(_frames.PACKET, 0, packet))
        number = self.awaited.pop(request, 0)
        for fd in fds:
            kept = os.dup(fd)
            os.set_blocking(kept, False)
            lane = Lane(number, kept, _frames.BOTH)
            if not lane.is_socket and isinstance(fields[0], int):
                self.terminals[fields[0]] = lane
                self.programs[request] = [lane]
            self.add(lane)

    def write(self, data: bytes) -> None:
        """Send bytes. Blocks while the engine does not read: nothing here could go on without it."""
        self.sock.sendall(data)

    def receive(self) -> bool:
        """Read what is there. False at the end."""
        try:
            data = self.sock.recv(PIECE)
        except ConnectionResetError:  # it left without reading all of ours
            return False
        if not data:
            return False
        for kind, number, payload in self.parser.feed(data):
            if kind == _frames.PACKET:
                self.opened, packet = _frames.opened_by(payload)
                self.packet(packet, [])
                continue
            lane = self.lanes.get(number)
            if lane is None:
                continue  # it ended while this was under way
            if kind == _frames.DATA and lane.takes:
                lane.waiting += payload
                self.writable(lane)
            elif kind == _frames.DATA:
                self.took(lane, len(payload))
            elif kind == _frames.END:
                lane.is_last = True
                self.writable(lane)
            elif kind == _frames.GRANT:
                lane.credit += _frames.amount(payload)
                self.finish(lane)
                self.watch(lane)
            else:
                self.stop_giving(lane)
        return True

    def handle(self, request: int, kind: int, args: list[bytes], fds: list[int]) -> None:
        """Carry out one request; a lane without a descriptor of a program's is for what the answer yields."""
        if self.opened and kind != SPAWN:
            self.awaited[request] = self.opened[0][0]
        super().handle(request, kind, args, fds)

    def refuse(self, request: int, error: OSError, path: bytes = b"") -> None:
        """Tell that an operation failed."""
        self.awaited.pop(request, None)
        super().refuse(request, error, path)

    def spawn(self, request: int, args: list[bytes], fds: list[int]) -> None:
        """Start a program with far ends of lanes as its descriptors."""
        if args[1] != b"0":
            self.awaited[request] = self.opened[0][0]
            super().spawn(request, args, [])
            return
        lanes: list[Lane] = []
        far: list[int] = []
        try:
            for number, ways in self.opened:
                near, other = _pair(ways)
                far.append(other)
                lanes.append(Lane(number, near, ways))
            super().spawn(request, args, far)
        except OSError:
            for lane in lanes:
                os.close(lane.fd)
            raise
        finally:
            for fd in far:
                os.close(fd)
        pipes = [lane for lane in lanes if lane.ways == _frames.OUT_OF]
        self.programs[request] = pipes
        for lane in lanes:
            if lane.ways == _frames.BOTH:
                lane.pipes = pipes
            self.add(lane)

    def ended(self, pid: int, request: int, status: int) -> None:
        """Report the end of a child that was taken. Its terminal is hung up: Linux does so when a session's leader
        ends, gVisor does not."""
        super().ended(pid, request, status)
        lane = self.terminals.pop(pid, None)
        if lane is not None:
            lane.is_hung_up = True
            self.finish(lane)

    def finish(self, lane: Lane) -> None:
        """Send what a terminal that is hung up still has, as far as it is granted; then its end."""
        while lane.is_hung_up and lane.gives and lane.credit > 0:
            self.readable(lane)

    def resize(self, pid: int, cols: int, rows: int) -> None:
        """Set the size of a program's terminal."""
        lane = self.terminals.get(pid)
        if lane is None or lane.fd < 0:
            raise _files.fail(errno.ENOTTY, b"%d" % pid)
        fcntl.ioctl(lane.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    # lanes

    def other(self, fd: int, events: int) -> None:
        """A descriptor of a lane is ready."""
        lane = self.by_fd.get(fd)
        if lane is None:
            return
        if events & select.EPOLLERR and lane.ways == _frames.INTO and lane.takes:
            self.refused(lane)
            self.settle(lane)
            return
        if events & (select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP) and (lane.waiting or lane.is_last):
            self.writable(lane)
        if lane.fd >= 0 and lane.gives and events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self.readable(lane)

    def add(self, lane: Lane) -> None:
        """Begin to serve a lane."""
        self.lanes[lane.number] = lane
        self.by_fd[lane.fd] = lane
        self.watch(lane)

    def readable(self, lane: Lane) -> None:
        """Send what a program has written, as far as it is granted."""
        if not lane.gives or lane.credit <= 0:
            return
        most = min(lane.credit, _frames.MAX_DATA)
        if lane.pipes and not lane.is_next:
            # In this order: what it says later may come after what is printed later.
            lane.promised = lane.available()
            lane.behind = [(pipe, pipe.sent + pipe.available()) for pipe in lane.pipes if pipe.gives]
            for pipe in lane.pipes:
                self.readable(pipe)
            if not reached(lane.behind):
                lane.is_next = True
                self.watch(lane)
                return
        if lane.pipes:
            lane.is_next = False
            if not lane.promised and lane.available():
                return  # it was no end: look again
            most = min(most, lane.promised or 1)
        try:
            data = os.read(lane.fd, most)
        except BlockingIOError:
            if not lane.is_hung_up:
                return
            data = b""
        except OSError:
            data = b""  # EIO: the last process on the terminal has gone
        if data:
            lane.credit -= len(data)
            lane.sent += len(data)
            self.write(_frames.frame(_frames.DATA, lane.number, data))
            self.watch(lane)
        else:
            self.stop_giving(lane)
        self.progress(lane)

    def progress(self, lane: Lane) -> None:
        """What waited for this lane may go on."""
        for each in [*self.by_fd.values()]:
            if lane in each.pipes and each.behind and reached(each.behind):
                self.watch(each)
        if self.ends:
            free = [end for end in self.ends if reached(end[2])]
            self.ends = [end for end in self.ends if end[2]]
            for request, fields, _ in free:
                self.write(_frames.frame(_frames.PACKET, 0, HEADER.pack(request, EXIT, 0) + pack(fields)))

    def stop_giving(self, lane: Lane) -> None:
        """Nothing more comes from here, or nobody there reads any more."""
        if not lane.gives:
            return
        lane.gives = False
        self.write(_frames.frame(_frames.END, lane.number))
        if lane.is_socket:
            _shut(lane.fd, _socket.SHUT_RD)
        self.settle(lane)
        self.progress(lane)

    def writable(self, lane: Lane) -> None:
        """Write what has come for a program."""
        try:
            while lane.waiting and lane.takes:
                count = os.write(lane.fd, lane.waiting[: _frames.MAX_DATA])
                del lane.waiting[:count]
                self.took(lane, count)
        except BlockingIOError:
            pass
        except OSError:
            self.refused(lane)
        if lane.is_last and not lane.waiting and lane.takes:
            lane.takes = False
            if lane.is_socket:
                _shut(lane.fd, _socket.SHUT_WR)
            elif lane.ways == _frames.BOTH:
                self.stop_giving(lane)  # a terminal has no half: it is hung up
        self.settle(lane)

    def refused(self, lane: Lane) -> None:
        """Nobody inside reads any more: say so, and drop what comes until that is known there."""
        lane.takes = False
        if not lane.is_last:
            self.write(_frames.frame(_frames.STOP, lane.number))
        self.took(lane, len(lane.waiting))
        lane.waiting.clear()

    def took(self, lane: Lane, count: int) -> None:
        """Grant what was taken."""
        lane.owed += count
        if lane.owed >= GRANT_AT and not lane.is_last:
            self.write(_frames.grant(lane.number, lane.owed))
            lane.owed = 0

    def settle(self, lane: Lane) -> None:
        """Close a lane that has served, watch one that has not."""
        if lane.fd < 0:
            return
        if not (lane.is_last and not lane.takes and not lane.gives):
            self.watch(lane)
            return
        if lane.events is not None:
            self.poll.unregister(lane.fd)
            lane.events = None
        del self.by_fd[lane.fd]
        del self.lanes[lane.number]
        os.close(lane.fd)
        lane.fd = -1

    def watch(self, lane: Lane) -> None:
        """Wait for what a lane is good for now."""
        if lane.number not in self.lanes:
            return
        # A pipe whose reader has gone says so unasked; a socket would not stop saying so.
        events = 0 if lane.takes and lane.ways == _frames.INTO else None
        if lane.gives and lane.credit > 0 and reached(lane.behind):
            events = select.EPOLLIN
        if lane.waiting and lane.takes:
            events = (events or 0) | select.EPOLLOUT
        if events == lane.events:
            return
        if events is None:
            self.poll.unregister(lane.fd)
        elif lane.events is None:
            self.poll.register(lane.fd, events)
        else:
            self.poll.modify(lane.fd, events)
        lane.events = events


def _pair(ways: int) -> tuple[int, int]:
    """The end of a lane (non-blocking), and the program's. OSError where there are no descriptors left."""
    if ways == _frames.BOTH:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        near, far = ours.detach(), theirs.detach()
    else:
        read, write = os.pipe()
        near, far = (read, write) if ways == _frames.OUT_OF else (write, read)
    os.set_blocking(near, False)
    return near, far


def _shut(fd: int, how: int) -> None:
    """shutdown(2), of which a socket that is gone already knows nothing."""
    try:
        borrowed = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, os.dup(fd))
        try:
            borrowed.shutdown(how)
        finally:
            borrowed.close()
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EBADF, errno.EMFILE):
            raise


def serve(fd: int) -> None:
    """Serve the stream socket with this number until the engine closes its end."""
    raise_limit()
    heed_signals()
    FramedAgent(_socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)).run()
