"""Reads the lines that a program inside writes to a pipe, within bounds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

LONGEST_LINE = 4096
PIECE = 65_536


async def read_lines(descriptor: int, tell: Callable[[str], object]) -> None:
    """Tell each line until the pipe's end, and close it then, also when cancelled. Longer lines come in pieces."""
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    rest = b""
    try:
        while True:
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(descriptor, _note, ready)
            try:
                await ready
            finally:
                loop.remove_reader(descriptor)
            piece = os.read(descriptor, PIECE)
            if not piece:
                break
            *lines, rest = (rest + piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")).split(b"\n")
            for line in lines:
                _tell(line, tell)
            while len(rest) > LONGEST_LINE:
                _tell(rest[:LONGEST_LINE], tell)
                rest = rest[LONGEST_LINE:]
    finally:
        os.close(descriptor)
        _tell(rest, tell)


def _tell(line: bytes, tell: Callable[[str], object]) -> None:
    text = line.decode("utf-8", "replace").rstrip()
    if text:
        for start in range(0, len(text), LONGEST_LINE):
            tell(text[start : start + LONGEST_LINE])


def _note(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
