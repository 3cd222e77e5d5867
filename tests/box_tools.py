"""What scenarios of `box_runner` share: run a program in a box and have its output."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxkit.local.isolation import AGENT_PYTHON, BASE_PATH, HOME, Box, BoxSpec, ExitStatus, Limits

ENVIRONMENT = {"PATH": f"{os.path.dirname(AGENT_PYTHON)}:{BASE_PATH}", "HOME": HOME, "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Ran:
    """How a program ended, and what it wrote to both its outputs."""

    status: ExitStatus
    output: str


def small(box_id: str, **limits: float) -> BoxSpec:
    """A box of modest size; `limits` are fields of `Limits`."""
    given = {"memory": 256 << 20, "disk": 64 << 20, "inodes": 2000, "processes": 64, **limits}
    return BoxSpec(box_id=box_id, limits=Limits(**given))  # type: ignore[arg-type]


async def run(box: Box, argv: Sequence[str], *, seconds: float = 30.0) -> Ran:
    """Run a program to its end."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    try:
        process = await box.agent.spawn(argv, envs=ENVIRONMENT, cwd=HOME, fds={1: write, 2: write})
    finally:
        os.close(write)
    try:
        async with asyncio.timeout(seconds):
            output = await drain(read)
            return Ran(await process.wait(), output)
    except TimeoutError:
        await box.agent.signal(process.pid, signal.SIGKILL)
        raise
    finally:
        os.close(read)


async def python(box: Box, code: str, *, seconds: float = 30.0) -> Ran:
    """Run Python code in a box."""
    return await run(box, ["python3", "-I", "-c", code], seconds=seconds)


async def drain(fd: int) -> str:
    """Read a non-blocking descriptor to its end (EIO, from a terminal, is one, too)."""
    loop = asyncio.get_running_loop()
    parts = []
    while True:
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(fd, lambda ready=ready: ready.done() or ready.set_result(None))
        try:
            await ready
        finally:
            loop.remove_reader(fd)
        try:
            piece = os.read(fd, 65536)
        except OSError:
            piece = b""
        if not piece:
            return b"".join(parts).decode("utf-8", "replace")
        parts.append(piece)
