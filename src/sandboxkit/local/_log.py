"""The engine's log: one line for each event, `name key=value ...`, on standard error.

No line carries code, output, environment values, metadata or keys: callers pass ids, names, numbers and durations.
"""

from __future__ import annotations

import json
import logging
import sys

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


def configure(level: str) -> None:
    """Send what the engine and its HTTP server say to standard error. Called once, by the engine's own process."""
    handler = logging.StreamHandler(sys.stderr)
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
