"""The link to an agent when the engine has no descriptors left: requests fail by name, and the agent is not blamed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.errors import EngineUnavailable
from sandboxkit.local import _descriptors
from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.isolation._base import AgentError, BoxSpec
from sandboxkit.local.isolation.bubblewrap._box import BubblewrapBox
from sandboxkit.local.isolation.gvisor._box import GvisorBox
from tests.unit.isolation import test_argv, test_gvisor_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")


@contextlib.contextmanager
def free(count: int) -> Iterator[None]:
    """Let this process have so many more descriptors."""
    gaps = (number for number in itertools.count() if not os.path.lexists(f"/proc/self/fd/{number}"))
    allowed = next(itertools.islice(gaps, count, None))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def received(theirs: socket.socket) -> tuple[int, int, list[bytes]]:
    """The next request, as the agent gets it."""
    while True:
        with contextlib.suppress(BlockingIOError):
            data = theirs.recv(70_000, socket.MSG_DONTWAIT)
            number, kind, _flags = wire.HEADER.unpack_from(data)
            return number, kind, wire.unpack(data[wire.HEADER.size :])
        await asyncio.sleep(0)


def answer(theirs: socket.socket, number: int, kind: int, fields: list[bytes | int], *fds: int) -> None:
    """Answer as the agent."""
    socket.send_fds(theirs, [wire.HEADER.pack(number, kind, 0) + wire.pack(fields)], list(fds))


async def ping(link: Any, theirs: socket.socket) -> None:
    """The link works."""
    waiting = asyncio.ensure_future(link.ping())
    number, kind, _ = await received(theirs)
    assert kind == wire.PING
    answer(theirs, number, wire.OK, [])
    await asyncio.wait_for(waiting, 5)


def test_a_descriptor_that_cannot_be_taken(with_impostor: Any) -> None:
    """An opened file that we have no number for is EMFILE for who asked, and the link lives."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        waiting = asyncio.ensure_future(link.open("/x", os.O_RDONLY))
        number, _, _ = await received(theirs)
        with free(0):
            answer(theirs, number, wire.OK, [], theirs.fileno())
            with pytest.raises(AgentError) as told:
                await asyncio.wait_for(waiting, 5)
        assert told.value.errno == errno.EMFILE
        await ping(link, theirs)
        assert lost == []

    with_impostor(scenario)


def test_a_terminal_that_cannot_be_taken(with_impostor: Any) -> None:
    """Its program is killed, its end is understood, and the link lives."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        waiting = asyncio.ensure_future(link.spawn_pty(["sh"], envs={}, cwd="/", cols=80, rows=24))
        number, _, _ = await received(theirs)
        with free(0):
            answer(theirs, number, wire.OK, [77], theirs.fileno())
            with pytest.raises(AgentError) as told:
                await asyncio.wait_for(waiting, 5)
        assert told.value.errno == errno.EMFILE
        killing, kind, fields = await received(theirs)
        assert (kind, fields) == (wire.SIGNAL, [b"77", b"9", b"1"])
        answer(theirs, killing, wire.OK, [1])
        answer(theirs, number, wire.EXIT, [b"signal", 9])
        await ping(link, theirs)
        assert lost == []

    with_impostor(scenario)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_descriptors_that_cannot_be_kept(with_impostor: Any, count: int) -> None:
    """A program is not started when its descriptors cannot be kept until they are sent; none of them is left, and no
    request waits for an answer that will not come."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        with free(count), pytest.raises(AgentError) as told:
            await link.spawn(["true"], envs={}, cwd="/", fds={0: 0, 1: 1, 2: 2})
        assert told.value.errno == errno.EMFILE
        assert sorted(os.listdir("/proc/self/fd")) == before
        assert link._channel._requests == {}
        await ping(link, theirs)
        assert lost == []

    with_impostor(scenario)


@pytest.mark.parametrize("left", range(3))
def test_a_box_that_cannot_be_begun(tmp_path: Path, left: int) -> None:
    """Wherever the descriptors run out, none is lost with it."""

    async def begin() -> None:
        spec = BoxSpec(box_id="short")
        box = BubblewrapBox(spec, directory=tmp_path, cgroup=None, version=0, on_ended=lambda _: None)
        before = os.listdir("/proc/self/fd")
        with free(left), pytest.raises((OSError, EngineUnavailable)):
            await box.hold(None, None, b"")  # type: ignore[arg-type]  # it does not come so far
        assert os.listdir("/proc/self/fd") == before

    asyncio.run(begin())


@pytest.mark.parametrize("left", range(16))
@pytest.mark.parametrize("kind", [BubblewrapBox, GvisorBox])
def test_a_box_that_cannot_be_started(tmp_path: Path, kind: type[BubblewrapBox], left: int) -> None:
    """The same where bubblewrap is to make it: of which there is none, where the descriptors suffice."""

    async def start() -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        box = kind(BoxSpec(box_id="short"), directory=tmp_path / "box", cgroup=None, version=0, on_ended=lambda _: None)
        with free(left), pytest.raises((OSError, EngineUnavailable)):
            if isinstance(box, GvisorBox):
                await box.boot("/nonexistent", lambda *fds: test_gvisor_plan.PLAN)
            else:
                await box.start("/nonexistent", test_argv.PLAN, b"")
        await box.kill()
        assert sorted(os.listdir("/proc/self/fd")) == before

    asyncio.run(start())


def test_descriptors_are_counted_without_a_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand sandboxes have seven thousand descriptors: a list of them, at each create, took two milliseconds."""
    if not os.stat("/proc/self/fd").st_size:
        pytest.skip("Linux tells how many descriptors a process has since 6.2")
    before = _descriptors.limit() - len(os.listdir("/proc/self/fd"))
    monkeypatch.delattr(os, "listdir")
    assert not _descriptors.are_short(before - 10)
    assert _descriptors.are_short(before + 10)
