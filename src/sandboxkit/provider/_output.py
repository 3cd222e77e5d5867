"""What a run printed, kept up to a bound; pure.

A run's output is collected here piece by piece, in order of arrival. While everything fits, all of it is kept. The
piece that goes past the limit is the last one: the run is then stopped by whoever drives it, and the head and the tail
of what came out (half of the limit each) go into OutputTooLarge.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

from sandboxkit._types import Result
from sandboxkit.errors import ConfigurationError, OutputTooLarge

Stream = Literal["stdout", "stderr", "result"]

_FORMS = tuple(field.name for field in dataclasses.fields(Result))


class OutputKeeper:
    """Collects the output of one run, at most `limit` bytes of it (counted as UTF-8)."""

    def __init__(self, limit: int) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ConfigurationError(f"max_output={limit!r}: a positive number of bytes is needed.")
        self.limit = limit
        self.seen = 0
        """Bytes that came, the piece that did not fit among them."""
        self._pieces: list[tuple[Stream, str]] = []

    def add(self, stream: Stream, text: str, *, size: int | None = None) -> None:
        """Take one piece of output, or the text of a result whose forms have `size` bytes together.

        Raises:
            OutputTooLarge: it no longer fits; the run must be stopped. `head` and `tail` hold what was kept.
        """
        self.seen += len(_encode(text)) if size is None else size
        self._pieces.append((stream, text))
        if self.seen > self.limit:
            raise self.too_large()

    @property
    def stdout(self) -> str:
        return self._joined("stdout")

    @property
    def stderr(self) -> str:
        return self._joined("stderr")

    def _joined(self, stream: Stream) -> str:
        return "".join(text for name, text in self._pieces if name == stream)

    def too_large(self) -> OutputTooLarge:
        """The error for a run that went past the limit."""
        everything = _encode("".join(text for _, text in self._pieces))
        half = self.limit // 2
        return OutputTooLarge(
            f"More than max_output={self.limit} bytes came out, and the run was stopped. "
            "Raise max_output, or write to a file and read that.",
            head=_decode(everything[:half]),
            tail=_decode(everything[max(half, len(everything) - half) :]),
            max_output=self.limit,
        )


def result_size(result: Result) -> int:
    """Bytes of all forms of a result together."""
    size = 0
    for form in _FORMS:
        value = getattr(result, form)
        if isinstance(value, str):
            size += len(_encode(value))
        elif value is not None and not isinstance(value, bool):
            size += len(json.dumps(value, default=str))
    return size


def _encode(text: str) -> bytes:
    # Lone surrogates arrive in JSON, and in file names: they are counted, not refused.
    return text.encode("utf-8", "surrogatepass")


def _decode(data: bytes) -> str:
    # A character that was cut in two at either edge is left out.
    return data.decode("utf-8", "ignore")
