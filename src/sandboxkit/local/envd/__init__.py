"""E2B's in-sandbox services over HTTP: processes, file system, /files."""
