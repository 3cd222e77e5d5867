"""Waits, when the interpreter ends, until no thread of the SDK's is inside Python.

The SDK's HTTP client is Rust. Its threads tell an event loop that an answer has come, and that call lets go of the
interpreter's lock while it wakes the loop: a program whose last line waited for this answer may then be at its end
before the thread has the lock again. Python up to 3.13 ends a thread that asks for the lock after the interpreter's
end, by unwinding it, and Rust answers that by aborting the process: seen as SIGABRT or SIGBUS in 1 of 50 exits under
load.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time

LIMIT = 0.5
"""Seconds that this may take. Threads of others may be in Python for ever."""
_PACE = 0.001


def wait_for_foreign_threads() -> None:
    """Return once no thread that Python did not start has a frame, two looks in a row, or after `LIMIT`.

    The pauses also let a thread have the lock that waits for it, and so has no frame yet.
    """
    until = time.monotonic() + LIMIT
    quiet = 0
    while quiet < 2 and time.monotonic() < until:
        time.sleep(_PACE)
        own = {thread.ident for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)}
        quiet = 0 if sys._current_frames().keys() - own else quiet + 1


def wait_at_exit() -> None:
    """Do so at the interpreter's end. Handlers of atexit that are registered after this come before it."""
    atexit.register(wait_for_foreign_threads)
