"""The frames of boxes that pass no descriptors: any cut of the stream reads the same, and nothing does harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit.local.agent import _codec, _frames

payloads = {
    _frames.PACKET: st.binary(min_size=6, max_size=80),
    _frames.DATA: st.binary(min_size=1, max_size=80),
    _frames.END: st.just(b""),
    _frames.GRANT: st.integers(0, 2**32 - 1).map(_frames.AMOUNT.pack),
    _frames.STOP: st.just(b""),
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, int, bytes]:
    """One frame that may be sent."""
    kind = draw(st.sampled_from(sorted(payloads)))
    return kind, 0 if kind == _frames.PACKET else draw(st.integers(1, 2**32 - 1)), draw(payloads[kind])


@given(sent=st.lists(frames(), max_size=8), data=st.data())
def test_any_cut_reads_the_same(sent: list[tuple[int, int, bytes]], data: st.DataObject) -> None:
    """Frames that are written one after the other are found again, wherever the stream is cut."""
    stream = b"".join(_frames.frame(*one) for one in sent)
    parser = _frames.Parser()
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += parser.feed(stream[:size])
        stream = stream[size:]
    assert found == sent


@given(st.binary(max_size=200))
@example(b"\xff\xff\xff\xff\x02\0\0\0\1")
@example(_frames.HEADER.pack(0, _frames.DATA, 1))
@example(_frames.HEADER.pack(4, _frames.GRANT, 0) + bytes(4))
def test_nonsense_is_told_at_once(said: bytes) -> None:
    """Any bytes are frames of allowed sizes, the beginning of one, or a ValueError, after which nothing is read."""
    parser = _frames.Parser()
    try:
        found = parser.feed(said)
    except ValueError:
        with pytest.raises(ValueError, match="broken"):
            parser.feed(_frames.frame(_frames.END, 1))
        return
    whole = b"".join(_frames.frame(*one) for one in found)
    assert said.startswith(whole)
    rest = said[len(whole) :]
    assert len(rest) < _frames.HEADER.size + _frames.MAX_PACKET


@given(st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 3)), max_size=16), st.binary(min_size=6))
def test_lanes_that_a_packet_opens(lanes: list[tuple[int, int]], packet: bytes) -> None:
    """What a packet opens survives writing and reading."""
    kind, lane, payload = _frames.Parser().feed(_frames.opening(lanes, packet))[0]
    assert (kind, lane) == (_frames.PACKET, 0)
    assert _frames.opened_by(payload) == (lanes, packet)


@given(st.binary(min_size=1, max_size=120))
def test_lanes_that_are_cut_off(payload: bytes) -> None:
    """Any bytes are lanes and a packet, or a ValueError."""
    with contextlib.suppress(ValueError):
        lanes, packet = _frames.opened_by(payload)
        assert len(lanes) <= _frames.MAX_OPENED
        assert payload.endswith(packet)


# -- a hostile agent ----------------------------------------------------------------------------------------------

lies = st.one_of(
    st.tuples(st.sampled_from([_frames.DATA, _frames.END, _frames.STOP, _frames.GRANT]), st.integers(0, 9)).flatmap(
        lambda kind: st.tuples(st.just(kind[0]), st.just(kind[1]), payloads[kind[0]])
    ),
    st.builds(
        lambda number, kind, fields: (_frames.PACKET, 0, _codec.HEADER.pack(number, kind, 0) + _codec.pack(fields)),
        st.integers(1, 5),
        st.sampled_from([_codec.OK, _codec.OK, _codec.FAIL, _codec.EXIT]),
        st.lists(st.integers(0, 99) | st.sampled_from([b"code", b"signal", b"7"]), max_size=4),
    ),
)


@pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")
@given(said=st.lists(lies, max_size=14), tail=st.binary(max_size=20), hangs_up=st.booleans())
@example(said=[(_frames.PACKET, 0, _codec.HEADER.pack(1, _codec.OK, 0) + _codec.pack([7]))], tail=b"", hangs_up=True)
@example(said=[(_frames.DATA, 1, b"before it was started")], tail=b"", hangs_up=False)
def test_whatever_the_agent_says(said: list[tuple[int, int, bytes]], tail: bytes, hangs_up: bool) -> None:
    """Every request comes to an end that its caller knows, no descriptor is left, and nothing unexpected happens."""
    from sandboxkit.local.isolation._base import AgentError, AgentLost
    from sandboxkit.local.isolation.link._framed import FramedPort
    from sandboxkit.local.isolation.link._link import AgentLink

    problems: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        near, far = socket.socketpair()
        lost: list[str] = []
        with theirs, near, far:
            link = AgentLink(FramedPort(ours), on_lost=lost.append)
            waiting = [
                asyncio.ensure_future(one)
                for one in (
                    link.spawn(["x"], envs={}, cwd="/", fds={1: write, 3: far.fileno()}),
                    link.spawn_pty(["x"], envs={}, cwd="/", cols=80, rows=24),
                    link.dial(80),
                    link.open_file("/x", os.O_RDONLY),
                    link.ping(),
                )
            ]
            await asyncio.sleep(0)
            with contextlib.suppress(OSError):  # the link has been ended
                for one in said:
                    theirs.sendall(_frames.HEADER.pack(len(one[2]), one[0], one[1]) + one[2])
                    await asyncio.sleep(0)
                theirs.sendall(tail)
            if hangs_up:
                theirs.shutdown(socket.SHUT_RDWR)
            for _ in range(30):
                await asyncio.sleep(0)
            assert len(lost) <= 1
            if hangs_up:
                assert lost
            link.close()
            for result in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
                if isinstance(result, BaseException):
                    assert isinstance(result, AgentError | AgentLost), result
                elif isinstance(result, tuple):
                    os.close(result[1])
                elif isinstance(result, int):
                    os.close(result)
            await asyncio.sleep(0)
        os.close(read)
        os.close(write)

    before = sorted(os.listdir("/proc/self/fd"))
    asyncio.run(scenario())
    assert problems == []
    assert sorted(os.listdir("/proc/self/fd")) == before
