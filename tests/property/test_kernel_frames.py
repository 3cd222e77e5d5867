"""The wire to a kernel: whatever comes over it is a known message or an error, however it is cut."""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit.local.interpreter import _frames
from sandboxkit.local.interpreter._events import CellLines, Gone, Printed
from sandboxkit.local.interpreter._frames import Began, Decoder, Ended, FrameError, Message, Ready, Shown, frame

numbers = st.integers(0, 2**53)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from(["text", "png", "json", "extra"]), json_values, min_size=1).map(
    lambda value: json.dumps(value).encode()
)
errors = st.fixed_dictionaries({"name": st.text(), "value": st.text(), "traceback": st.text()}).map(
    lambda value: json.dumps(value).encode()
)
messages = st.one_of(
    st.just(Ready()),
    st.builds(Began, numbers, numbers),
    st.builds(Shown, numbers, st.just("result"), fields),
    st.builds(Shown, numbers, st.just("error"), errors),
    st.builds(Ended, numbers, st.booleans()),
)


def encoded(message: Message) -> bytes:
    """A message as a kernel sends it."""
    match message:
        case Ready():
            return frame({"op": "ready"})
        case Began(cell, count):
            return frame({"op": "began", "cell": cell, "count": count})
        case Shown(cell, kind, body):
            return frame({"op": kind, "cell": cell}, body)
        case Ended(cell, exiting):
            return frame({"op": "ended", "cell": cell, "exiting": exiting})


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The same bytes in pieces."""
    edges = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(messages, max_size=6), st.lists(st.integers(0, 2000), max_size=12))
def test_messages_arrive_as_they_were_sent_however_they_are_cut(sent: list[Message], places: list[int]) -> None:
    """Any cutting of the stream gives the same messages, and nothing is kept once the last one is whole."""
    decoder = Decoder()
    received = [m for piece in cut(b"".join(map(encoded, sent)), places) for m in decoder.feed(piece)]
    assert received == sent
    assert decoder.kept == 0


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_messages_or_an_error(pieces: list[bytes]) -> None:
    """Random bytes raise nothing but FrameError."""
    decoder = Decoder()
    try:
        for piece in pieces:
            decoder.feed(piece)
    except FrameError:
        return
    assert decoder.kept <= sum(map(len, pieces))


@given(json_values, st.binary(max_size=100))
@example({"op": "began", "cell": True, "count": 1}, b"")
@example({"op": "ended", "cell": 1, "exiting": 1}, b"")
@example({"op": "result", "cell": -1}, b'{"text": "x"}')
@example({"op": "result", "cell": 1}, b'{"type": "end_of_execution"}')
@example({"op": "result", "cell": 1}, b'{"text": "x"}\n{"type": "error"}')
@example({"op": "result", "cell": 1}, b'{"text": "x"} {}')
@example({"op": "result", "cell": 1}, b'{"' + b'a":{"' * 100_000 + b"}")
@example({"op": "error", "cell": 1}, b'{"name": "x"}')
def test_any_head_and_body_are_a_message_or_an_error(head: Any, body: bytes) -> None:
    """Frames that are well-formed on the outside hold a known message, or raise FrameError."""
    if not isinstance(head, dict):
        head = {"op": head}
    try:
        (message,) = Decoder().feed(frame(head, body))
    except FrameError:
        return
    assert head["op"] in ("ready", "began", "result", "error", "ended")
    if isinstance(message, Shown):
        assert "type" not in json.loads(message.fields)


@pytest.mark.parametrize("lengths", [(_frames.MAX_HEAD + 1, 0), (0, _frames.MAX_BODY + 1), (2**32 - 1, 2**32 - 1)])
def test_a_frame_that_is_announced_too_large_is_refused_at_once(lengths: tuple[int, int]) -> None:
    """The lengths alone decide: nothing of such a frame is waited for."""
    with pytest.raises(FrameError, match="too large"):
        Decoder().feed(struct.pack("!II", *lengths))


@pytest.mark.parametrize("head", [b"", b"[]", b"{", b'"x"', b"null", b"{}", b'{"op": []}', b"[" * 60_000])
def test_a_head_that_is_no_object_of_ours_is_refused(head: bytes) -> None:
    """Everything but the heads of the wire is an error."""
    with pytest.raises(FrameError):
        Decoder().feed(struct.pack("!II", len(head), 0) + head)


@given(
    st.lists(
        st.one_of(
            st.builds(Printed, st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=20)),
            st.builds(Shown, st.integers(0, 2), st.just("result"), fields),
            st.builds(Began, st.integers(0, 2), numbers),
        ),
        max_size=10,
    ),
    st.sampled_from([Ended(1, False), Gone(), Gone("x")]),
    st.integers(1, 4),
)
def test_lines_say_what_came_for_their_cell_and_nothing_else(items: list[Any], last: Any, step: int) -> None:
    """Every line is JSON in ASCII; output comes whole and in order, results of other cells do not come at all."""
    cell = CellLines(1)
    lines: list[bytes] = []
    items = [*items, last]
    for start in range(0, len(items), step):
        lines += cell.feed(items[start : start + step], timestamp="now")
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 and line.isascii() for line in lines)
    events = [json.loads(line) for line in lines]
    for stream in ("stdout", "stderr"):
        printed = b"".join(item.data for item in items if isinstance(item, Printed) and item.stream == stream)
        told = "".join(event["text"] for event in events if event["type"] == stream)
        assert told == printed.decode("utf-8", "replace")
    mine = [item for item in items if isinstance(item, Shown) and item.cell == 1]
    assert [event for event in events if event["type"] == "result"] == [
        {"type": "result", **json.loads(item.fields)} for item in mine
    ]
    assert (cell.ended is not None) == isinstance(last, Ended)
    assert (cell.gone is not None) == isinstance(last, Gone)
