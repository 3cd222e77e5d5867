"""The engine's log on descriptors that take nothing: it never waits, and says later what it lost."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from sandboxkit.local._log import Unhurried

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the engine runs on Linux")


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """Both ends of a pipe; the far one is a blocking stream."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def record(text: str) -> logging.LogRecord:
    """A line to be logged."""
    return logging.LogRecord("engine", logging.INFO, "", 0, text, None, None)


def drained(reading: int) -> bytes:
    """All that is in the pipe."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(reading, 65_536):
            data += piece
    return data


def test_lines_are_written(pipe: tuple[int, TextIO]) -> None:
    """Lines come out as they are, long ones and strange characters too."""
    handler = Unhurried(pipe[1])
    for text in ("one", "two \ud800", "x" * 20_000):
        handler.emit(record(text))
    assert drained(pipe[0]) == b"one\ntwo \\ud800\n" + b"x" * 20_000 + b"\n"
    assert handler.dropped == 0


@pytest.mark.timeout(10)
def test_a_full_pipe_holds_nobody_up(pipe: tuple[int, TextIO]) -> None:
    """What does not fit is dropped at once; how many lines that were is said when there is room again."""
    handler = Unhurried(pipe[1])
    for _ in range(100):
        handler.emit(record("y" * 3000))
    dropped = handler.dropped
    assert dropped > 70
    drained(pipe[0])
    handler.emit(record("again"))
    assert f"{dropped} lines of this log were dropped".encode() in (said := drained(pipe[0]))
    assert said.endswith(b"\nagain\n")
    assert handler.dropped == 0


def test_nobody_is_there() -> None:
    """A pipe without a reader and a stream that was closed are no errors."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        handler = Unhurried(stream)
        handler.emit(record("to nobody"))
    handler.emit(record("to a closed stream"))
    assert handler.dropped == 2


def test_a_full_disk() -> None:
    """A device without room is no error."""
    with open("/dev/full", "w") as full:
        handler = Unhurried(full)
        handler.emit(record("no room"))
        assert handler.dropped == 1
