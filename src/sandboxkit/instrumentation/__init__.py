"""Listeners of events: structured logs now, OpenTelemetry later."""

from sandboxkit.instrumentation._deliver import deliver
from sandboxkit.instrumentation._log import is_logged, log_event

__all__ = ["deliver", "is_logged", "log_event"]
