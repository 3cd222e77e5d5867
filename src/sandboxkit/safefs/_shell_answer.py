"""What the helper of sandboxes without Python is asked, and what it says; pure."""

from __future__ import annotations

import base64
import binascii

from sandboxkit.provider._confined import (
    BrokenAnswer,
    FileAnswer,
    FileCall,
    OperationFailed,
    number,
    to_bytes,
    to_text,
)

LINE = 192 * 1024
"""Bytes of content in one line on standard input."""


def shell_arguments(call: FileCall, nonce: str, root: str, *, inline: bool) -> list[str]:
    """The arguments after the script's name. Its paths count from the root."""
    below = call.path.removeprefix(root).strip("/")
    operation, one, two = call.operation, "", ""
    _, *asked = call.asked.split(b"\0")
    if operation == "read":
        start, length, most, version = call.args
        if start != 0 or version:
            operation = "-"
        one, two = str(length), str(most or "")
    elif operation == "write":
        one, two = (
            ("inline", _base64(call.data))
            if inline
            else (f"input:{len(call.data)}", str(_size_of_lines(len(call.data))))
        )
    elif operation == "list" and call.args[0] != 1:
        operation = "-"
    if asked[1:]:
        operation = "-"  # mounts to be entered
    # An empty argument has to stay one.
    letters = asked[0].decode() if asked else ""
    rest = (one, two, call.identity.decode(), letters)
    return [
        nonce,
        operation,
        *(_base64(to_bytes(text)) or "''" for text in (root, below)),
        *(word or "''" for word in rest),
    ]


def shell_answer(call: FileCall, text: str) -> FileAnswer | None:
    """Its answer; None where it cannot do this. OperationFailed, BrokenAnswer."""
    status, *lines = text.split("\n")
    if status == "refused":
        return None
    if status == "fail" and len(lines) == 1:
        raise OperationFailed(number(lines[0].encode("ascii", "replace")))
    if status != "ok" or not lines:
        raise BrokenAnswer("it has no status")
    identity, *lines = lines
    fields: list[bytes] = []
    data = b""
    match call.operation:
        case "read":
            if len(lines) != 3:
                raise BrokenAnswer("it has not three lines")
            fields, data = [lines[0].encode(), lines[1].encode()], _decoded(lines[2])
        case "exists":
            fields = [line.encode() for line in lines]
        case "stat" | "list":
            for line in lines:
                if line:
                    fields += _entry(call, line)
        case _:
            pass
    return FileAnswer(identity.encode(), fields, data)


def _entry(call: FileCall, line: str) -> list[bytes]:
    parts = line.split(" ")
    if len(parts) != 7:
        raise BrokenAnswer("an entry has not seven parts")
    mode, size, uid, gid, modified, name, text = parts
    shown = to_bytes(call.path) if call.operation == "stat" else to_bytes(call.path.rstrip("/")) + b"/" + _decoded(name)
    try:
        numbers = [int(mode, 16), int(size), int(uid), int(gid), int(modified) * 1_000_000_000]
    except ValueError:
        raise BrokenAnswer("a number is none") from None
    last = to_bytes(to_text(shown).rpartition("/")[2])
    return [last, shown, *(b"%d" % value for value in numbers), _decoded(text), b"", b"0"]


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BrokenAnswer("it is no base64") from None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _size_of_lines(size: int) -> int:
    """Characters of the content on standard input: lines of base64, each with its end."""

    whole, rest = divmod(size, LINE)
    return whole * (LINE // 3 * 4 + 1) + ((rest + 2) // 3 * 4 + 1 if rest else 0)
