"""The rules of the Connect protocol with JSON: error codes, envelopes, request headers; pure.

A unary call is one JSON body each way, and an error is an HTTP status with `{"code", "message"}`.
A stream is a row of envelopes in an HTTP 200: one byte of flags, the payload's length in four bytes (big endian), the
payload. The last envelope of a response has flag 2 and says `{}`, or `{"error": {...}}`: a stream's failure never
shows in the HTTP status.

    flag 1   the payload is compressed (we offer no compression, so this is refused)
    flag 2   end of the stream (only in responses)

Whatever a peer sends that does not fit ends as a ConnectError, never as another exception.
Specification: https://connectrpc.com/docs/protocol
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal

Code = Literal[
    "canceled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
]

HTTP_STATUS: Final[Mapping[Code, int]] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}

UNARY_TYPE: Final = "application/json"
STREAM_TYPE: Final = "application/connect+json"

FLAG_COMPRESSED: Final = 0b01
FLAG_END: Final = 0b10
HEAD_SIZE: Final = 5
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""The longest message that is read, in bytes: a `send_stdin` of 12 MB is one message."""

DEFAULT_KEEPALIVE: Final = 90.0
"""Seconds of silence after which a stream sends a keepalive, unless the client asks for another interval."""


class ConnectError(Exception):
    """A call's failure as the protocol says it: a code and a sentence."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code: Code = code
        self.message = message

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


def invalid(message: str) -> ConnectError:
    """What a malformed request becomes."""
    return ConnectError("invalid_argument", message)


# -- envelopes ----------------------------------------------------------------------------------------------------


def envelope(payload: bytes, flags: int = 0) -> bytes:
    """One message of a stream as it goes over the wire."""
    return flags.to_bytes(1, "big") + len(payload).to_bytes(4, "big") + payload


def end_of_stream(error: ConnectError | None = None) -> bytes:
    """The envelope that closes a response."""
    body = {} if error is None else {"error": error.to_json()}
    return envelope(dump(body), FLAG_END)


class EnvelopeReader:
    """Takes a request's bytes in pieces of any size and gives back whole payloads, in order.

    Holds at most one incomplete message, so never more than `max_message` bytes and the piece just fed.
    """

    def __init__(self, *, max_message: int = MAX_MESSAGE) -> None:
        self._buffer = bytearray()
        self._max = max_message

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the payloads that are complete now. ConnectError for an envelope that a request must not have; the
        stream cannot be read any further then."""
        self._buffer += data
        while len(self._buffer) >= HEAD_SIZE:
            flags = self._buffer[0]
            length = int.from_bytes(self._buffer[1:HEAD_SIZE], "big")
            if flags & FLAG_COMPRESSED:
                raise invalid("protocol error: sent compressed message without compression support")
            if flags:
                raise invalid(f"protocol error: invalid envelope flags {flags:#010b}")
            if length > self._max:
                raise ConnectError(
                    "resource_exhausted", f"message size {length} is larger than configured max {self._max}"
                )
            if len(self._buffer) < HEAD_SIZE + length:
                return
            payload = bytes(self._buffer[HEAD_SIZE : HEAD_SIZE + length])
            del self._buffer[: HEAD_SIZE + length]
            yield payload

    def finish(self) -> None:
        """Say that the request's body has ended. ConnectError if it ended inside an envelope."""
        if self._buffer:
            raise invalid("protocol error: incomplete envelope: unexpected EOF")


# -- headers ------------------------------------------------------------------------------------------------------


def check_headers(headers: Mapping[str, str], *, stream: bool) -> None:
    """Refuse by name what we do not speak: another protocol version, a compressed body."""
    version = headers.get("connect-protocol-version", "1")
    if version != "1":
        raise invalid(f'connect-protocol-version must be "1": got {version!r}')
    name = headers.get("connect-content-encoding" if stream else "content-encoding", "identity")
    if name.strip().lower() not in ("", "identity"):
        raise ConnectError("unimplemented", f"unknown compression {name!r}: supported encodings are identity")


def timeout_of(headers: Mapping[str, str]) -> float | None:
    """The call's deadline in seconds from now, by `Connect-Timeout-Ms`; None (no header, or 0) means none."""
    text = headers.get("connect-timeout-ms")
    if text is None or text == "":
        return None
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise invalid(f"protocol error: invalid Connect-Timeout-Ms {text!r}: at most ten digits are expected")
    return int(text) / 1000 or None


def keepalive_of(headers: Mapping[str, str]) -> float:
    """The seconds of silence before a keepalive; what is not a positive whole number counts as not given."""
    text = headers.get("keepalive-ping-interval", "")
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text):
        return float(int(text))
    return DEFAULT_KEEPALIVE


def basic_user(authorization: str | None) -> str | None:
    """The user that a Basic header names; None when there is no header of that kind, or it cannot be read."""
    scheme, _, credentials = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode()
    except ValueError:
        return None
    user, colon, _ = text.partition(":")
    return user if colon else None


# -- JSON ---------------------------------------------------------------------------------------------------------


def dump(message: object) -> bytes:
    """A message's JSON, in ASCII."""
    return json.dumps(message, separators=(",", ":")).encode("ascii")


def load(payload: bytes) -> dict[str, object]:
    """A message's JSON object. An empty payload is the empty message."""
    if not payload:
        return {}
    try:
        value = json.loads(payload.decode())
    except (ValueError, RecursionError) as problem:
        raise invalid(f"unmarshal message: {problem}") from None
    if not isinstance(value, dict):
        raise invalid("unmarshal message: a JSON object is expected")
    return value
