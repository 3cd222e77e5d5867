"""E2B's code interpreter over HTTP: /execute and /contexts."""
