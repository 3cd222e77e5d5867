"""Reads the page by which a development server tells of an error: what is wrong, and which packages are missing; pure.

Some tell it nowhere else: Next.js writes no syntax error to its log.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

MOST = 4000
"""Characters of a reason."""

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NEXT = '<script id="__NEXT_DATA__"'
_UNSEEN = frozenset({"script", "style", "head"})
_MISSING = re.compile(
    r"""(?:Can't\ resolve|Failed\ to\ resolve\ import|Cannot\ find\ (?:package|module)|No\ module\ named)
        \ ['"]([^'"\n]{1,200})['"]""",
    re.VERBOSE,
)


def plain(text: str) -> str:
    """A text without a terminal's colours."""
    return _COLOURS.sub("", text)


def reason(body: str) -> str:
    """What an error's page says, as text; empty where it says nothing."""
    _, _, after = body.partition(_NEXT)
    data, has_end, _ = after.partition(">")[2].partition("</script>")
    said = _message(data if has_end else body) or html.unescape(_shown(body))
    lines = (line.rstrip() for line in plain(said).splitlines())
    return "\n".join(line for line in lines if line.strip()).strip()[:MOST]


def _shown(page: str) -> str:
    """The text between a page's tags, in one pass: the page is the sandbox's, and may have any form."""
    text, *pieces = page.split("<")
    shown, unseen = [text], ""
    for piece in pieces:
        tag, has_end, text = piece.partition(">")
        name = (tag.split(maxsplit=1) or [""])[0].lower()
        if unseen:
            unseen = "" if name == f"/{unseen}" else unseen
        elif name in _UNSEEN:
            unseen = name
        if not unseen:
            shown.append(f" {text}" if has_end else f"<{piece}")
    return "".join(shown)


def missing_packages(text: str) -> tuple[str, ...]:
    """The packages that an error of a module loader names; a file of the app's own is none."""
    names = (_package(found) for found in _MISSING.findall(text))
    return tuple(dict.fromkeys(name for name in names if name))


def _message(body: str) -> str:
    """The error in a JSON answer: Next.js's page has one inside, Nuxt gives one to who asks for JSON."""
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(told, dict):
        return ""
    error = told["err"] if isinstance(told.get("err"), dict) else told
    message = error.get("message")
    return message if isinstance(message, str) else ""


def _package(name: str) -> str:
    if name.startswith((".", "/", "#", "~", "@/", "node:")):
        return ""
    parts = name.split("/")
    return "/".join(parts[: 2 if name.startswith("@") else 1])
