"""Signatures of /files, as the SDK makes them."""

from __future__ import annotations

import pytest
from e2b.sandbox.signature import get_signature

from sandboxkit.local.envd._access import Denied, Operation, Signer, refused_user

TOKEN = "a-token"
SIGNER = Signer(TOKEN)


def query(path: str, operation: Operation, user: str | None, expires_in: int | None = None) -> dict[str, str]:
    """The query of a signed URL, by the SDK's own signing."""
    signed = get_signature(path, operation, user, TOKEN, expires_in)
    found = {"path": path, "signature": signed["signature"]}
    if user is not None:
        found["username"] = user
    if signed["expiration"] is not None:
        found["signature_expiration"] = str(signed["expiration"])
    return found


@pytest.mark.parametrize("user", [None, "", "user"])
@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("path", ["a.txt", "/home/user/ä b", ""])
def test_the_sdks_signatures_are_accepted(path: str, operation: Operation, user: str | None) -> None:
    """What the SDK signs with the token passes, for just that operation."""
    signed = query(path, operation, user)
    SIGNER.check(signed, operation, token=None, now=0)
    with pytest.raises(Denied, match="invalid signature"):
        SIGNER.check(signed, "write" if operation == "read" else "read", token=None, now=0)


@pytest.mark.parametrize("change", [{"path": "b"}, {"username": "root"}, {"signature_expiration": "99999999999"}])
def test_a_signature_is_for_what_was_signed(change: dict[str, str]) -> None:
    """Another path, user or end makes it invalid."""
    with pytest.raises(Denied, match="invalid signature"):
        SIGNER.check({**query("a", "read", "user", 60), **change}, "read", token=None, now=0)


def test_a_signature_ends() -> None:
    """Past its end the answer says that it has expired, and only to who holds the real one."""
    signed = query("a", "read", None, 0)
    end = int(signed["signature_expiration"])
    SIGNER.check(signed, "read", token=None, now=end)
    with pytest.raises(Denied, match="signature is already expired"):
        SIGNER.check(signed, "read", token=None, now=end + 1)
    with pytest.raises(Denied, match="invalid signature"):
        SIGNER.check({**signed, "signature": "v1_x"}, "read", token=None, now=end + 1)


@pytest.mark.parametrize("expiration", ["soon", "1.5", "", "٣", "9" * 30])
def test_an_end_that_is_no_number_is_invalid(expiration: str) -> None:
    """A malformed end is a refusal, never another exception."""
    with pytest.raises(Denied):
        SIGNER.check({**query("a", "read", None, 60), "signature_expiration": expiration}, "read", token=None, now=0)


def test_a_token_in_the_header_decides() -> None:
    """The right token needs no signature; a wrong one is not saved by a signature."""
    SIGNER.check({"path": "a"}, "read", token=TOKEN, now=0)
    with pytest.raises(Denied, match="access token present in header but does not match"):
        SIGNER.check(query("a", "read", None), "read", token="other", now=0)
    with pytest.raises(Denied, match="missing signature query parameter"):
        SIGNER.check({"path": "a"}, "read", token=None, now=0)


def test_odd_texts_compare_as_unequal() -> None:
    """Letters outside of ASCII in a token or signature are a refusal, never another exception."""
    assert not SIGNER.is_token("ä\udcff")
    assert not SIGNER.is_token(None)
    assert not SIGNER.signed({"path": "a", "signature": "ä"}, "read")


def test_only_the_user_of_the_sandbox_exists() -> None:
    """Nobody, the empty name and `user` pass; `root` is refused with the reason."""
    assert refused_user(None, "user") is None
    assert refused_user("", "user") is None
    assert refused_user("user", "user") is None
    assert "no root" in (refused_user("root", "user") or "")
    assert "unknown user bob" in (refused_user("bob", "user") or "")
