"""Keeps the pages of a zygote's memory shared with its forks: what they would write to is written, or moved, before.

A fork shares each page with its parent until either writes to it, and Python writes where others read: it counts who
holds an object, in the object; it counts the first calls of a function, then writes into its code how that runs faster;
it notes where a type's attributes were found. So a program that is run for the first time, in a fork, takes a copy of
nearly every page that it looks at. What can be done about that in one process, in this order:

    gather          what will run is laid side by side, so that it is on few pages
    rehearse        it is run, more often than Python waits before it writes into code; the caller's part
    fill_holes      what is made afterwards lies side by side, too

All of it is for size alone. `docs/explanation/the-zygote.md` has the figures.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any

REPEATS = 10
"""More often than Python (3.11: 8 times) waits before it writes into code how that runs faster."""
LARGEST = 512
"""Bytes; objects up to this size share pools, one for each multiple of STEP."""
STEP = 16
HEADER = sys.getsizeof(b"")
IN_ORDER = 6
"""So many objects at rising addresses, one behind the other, lie in memory that was not used before."""
MOST = 5000

_kept: list[object] = []
"""What must not go: its place would be a hole among pages that are shared."""


def gather(rehearse: Callable[[], None]) -> None:
    """Move the code of the functions that this calls next to each other. What knows such code by its identity has to
    ask for it anew."""
    run: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            run.add(frame.f_code)

    sys.setprofile(note)
    try:
        rehearse()
    finally:
        sys.setprofile(None)
    functions = [one for one in gc.get_objects() if isinstance(one, FunctionType) and one.__code__ in run]
    functions.sort(key=lambda function: sys.getsizeof(function.__code__))
    _kept.extend([function.__code__ for function in functions])
    for function in functions:
        function.__code__ = function.__code__.replace()
    # Of where attributes were found, too, only what will be looked up again is to be kept: each that makes way for
    # another is written to.
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache  # the first from 3.13
    clear()


def fill_holes() -> None:
    """Take all places between older objects, for each size of small ones."""
    gc.collect()
    for size in range(HEADER // STEP * STEP + STEP, LARGEST + 1, STEP):
        before = in_order = 0
        for _ in range(MOST):
            filling = bytes(size - HEADER)
            in_order = in_order + 1 if id(filling) == before + size else 0
            before = id(filling)
            if in_order >= IN_ORDER:
                break
            _kept.append(filling)
