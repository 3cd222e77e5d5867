"""The shapes that answers of level `enforced` must have, as `agent/_confined.py` gives them; pure.

Whoever asks for an operation below a root takes its fields by number: what has another shape never gets there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from sandboxkit.local.agent import _codec as wire

_IDENTITY: Final = re.compile(rb"[0-9]{1,20}:[0-9]{1,20}")
_PART: Final = re.compile(rb"\.sandboxkit-[0-9a-f]{1,64}\.part")
_COUNT: Final = re.compile(rb"[0-9]{1,20}")
_LONGEST_VERSION: Final = 128
_ENTRY: Final = 10
MOST_MODE: Final = 0xFFFF
MOST_SIZE: Final = (1 << 63) - 1
"""What the kernel has. Python raises for a larger mode, and clients for a larger size."""
_MOST: Final = {2: MOST_MODE, 3: MOST_SIZE, 4: 0xFFFFFFFF, 5: 0xFFFFFFFF, 6: 10**wire.LONGEST_NUMBER - 1}
"""An entry's mode, size, user, group and time, by its column."""
_NOTHING: Final = frozenset({"write", "append", "commit", "discard", "rename", "remove", "copy"})
_FLAG: Final = frozenset({"exists", "make_dir"})


def check_beneath(operation: str, args: Sequence[bytes | int], fields: Sequence[bytes]) -> None:
    """Check the answer to one operation with these arguments. ValueError for another shape."""
    rest = _after_identity(fields)
    if operation in _FLAG:
        _must(rest in ([b"0"], [b"1"]), "a yes or no that is neither")
    elif operation == "read":
        _must(len(rest) == 3 and _is_size_and_version(rest[:2]), "a reading of the wrong shape")
        _must(len(rest[2]) <= int(args[2]), "more of a file than was asked for")
    elif operation == "stat":
        _must(len(rest) == _ENTRY, "a stat that is not one entry")
        _entries(rest)
    elif operation == "list":
        _must(len(rest) <= _ENTRY * wire.MAX_ENTRIES, "too many entries")
        _entries(rest)
    else:
        _must(operation in _NOTHING and not rest, "an answer where there is none")


def check_opened(how: str, fields: Sequence[bytes]) -> None:
    """Check what came with a file that was opened. ValueError for another shape."""
    rest = _after_identity(fields)
    if how == "read":
        _must(_is_size_and_version(rest), "an open file without size and version")
    elif how == "stage":
        _must(len(rest) == 1 and _PART.fullmatch(rest[0]) is not None, "a new file without its name")
    else:
        _must(not rest, "an answer where there is none")


def _after_identity(fields: Sequence[bytes]) -> list[bytes]:
    _must(bool(fields) and _IDENTITY.fullmatch(fields[0]) is not None, "an answer without its root")
    return list(fields[1:])


def _is_size_and_version(fields: Sequence[bytes]) -> bool:
    return len(fields) == 2 and _COUNT.fullmatch(fields[0]) is not None and len(fields[1]) <= _LONGEST_VERSION


def _entries(fields: list[bytes]) -> None:
    """By columns, since there may be very many."""
    _must(len(fields) % _ENTRY == 0, "entries that are cut off")
    for column, most in _MOST.items():
        values = fields[column::_ENTRY]
        if column == 6:  # a time may lie before 1970
            values = [value.removeprefix(b"-") for value in values]
        _must(_are_within(values, most), "an entry's number that is none")
    _must(_are_within(filter(None, fields[8::_ENTRY]), MOST_MODE), "a mode of no number")
    _must(all(value == b"0" for value in fields[9::_ENTRY]), "attributes that nobody asked for")


def _are_within(values: Iterable[bytes], most: int) -> bool:
    digits = len(str(most))
    return all(
        value.isdigit() and (len(value) < digits or (len(value) == digits and int(value) <= most)) for value in values
    )


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
