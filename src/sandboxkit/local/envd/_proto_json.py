"""Reads the JSON form of a proto3 message, field by field; pure.

The rules: a field is named in lowerCamelCase or as in the .proto file; null is the same as leaving it out; unknown
fields are ignored; bytes are base64 (either alphabet, padding optional); integers may be strings; an enum is its name
or its number. Anything else that a field's type does not allow is `invalid_argument`, and so is a string that is no
Unicode text (a lone surrogate), which protobuf refuses too.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from sandboxkit.local.envd._connect import ConnectError, invalid, load

_INTEGER = re.compile(r"-?[0-9]{1,20}")
_UINT32 = 2**32 - 1


class Message:
    """One message, and where it lies in its request (for the sentences of errors)."""

    def __init__(self, fields: Mapping[str, object], name: str = "") -> None:
        self._fields = fields
        self._name = name

    @classmethod
    def parse(cls, payload: bytes) -> Message:
        """Take a message apart. ConnectError when it is not a JSON object."""
        return cls(load(payload))

    def _get(self, field: str) -> object:
        value = self._fields.get(_camel(field))
        return self._fields.get(field) if value is None else value

    def _bad(self, field: str, expected: str) -> ConnectError:
        return invalid(f"unmarshal message: field {self._path(field)}: {expected} is expected")

    def _path(self, field: str) -> str:
        return f"{self._name}.{_camel(field)}" if self._name else _camel(field)

    def has(self, field: str) -> bool:
        return self._get(field) is not None

    def one_of(self, *fields: str) -> str | None:
        """The one of these fields that is set; None when none is."""
        found = [field for field in fields if self.has(field)]
        if len(found) > 1:
            raise invalid(f"unmarshal message: only one of {', '.join(map(self._path, fields))} may be set")
        return found[0] if found else None

    def optional_text(self, field: str) -> str | None:
        value = self._get(field)
        if value is None:
            return None
        return self._text(field, value)

    def text(self, field: str) -> str:
        return self.optional_text(field) or ""

    def _text(self, field: str, value: object) -> str:
        if not isinstance(value, str):
            raise self._bad(field, "a string")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self._bad(field, "valid Unicode text") from None
        return value

    def texts(self, field: str) -> tuple[str, ...]:
        value = self._get(field)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self._bad(field, "a list of strings")
        return tuple(self._text(field, item) for item in value)

    def text_map(self, field: str) -> dict[str, str]:
        value = self._get(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._bad(field, "an object with string values")
        return {self._text(field, key): self._text(field, item) for key, item in value.items()}

    def optional_flag(self, field: str) -> bool | None:
        value = self._get(field)
        if value is None or isinstance(value, bool):
            return value
        raise self._bad(field, "true or false")

    def uint32(self, field: str) -> int:
        value = self._get(field)
        if value is None:
            return 0
        number = _integer(value)
        if number is None or not 0 <= number <= _UINT32:
            raise self._bad(field, "a number from 0 to 4294967295")
        return number

    def enum(self, field: str, names: Mapping[str, int]) -> int:
        """The number of an enum's value; numbers without a name pass, as proto3 wants."""
        value = self._get(field)
        if value is None:
            return 0
        if isinstance(value, str) and value in names:
            return names[value]
        number = None if isinstance(value, str) else _integer(value)
        if number is None:
            raise self._bad(field, f"one of {', '.join(names)}")
        return number

    def octets(self, field: str) -> bytes:
        value = self._get(field)
        if value is None:
            return b""
        if not isinstance(value, str):
            raise self._bad(field, "base64")
        plain = value.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise self._bad(field, "base64") from None

    def optional_message(self, field: str) -> Message | None:
        value = self._get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._bad(field, "an object")
        return Message(value, self._path(field))

    def message(self, field: str) -> Message:
        """A nested message; the empty one when it is not set."""
        return self.optional_message(field) or Message({}, self._path(field))


def _integer(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    return None


def _camel(field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(word.capitalize() for word in rest)
