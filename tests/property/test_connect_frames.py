"""The Connect protocol's envelopes and JSON, against whatever bytes a peer may send."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit.local.envd._connect import (
    FLAG_END,
    HTTP_STATUS,
    Code,
    ConnectError,
    EnvelopeReader,
    basic_user,
    check_headers,
    end_of_stream,
    envelope,
    keepalive_of,
    load,
    timeout_of,
)
from sandboxkit.local.envd._proto_json import Message

payloads = st.lists(st.binary(max_size=200), max_size=8)


def refusal(call: Callable[[], object]) -> str | None:
    """The code that a call is refused with; None when it is not. Any other exception passes."""
    try:
        call()
    except ConnectError as error:
        return error.code
    return None


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """Cut data into pieces of the given sizes; the rest comes as one."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


@given(payloads, st.lists(st.integers(0, 50), max_size=40))
def test_envelopes_survive_any_cutting(messages: list[bytes], sizes: list[int]) -> None:
    """However the transport cuts the bytes, the same payloads come out, in order."""
    wire = b"".join(map(envelope, messages))
    reader = EnvelopeReader()
    found = [payload for piece in cut(wire, sizes) for payload in reader.feed(piece)]
    reader.finish()
    assert found == messages


@given(payloads, st.data())
def test_a_stream_cut_short_is_told(messages: list[bytes], data: st.DataObject) -> None:
    """A body that ends inside an envelope is invalid_argument, and one that ends between two is not."""
    wire = b"".join(map(envelope, messages))
    ends = [0]
    for message in messages:
        ends.append(ends[-1] + 5 + len(message))
    at = data.draw(st.integers(0, len(wire)))
    reader = EnvelopeReader()
    list(reader.feed(wire[:at]))
    if at in ends:
        reader.finish()
    else:
        with pytest.raises(ConnectError) as caught:
            reader.finish()
        assert caught.value.code == "invalid_argument"


@given(st.lists(st.binary(max_size=64), max_size=10))
@example([b"\x01\x00\x00\x00\x00"])
@example([b"\x00\xff\xff\xff\xff"])
@example([b"\x02\x00\x00\x00\x00"])
def test_garbage_is_a_connect_error_or_payloads(pieces: list[bytes]) -> None:
    """No bytes make the reader raise anything but ConnectError, nor hold more than a message may be long."""
    reader = EnvelopeReader(max_message=32)

    def read() -> None:
        for piece in pieces:
            assert all(len(payload) <= 32 for payload in reader.feed(piece))
        reader.finish()

    assert refusal(read) in (None, "invalid_argument", "resource_exhausted")


def test_a_message_that_is_too_long_is_refused_before_it_comes() -> None:
    """The length alone is enough to refuse a message: its bytes are not waited for."""
    with pytest.raises(ConnectError) as caught:
        list(EnvelopeReader(max_message=10).feed(b"\x00\x00\x00\x00\x0b"))
    assert caught.value.code == "resource_exhausted"


@pytest.mark.parametrize("flags", [1, 3])
def test_compressed_envelopes_are_refused(flags: int) -> None:
    """We offer no compression, so a compressed message is a protocol error that says so."""
    with pytest.raises(ConnectError, match="compressed"):
        list(EnvelopeReader().feed(envelope(b"x", flags)))


def test_the_end_of_a_stream_says_its_error() -> None:
    """The last envelope has flag 2 and carries code and message."""
    wire = end_of_stream(ConnectError("not_found", "no such thing"))
    assert wire[0] == FLAG_END
    assert json.loads(wire[5:]) == {"error": {"code": "not_found", "message": "no such thing"}}
    assert end_of_stream()[5:] == b"{}"


def test_every_code_has_a_status() -> None:
    """Each of the protocol's sixteen codes has its HTTP status, and no other has."""
    assert set(HTTP_STATUS) == set(Code.__args__)
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


# -- headers ------------------------------------------------------------------------------------------------------


@given(st.text(max_size=12))
@example("")
@example("0")
@example("99999999999")
@example("-1")
@example("1_0")
@example("٣")
def test_a_timeout_is_digits_or_refused(text: str) -> None:
    """Connect-Timeout-Ms is at most ten ASCII digits; 0 and nothing mean no deadline, the rest is invalid_argument."""
    headers = {"connect-timeout-ms": text}
    if text == "" or re.fullmatch("[0-9]{1,10}", text, re.ASCII):
        assert timeout_of(headers) == (int(text or 0) / 1000 or None)
    else:
        assert refusal(lambda: timeout_of(headers)) == "invalid_argument"


@given(st.text(max_size=12))
def test_a_keepalive_is_always_a_usable_interval(text: str) -> None:
    """Whatever the header says, the interval is a positive finite number of seconds."""
    seconds = keepalive_of({"keepalive-ping-interval": text})
    assert seconds > 0
    assert math.isfinite(seconds)


