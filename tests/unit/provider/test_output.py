"""The bound on kept output."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit._types import Result
from sandboxkit.errors import ConfigurationError, OutputTooLarge
from sandboxkit.provider._output import OutputKeeper, result_size

TEXTS = st.text(st.characters(), max_size=30)
PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), TEXTS), max_size=40)


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


@given(PIECES, st.integers(1, 200))
@example([("stdout", "é" * 30), ("stderr", "x" * 30)], 61)
@example([("stdout", "\ud800")], 3)
@example([("stdout", "\ud800")], 2)
def test_keeps_all_or_says_so(pieces: list[tuple[str, str]], limit: int) -> None:
    """Everything is kept, in order and by stream, while it fits; the first byte too many raises, never before."""
    keeper = OutputKeeper(limit)
    came = 0
    for n, (stream, text) in enumerate(pieces):
        came += _size(text)
        if came > limit:
            with pytest.raises(OutputTooLarge) as caught:
                keeper.add(stream, text)  # type: ignore[arg-type]
            whole = "".join(t for _, t in pieces[: n + 1]).encode("utf-8", "surrogatepass")
            assert _size(caught.value.head) + _size(caught.value.tail) <= limit + limit % 2
            assert whole.startswith(caught.value.head.encode()) or b"\xed" in whole
            assert whole.endswith(caught.value.tail.encode()) or b"\xed" in whole
            return
        keeper.add(stream, text)  # type: ignore[arg-type]
    assert keeper.seen == came
    for stream, kept in (("stdout", keeper.stdout), ("stderr", keeper.stderr)):
        assert kept == "".join(text for name, text in pieces if name == stream)


@given(st.integers(2, 100), st.integers(1, 500))
def test_head_and_tail_do_not_overlap(limit: int, more: int) -> None:
    """Half of the limit each, from both ends, without counting a byte twice."""
    text = "".join(chr(97 + n % 26) for n in range(limit + more))
    with pytest.raises(OutputTooLarge) as caught:
        OutputKeeper(limit).add("stdout", text)
    half = limit // 2
    assert caught.value.head == text[:half]
    assert caught.value.tail == text[-min(half, len(text) - half) :]
    assert str(limit) in str(caught.value)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "1"])
def test_refuses_a_limit_that_is_none(limit: object) -> None:
    """The limit is a positive whole number of bytes."""
    with pytest.raises(ConfigurationError, match="max_output"):
        OutputKeeper(limit)  # type: ignore[arg-type]


def test_all_forms_of_a_result_count() -> None:
    """A result's size is that of all its forms, text and data."""
    assert result_size(Result()) == len("{}")
    assert result_size(Result(text="ab", png="x" * 1000, data={"a": [1, 2]})) > 1000 + len('{"a": [1, 2]}')
