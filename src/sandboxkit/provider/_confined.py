"""One operation of level `enforced` as bytes, and its answer, which a sandbox may have made up; pure.

Both ways to a sandbox carry the same bytes: the engine's confined base path in a request, the helper in base64.

    request   u32 length, fields: operation, the root's terms, path, arguments; then the content to be written
    answer    u32 length, fields: "ok", identity, what it says; then content.  Or: "fail", errno

A field is its length (u32, network order) and its bytes; numbers are written in decimal. Numbers of errors are Linux's,
whatever this machine is. Nothing of an answer is believed: what does not parse is a `BrokenAnswer`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from sandboxkit.errors import (
    AccessDenied,
    Changed,
    InvalidPath,
    IsADirectory,
    LinkEscape,
    NoSpace,
    NotADirectory,
    NotFound,
    SafeFSError,
    SpecialFile,
    TooLarge,
)
from sandboxkit.local.agent import _codec as wire

MAX_FIELDS: Final = 32 * 1024 * 1024
MAX_ENTRIES: Final = 100_000

ERRORS: Final[Mapping[int, type[SafeFSError]]] = {
    1: AccessDenied,  # EPERM
    2: NotFound,  # ENOENT
    7: TooLarge,  # E2BIG
    11: Changed,  # EAGAIN
    13: AccessDenied,  # EACCES
    16: LinkEscape,  # EBUSY: a mount point
    17: Changed,  # EEXIST
    18: LinkEscape,  # EXDEV
    20: NotADirectory,  # ENOTDIR
    21: IsADirectory,  # EISDIR
    22: InvalidPath,  # EINVAL
    27: TooLarge,  # EFBIG
    28: NoSpace,  # ENOSPC
    30: AccessDenied,  # EROFS
    31: LinkEscape,  # EMLINK: a hard link, where they are refused
    36: InvalidPath,  # ENAMETOOLONG
    39: Changed,  # ENOTEMPTY
    116: Changed,  # ESTALE
    122: NoSpace,  # EDQUOT
    124: SpecialFile,  # EMEDIUMTYPE
}
"""What an error inside is here. Any other is a SafeFSError with its number."""

_LENGTH: Final = struct.Struct("!I")


class BrokenAnswer(Exception):
    """The answer is none. The message says what is wrong with it, without a word of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCall:
    """One operation below a root. `args` follow the path; `data` is what is written."""

    operation: str
    path: str
    args: tuple[str | bytes | int, ...] = ()
    data: bytes = b""
    identity: bytes = b""
    """Of the root, where it is known: the operation is refused on another directory (ESTALE)."""
    asked: bytes = b""
    """What else is asked of the root: see `agent/_beneath.py` on terms."""
    max_answer: int = 1024 * 1024
    """Bytes that the answer's content may have; a longer answer is broken."""


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """What it came to; `fields` without status and identity."""

    identity: bytes
    fields: Sequence[bytes]
    data: bytes = b""


class OperationFailed(Exception):
    """The operation failed inside; `number` is Linux's errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def encoded(call: FileCall) -> bytes:
    """The request's bytes, without the content."""
    fields = [call.operation.encode(), call.identity + call.asked, to_bytes(call.path), *map(_field, call.args)]
    packed = wire.pack(fields)
    return _LENGTH.pack(len(packed)) + packed


def decoded(raw: bytes) -> FileAnswer:
    """Take an answer apart.

    Raises:
        OperationFailed: it says so.
        BrokenAnswer: it does not parse.
    """
    if len(raw) < _LENGTH.size:
        raise BrokenAnswer("it is cut off")
    (size,) = _LENGTH.unpack_from(raw)
    if size > MAX_FIELDS or size > len(raw) - _LENGTH.size:
        raise BrokenAnswer("its length is wrong")
    try:
        fields = wire.unpack(raw[_LENGTH.size : _LENGTH.size + size])
        if len(fields) == 2 and fields[0] == b"fail":
            raise OperationFailed(wire.number(fields[1]))
    except ValueError:
        raise BrokenAnswer("its fields do not parse") from None
    if len(fields) < 2 or fields[0] != b"ok":
        raise BrokenAnswer("it has no status")
    return FileAnswer(fields[1], fields[2:], raw[_LENGTH.size + size :])


def number(field: bytes, *, most: int = (1 << 63) - 1) -> int:
    """A number of an answer, not negative. BrokenAnswer."""
    try:
        value = wire.number(field)
    except ValueError:
        raise BrokenAnswer("a number is none") from None
    if not 0 <= value <= most:
        raise BrokenAnswer("a number is out of range")
    return value


def to_bytes(name: str) -> bytes:
    """A name as the kernel has it."""
    return name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    """A name of the kernel's as text, losslessly."""
    return name.decode("utf-8", "surrogateescape")


def _field(value: str | bytes | int) -> bytes | int:
    return to_bytes(value) if isinstance(value, str) else value
