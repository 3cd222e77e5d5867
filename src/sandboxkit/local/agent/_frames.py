"""The bytes between the engine and an agent that cannot pass descriptors: one pure codec for both ends.

Where a box is another kernel (gVisor), no descriptor crosses its border. There the packets of `_codec` travel in frames
over one stream, and beside them *lanes*: a lane stands for one descriptor, and carries what goes through that.

    header    size of the payload (u32), kind (u8), number of the lane (u32; 0 for PACKET), in network order
    PACKET    one packet. The engine's begin with the lanes that it opens: their count (u8), and for each its number
              (u32) and its ways (u8: 1 = into the box, 2 = out of it, 3 = both)
    DATA      1 to 32,768 bytes
    END       nothing follows on this lane from here (a half-closed socket, a pipe's end); exactly one for each way
    GRANT     a number (u32): so many bytes more may be sent to here
    STOP      nobody reads here any more: to be answered by END, where none was sent

Rules
-----
Only the engine opens lanes, and a number is never used again. The lanes of a program's descriptors are open once its
SPAWN is answered with OK; the one of a terminal or a connection once that answer has come; after FAIL there are none.
Nobody has more than WINDOW bytes of a way under way: whoever sends needs a grant, and grants are given for bytes that
have been taken by the descriptor. So each end holds at most WINDOW bytes for each way of a lane.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

HEADER = struct.Struct("!IBI")
OPENED = struct.Struct("!IB")
AMOUNT = struct.Struct("!I")

PACKET, DATA, END, GRANT, STOP = range(1, 6)
INTO, OUT_OF, BOTH = 1, 2, 3

WINDOW = 65_536
MAX_DATA = 32_768
MAX_OPENED = 16
MAX_PACKET = 65_536
"""Bytes of a PACKET's payload: a packet of `_codec`, and the lanes that it opens."""
MOST = {PACKET: MAX_PACKET, DATA: MAX_DATA, END: 0, GRANT: AMOUNT.size, STOP: 0}
LEAST = {PACKET: 6, DATA: 1, END: 0, GRANT: AMOUNT.size, STOP: 0}

Frame = tuple[int, int, bytes]
"""Kind, lane, payload."""


def frame(kind: int, lane: int = 0, payload: bytes = b"") -> bytes:
    """Write one frame."""
    return HEADER.pack(len(payload), kind, lane) + payload


def grant(lane: int, amount: int) -> bytes:
    """Write a GRANT."""
    return frame(GRANT, lane, AMOUNT.pack(amount))


def opening(lanes: Iterable[tuple[int, int]], packet: bytes) -> bytes:
    """Write a PACKET of the engine's that opens lanes (number, ways)."""
    opened = [OPENED.pack(number, ways) for number, ways in lanes]
    return frame(PACKET, 0, bytes([len(opened)]) + b"".join(opened) + packet)


def opened_by(payload: bytes) -> tuple[list[tuple[int, int]], bytes]:
    """Take a PACKET of the engine's apart: the lanes that it opens, and the packet. ValueError where it is cut off."""
    count = payload[0]
    end = 1 + count * OPENED.size
    if count > MAX_OPENED or len(payload) < end:
        raise ValueError("lanes that are cut off")
    return list(OPENED.iter_unpack(payload[1:end])), payload[end:]


def amount(payload: bytes) -> int:
    """Read a GRANT's number. ValueError for 0 and for more than a window."""
    (value,) = AMOUNT.unpack(payload)
    if not 0 < value <= WINDOW:
        raise ValueError("a grant of nothing, or of too much")
    return int(value)


class Parser:
    """Finds the frames in a stream that comes in pieces. Holds less than one frame."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._failed = False

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes, and return the frames that are whole.

        Raises:
            ValueError: what comes is no frame, or is larger than one may be. Nothing more can be read.
        """
        if self._failed:
            raise ValueError("the stream is broken")
        rest = self._rest
        rest += data
        found: list[Frame] = []
        at = 0
        while len(rest) - at >= HEADER.size:
            size, kind, lane = HEADER.unpack_from(rest, at)
            if kind not in MOST or not LEAST[kind] <= size <= MOST[kind] or (kind == PACKET) != (lane == 0):
                self._failed = True
                rest.clear()
                raise ValueError("bytes that are no frame")
            end = at + HEADER.size + size
            if len(rest) < end:
                break
            found.append((kind, lane, bytes(rest[at + HEADER.size : end])))
            at = end
        del rest[:at]
        return found
