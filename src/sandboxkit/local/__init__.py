"""The embedded engine: a program of its own that speaks E2B's wire protocol."""
