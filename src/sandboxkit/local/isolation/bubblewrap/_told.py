"""What a bubblewrap is given and what it tells: descriptors, its words."""

from __future__ import annotations

import os
import select

ERRORS_KEPT = 4096


def memory_file(data: bytes) -> int:
    """A descriptor from which `data` can be read."""
    fd = os.memfd_create("sandboxkit", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def said(errors: int) -> str:
    """What bubblewrap wrote to its standard error so far."""
    if not select.select([errors], [], [], 0.05)[0]:
        return ""
    return os.read(errors, ERRORS_KEPT).decode("utf-8", "replace").strip()
