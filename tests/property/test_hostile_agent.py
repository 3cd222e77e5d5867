"""The engine's end against an agent that sends whatever Hypothesis thinks of, while requests of every kind wait.

Whatever comes, each request ends: with an answer that was checked, with AgentError, or with AgentLost for all. No
callback raises, no descriptor is left, and little is kept.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.agent import _codec as wire

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")

BENEATH: dict[str, list[bytes | int]] = {
    "read": [b"/x/y", 0, 100, b"", b""],
    "stat": [b"/x/y"],
    "list": [b"/x/y", 1, 100],
    "exists": [b"/x/y"],
    "rename": [b"/x/y", b"/x/z"],
}
REQUESTS: list[Callable[[Any], Awaitable[Any]]] = [
    lambda link: link.open("/x", os.O_RDONLY),
    lambda link: link.ping(),
    lambda link: link.list("/x"),
    lambda link: link.spawn(["true"], envs={}, cwd="/", fds={}),
    lambda link: link.spawn_pty(["true"], envs={}, cwd="/", cols=80, rows=24),
    lambda link: link.signal(7, 9),
    lambda link: link.stat("/x"),
    lambda link: link.dial(80),
    lambda link: link.remove("/x"),
    *(
        lambda link, operation=operation, args=args: link.beneath(operation, "/x", b"", args)
        for operation, args in BENEATH.items()
    ),
    *(lambda link, how=how: link.open_beneath(how, "/x", b"", "/x/y") for how in ("read", "stage", "write")),
]

FIELD = (
    st.integers(-2, 2**70)
    | st.binary(max_size=12)
    | st.sampled_from([b"", b"0", b"1", b"code", b"signal", b"7", b"-0", b"7:7", b".sandboxkit-ab.part"])
)
FIELDS = st.lists(FIELD, max_size=12).map(wire.pack) | st.lists(FIELD, max_size=12).map(
    lambda rest: wire.pack([b"7:7", *rest])
)
ENTRY = st.lists(
    st.tuples(st.binary(max_size=4), st.binary(max_size=4), *[st.integers(-1, 2**40)] * 5, st.binary(max_size=2)),
    max_size=3,
).map(lambda entries: wire.pack([field for entry in entries for field in (*entry, b"", 0)]))


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, int]:
    """A packet that is right, almost right or wrong, and how many descriptors ride on it."""
    number = draw(st.integers(1, len(REQUESTS)) | st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from([wire.OK, wire.OK, wire.FAIL, wire.EXIT, wire.SPAWN]) | st.integers(0, 255))
    payload = draw(FIELDS | ENTRY | st.binary(max_size=30) | st.just(wire.pack([5, b"why", b"/x"])))
    flags = draw(st.sampled_from([0, 0, 0, wire.MORE, 8]))
    if flags == wire.MORE and draw(st.booleans()):
        payload = payload.ljust(1500, b"\0")
    whole = wire.HEADER.pack(number, kind, flags) + payload
    return whole[: draw(st.none() | st.integers(0, 8))], draw(st.sampled_from([0, 0, 0, 1, 2, 20]))


def check_opened_shape(fields: list[bytes]) -> None:
    """What came with a file has what its callers take from it."""
    assert fields[0].replace(b":", b"").isdigit()
    assert len(fields) < 2 or fields[1].isdigit() or fields[1].endswith(b".part")


@given(
    said=st.lists(packets(), max_size=12),
    hangs_up=st.booleans(),
    cancelled=st.sets(st.integers(0, len(REQUESTS) - 1), max_size=3),
)
def test_whatever_the_agent_says(said: list[tuple[bytes, int]], hangs_up: bool, cancelled: set[int]) -> None:
    """Every request that waits comes to an end that its callers know, within the time that the link is open."""
    from sandboxkit.local.isolation._base import AgentError, AgentLost
    from sandboxkit.local.isolation.link._link import AgentLink

    problems: list[dict[str, Any]] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        lost: list[str] = []
        with theirs:
            link = AgentLink(ours, on_lost=lost.append)
            waiting = [asyncio.ensure_future(ask(link)) for ask in REQUESTS]
            await asyncio.sleep(0)
            for number in cancelled:
                waiting[number].cancel()
            for data, count in said:
                rights = array.array("i", [theirs.fileno()] * count)
                with contextlib.suppress(OSError):  # the link has been ended
                    theirs.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if count else [])
                await asyncio.sleep(0)
            if hangs_up:
                theirs.shutdown(socket.SHUT_RDWR)
            for _ in range(6):
                await asyncio.sleep(0)
            assert len(lost) <= 1
            if hangs_up:
                assert lost
            else:
                link.close()
            for result in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
                if isinstance(result, BaseException):
                    assert isinstance(result, AgentError | AgentLost | asyncio.CancelledError), result
                elif isinstance(result, tuple):
                    if isinstance(result[1], int):
                        os.close(result[1])  # a terminal
                    else:
                        check_opened_shape(result[1])
                        result[0].close()
                elif isinstance(result, list) and result and isinstance(result[0], bytes):
                    assert result[0] == b"7:7" or result[0].replace(b":", b"").isdigit()
                elif isinstance(result, int) and not isinstance(result, bool):
                    os.close(result)

    before = sorted(os.listdir("/proc/self/fd"))
    asyncio.run(scenario())
    assert problems == []
    assert sorted(os.listdir("/proc/self/fd")) == before
