"""Removes trees that somebody hostile has written: nested as deep as they like, closed, with links to anywhere."""

from __future__ import annotations

import os

from sandboxkit.local.agent import _removal

ATTEMPTS = 5
"""Who is still at work in a tree may put something there while it is removed."""


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a directory with all that is in it, as far as that is possible. Not path by path, but through open
    directories: so it follows no link, and needs no call for each level as Python's own does before 3.13."""
    for _ in range(ATTEMPTS):
        try:
            for _ in _removal.remove(os.fsencode(path), None):
                pass
        except OSError:
            continue
        return
