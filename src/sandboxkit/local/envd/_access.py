"""Who may ask: the access token, signatures made with it, and the users that exist; pure.

A signature is `v1_` and the unpadded base64 of sha256("path:operation:user:token") or, with an end,
sha256("path:operation:user:token:expiration"); path and user are as the client wrote them, operation is read or write.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Literal

Operation = Literal["read", "write"]


class Denied(Exception):
    """The request does not prove that it may. The message is envd's."""


class Signer:
    """Checks what a request proves with a sandbox's access token, in constant time."""

    def __init__(self, token: str) -> None:
        self._token = token

    def is_token(self, offered: str | None) -> bool:
        """Whether this is the token."""
        return offered is not None and _same(offered, self._token)

    def signed(self, query: Mapping[str, str], operation: Operation) -> bool:
        """Whether a `/files` query carries the signature for just what it asks. It may have expired."""
        parts = [query.get("path", ""), operation, query.get("username", ""), self._token]
        expiration = query.get("signature_expiration")
        if expiration is not None:
            seconds = _seconds(expiration)
            if seconds is None:
                return False
            parts.append(str(seconds))
        digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogateescape")).digest()
        expected = "v1_" + base64.b64encode(digest).rstrip(b"=").decode()
        return _same(query.get("signature", ""), expected)

    def check(self, query: Mapping[str, str], operation: Operation, *, token: str | None, now: float) -> None:
        """Let a `/files` request pass by the token of its header, or else by its signature. `now` is in seconds since
        the epoch. Raises Denied."""
        if token:
            if not self.is_token(token):
                raise Denied("access token present in header but does not match")
            return
        if "signature" not in query:
            raise Denied("missing signature query parameter")
        if not self.signed(query, operation):
            raise Denied("invalid signature")
        expiration = query.get("signature_expiration")
        if expiration is not None and (_seconds(expiration) or 0) < int(now):
            raise Denied("signature is already expired")


def refused_user(asked: str | None, user: str) -> str | None:
    """None when a request may act as the user it asks for; else the rest of a sentence that says why not."""
    if asked in (None, "", user):
        return None
    if asked == "root":
        return f": everything in a sandbox of the local engine runs as '{user}', there is no root"
    return f": unknown user {asked}"


def _seconds(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))
