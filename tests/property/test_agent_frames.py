"""The frames between engine and agent: whatever goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.isolation._base import AgentError
from sandboxkit.local.isolation.link._channel import to_bytes, to_text

fields = st.lists(st.one_of(st.binary(max_size=200), st.integers(-(10**18), 10**18)), max_size=30)


@given(fields)
def test_round_trip(given_fields: list[bytes | int]) -> None:
    """Byte strings and numbers survive packing and unpacking."""
    unpacked = wire.unpack(wire.pack(given_fields))
    assert len(unpacked) == len(given_fields)
    for sent, got in zip(given_fields, unpacked, strict=True):
        assert (got if isinstance(sent, bytes) else wire.number(got)) == sent


@given(st.binary(max_size=300))
@example(b"\0\0\0\5ab")
@example(b"\xff\xff\xff\xff")
@example(b"\0\0")
def test_unpack_refuses_or_reads_all(payload: bytes) -> None:
    """Any bytes are either a payload, which packs to the same again, or a ValueError."""
    try:
        got = wire.unpack(payload)
    except ValueError:
        return
    assert wire.pack(got) == payload


@given(st.binary(max_size=30))
@example(b" 1")
@example(b"1_0")
@example(b"+1")
@example(b"\xd9\xa1")
@example(b"--1")
@example(b"1" * 30)
def test_number_is_strict(field: bytes) -> None:
    """A number is digits with at most a minus, and nothing else that int() would take."""
    try:
        value = wire.number(field)
    except ValueError:
        return
    assert str(value).encode().lstrip(b"-") == field.lstrip(b"-").lstrip(b"0") or value == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 3), st.integers(-2, 2))
def test_packets_carry_everything(request: int, kind: int, whole: int, more: int) -> None:
    """A message of any size is cut so that its pieces join to it, and only the last says that it is the last."""
    payload = bytes(max(0, whole * wire.MAX_PACKET + more))
    cut = wire.packets(request, kind, payload)
    heads = [wire.HEADER.unpack_from(packet) for packet in cut]
    assert [(r, k) for r, k, _ in heads] == [(request, kind)] * len(cut)
    assert [flag for _, _, flag in heads] == [wire.MORE] * (len(cut) - 1) + [0]
    assert b"".join(packet[wire.HEADER.size :] for packet in cut) == payload
    assert all(len(packet) <= wire.MAX_PACKET + wire.HEADER.size for packet in cut)


@given(st.binary(max_size=100).filter(lambda data: b"\0" not in data))
def test_names_are_lossless(name: bytes) -> None:
    """Every name that a file system may hold has a text, and comes back from it."""
    assert to_bytes(to_text(name)) == name


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "\udc00\ud800"])
def test_impossible_names(name: str) -> None:
    """What cannot be a name is refused before it is sent."""
    with pytest.raises(AgentError):
        to_bytes(name)
