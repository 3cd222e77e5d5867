"""What a bubblewrap is given and what it tells: descriptors, its words, its child."""

from __future__ import annotations

import os
import select
from pathlib import Path

ERRORS_KEPT = 4096


def memory_file(data: bytes) -> int:
    """A descriptor from which `data` can be read."""
    fd = os.memfd_create("sandboxkit", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def only_child(pid: int) -> int:
    """The one process that bubblewrap has started. ValueError where that is not so."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    if len(children) != 1:
        raise ValueError(f"bubblewrap has {len(children)} children")
    return int(children[0])


def said(errors: int) -> str:
    """What bubblewrap wrote to its standard error so far."""
    if not select.select([errors], [], [], 0.05)[0]:
        return ""
    return os.read(errors, ERRORS_KEPT).decode("utf-8", "replace").strip()
