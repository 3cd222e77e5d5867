"""How packets and descriptors get to the agent and back: the one thing in which the two transports differ.

`PacketPort` passes descriptors over a SEQPACKET socket pair; `_framed.FramedPort` carries frames over a stream.
`Channel` sees the same of both: packets, the descriptors that came with them, and the end.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from sandboxkit.local.agent import _codec as wire

PACKETS_A_TURN = 32
"""Packets that one box may have handled before other work of the loop gets its turn."""

OnPacket = Callable[[bytes, list[int], bool], None]
"""Gets a packet, the descriptors that came with it (now its own, unless it raises ValueError for nonsense), and whether
some were lost since the engine has none left."""


class Port(Protocol):
    """One end of a transport. Made on the loop that it will live on."""

    passes_descriptors: bool
    """Whether descriptors that come with packets were made inside, and so have to be checked."""
    unsent_bytes: int
    """Bytes of packets that wait to be sent."""

    def start(self, on_packet: OnPacket, on_gone: Callable[[str], None]) -> None:
        """Begin to read. `on_gone` is called once, with the reason, when the other end is gone or what it sent is
        nonsense, but not by `close`."""

    def send(self, cut: Sequence[bytes], fds: Sequence[int], *, yields: int) -> None:
        """Send a message's packets, and with the last of them descriptors, which are the port's from now on, even if
        it raises. `yields` is how many descriptors its answer will have where it is no refusal.

        Raises:
            OSError: such a descriptor cannot be passed.
        """

    def close(self) -> None:
        """Let go of everything. Idempotent."""


class PacketPort:
    """Packets over a SEQPACKET socket, descriptors by SCM_RIGHTS. Owns the socket."""

    passes_descriptors = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.unsent_bytes = 0
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._unsent: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._on_packet: OnPacket
        self._on_gone: Callable[[str], None]
        self._closed = False

    def start(self, on_packet: OnPacket, on_gone: Callable[[str], None]) -> None:
        """Begin to read; see `Port.start`."""
        self._on_packet, self._on_gone = on_packet, on_gone
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, cut: Sequence[bytes], fds: Sequence[int], *, yields: int) -> None:
        """Queue a message's packets and send what can be sent. The descriptors are closed after that."""
        self._unsent += [(packet, ()) for packet in cut[:-1]]
        self._unsent.append((cut[-1], tuple(fds)))
        self.unsent_bytes += sum(map(len, cut))
        self._flush()

    def close(self) -> None:
        """Let go of the socket and of what was not sent. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._unsent:
            close_all(fds)
        self._unsent.clear()

    def _flush(self) -> None:
        while self._unsent:
            packet, fds = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            refused: OSError | None = None
            try:
                self._sock.sendmsg([packet], rights)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    self._gone(f"the agent is gone ({error.strerror})")
                    return
                refused = error
            self._unsent.popleft()
            self.unsent_bytes -= len(packet)
            close_all(fds)
            if refused is not None:
                self._refuse(packet, refused)
        self._loop.remove_writer(self._sock.fileno())

    def _refuse(self, packet: bytes, error: OSError) -> None:
        """Answer a request whose descriptors the kernel does not pass: those that programs have on their way are
        counted for all boxes together, and one box may have too many. Its agent is not to blame."""
        number, _, _ = wire.HEADER.unpack_from(packet)
        said = wire.pack([error.errno or errno.ETOOMANYREFS, (error.strerror or "").encode(), b""])
        self._on_packet(wire.HEADER.pack(number, wire.FAIL, 0) + said, [], False)

    def _readable(self) -> None:
        for _ in range(PACKETS_A_TURN):
            if self._closed:
                return
            try:
                data, rights, flags, _ = self._sock.recvmsg(
                    wire.MAX_PACKET + wire.HEADER.size + 1,
                    socket.CMSG_SPACE(4 * wire.MAX_FDS),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return
            except OSError as error:
                self._gone(f"the agent is gone ({error.strerror})")
                return
            fds = _received(rights)
            if not data:
                close_all(fds)
                self._gone("the agent is gone")
                return
            # There was room for all that may come, so where fewer did, we have no descriptors left; that is no fault
            # of the agent's.
            is_short = bool(flags & socket.MSG_CTRUNC) and len(fds) < wire.MAX_FDS
            try:
                if flags & socket.MSG_TRUNC or (flags & socket.MSG_CTRUNC and not is_short):
                    raise ValueError("a packet of the wrong size")
                self._on_packet(data, fds, is_short)
            except ValueError as error:
                close_all(fds)
                self._gone(f"the agent talked nonsense: {error}")

    def _gone(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_gone(reason)


def _received(rights: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a received packet."""
    fds = array.array("i")
    for level, kind, raw in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors; what is closed already is passed over."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
