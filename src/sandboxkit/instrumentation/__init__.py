"""Listeners of events: structured logs now, OpenTelemetry later."""
