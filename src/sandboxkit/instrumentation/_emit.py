"""Hands each event to the log, then to the caller's handler, whose failures go no further."""

from __future__ import annotations

import inspect
import logging

from sandboxkit.errors import ConfigurationError
from sandboxkit.events import Event, EventHandler
from sandboxkit.instrumentation._log import log_event

_logger = logging.getLogger("sandboxkit.events")


def emitter(on_event: EventHandler | None = None) -> EventHandler:
    """Return the one handler that a pool tells its events.

    It writes the structured log and then calls `on_event`, in the thread and at the moment of the event. What
    `on_event` raises is logged and forgotten: a listener must not change what happens. Interrupts and cancellation
    (anything that is not an `Exception`) pass through.

    Raises:
        ConfigurationError: `on_event` is an async function, which nobody would await here.
    """
    if on_event is None:
        return log_event
    if inspect.iscoroutinefunction(on_event) or inspect.iscoroutinefunction(getattr(on_event, "__call__", None)):  # noqa: B004
        raise ConfigurationError(
            "on_event is called and not awaited; pass a plain function (it may put the event into a queue or a stream)."
        )

    def emit(event: Event) -> None:
        log_event(event)
        try:
            on_event(event)
        except Exception:
            _logger.exception("on_event raised on %s", event.name, extra={"op": event.name})

    return emit
