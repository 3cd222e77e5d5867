"""What a client of /execute reads, line by line, made from what a kernel shows and prints: pure.

number_of_executions · (stdout | stderr | result | error | keepalive)* · end_of_execution | unexpected_end_of_execution
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sandboxkit.local.interpreter._frames import Began, Ended, Message, Shown

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True)
class Printed:
    """Bytes that came out of one of the kernel's pipes."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Gone:
    """The kernel's socket has closed, or what came over it was nonsense: `broken` says which rule it broke."""

    broken: str = ""


Item = Printed | Message | Gone


def line(kind: str, **fields: Any) -> bytes:
    """One event."""
    return json.dumps({"type": kind, **fields}).encode() + b"\n"


KEEPALIVE = line("keepalive")
END = line("end_of_execution")
UNEXPECTED_END = line("unexpected_end_of_execution")


def error(name: str, value: str) -> bytes:
    """An error that is not the code's own."""
    return line("error", name=name, value=value, traceback="")


class CellLines:
    """The lines of one cell. Feed it what came, in the order in which it came."""

    def __init__(self, cell: int) -> None:
        self._cell = cell
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": make("replace"), "stderr": make("replace")}
        self.has_begun = False
        self.ended: Ended | None = None
        self.gone: Gone | None = None

    def feed(self, items: Iterable[Item], *, timestamp: str) -> list[bytes]:
        """Turn items into lines; bytes of one stream that follow one another become one line.

        Args:
            items: what came since the last call; nothing may follow the end of the cell or of the kernel.
            timestamp: when they came, as ISO 8601 writes it.
        """
        lines: list[bytes] = []
        for item in _joined(items):
            match item:
                case Printed(stream, data):
                    lines += self._text(stream, data, timestamp=timestamp, final=False)
                case Began(self._cell, count):
                    self.has_begun = True
                    lines.append(line("number_of_executions", execution_count=count))
                case Shown(self._cell, kind, fields):
                    # The fields are an object already; only its type is missing.
                    lines.append(b'{"type": "' + kind.encode() + b'", ' + fields[1:] + b"\n")
                case Ended(self._cell):
                    self.ended = item
                case Gone():
                    self.gone = item
                case _:
                    # Of an earlier cell: what a thread of it shows late has no place here.
                    continue
        if self.ended is not None or self.gone is not None:
            for name in ("stdout", "stderr"):
                lines += self._text(name, b"", timestamp=timestamp, final=True)
        return lines

    def _text(self, stream: str, data: bytes, *, timestamp: str, final: bool) -> list[bytes]:
        text = self._decoders[stream].decode(data, final)
        return [line(stream, text=text, timestamp=timestamp)] if text else []


def _joined(items: Iterable[Item]) -> Iterator[Item]:
    held: Printed | None = None
    for item in items:
        if held is not None and isinstance(item, Printed) and item.stream == held.stream:
            held = Printed(held.stream, held.data + item.data)
            continue
        if held is not None:
            yield held
            held = None
        if isinstance(item, Printed):
            held = item
        else:
            yield item
    if held is not None:
        yield held
