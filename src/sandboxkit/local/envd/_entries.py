"""Shows a directory entry as envd's EntryInfo: proto3 JSON, Go's texts of modes, names of owners; pure."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from typing import Final

from sandboxkit.local.isolation._base import UID, USER, Entry

_FILE: Final = "FILE_TYPE_FILE"
_DIRECTORY: Final = "FILE_TYPE_DIRECTORY"

# As the sandbox's own /etc/passwd and /etc/group name them; whoever else owns a file shows as a number, as in envd.
_OWNERS: Final = {0: "root", UID: USER, 65534: "nobody"}
_GROUPS: Final = {0: "root", UID: USER, 65534: "nogroup"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def go_permissions(mode: int) -> str:
    """An st_mode as Go's FileMode prints it: `-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`."""
    # In Go's order; a file that is none of these starts with a dash.
    holds = {
        "d": stat.S_ISDIR(mode),
        "L": stat.S_ISLNK(mode),
        "D": stat.S_ISBLK(mode) or stat.S_ISCHR(mode),
        "p": stat.S_ISFIFO(mode),
        "S": stat.S_ISSOCK(mode),
        "u": mode & stat.S_ISUID,
        "g": mode & stat.S_ISGID,
        "c": stat.S_ISCHR(mode),
        "t": mode & stat.S_ISVTX,
    }
    letters = "".join(letter for letter, applies in holds.items() if applies) or "-"
    bits = "".join(letter if mode & (1 << (8 - at)) else "-" for at, letter in enumerate("rwxrwxrwx"))
    return letters + bits


def entry_info(entry: Entry) -> dict[str, object]:
    """EntryInfo of an entry. As in envd, type and mode are those of what a link leads to, everything else is the
    link's own; zero values are left out."""
    link = stat.S_ISLNK(entry.mode)
    shown = (entry.target_mode or 0) if link else entry.mode
    info: dict[str, object] = {
        "name": text(entry.name),
        "path": text(entry.path),
        "permissions": go_permissions(entry.mode),
        "owner": _OWNERS.get(entry.uid, str(entry.uid)),
        "group": _GROUPS.get(entry.gid, str(entry.gid)),
        "modifiedTime": timestamp(entry.mtime_ns),
    }
    if stat.S_ISREG(shown):
        info["type"] = _FILE
    elif stat.S_ISDIR(shown):
        info["type"] = _DIRECTORY
    if entry.size:
        info["size"] = str(entry.size)
    if stat.S_IMODE(shown) & 0o777:
        info["mode"] = stat.S_IMODE(shown) & 0o777
    if link and entry.link_target is not None:
        info["symlinkTarget"] = text(entry.link_target)
    if entry.xattrs:
        info["metadata"] = {text(key): text(value) for key, value in entry.xattrs.items()}
    return info


def timestamp(ns: int) -> str:
    """An RFC 3339 time of nanoseconds since the epoch, held within the years that a protobuf Timestamp can say."""
    seconds, rest = divmod(ns, 1_000_000_000)
    seconds = min(max(seconds, -62_135_596_800), 253_402_300_799)
    when = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")
    # strftime does not fill years up to four digits on Linux.
    when = when.rjust(19, "0")
    return f"{when}.{rest:09d}Z" if rest else f"{when}Z"


def text(name: str) -> str:
    """A name as Unicode text. Bytes that are not UTF-8 become U+FFFD: a proto3 string cannot carry them, and one
    such name would make a client refuse a whole listing."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
