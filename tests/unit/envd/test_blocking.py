"""Descriptors whose other owner makes them blocking: the event loop goes on all the same."""

from __future__ import annotations

import asyncio
import os

import pytest

from sandboxkit.local.envd._streams import Input, Output


def test_reading_from_a_terminal_that_was_made_blocking() -> None:
    """The agent shares a terminal's description and may clear O_NONBLOCK: it is set again before each read."""

    async def main() -> None:
        master, slave = os.openpty()
        output = Output(master, chunk=4096)
        rival = os.dup(master)
        try:
            reading = asyncio.ensure_future(output.read())
            await asyncio.sleep(0)
            os.set_blocking(rival, True)
            os.write(slave, b"hello")
            assert await reading == b"hello"
            assert not os.get_blocking(rival)
        finally:
            output.close()
            os.close(rival)
            os.close(slave)

    asyncio.run(main())


def test_writing_to_what_was_made_blocking() -> None:
    """A write larger than what the other side takes waits in the loop, not in the kernel."""

    async def main() -> None:
        reading, writing = os.pipe()
        os.write(writing, b"x" * (60 << 10))  # one page is free: ready, but not for all
        os.set_blocking(writing, True)
        feed = Input(writing)
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await feed.write(b"x" * (1 << 20))
        finally:
            feed.close()
            os.close(reading)

    asyncio.run(main())
