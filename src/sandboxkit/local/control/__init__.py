"""E2B's control plane: the REST API, the registry, the sandboxes' lives."""
