"""HTTP's rules for serving a file: which coding, which range, whether at all, under which name; pure."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import Final
from urllib.parse import quote

_CONDITIONS: Final = ("range", "if-modified-since", "if-none-match", "if-range")
_LAST_SECOND: Final = 253_402_300_799
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z{}]+")


class NotAcceptable(ValueError):
    """No coding that the client accepts is one of ours."""


class NotSatisfiable(ValueError):
    """The range lies outside of the file."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What decides about a file's answer. Times in nanoseconds."""

    size: int
    mtime_ns: int
    inode: int

    @property
    def etag(self) -> str:
        return f'"{self.inode:x}-{self.size:x}-{self.mtime_ns:x}"'

    @property
    def last_modified(self) -> str:
        # Held within the years that a date of HTTP can say: the sandbox may give its files any time.
        return formatdate(min(max(self.mtime_ns // 1_000_000_000, 0), _LAST_SECOND), usegmt=True)


def use_gzip(headers: Mapping[str, str]) -> bool:
    """Whether to compress. Raises NotAcceptable.

    A client that names gzip and nothing else asked for it; one that lists several codings, as every HTTP library does
    by itself, gets identity, which is cheaper on one machine. Ranges and conditions are about identity.
    """
    wanted = _qualities(headers.get("accept-encoding", ""))
    everything = wanted.get("*")
    identity_refused = wanted.get("identity", everything if everything == 0 else 1.0) == 0
    gzip_accepted = wanted.get("gzip", everything or 0.0) > 0
    if any(name in headers for name in _CONDITIONS):
        if identity_refused:
            raise NotAcceptable("identity is refused, and ranges and conditions are only served with it")
        return False
    if identity_refused and not gzip_accepted:
        raise NotAcceptable("no acceptable encoding found, supported: [gzip]")
    only_gzip = {name for name, quality in wanted.items() if quality > 0} == {"gzip"}
    return identity_refused or only_gzip


def _qualities(header: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in header.split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        if not name:
            continue
        quality = 1.0
        for parameter in parameters:
            match = re.fullmatch(r"q\s*=\s*([0-9]*\.?[0-9]*)", parameter, re.IGNORECASE)
            if match and match[1] not in ("", "."):
                quality = float(match[1])
        found[name.lower()] = quality
    return found


def unchanged(headers: Mapping[str, str], facts: FileFacts) -> bool:
    """Whether the client has this very file already (304)."""
    if "if-none-match" in headers:
        tags = [tag.strip().removeprefix("W/") for tag in headers["if-none-match"].split(",")]
        return "*" in tags or facts.etag in tags
    since = headers.get("if-modified-since")
    return since is not None and _not_after(facts, since)


def _not_after(facts: FileFacts, date: str) -> bool:
    try:
        return facts.mtime_ns // 1_000_000_000 <= parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return False


def byte_range(headers: Mapping[str, str], facts: FileFacts) -> tuple[int, int] | None:
    """The first byte and the one after the last that are asked for; None means the whole file.

    Several ranges in one request, and a malformed one, get the whole file, as RFC 9110 allows. Raises NotSatisfiable.
    """
    header = headers.get("range")
    if header is None:
        return None
    condition = headers.get("if-range")
    if condition is not None and condition not in (facts.etag, facts.last_modified):
        return None
    match = re.fullmatch(r"bytes=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})\s*", header, re.IGNORECASE)
    if match is None or match[1] == match[2] == "":
        return None
    first, last = match[1], match[2]
    if first == "":
        if int(last) == 0:
            raise NotSatisfiable
        return max(facts.size - int(last), 0), facts.size
    start = int(first)
    if last != "" and int(last) < start:
        return None
    if start >= facts.size:
        raise NotSatisfiable
    return start, facts.size if last == "" else min(int(last) + 1, facts.size)


def content_type(path: str) -> str:
    """By the name's ending. Text is said to be UTF-8, as Go says it."""
    kind, coding = mimetypes.guess_type(path)
    if kind is None or coding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def content_disposition(path: str) -> str:
    """`inline` with the file's own name, in the form that Go's mime package writes."""
    name = path.rstrip("/").rpartition("/")[2]
    if any(not " " <= letter <= "~" and letter != "\t" for letter in name):
        try:
            raw = name.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # no name of the kernel's
            raw = name.encode("utf-8", "replace")
        encoded = quote(raw, safe="!#$&+-.^_`|~{}")
        return f"inline; filename*=utf-8''{encoded}"
    if _TOKEN.fullmatch(name):
        return f"inline; filename={name}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'inline; filename="{escaped}"'
