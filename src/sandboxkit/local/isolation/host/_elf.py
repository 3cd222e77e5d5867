"""Make a Python executable find its shared library at another place: rewrite its RUNPATH, purely on bytes.

pyenv builds Pythons whose executable looks for libpython under an absolute path in somebody's home. Inside a box that
path does not exist, and the loader would silently take another libpython of the same name from /usr/lib, if there is
one: a mixture of two Pythons. `$ORIGIN/../lib` is true wherever the tree is mounted.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_STRTAB, DT_RPATH, DT_RUNPATH = 0, 5, 15, 29


@dataclass(frozen=True, slots=True)
class Relocated:
    """The outcome. `image` is None when nothing had to be changed; `fits` is False when the new path is longer than
    the old one and there is no room for it."""

    image: bytes | None
    fits: bool = True


def relocate(image: bytes, prefix: str) -> Relocated:
    """Rewrite library paths below `prefix` so that they are relative to the executable's directory `prefix/bin`.

    Only little-endian 64-bit ELF is understood; anything else is returned as not in need of a change.
    """
    if image[:6] != b"\x7fELF\x02\x01":
        return Relocated(None)
    try:
        found = _library_path(image)
    except (struct.error, ValueError):
        return Relocated(None)
    if found is None:
        return Relocated(None)
    at, old = found
    root = prefix.rstrip("/").encode()
    parts = []
    for part in old.split(b":"):
        below = part == root or part.startswith(root + b"/")
        parts.append(b"$ORIGIN/.." + part[len(root) :] if below else part)
    new = b":".join(parts)
    if new == old:
        return Relocated(None)
    if len(new) > len(old):
        return Relocated(None, fits=False)
    return Relocated(image[:at] + new + b"\0" * (len(old) - len(new)) + image[at + len(old) :])


def _library_path(image: bytes) -> tuple[int, bytes] | None:
    """Offset and text of DT_RUNPATH (or DT_RPATH)."""
    (table,) = struct.unpack_from("<Q", image, 32)
    size, count = struct.unpack_from("<HH", image, 54)
    loads, dynamic = [], None
    for index in range(count):
        kind, _flags, offset, address, _physical, in_file = struct.unpack_from("<IIQQQQ", image, table + index * size)
        if kind == PT_LOAD:
            loads.append((address, offset, in_file))
        elif kind == PT_DYNAMIC:
            dynamic = (offset, in_file)
    if dynamic is None:
        return None
    entries: dict[int, int] = {}
    for at in range(dynamic[0], dynamic[0] + dynamic[1], 16):
        tag, value = struct.unpack_from("<qQ", image, at)
        if tag == DT_NULL:
            break
        entries[tag] = value
    index_in_strings = entries.get(DT_RUNPATH, entries.get(DT_RPATH))
    if index_in_strings is None or DT_STRTAB not in entries:
        return None
    strings = entries[DT_STRTAB]
    start = next((strings - a + o for a, o, n in loads if a <= strings < a + n), None)
    if start is None:
        return None
    at = start + index_in_strings
    return at, image[at : image.index(b"\0", at)]
