"""A box's trees into a file and back, off the event loop: stopped when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from sandboxkit.local.isolation._archive import Packed, pack, unpack

TREES = ("home", "tmp")
"""What of a box's file system is kept. /dev/shm is memory by its name, the rest is read-only."""

Result = TypeVar("Result")

_THREADS = ThreadPoolExecutor(6, thread_name_prefix="files")
"""Of their own: a copy takes long, and the loop's threads are for what others wait for."""


async def save_trees(directory: Path, descriptor: int, *, most: int, stop: threading.Event) -> Packed:
    """Write the trees below a box's directory to a file; see `_archive.pack`."""
    with _opened(directory) as trees:
        return await _in_thread(lambda: pack(trees, descriptor, most=most, stop=stop.is_set), stop)


async def fill_trees(directory: Path, descriptor: int) -> None:
    """Make them again below a new box's directory; see `_archive.unpack`."""
    stop = threading.Event()
    with _opened(directory) as trees:
        await _in_thread(lambda: unpack(descriptor, trees, stop=stop.is_set), stop)


@contextmanager
def _opened(directory: Path) -> Iterator[dict[str, int]]:
    # Opened before the thread begins: the trees stay readable, even if the box is unmounted meanwhile.
    with ExitStack() as stack:
        trees = {}
        for name in TREES:
            trees[name] = os.open(directory / name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, trees[name])
        yield trees


async def _in_thread(work: Callable[[], Result], stop: threading.Event) -> Result:
    """Run it in a thread. If cancelled, it is told to stop, and has ended when this raises."""
    running = asyncio.get_running_loop().run_in_executor(_THREADS, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        while not running.done():
            try:
                await asyncio.wait([running])
            except asyncio.CancelledError:
                continue
        if not running.cancelled():
            running.exception()
        raise
