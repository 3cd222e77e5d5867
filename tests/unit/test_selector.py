"""The engine's loop, where epoll has no room for what it is to wait for."""

from __future__ import annotations

import asyncio
import errno
import os
import selectors
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the engine is Linux's")


class Narrow(selectors.EpollSelector):
    """The kernel's, with room for so many. `tests/security/test_hostile_limits.py` fills the real one."""

    room = 1000

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if fileobj not in self.get_map() and len(self.get_map()) >= self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().register(fileobj, events, data)


@pytest.mark.parametrize("room", [1, 2, 4, 1000])
def test_all_is_heard(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Whichever of both a descriptor is waited for by: what is ready is told, once, and what is not is not."""
    from sandboxkit.local._selector import Selector

    monkeypatch.setattr(selectors, "EpollSelector", Narrow)
    monkeypatch.setattr(Narrow, "room", room)
    pipes = [os.pipe() for _ in range(5)]
    selector = Selector()
    for number, (read, _) in enumerate(pipes):
        selector.register(read, selectors.EVENT_READ, number)
        with pytest.raises(KeyError):
            selector.register(read, selectors.EVENT_READ)
    assert selector.select(0) == []
    for number, (_, write) in enumerate(pipes):
        os.write(write, b"x")
        ready = selector.select(5)
        assert sorted((key.data, events) for key, events in ready) == [
            (one, selectors.EVENT_READ) for one in range(number + 1)
        ]
    assert selector.modify(pipes[4][0], selectors.EVENT_READ, "other").data == "other"
    assert selector.get_key(pipes[4][0]).data == "other"
    assert {selector.get_key(read).fd for read, _ in pipes} == {read for read, _ in pipes}
    for read, _ in pipes[1:]:
        selector.unregister(read)
    assert [key.data for key, _ in selector.select(5)] == [0]
    selector.unregister(pipes[0][0])
    assert selector.select(0) == []
    with pytest.raises(KeyError):
        selector.get_key(pipes[0][0])
    selector.close()
    for ends in pipes:
        for end in ends:
            os.close(end)


def test_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio's, with connections, signals of its own and what comes later."""
    from sandboxkit.local._selector import Selector

    monkeypatch.setattr(selectors, "EpollSelector", Narrow)
    monkeypatch.setattr(Narrow, "room", 1)

    async def talk() -> list[bytes]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            await writer.drain()
            writer.close()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0)

        async def ask(said: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            writer.write(said)
            got = await reader.read()
            writer.close()
            return got

        async with listening:
            said = [b"%d" % number for number in range(20)]
            answers = await asyncio.gather(*map(ask, said))
            assert await asyncio.to_thread(lambda: 1) == 1
            return answers

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Selector())) as runner:
        assert runner.run(talk()) == [b"%d" % number for number in range(20)]
