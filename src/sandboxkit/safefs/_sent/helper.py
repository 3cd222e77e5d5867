"""The helper's own part: read one request, carry it out, answer. Runs in the sandbox, once per operation.

The request is the command's last argument: base64 of fields, the first of which are the nonce, the root and the number
of bytes of content; those come as base64 lines on standard input where they are too many for an argument, else behind
the fields. The answer is base64 between two lines that carry the nonce, with a digest, so that what a login shell's
profile prints, or what breaks off, is told from it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import sys
from collections.abc import Callable

from sandboxkit.local.agent import _confined
from sandboxkit.local.agent._beneath import Root

INLINE = b"inline"


def unpack(raw: bytes) -> list[bytes]:
    """Fields, each behind its length."""
    fields, at = [], 0
    while at < len(raw):
        (size,) = struct.unpack_from("!I", raw, at)
        fields.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return fields


def packed(fields: list[bytes | int]) -> bytes:
    """The answer's fields, behind their length."""
    parts = []
    for value in fields:
        data = value if isinstance(value, bytes) else b"%d" % value
        parts.append(struct.pack("!I", len(data)) + data)
    whole = b"".join(parts)
    return struct.pack("!I", len(whole)) + whole


def received(left: int, give: Callable[[bytes], object]) -> None:
    """Pass on the content that comes on standard input. OSError where it breaks off."""
    while left > 0:
        line = sys.stdin.buffer.readline()
        piece = base64.b64decode(line)
        if not line or len(piece) > left:
            raise OSError(32, "the content broke off")
        left -= len(piece)
        give(piece)


def from_input(operation: bytes, path: bytes, identity: bytes, args: list[bytes], size: int) -> list[bytes | int]:
    """Write or append a content that comes on standard input: it goes into the new file as it comes."""
    with Root(path, identity, make=True) as root:
        with _confined.Replacement(root, args[0]) as new:
            if operation == b"append" and new.old is not None:
                fd = new.old_content()
                try:
                    for _ in _confined.transfer(fd, new, int(args[1])):
                        pass
                finally:
                    os.close(fd)
            received(size, new.write)
            new.put_in_place()
        return [root.identity]


def carried_out(root: bytes, place: bytes, size: int, fields: list[bytes], content: bytes) -> bytes:
    """The answer of one operation."""
    operation, identity, args = fields[0], fields[1], fields[2:]
    try:
        if place != INLINE:
            answer = from_input(operation, root, identity, args, size)
        else:
            if operation in (b"write", b"append"):
                args = [*args, content]
            job = _confined.operate(operation, root, identity, args)
            try:
                while True:
                    next(job)
            except StopIteration as done:
                answer = done.value
    except OSError as error:
        return packed([b"fail", error.errno or 5])
    if operation == b"read":
        return packed([b"ok", *answer[:-1]]) + bytes(answer[-1])
    return packed([b"ok", *answer])


def main() -> None:
    """Answer the request of the command line."""
    raw = base64.b64decode(sys.argv[-1])
    (length,) = struct.unpack_from("!I", raw)
    fields = unpack(raw[4 : 4 + length])
    nonce, root, place, size = fields[0], fields[1], fields[2], int(fields[3])
    answer = carried_out(root, place, size, fields[4:], raw[4 + length :])
    digest = hashlib.sha256(nonce + answer).hexdigest().encode()
    whole = b"\n@sandboxkit:%s:begin\n%s\n@sandboxkit:%s:%s\n" % (nonce, base64.b64encode(answer), nonce, digest)
    sys.stdout.buffer.write(whole)
    sys.stdout.buffer.flush()
