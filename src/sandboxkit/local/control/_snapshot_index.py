"""Which snapshots there are, by which names they are found, and in which order they are listed; pure.

A snapshot has a key that nobody chose, and may have a name with a tag. It is found by

    key   key:tag   name   name:tag   local/name   local/name:tag

where a name without a tag means the tag `default`. A second snapshot of the same name and tag takes the first one's
place. Pages are cut by the number that each snapshot gets, newest first, as those of the sandboxes are.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass

from sandboxkit.local.control._kept import NAMESPACE, Snapshot
from sandboxkit.local.control._refusals import Refused, bad_request
from sandboxkit.local.control._states import PAGE_LIMIT

DEFAULT_TAG = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TOKEN = re.compile(r"s([0-9]{1,15})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotQuery:
    """Which snapshots to list."""

    sandbox_id: str | None = None
    name: str | None = None
    limit: int = PAGE_LIMIT
    before: int | None = None
    """Only those of smaller numbers."""


class SnapshotIndex:
    """All snapshots of an engine."""

    def __init__(self) -> None:
        self._by_key: dict[str, Snapshot] = {}
        self._last = 0

    def add(self, snapshot: Snapshot) -> Snapshot | None:
        """Take one in; returns the one whose place it takes, which is then no longer there."""
        self._last = max(self._last, snapshot.number)
        replaced = self._by_key.get(snapshot.key) or self._named(snapshot.name, snapshot.tag)
        if replaced is not None:
            del self._by_key[replaced.key]
        self._by_key[snapshot.key] = snapshot
        return replaced

    def next_number(self) -> int:
        """Give a number that no snapshot has had."""
        self._last += 1
        return self._last

    def remove(self, snapshot: Snapshot) -> None:
        """Forget one."""
        self._by_key.pop(snapshot.key, None)

    def find(self, text: str) -> Snapshot | None:
        """Find one by whatever it may be called."""
        name, _, tag = text.removeprefix(f"{NAMESPACE}/").partition(":")
        one = self._by_key.get(name)
        if one is not None and tag in ("", one.tag):
            return one
        return self._named(name.lower(), tag or DEFAULT_TAG)

    def page(self, query: SnapshotQuery) -> tuple[list[Snapshot], str | None]:
        """List some, newest first, and the token of the rest."""
        found = sorted(
            (one for one in self._by_key.values() if _matches(one, query)), key=lambda one: one.number, reverse=True
        )
        shown = found[: query.limit]
        return shown, f"s{shown[-1].number}" if len(found) > len(shown) else None

    def _named(self, name: str | None, tag: str) -> Snapshot | None:
        if name is None:
            return None
        return next((one for one in self._by_key.values() if (one.name, one.tag) == (name, tag)), None)


def read_name(text: str | None, *, taken: Container[str]) -> tuple[str | None, str]:
    """Read the name that a snapshot is to have: name and tag.

    Args:
        taken: names of templates.

    Raises:
        Refused: 400, it is no name; 409, a template has it.
    """
    if not text:
        return None, DEFAULT_TAG
    name, colon, tag = text.removeprefix(f"{NAMESPACE}/").partition(":")
    name = name.lower()
    if not _NAME.fullmatch(name) or (colon and not _TAG.fullmatch(tag)):
        raise bad_request("name: 1 to 128 of a-z, 0-9, '.', '_' and '-' are needed, and a tag after ':' where wanted")
    if name in taken:
        raise Refused(409, f"A template is called {name!r}; choose another name", error_code="name_taken")
    return name, tag or DEFAULT_TAG


def read_token(text: str | None) -> int | None:
    """Read a token that `page` gave. Refused: 400."""
    if not text:
        return None
    if (found := _TOKEN.fullmatch(text)) is None:
        raise bad_request("Invalid next token")
    return int(found[1])


def _matches(one: Snapshot, query: SnapshotQuery) -> bool:
    if query.sandbox_id is not None and one.sandbox_id != query.sandbox_id:
        return False
    if query.before is not None and one.number >= query.before:
        return False
    if query.name is None:
        return True
    name, _, tag = query.name.removeprefix(f"{NAMESPACE}/").partition(":")
    return name.lower() in (one.key, one.name) and tag in ("", one.tag)
