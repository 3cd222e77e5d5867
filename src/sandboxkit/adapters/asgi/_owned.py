"""Whose a sandbox is: the sessions of principals, and the ids that were handed out to them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from urllib.parse import quote

MOST = 10_000
"""Ids that are remembered; beyond them the one that was used longest ago is forgotten, and its sandbox with it."""
_LONGEST = 256


def session_key(principal: str, session: str, template: str) -> str:
    """The pool's key of a principal's session: no two triples have the same."""
    key = "/".join(
        ["routes", *(quote(part, safe="", errors="surrogatepass") for part in (principal, session, template))]
    )
    return key if len(key) <= _LONGEST else "routes:" + hashlib.sha256(key.encode()).hexdigest()


@dataclass(slots=True)
class Owned:
    """The ids that principals were given, with the key of the session behind each."""

    most: int = MOST
    _ids: OrderedDict[str, tuple[str, str]] = field(default_factory=OrderedDict)

    def give(self, sandbox_id: str, principal: str, key: str) -> None:
        """Remember that a sandbox is a principal's."""
        self._ids[sandbox_id] = (principal, key)
        self._ids.move_to_end(sandbox_id)
        while len(self._ids) > self.most:
            self._ids.popitem(last=False)

    def key_of(self, sandbox_id: str, principal: str) -> str | None:
        """The key of a principal's sandbox; None for what is unknown, and for what is somebody else's."""
        owner, key = self._ids.get(sandbox_id, (None, None))
        if owner != principal:
            return None
        self._ids.move_to_end(sandbox_id)
        return key

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone."""
        self._ids.pop(sandbox_id, None)
