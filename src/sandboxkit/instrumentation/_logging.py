"""One structured log record for each event, under the logger `sandboxkit`.

The record's message is readable; its `extra` fields (`event`, `pool`, `session`, `sandbox_id`, `template`,
`duration`, `error`) are for machines. Events carry no code, output, environment values or keys, so neither do records.
"""

from __future__ import annotations

import logging

from sandboxkit.events import Event

_LEVELS = {
    "sandbox.create_failed": logging.WARNING,
    "sandbox.kill_failed": logging.WARNING,
    "sandbox.lost": logging.WARNING,
    "session.conflict": logging.WARNING,
    "path.refused": logging.WARNING,
    "sandbox.creating": logging.DEBUG,
    "sandbox.renewed": logging.DEBUG,
    "code.started": logging.DEBUG,
    "command.started": logging.DEBUG,
    "fragment.step": logging.DEBUG,
}


def log_event(event: Event) -> None:
    """Log an event: failures as WARNING, beginnings and renewals as DEBUG, everything else as INFO."""
    logger = logging.getLogger(f"sandboxkit.{event.name.partition('.')[0]}")
    level = _LEVELS.get(event.name, logging.INFO)
    if not logger.isEnabledFor(level):
        return
    facts = {"session": event.session, "sandbox": event.sandbox_id, "template": event.template, **event.data}
    shown = " ".join(f"{name}={_shown(value)}" for name, value in facts.items() if value is not None)
    fields = {
        "event": event.name,
        "pool": event.pool,
        "session": event.session,
        "sandbox_id": event.sandbox_id,
        "template": event.template,
        "duration": event.data.get("duration"),
        "error": event.data.get("error"),
    }
    logger.log(level, "%s %s", event.name, shown, extra=fields)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    # Keys and paths are the users' own text: quoted and in ASCII, so that none can forge a line of the log.
    return ascii(value) if isinstance(value, str) and not value.replace("-", "").replace(".", "").isalnum() else str(value)
