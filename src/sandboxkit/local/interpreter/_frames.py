"""The wire between the engine and a kernel: bytes to messages and back, without input or output of its own.

A stream socket carries frames both ways. A frame is

    head length (32 bits, big-endian) · body length (the same) · head · body

where the head is a JSON object of at most 64 KiB and the body at most 64 MiB. The engine sends

    {"op": "execute", "cell": N}      body: {"code": text, "envs": {name: value}} as JSON

    {"op": "adopt"}                   body: {"envs": {name: value}}: the kernel's own environment from now on

    {"op": "interrupt"}               to kernels that no signal reaches while code runs

with N counting up, one cell at a time, and the kernel answers, for that N,

    {"op": "ready"}                                 once, before anything else
    {"op": "began", "cell": N, "count": COUNT}      the execution count, before any code runs
    {"op": "result", "cell": N}                     body: the fields of one result, as E2B names them
    {"op": "error", "cell": N}                      body: name, value and traceback of the exception
    {"op": "ended", "cell": N, "exiting": BOOL}     last; `exiting` if the kernel leaves now, as the code asked

The body of a result or an error is a JSON object in ASCII on one line: the engine copies it to the client, and need not
build what it says. What the code prints does not come here, but through two pipes, written before `ended` is sent.

The other side is hostile: whatever it sends is one of the messages below, or FrameError, and no more than one frame of
the greatest size is ever kept.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTHS = struct.Struct("!II")
MAX_HEAD = 64 * 1024
MAX_BODY = 64 * 1024 * 1024
PARSED = 1024 * 1024
"""Bodies up to this size are parsed, to be sure that they are JSON. Larger ones would hold up the engine: only their
form is checked, and a kernel that lies there harms nobody but its own client."""

MAX_COUNT = 2**53


class FrameError(Exception):
    """The other side does not keep to the wire's rules; `before` came whole in the same piece."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.before: list[Message] = []


@dataclass(frozen=True, slots=True)
class Ready:
    """The kernel waits for its first cell."""


@dataclass(frozen=True, slots=True)
class Began:
    """A cell begins to run; `count` is its number as the user sees it."""

    cell: int
    count: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A result or an error; `fields` is a JSON object in ASCII without a line break."""

    cell: int
    kind: str
    fields: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A cell has ended."""

    cell: int
    exiting: bool


Message = Ready | Began | Shown | Ended


def execute(cell: int, code: str, envs: Mapping[str, str]) -> bytes:
    """The frame that asks for a cell to be run."""
    return frame({"op": "execute", "cell": cell}, json.dumps({"code": code, "envs": dict(envs)}).encode())


def adopt(envs: Mapping[str, str]) -> bytes:
    """The frame that adds to the kernel's environment; it has no answer."""
    return frame({"op": "adopt"}, json.dumps({"envs": dict(envs)}).encode())


def interrupt() -> bytes:
    """The frame that interrupts the cell that runs; it has no answer but the cell's end."""
    return frame({"op": "interrupt"})


def frame(head: Mapping[str, Any], body: bytes = b"") -> bytes:
    """One frame.

    Raises:
        FrameError: the head or the body is too large.
    """
    encoded = json.dumps(head).encode()
    if len(encoded) > MAX_HEAD or len(body) > MAX_BODY:
        raise FrameError(f"a frame of {len(encoded)} and {len(body)} bytes is too large")
    return LENGTHS.pack(len(encoded), len(body)) + encoded + body


class Decoder:
    """Takes bytes as they come, gives messages as they become whole."""

    def __init__(self) -> None:
        self._received = bytearray()

    @property
    def kept(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._received)

    def feed(self, data: bytes) -> list[Message]:
        """Take the next bytes.

        Raises:
            FrameError: they break the rules; nothing that comes after can be understood.
        """
        self._received += data
        messages: list[Message] = []
        try:
            self._take_whole(messages)
        except FrameError as error:
            error.before = messages
            raise
        return messages

    def _take_whole(self, messages: list[Message]) -> None:
        start = 0
        while len(self._received) - start >= LENGTHS.size:
            head_size, body_size = LENGTHS.unpack_from(self._received, start)
            if head_size > MAX_HEAD or body_size > MAX_BODY:
                raise FrameError(f"a frame of {head_size} and {body_size} bytes is too large")
            middle = start + LENGTHS.size + head_size
            end = middle + body_size
            if len(self._received) < end:
                break
            head = bytes(self._received[start + LENGTHS.size : middle])
            messages.append(_message(head, bytes(self._received[middle:end])))
            start = end
        del self._received[:start]


def _message(encoded: bytes, body: bytes) -> Message:
    try:
        head = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a head is not JSON: {error}") from error
    if not isinstance(head, dict):
        raise FrameError("a head is not an object")
    match head:
        case {"op": "ready"}:
            return Ready()
        case {"op": "began", "cell": cell, "count": count}:
            return Began(_number(cell), _number(count))
        case {"op": "result" | "error" as kind, "cell": cell}:
            return Shown(_number(cell), kind, _object_on_a_line(body, kind))
        case {"op": "ended", "cell": cell, "exiting": bool(exiting)}:
            return Ended(_number(cell), exiting)
    raise FrameError("a head is none that the engine knows")


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
        raise FrameError("a number is none")
    return value


def _object_on_a_line(body: bytes, kind: str) -> bytes:
    if not (body.startswith(b'{"') and body.endswith(b"}") and body.isascii()):
        raise FrameError("a body is not an object in ASCII")
    if b"\n" in body or b"\r" in body:
        raise FrameError("a body is not on one line")
    if len(body) <= PARSED:
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"a body is not JSON: {error}") from error
        names = ("name", "value", "traceback") if kind == "error" else ()
        if "type" in fields or not all(isinstance(fields.get(name), str) for name in names):
            raise FrameError("a body has not the fields of its kind")
    return body
