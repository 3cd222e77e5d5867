"""The descriptors of a process on the event loop: output read in chunks, input written with backpressure.

No thread and no buffer of our own: `read` takes at most one chunk once the kernel has some, `write` returns once the
kernel has taken all. Descriptors are used only after they were reported ready, and are made non-blocking each time: a
terminal's description is shared with the agent inside, which could have made it blocking again.
"""

from __future__ import annotations

import asyncio
import os
from typing import Final

PIPE_CAPACITY: Final = 64 * 1024
"""What a pipe or a terminal holds at most, so what a dead process may have left in it."""


class Output:
    """The near end of a process's stdout, stderr or terminal. Owns the descriptor."""

    def __init__(self, fd: int, *, chunk: int) -> None:
        self._fd = fd
        self._chunk = chunk
        self._waiter: asyncio.Future[bool] | None = None
        self._closed = False
        self._silence: float | None = None
        self._limit: float | None = None
        self._left = 0
        self.is_over = False
        """The other side has closed, so that nothing can come any more."""

    async def read(self) -> bytes:
        """The next chunk; empty when the other side has closed, or when `hurry`'s bound is reached."""
        loop = asyncio.get_running_loop()
        while not self.is_over:
            if self._limit is not None and self._left <= 0 and loop.time() > self._limit:
                return b""
            if not await self._readable(loop):
                return b""
            try:
                os.set_blocking(self._fd, False)
                data = os.read(self._fd, self._chunk)
            except BlockingIOError:
                # Readiness is a hint: another reader of the same terminal may have been faster.
                continue
            except OSError:
                # EIO: the last process on the terminal has gone.
                data = b""
            self.is_over = not data
            self._left -= len(data)
            return data
        return b""

    def hurry(self, *, silence: float, total: float) -> None:
        """The process has ended: what still comes is what it left in the pipe, or comes from processes it left
        behind. From now on `read` gives up after `silence` seconds without output, and after `total` seconds once
        more has come than the dead process can have left there."""
        loop = asyncio.get_running_loop()
        self._silence = silence
        self._limit = loop.time() + total
        self._left = PIPE_CAPACITY
        if self._waiter is not None:
            loop.call_later(silence, _settle, self._waiter, False)

    def relax(self) -> None:
        """Wait without bounds again."""
        self._silence = self._limit = None

    def close(self) -> None:
        """Close the descriptor and wake the reader. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._waiter is not None:
            self._waiter.get_loop().remove_reader(self._fd)
            _settle(self._waiter, False)
        os.close(self._fd)

    async def _readable(self, loop: asyncio.AbstractEventLoop) -> bool:
        if self._closed:
            return False
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        loop.add_reader(self._fd, _settle, waiter, True)
        timer = None if self._silence is None else loop.call_later(self._silence, _settle, waiter, False)
        try:
            return await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
            if not self._closed:
                loop.remove_reader(self._fd)


class Input:
    """The near end of a process's stdin or terminal. Owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = asyncio.Lock()
        self._waiter: asyncio.Future[bool] | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Write all of it, in the order of the calls; waits while the process does not read. OSError (EPIPE, EIO)
        when nobody will read any more."""
        async with self._lock:
            rest = memoryview(data)
            while rest:
                if not await self._writable(asyncio.get_running_loop()):
                    raise BrokenPipeError
                try:
                    os.set_blocking(self._fd, False)
                    rest = rest[os.write(self._fd, rest[:PIPE_CAPACITY]) :]
                except BlockingIOError:
                    continue

    async def finish(self) -> None:
        """Close after all that was written before: the process reads end-of-file."""
        async with self._lock:
            self.close()

    def close(self) -> None:
        """Close the descriptor at once; a write that waits fails. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._waiter is not None:
            self._waiter.get_loop().remove_writer(self._fd)
            _settle(self._waiter, False)
        os.close(self._fd)

    @property
    def closed(self) -> bool:
        return self._closed

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    async def _writable(self, loop: asyncio.AbstractEventLoop) -> bool:
        if self._closed:
            return False
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiter = waiter
        loop.add_writer(self._fd, _settle, waiter, True)
        try:
            return await waiter
        finally:
            self._waiter = None
            if not self._closed:
                loop.remove_writer(self._fd)


def _settle(waiter: asyncio.Future[bool], value: bool) -> None:
    if not waiter.done():
        waiter.set_result(value)


class Pipes:
    """The pipes of one process about to be started: near ends for us, far ends for it."""

    def __init__(self, *, stdin: bool) -> None:
        self.far: dict[int, int] = {}
        self._near: dict[int, int] = {}
        try:
            for number in (0, 1, 2) if stdin else (1, 2):
                reading, writing = os.pipe2(os.O_CLOEXEC)
                near, far = (writing, reading) if number == 0 else (reading, writing)
                self._near[number] = near
                self.far[number] = far
                os.set_blocking(near, False)
        except BaseException:
            self.close()
            raise

    def take(self, number: int) -> int:
        """Hand over the near end of a descriptor."""
        return self._near.pop(number)

    def close(self) -> None:
        """Close the far ends, and the near ends that nobody took."""
        for fd in (*self.far.values(), *self._near.values()):
            os.close(fd)
        self.far.clear()
        self._near.clear()
