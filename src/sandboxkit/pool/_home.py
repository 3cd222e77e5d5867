"""Where a pool lives: one process, one event loop; what comes from elsewhere is refused before it does harm."""

from __future__ import annotations

import os
import threading

from sandboxkit.errors import ForkedProcess, PoolError


class Home:
    """The process that made a pool, and the thread of the event loop that it was opened on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = os.getpid()
        self._thread: int | None = None

    def settle(self) -> None:
        """Take in that the pool lives on this thread's loop from now on."""
        self._thread = threading.get_ident()

    def check_process(self) -> None:
        """Refuse a use in a forked child, where neither the loop nor its connections are.

        Raises:
            ForkedProcess: this process is not the one that made the pool.
        """
        if os.getpid() != self._process:
            raise ForkedProcess(
                "This pool was made before os.fork() and cannot be used in the child. Start worker processes by "
                "`spawn` or `forkserver`, and open a pool in each."
            )

    def check_loop(self) -> None:
        """Refuse a use on another event loop than the pool's.

        Raises:
            PoolError: this is another loop's thread.
        """
        if self._thread not in (None, threading.get_ident()):
            raise PoolError(
                f"Pool {self._name!r} was opened on the event loop of another thread. Open one on each loop, or share "
                "a SandboxPool, which any thread may use."
            )
