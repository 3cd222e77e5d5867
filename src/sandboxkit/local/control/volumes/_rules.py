"""What a volume may be called, and where it may appear in a sandbox; pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandboxkit.local.control._refusals import Refused, bad_request
from sandboxkit.local.isolation._base import HOME, PREFIX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
MOST_MOUNTS = 16
"""Volumes of one sandbox."""
LONGEST_TARGET = 1024

_CLOSED = (
    *["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/proc", "/sys", "/dev", "/run"],
    PREFIX,
)
"""Directories below which nothing of a caller's appears."""
_TAKEN = frozenset({"/", "/home", HOME, "/tmp", "/opt"})
"""Directories that are something else already; below them there is room."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A volume, by its name, and where a sandbox is to find it."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Mounted:
    """A volume of a sandbox, and where it finds it."""

    volume_id: str
    name: str
    path: str


def read_name(value: object) -> str:
    """Read the name that a volume is to have. Refused: 400."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise bad_request("name: 1 to 128 of a-z, A-Z, 0-9, '_' and '-' are needed")
    return value


def read_mounts(value: object) -> tuple[Wish, ...]:
    """Read `volumeMounts` of a create request. Refused: 400 by name."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, dict) and set(one) == {"name", "path"} for one in value):
        raise bad_request("volumeMounts: a list of objects with name and path is needed")
    if len(value) > MOST_MOUNTS:
        raise bad_request(f"volumeMounts: a sandbox has at most {MOST_MOUNTS} volumes")
    wishes = tuple(Wish(read_name(one["name"]), _read_target(one["path"])) for one in value)
    targets = sorted(wish.path for wish in wishes)
    for one in targets:
        if any(other is not one and _is_at_or_below(other, one) for other in targets):
            raise bad_request(f"volumeMounts: {one!r} is there twice, or another one lies below it")
    return wishes


def _read_target(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value.encode(errors="replace")) > LONGEST_TARGET:
        raise bad_request("volumeMounts: path: the absolute path of a directory is needed")
    path = value.rstrip("/") or "/"
    names = path.split("/")[1:]
    is_written_out = path.startswith("/") and all(0 < len(name.encode()) <= 255 for name in names)
    if path != "/" and (not is_written_out or not {".", ".."}.isdisjoint(names)):
        raise bad_request(f"volumeMounts: path {value[:64]!r}: an absolute path without '.' and '..' is needed")
    if path in _TAKEN or any(_is_at_or_below(path, closed) for closed in _CLOSED):
        raise bad_request(f"volumeMounts: path {value[:64]!r}: the system's directories are no place for a volume")
    return path


def _is_at_or_below(path: str, other: str) -> bool:
    return path == other or path.startswith(other.rstrip("/") + "/")


def in_use(name: str) -> Refused:
    """There is a volume of this name."""
    return Refused(409, f"There is a volume called {name!r} already", error_code="volume_exists", retry=False)


def no_such_volume(text: str) -> Refused:
    """There is no such volume."""
    return Refused(404, f"Volume {text[:64]!r} was not found", error_code="volume_not_found")


def full(name: str, most: int) -> Refused:
    """It holds as much as a volume may, or its disk is full."""
    return Refused(
        507,
        f"Volume {name!r} is full (--volume-max, {most >> 20} MiB), or its disk is",
        error_code="volume_full",
        retry=False,
    )
