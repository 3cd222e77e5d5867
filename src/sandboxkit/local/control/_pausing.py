"""The moves of a pause: everything of a sandbox is stopped, with its clients or for a moment alone, or goes on."""

from __future__ import annotations

import asyncio

from sandboxkit.local.control._parts import Live

CUT_WITHIN = 0.25
"""Seconds that requests get to end once they are cut off. What they ask of the box later waits until it goes on."""


async def stop(live: Live) -> None:
    """Cut off the clients of a sandbox, as its machine's stop would, and stop its processes.

    Raises:
        AgentLost: its box has ended.
        TimeoutError: a process cannot be stopped; all go on.
    """
    if live.interpreter is not None:
        live.interpreter.pause()
    tasks = set(live.requests)
    live.cut |= tasks
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CUT_WITHIN)
        live.cut -= {task for task in tasks if task.done()}
    await _stop_box(live)


async def hold(live: Live) -> None:
    """Stop the processes of a sandbox for a moment; its clients wait. Errors as for `stop`."""
    if live.interpreter is not None:
        live.interpreter.pause()
    await _stop_box(live)


async def _stop_box(live: Live) -> None:
    try:
        await live.box.pause()
    except BaseException:
        if live.interpreter is not None:
            live.interpreter.resume()
        raise


async def go_on(live: Live) -> None:
    """Let the processes of a sandbox go on. AgentLost: its box has ended."""
    await live.box.resume()
    if live.interpreter is not None:
        live.interpreter.resume()