def test_other_protocol_versions_and_codings_are_refused_by_name() -> None:
    """The refusal of a version or a compression names what was asked for."""
    with pytest.raises(ConnectError, match="'2'"):
        check_headers({"connect-protocol-version": "2"}, stream=False)
    with pytest.raises(ConnectError, match="zstd") as caught:
        check_headers({"connect-content-encoding": "zstd"}, stream=True)
    assert caught.value.code == "unimplemented"
    check_headers({"content-encoding": "identity", "connect-protocol-version": "1"}, stream=False)


@given(st.text(max_size=30).filter(lambda name: ":" not in name))
def test_basic_credentials_name_their_user(name: str) -> None:
    """The user is what stands before the first colon, whatever its letters."""
    encoded = base64.b64encode(f"{name}:secret:with:colons".encode()).decode()
    assert basic_user(f"Basic {encoded}") == name


@given(st.text(max_size=30))
@example("Basic")
@example("Basic !!!")
@example("Basic /w==")
def test_unreadable_credentials_name_nobody(header: str) -> None:
    """A header that is no readable Basic header counts as none, and raises nothing."""
    if not header.lower().startswith("basic "):
        assert basic_user(header) is None
    else:
        basic_user(header)


# -- JSON ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=10,
)


@given(st.binary(max_size=100))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xff")
@example(b"1" * 5000)
@example(b'{"pid": ' + b"9" * 5000 + b"}")
def test_any_payload_is_an_object_or_refused(payload: bytes) -> None:
    """A payload that is no JSON object is invalid_argument, never another exception."""
    assert refusal(lambda: load(payload)) in (None, "invalid_argument")


@given(json_values)
@example("\ud800")
@example([1])
@example({"a": 1})
@example(float("nan"))
@example(float("inf"))
def test_a_field_of_any_type_is_read_or_refused(value: Any) -> None:
    """Reading a field as any type gives that type or invalid_argument, never another exception."""
    message = Message({"someField": value})
    readers = [
        lambda: message.text("some_field"),
        lambda: message.texts("some_field"),
        lambda: message.text_map("some_field"),
        lambda: message.optional_flag("some_field"),
        lambda: message.uint32("some_field"),
        lambda: message.enum("some_field", {"ONE": 1}),
        lambda: message.octets("some_field"),
        lambda: message.message("some_field").has("x"),
        lambda: message.one_of("some_field", "other"),
    ]
    assert {refusal(read) for read in readers} <= {None, "invalid_argument"}


@given(st.binary(max_size=100), st.booleans(), st.booleans())
def test_bytes_are_base64_of_either_alphabet(data: bytes, urlsafe: bool, padded: bool) -> None:
    """proto3 JSON takes standard and URL-safe base64, with and without padding."""
    encoded = (base64.urlsafe_b64encode if urlsafe else base64.b64encode)(data).decode()
    assert Message({"stdin": encoded if padded else encoded.rstrip("=")}).octets("stdin") == data


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_integers_may_be_strings(number: int, as_text: bool) -> None:
    """A uint32 is read from a number and from a string."""
    assert Message({"pid": str(number) if as_text else number}).uint32("pid") == number


@pytest.mark.parametrize("value", [-1, 2**32, "-1", "1.5", 1.5, True, "", "0x1", [], {}])
def test_numbers_outside_are_refused(value: object) -> None:
    """What no uint32 can be is invalid_argument."""
    with pytest.raises(ConnectError):
        Message({"pid": value}).uint32("pid")


def test_fields_are_known_by_both_names_and_null_is_absent() -> None:
    """proto3 JSON accepts lowerCamelCase and the .proto file's name; null counts as not set; the rest is ignored."""
    assert Message({"watcherId": "a"}).text("watcher_id") == "a"
    assert Message({"watcher_id": "a"}).text("watcher_id") == "a"
    assert Message({"cwd": None, "unknown": 1}).optional_text("cwd") is None
    assert Message({"signal": "SIGNAL_SIGKILL"}).enum("signal", {"SIGNAL_SIGKILL": 9}) == 9
    assert Message({"signal": 9}).enum("signal", {"SIGNAL_SIGKILL": 9}) == 9


def test_two_members_of_a_oneof_are_refused() -> None:
    """A selector by pid and by tag at once is invalid_argument."""
    with pytest.raises(ConnectError, match="only one"):
        Message({"pid": 1, "tag": "x"}).one_of("pid", "tag")


def test_a_lone_surrogate_is_no_text() -> None:
    """Text that no UTF-8 can carry is refused, as protobuf refuses it."""
    with pytest.raises(ConnectError, match="Unicode"):
        Message.parse(b'{"path": "\\ud800"}').text("path")
