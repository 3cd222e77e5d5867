"""The engine's own place on the host: its namespaces, its tmpfs, and what a dead engine left there."""
