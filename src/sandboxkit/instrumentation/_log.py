"""Writes events as structured log records under the `sandboxkit` loggers.

Each record has the same extra fields (`None` where an event has no such thing), so that any formatter can print them:

    op          the event's name, such as `sandbox.created`
    pool, session, sandbox_id, template
    duration    seconds, where something took time
    error       the code or the name of an error, never its message

The logger is named after the first half of the event: `sandboxkit.sandbox`, `sandboxkit.session`, `sandboxkit.code`...
Only the fields above and those of `_DETAILS` leave an event. Code, output, file contents, environment values and keys
never do: events are not to carry them, and this list is the second lock.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import Final

from sandboxkit.errors import SandboxkitError
from sandboxkit.events import Event

logging.getLogger("sandboxkit").addHandler(logging.NullHandler())

_LEVELS: Final = {
    "sandbox.create_failed": logging.ERROR,
    "sandbox.kill_failed": logging.ERROR,
    "sandbox.lost": logging.WARNING,
    "session.recovered": logging.WARNING,
    "pool.degraded": logging.WARNING,
    "pool.gave_up": logging.ERROR,
    "pool.recovered": logging.INFO,
    "pool.drained": logging.INFO,
    "pool.resized": logging.INFO,
    "sandbox.reaped": logging.INFO,
    "sandbox.paused": logging.INFO,
    "sandbox.resumed": logging.INFO,
    "session.conflict": logging.WARNING,
    "path.refused": logging.WARNING,
    "pool.opened": logging.INFO,
    "pool.closed": logging.INFO,
    "sandbox.created": logging.INFO,
    "sandbox.reused": logging.INFO,
    "sandbox.killed": logging.INFO,
    "session.opened": logging.INFO,
    "session.released": logging.INFO,
    "fragment.finished": logging.INFO,
}
"""Every other event is DEBUG; one that carries an error is a WARNING at least."""

_DETAILS: Final = ("source", "reason", "exit_code", "end_at", "step", "code", "path")
"""What of an event's own data is printed, where it is a short word or a number."""

_WORD = re.compile(r"[A-Za-z0-9_.:+-]{1,80}", re.ASCII)


def is_logged(name: str, error: object = None) -> bool:
    """Whether anybody reads the log of such an event; `error` as its data has it."""
    return _logger(name).isEnabledFor(_level(name, error))


def log_event(event: Event) -> None:
    """Write one event to the log."""
    error = _error_name(event.data.get("error"))
    logger, level = _logger(event.name), _level(event.name, error)
    if not logger.isEnabledFor(level):
        return
    duration = event.data.get("duration")
    duration = float(duration) if isinstance(duration, int | float) else None
    extra = {
        "op": event.name,
        "pool": event.pool,
        "session": event.session,
        "sandbox_id": event.sandbox_id,
        "template": event.template,
        "duration": duration,
        "error": error,
    }
    logger.log(level, "%s", _sentence(event, duration, error), extra=extra)


@functools.cache  # of the few names that there are: looking a logger up takes a lock
def _logger(name: str) -> logging.Logger:
    return logging.getLogger(f"sandboxkit.{name.partition('.')[0]}")


def _level(name: str, error: object) -> int:
    level = _LEVELS.get(name, logging.DEBUG)
    return level if error is None or error is False else max(level, logging.WARNING)


def _sentence(event: Event, duration: float | None, error: str | None) -> str:
    words = [event.name.replace(".", " ").replace("_", " ")]
    for name in ("pool", "session", "sandbox_id", "template"):
        if (value := getattr(event, name)) is not None:
            words.append(f"{name}={_printable(value)}")
    for name in _DETAILS:
        if (value := event.data.get(name)) is not None:
            words.append(f"{name}={_printable(value)}")
    if duration is not None:
        words.append(f"duration={duration:.3f}s")
    if error is not None:
        words.append(f"error={error}")
    return " ".join(words)


def _printable(value: object) -> str:
    """A value as it may stand in a log line: names and paths come from users, and must not forge a line."""
    text = str(value)
    return text if _WORD.fullmatch(text) else ascii(text[:200])


def _error_name(error: object) -> str | None:
    if error is None or error is False:
        return None
    if isinstance(error, SandboxkitError):
        return error.code
    if isinstance(error, BaseException):
        return type(error).__name__
    # Some events name the error by a word. A sentence may quote the user's code, so it does not leave here.
    return error if isinstance(error, str) and _WORD.fullmatch(error) else "error"
