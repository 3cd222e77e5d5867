"""What a kernel makes of MIME bundles: E2B's fields, and one line of JSON whatever they hold."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.agent.kernel_mime import encode, fields


def test_each_mime_type_has_its_field_and_others_are_extra() -> None:
    """Known types get E2B's names; the rest stays under its own."""
    bundle = {"text/plain": "t", "text/html": "h", "image/png": b"\x89", "image/gif": b"G", "application/x": {"a": 1}}
    assert fields(bundle) == {
        "text": "t",
        "html": "h",
        "png": "iQ==",
        "extra": {"image/gif": "Rw==", "application/x": {"a": 1}},
    }


@pytest.mark.parametrize(("plain", "text"), [("'a'", "a"), ('"it\'s"', "it's"), ("'", "'"), ("'a\"", "'a\""), ("", "")])
def test_the_quotes_of_a_string_are_taken_off(plain: str, text: str) -> None:
    """A string's representation becomes the string, as E2B does it; single quotes stay."""
    assert fields({"text/plain": plain}) == {"text": text}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ([float("nan"), float("inf"), 1.5], [None, None, 1.5]),
        ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
        ([10**30], [10**30]),
        ({"x": {1: 10**30, "nan": float("nan")}}, {"x": {"1": 10**30, "nan": None}}),
        ([datetime.date(2026, 1, 2)], ["2026-01-02"]),
        ((1, 2), [1, 2]),
        ("\u2028é\x85", "\u2028é\x85"),
        ("\ud800", "\ud800"),
    ],
)
def test_what_json_cannot_say_is_said_otherwise(value: Any, written: Any) -> None:
    """NaN becomes null, keys become text, other values their text; nothing fails."""
    line = encode({"json": value})
    assert line.isascii()
    found = json.loads(line)["json"]
    # Without orjson, as here, the key None is written as Python spells it.
    assert found == written or found == {"1": "a", "None": "b"}


def test_a_number_beyond_what_can_be_read_is_text() -> None:
    """An integer with more digits than Python reads is written in hexadecimal."""
    assert json.loads(encode({"json": [1 << 20_000]}))["json"] == [hex(1 << 20_000)]


def test_a_value_that_holds_itself_is_cut_off() -> None:
    """A list inside itself does not hang or fail."""
    endless: list[Any] = []
    endless.append(endless)
    assert encode({"json": endless}).startswith(b'{"json": [[[')


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    )
)
def test_anything_is_one_line_of_json_in_ascii(value: Any) -> None:
    """Whatever a user's value holds, the line can be sent and read."""
    line = encode({"json": value, "is_main_result": True})
    assert line.isascii()
    assert b"\n" not in line
    assert json.loads(line)["is_main_result"] is True
