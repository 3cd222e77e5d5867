"""Listeners of events: structured logs now, OpenTelemetry later."""

from sandboxkit.instrumentation._emit import emitter
from sandboxkit.instrumentation._log import log_event

__all__ = ["emitter", "log_event"]
