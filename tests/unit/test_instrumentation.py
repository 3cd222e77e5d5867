"""Events become log records with fixed fields, and a listener cannot change what happens."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from sandboxkit import errors
from sandboxkit.events import Event
from sandboxkit.instrumentation import deliver, log_event
from sandboxkit.pool._moves import News

FIELDS = {"op", "pool", "session", "sandbox_id", "template", "duration", "error"}


def an_event(name: str, **data: Any) -> Event:
    return Event(
        name=name, at=1.0, pool="p", session="alice", sandbox_id="sb1", template="code-interpreter-v1", data=data
    )


@pytest.mark.parametrize(
    ("event", "level", "logger"),
    [
        (an_event("sandbox.created", duration=0.25), logging.INFO, "sandboxkit.sandbox"),
        (an_event("sandbox.reused"), logging.INFO, "sandboxkit.sandbox"),
        (an_event("sandbox.create_failed", error=errors.RateLimited("x")), logging.ERROR, "sandboxkit.sandbox"),
        (an_event("sandbox.lost", error="sandbox_expired"), logging.WARNING, "sandboxkit.sandbox"),
        (an_event("sandbox.killed", reason="closed"), logging.INFO, "sandboxkit.sandbox"),
        (an_event("code.finished", duration=1, error="ZeroDivisionError"), logging.WARNING, "sandboxkit.code"),
        (an_event("code.finished", duration=1, error=None), logging.DEBUG, "sandboxkit.code"),
        (an_event("path.refused", path="../x", code="path_escape"), logging.WARNING, "sandboxkit.path"),
    ],
    ids=lambda v: v.name if isinstance(v, Event) else None,
)
def test_each_kind_has_its_level_and_fields(
    caplog: pytest.LogCaptureFixture, event: Event, level: int, logger: str
) -> None:
    """Creation, reuse, failure, execution errors and clean-up are logged with session, sandbox, template, duration."""
    with caplog.at_level(logging.DEBUG, "sandboxkit"):
        log_event(event)
    (record,) = caplog.records
    assert (record.levelno, record.name) == (level, logger)
    assert set(record.__dict__) >= FIELDS
    assert record.__dict__["session"] == "alice"
    assert record.__dict__["sandbox_id"] == "sb1"
    assert record.__dict__["op"] == event.name


def test_errors_are_named_not_quoted(caplog: pytest.LogCaptureFixture) -> None:
    """The log has an error's code or class, never its message, which may quote code or keys."""
    secret = "e2b_0123456789 = open('/secret')"
    with caplog.at_level(logging.DEBUG, "sandboxkit"):
        log_event(an_event("sandbox.create_failed", error=errors.AuthenticationFailed(secret)))
        log_event(an_event("code.finished", error=ValueError(secret)))
        log_event(an_event("code.finished", error=secret))
    assert [r.__dict__["error"] for r in caplog.records] == ["authentication_failed", "ValueError", "error"]
    assert secret not in caplog.text


def test_unknown_data_stays_out(caplog: pytest.LogCaptureFixture) -> None:
    """Only listed fields of an event's data reach the log, so that a careless event tells no secret."""
    with caplog.at_level(logging.DEBUG, "sandboxkit"):
        log_event(an_event("code.started", source_code="print('secret')", envs={"TOKEN": "secret"}, stdout="secret"))
    assert "secret" not in caplog.text
    assert not any("secret" in str(value) for value in caplog.records[0].__dict__.values())


def test_a_name_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    """A session key or path with line breaks or escapes is printed escaped, on one line."""
    event = Event(name="path.refused", at=0.0, session="a\nERROR fake", data={"path": "x\x1b[2J\n" * 100})
    with caplog.at_level(logging.DEBUG, "sandboxkit"):
        log_event(event)
    message = caplog.records[0].getMessage()
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 1200


def test_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a logging configuration nothing is printed: the library's logger has a null handler."""
    logger = logging.getLogger("sandboxkit")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert logger.level == logging.NOTSET


def test_handlers_get_every_event_after_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each handler is called with the event itself, once, in order, after the log was written."""
    seen: list[tuple[str, Event, int]] = []
    event = an_event("sandbox.created")
    with caplog.at_level(logging.INFO, "sandboxkit"):
        deliver(event, [lambda e: seen.append(("a", e, len(caplog.records))), lambda e: seen.append(("b", e, 1))])
    assert seen == [("a", event, 1), ("b", event, 1)]


def test_a_raising_handler_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    """What a handler raises is logged with its traceback; the next handler is called, and the teller never sees it."""
    seen: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("listener broke")

    deliver(an_event("session.opened"), [broken, seen.append])
    record = caplog.records[-1]
    assert record.name == "sandboxkit.events"
    assert "session.opened" in record.getMessage()
    assert record.exc_info is not None
    assert len(seen) == 1


def test_an_interrupt_in_a_handler_passes() -> None:
    """Ctrl-C inside a handler is not swallowed."""

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver(an_event("session.opened"), [interrupted])


def test_the_events_are_documented_one_by_one(repository: Path) -> None:
    """Each event that the pool, sessions and fragments tell has its row in the reference, and its name in `events`."""
    source = repository / "src" / "sandboxkit"
    names = r"(?:pool|session|sandbox|code|command|fragment|path)\.[a-z_]+"
    files = [file for room in ("pool", "runner") for file in (source / room).rglob("*.py")]
    told = {name for file in files for name in re.findall(rf'"({names})"', file.read_text(encoding="utf-8"))}
    told |= {f"pool.{news}" for news in get_args(News)}  # the name is put together
    assert {"session.queued", "sandbox.reaped", "fragment.step", "path.refused", "pool.gave_up"} <= told
    page = (repository / "docs" / "reference" / "pool.md").read_text(encoding="utf-8")
    rows = {
        name
        for line in page.splitlines()
        if line.startswith("| `")
        for name in re.findall(rf"`({names})`", line.split("|")[1])
    }
    assert told - {"fragment.log"} == rows
    assert told <= set(re.findall(names, (source / "events.py").read_text(encoding="utf-8")))
