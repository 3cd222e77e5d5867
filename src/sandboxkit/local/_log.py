"""The engine's log: one line for each event, `name key=value ...`, on standard error.

No line carries code, output, environment values, metadata or keys: callers pass ids, names, numbers and durations.

The log never holds the engine up. Standard error may be a pipe whose reader has stopped, a file on a full disk, or
closed: what cannot be written at once is dropped, and how many lines that were is said when there is room again.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from typing import TextIO

logger = logging.getLogger("sandboxkit.local")


def log(level: int, event: str, *, exc_info: bool = False, **facts: object) -> None:
    """Write one event with its facts."""
    if logger.isEnabledFor(level):
        words = [event, *(f"{name}={_shown(value)}" for name, value in facts.items() if value is not None)]
        logger.log(level, "%s", " ".join(words), exc_info=exc_info)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    text = str(value)
    return text if text and text.isprintable() and not set(text) & {" ", '"', "="} else json.dumps(text)


class Unhurried(logging.Handler):
    """Writes to a descriptor what it takes at once, and drops the rest.

    Whether it takes something is asked before each piece. A piece is no longer than what a pipe that is writable has
    room for, so that no write waits, and the descriptor, which other programs may share, can stay a blocking one.
    """

    PIECE = select.PIPE_BUF

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self.dropped = 0
        """Lines lost since the last one that was written."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as dropped."""
        text = self.format(record)
        if self.dropped:
            # On a line of its own: the last one that was dropped may have been begun.
            text = f"\n{self.dropped} lines of this log were dropped: nobody read them, or there was no room\n{text}"
        if self._write(f"{text}\n".encode(errors="backslashreplace")):
            self.dropped = 0
        else:
            self.dropped += 1

    def _write(self, data: bytes) -> bool:
        """Write all of it; False where that was not possible without waiting."""
        try:
            descriptor = self._stream.fileno()
            asked = select.poll()
            asked.register(descriptor, select.POLLOUT)
            for at in range(0, len(data), self.PIECE):
                piece = data[at : at + self.PIECE]
                if asked.poll(0) != [(descriptor, select.POLLOUT)] or os.write(descriptor, piece) != len(piece):
                    return False
        except (OSError, ValueError):  # full, closed, or gone
            return False
        return True


def configure(level: str) -> None:
    """Send what the engine and its HTTP server say to standard error. Called once, by the engine's own process."""
    handler = Unhurried(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logger.setLevel(level.upper())
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    # The gateway ends a response short when its sandbox is lost, and says nothing to a client that has gone.
    return record.msg not in (
        "ASGI callable returned without completing response.",
        "ASGI callable returned without starting response.",
        "Invalid HTTP request received.",
        "Unsupported upgrade request.",
    )
