"""Volumes: directories of the engine's that sandboxes share and that are there when they are gone."""
