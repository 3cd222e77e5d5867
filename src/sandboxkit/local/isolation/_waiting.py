"""Wait for a descriptor, or for a task whatever happens to the one who waits."""

from __future__ import annotations

import asyncio
import signal


async def until_readable(fd: int) -> None:
    """Return once it can be read, or its other end is gone."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, note)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def until_reaped(pidfd: int) -> None:
    """Return once nothing is left of a process that has ended, not even its number: somebody else's child is reaped
    when that one gets to it. After a second in any case."""
    for _ in range(1000):
        try:
            signal.pidfd_send_signal(pidfd, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.001)


async def uncancelled(task: asyncio.Task[None]) -> None:
    """Wait for a task to its end; a cancellation that came meanwhile is raised after it."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
