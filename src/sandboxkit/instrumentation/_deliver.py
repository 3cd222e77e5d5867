"""Hands an event to the log, then to each listener, whose failures go no further."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from sandboxkit.events import Event, EventHandler
from sandboxkit.instrumentation._log import log_event

_logger = logging.getLogger("sandboxkit.events")


def deliver(event: Event, handlers: Iterable[EventHandler] = ()) -> None:
    """Write the structured log, then call each handler, in order, here and now.

    What a handler raises is logged and forgotten, and the next one is called: a listener must not change what
    happens. Interrupts and cancellation (whatever is not an `Exception`) pass through.
    """
    log_event(event)
    for handler in handlers:
        try:
            handler(event)
        except Exception:
            _logger.exception("on_event raised on %s", event.name, extra={"op": event.name})
