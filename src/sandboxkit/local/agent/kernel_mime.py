"""MIME bundles as E2B's fields, and those as one line of JSON: pure, and quick for the usual result."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}
BINARY = {"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"}
DERIVED = ("json", "data", "chart")
"""Fields that are added to what a value shows of itself; the first to go when a result is too large."""


def fields(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """Name each form of a MIME bundle as E2B does; what E2B has no name for goes into `extra`."""
    named: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for mime, value in bundle.items():
        if isinstance(value, bytes | bytearray):
            value = base64.b64encode(value).decode() if mime in BINARY else bytes(value).decode("utf-8", "replace")
        if mime in FIELDS:
            named[FIELDS[mime]] = value
        else:
            extra[mime] = value
    text = named.get("text")
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        # The representation of a string: E2B gives the string.
        named["text"] = text[1:-1]
    if extra:
        named["extra"] = extra
    return named


def encode(value: Mapping[str, Any]) -> bytes:
    """Write as JSON in ASCII, on one line, whatever it holds.

    Text beyond ASCII is escaped: clients cut the stream into lines at characters that JSON need not escape.
    NaN and the infinities become null, what JSON has no form for becomes its text.
    """
    if all(isinstance(part, str | bool | int | None) for part in value.values()):
        return json.dumps(value).encode()
    try:
        import orjson  # type: ignore[import-not-found]

        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        encoded = orjson.dumps(value, default=str, option=options)
        return encoded if encoded.isascii() else json.dumps(orjson.loads(encoded)).encode()
    except (ImportError, TypeError, ValueError, RecursionError):
        # No orjson in this environment, or something that it does not take: integers beyond 64 bits, say.
        return json.dumps(_plain(value, depth=0), allow_nan=False).encode()


def _plain(value: Any, *, depth: int) -> Any:
    """Rebuild a value from what JSON knows; text for everything else, and for what is nested without end."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        # Python itself does not read longer decimal numbers than some 4,300 digits.
        return int(value) if value.bit_length() < 10_000 else hex(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth < 200:
        if isinstance(value, Mapping):
            return {str(key): _plain(part, depth=depth + 1) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(part, depth=depth + 1) for part in value]
    return str(type(value)) if depth >= 200 else str(value)
