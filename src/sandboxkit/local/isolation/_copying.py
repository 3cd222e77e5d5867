"""A box's trees into a file and back, off the event loop: stopped when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from sandboxkit.local.isolation._archive import Packed, pack, unpack

Result = TypeVar("Result")

_THREADS = ThreadPoolExecutor(6, thread_name_prefix="files")
"""Of their own: a copy takes long, and the loop's threads are for what others wait for."""


async def save_trees(places: Mapping[str, Path], descriptor: int, *, most: int, stop: threading.Event) -> Packed:
    """Write trees to a file; see `_archive.pack`."""
    with _opened(places) as trees:
        return await _in_thread(lambda: pack(trees, descriptor, most=most, stop=stop.is_set), stop)


async def fill_trees(places: Mapping[str, Path], descriptor: int) -> None:
    """Make them again in a new box, in which nothing runs yet, and nothing else; see `_archive.unpack`."""
    stop = threading.Event()
    with _opened(places) as trees:

        def fill() -> None:
            for top in trees.values():
                _empty(top)
            unpack(descriptor, trees, stop=stop.is_set)

        await _in_thread(fill, stop)


@contextmanager
def _opened(places: Mapping[str, Path]) -> Iterator[dict[str, int]]:
    # Opened before the thread begins: the trees stay readable, even if the box is unmounted meanwhile.
    with ExitStack() as stack:
        trees = {}
        for name, place in places.items():
            trees[name] = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            stack.callback(os.close, trees[name])
        yield trees


def _empty(top: int) -> None:
    """Remove what a template has put into a tree: what was kept has it, as far as it was still there."""
    directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
    try:
        for name in os.listdir(directory):
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)


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
