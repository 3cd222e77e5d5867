"""The packets between the engine and the agent: one codec for both ends.

A message is cut into packets. A packet is a header (request number, kind, flags) and a piece of the payload; a payload
is a list of byte strings, each behind its length. Numbers are written in decimal. File names are bytes from end to end.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

MAX_PACKET = 60_000
"""Bytes of payload in one packet. The default send buffer of a Unix socket holds three of them."""
MAX_FDS = 16
MAX_ENTRIES = 100_000
MAX_REPLY = 32 * 1024 * 1024
"""Bytes of one reply, over all its packets."""

HELLO, SPAWN, SIGNAL, OPEN, STAT, LIST, MAKE_DIR, RENAME, REMOVE, SET_XATTRS, DIAL, PING, CANCEL = range(1, 14)
LISTEN, ACCEPT = range(14, 16)
FILE_FACTS, FILE_READ, FILE_WRITE, FILE_EMPTY, FILE_CLOSE, RESIZE, SPACE = range(48, 55)
MAX_READ = 128 * 1024
"""Bytes that one FILE_READ answers or one FILE_WRITE brings at most."""
BENEATH, BENEATH_LONG, BENEATH_OPEN, WATCH, WATCH_NEXT, WATCH_END = range(32, 38)
OK, FAIL, EXIT = range(64, 67)
MORE = 1

HEADER = struct.Struct("!IBB")
LENGTH = struct.Struct("!I")


def pack(fields: Iterable[bytes | int]) -> bytes:
    """Join byte strings and integers (written in decimal) into one payload."""
    parts = []
    for value in fields:
        data = value if isinstance(value, bytes) else b"%d" % value
        parts.append(LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def unpack(payload: bytes) -> list[bytes]:
    """Split a payload into its byte strings. ValueError where the lengths do not add up."""
    fields = []
    at, end = 0, len(payload)
    while at < end:
        if end - at < 4:
            raise ValueError("a field's length is cut off")
        (size,) = LENGTH.unpack_from(payload, at)
        at += 4
        if size > end - at:
            raise ValueError("a field is cut off")
        fields.append(payload[at : at + size])
        at += size
    return fields


def packets(request: int, kind: int, payload: bytes) -> list[bytes]:
    """Cut a message into packets; all but the last carry MORE."""
    cuts = range(0, max(len(payload), 1), MAX_PACKET)
    last = cuts[-1]
    return [HEADER.pack(request, kind, 0 if at == last else MORE) + payload[at : at + MAX_PACKET] for at in cuts]


LONGEST_NUMBER = 28
"""Digits: a file's time has as many, in nanoseconds, where a program has set it as far away as the kernel lets it."""


def number(field: bytes) -> int:
    """Read a decimal integer of a bounded length. ValueError for anything else (`int` alone takes spaces and _)."""
    digits = field[1:] if field[:1] == b"-" else field
    if not digits.isdigit() or len(digits) > LONGEST_NUMBER:
        raise ValueError("not a number")
    return int(field)
