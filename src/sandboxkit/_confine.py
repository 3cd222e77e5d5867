"""The lexical guard: decides whether a path's text names something below a root, without looking at any file.

The rules, in the order in which they are applied:

1. A path is its bytes. Text becomes UTF-8 with `surrogateescape`; text that has no bytes so, a NUL, or a value that
   is no path at all, is an `InvalidPath`. A Windows path is one too: its separators and drives mean nothing here.
2. It is cut at every "/"; empty parts and "." fall out, so two leading slashes count as one.
3. A part longer than 255 bytes is an `InvalidPath`, also where a later ".." would cancel it: the kernel says the same.
4. An absolute path has to begin with the root's own parts, one by one; a relative one begins at the root.
5. From there ".." cancels the part before it. Where there is none the path is a `PathEscape`, even if it would come
   back (`../user/x`): no prefix of an accepted path lies above the root, so `confine(p + "/" + q)` may be decided in
   two steps.
6. The whole result has at most 4,095 bytes.

Nothing else is touched: no Unicode normalisation, no percent-decoding, no "~", no "$", no backslash, no trimming.
What links do to such a path is not decided here; SafeFS says at which level it decides that.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import PureWindowsPath
from posixpath import normpath
from typing import Any, NoReturn

from sandboxkit._types import DEFAULT_ROOT
from sandboxkit.errors import InvalidPath, PathEscape

NAME_MAX = 255
PATH_MAX = 4095
_SHOWN = 200
_SHORT = NAME_MAX // 4
"""Characters that are certainly no more bytes than a name may have."""
_CERTAIN = PATH_MAX // 4
"""The same for a path."""

# C0, DEL and C1 controls; the marks, embeddings, overrides and isolates of the bidirectional algorithm; backslash.
_STRANGE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\\\\]")

# A class may lie about its name with a metaclass, and even raise; the getter of `type` itself does neither.
_name_of_type = type.__dict__["__name__"].__get__


def confine(path: str | bytes | os.PathLike[str] | os.PathLike[bytes], root: str = DEFAULT_ROOT) -> str:
    """Return the absolute, normalised form of `path`, which is `root` or lies below it.

    Pure: no file is looked at. A relative path counts from the root. Names that are not UTF-8 come back with
    `surrogateescape`, as everywhere in Python.

    Args:
        path: what a caller, a model or an end user named. `os.PathLike` is asked for its text once.
        root: an absolute path without "..".

    Raises:
        InvalidPath: not a path (wrong type, NUL, no bytes), a name over 255 bytes, a result over 4,095, or a root
            that is itself no absolute path.
        PathEscape: it leads out of the root, be it only on the way.
    """
    if type(path) is str and (len(path) <= _SHORT or (len(path) <= NAME_MAX and path.isascii())) and path.isprintable():
        prefix = _PREFIX if root is DEFAULT_ROOT else _prefix_of(root) if type(root) is str else ""
        below = normpath(path)
        first = below[0]
        if first != "/":
            # It keeps a ".." that has nothing before it, whatever comes after: so it begins with a dot if it leads out.
            if prefix and (first != "." or below[1:2] not in ("", ".")):
                return prefix + below
        elif prefix and below.startswith(prefix) and ".." not in path:
            return below
    return _decided(path, root)


def _decided(path: Any, root: str) -> str:
    """Take the rules one by one. What `confine` sees at a look is the same; that it is, is a test."""
    base = _root_parts(_text(root))
    text = _text(path)
    parts = _parts(text, path)
    if text[:1] == "/":
        if tuple(parts[: len(base)]) != base:
            _refuse_escape(path, root)
        del parts[: len(base)]
    if ".." in parts:
        below: list[str] = []
        for part in parts:
            if part != "..":
                below.append(part)
            elif below:
                below.pop()
            else:
                _refuse_escape(path, root)
        parts = below
    result = "/" + "/".join((*base, *parts))
    if len(result) > _CERTAIN and len(_bytes(result)) > PATH_MAX:
        raise InvalidPath(f"The path {shown(path)} is longer than {PATH_MAX} bytes.", path=path)
    return result


def require_plain_names(confined: str, path: Any) -> None:
    """Refuse names that a terminal, a log or a person can misread: controls, bidirectional marks, backslashes.

    Args:
        confined: what `confine` returned.
        path: the path as the caller gave it, for the error.

    Raises:
        InvalidPath: naming the first such character.
    """
    found = _STRANGE.search(confined)
    if found:
        raise InvalidPath(
            f"The path {shown(path)} has the character U+{ord(found[0]):04X} in a name; strict_names refuses control "
            f"and bidirectional characters and backslashes.",
            path=path,
        )


def shown(path: Any) -> str:
    """Show a path in a message: quoted, ASCII only (names may carry terminal codes), and cut where it is long."""
    if issubclass(type(path), str):
        text = str.__str__(path)
    elif issubclass(type(path), bytes):
        text = bytes.decode(path, "utf-8", "surrogateescape")
    else:
        return f"<{ascii(_name_of_type(type(path)))[1:-1]}>"
    return ascii(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!a}... ({len(text)} characters)"


def _text(path: Any) -> str:
    """Reduce what was given to exact, canonical text, or raise InvalidPath; hostile subclasses have no say.

    The text goes through bytes and back, so that two spellings of the same bytes ("é", and the two escapes of its
    UTF-8 bytes) become one.
    """
    given = path
    kind = type(path)
    if kind is str and path.isascii() and "\0" not in path:
        return path  # type: ignore[no-any-return]  # its bytes are itself
    if issubclass(kind, PureWindowsPath):
        raise InvalidPath("A Windows path names nothing in a sandbox; pass text or a PurePosixPath.", path=path)
    if not issubclass(kind, str | bytes):
        try:
            path = os.fspath(path)
        except Exception as error:  # `__fspath__` is the caller's code: whatever it raises, this is not a path
            raise InvalidPath(f"A path is text, bytes or os.PathLike, not {shown(given)}.", path=given) from error
    if issubclass(type(path), str):
        try:
            text = str.encode(path, "utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidPath(f"The path {shown(path)} has a lone surrogate, which no name has.", path=given) from error
    else:
        text = bytes.decode(path, "utf-8", "surrogateescape")
    if "\0" in text:
        raise InvalidPath(f"The path {shown(path)} has a NUL byte.", path=given)
    return text


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _parts(text: str, path: Any) -> list[str]:
    """Cut a path at its slashes; empty parts and "." mean nothing and fall out."""
    parts = [part for part in text.split("/") if part and part != "."]
    longest = len(max(parts, key=len)) if len(text) > _SHORT and parts else 0
    if longest > _SHORT and any(len(_bytes(part)) > NAME_MAX for part in parts):
        raise InvalidPath(f"The path {shown(path)} has a name longer than {NAME_MAX} bytes.", path=path)
    return parts


@lru_cache(maxsize=64)
def _prefix_of(root: str) -> str:
    """The root with a slash at its end, where it is in its normal form and no limit is near; else nothing."""
    is_normal = root[:1] == "/" and len(root) <= _SHORT and root.isprintable() and root == normpath(root)
    return root + "/" if is_normal and root[:2] != "//" and root != "/" else ""


@lru_cache(maxsize=64)
def _root_parts(root: str) -> tuple[str, ...]:
    parts = _parts(root, root)
    if not root.startswith("/") or ".." in parts:
        raise InvalidPath(f"The root {shown(root)} is not an absolute path without '..'.", path=root)
    return tuple(parts)


def _refuse_escape(path: Any, root: Any) -> NoReturn:
    raise PathEscape(f"The path {shown(path)} leads out of {shown(root)}.", path=path)


_PREFIX = _prefix_of(DEFAULT_ROOT)
