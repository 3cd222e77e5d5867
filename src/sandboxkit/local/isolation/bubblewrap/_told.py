"""What a bubblewrap is given and what it tells: descriptors, its words."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import ExitStack
from typing import BinaryIO

ERRORS_KEPT = 4096


def pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """A pipe, each of whose ends is closed by one of these."""
    read, write = os.pipe()
    reading.callback(os.close, read)
    writing.callback(os.close, write)
    return read, write


def words_pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, BinaryIO]:
    """The same for what `tell` writes to."""
    read, write = os.pipe()
    reading.callback(os.close, read)
    return read, writing.enter_context(os.fdopen(write, "wb"))


def tell(arguments: BinaryIO, words: Sequence[str]) -> None:
    """Give bubblewrap its arguments, which it waits for."""
    with arguments:
        arguments.write(b"\0".join(map(os.fsencode, words)) + b"\0")


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
