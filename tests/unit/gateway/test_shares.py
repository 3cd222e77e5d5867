"""Room for previews is shared: no sandbox takes another's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import preview_tools as tools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.gateway.preview import _previews
from sandboxkit.local.gateway.preview._shares import NoRoom, Shares

SWITCH = (
    b"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


@given(total=st.integers(1, 200), greedy=st.integers(1, 8))
def test_something_is_left_for_who_comes(total: int, greedy: int) -> None:
    """However many take all that they can, in turn: the next one still gets a place, while there are enough for it."""
    with contextlib.ExitStack() as held:
        shares = Shares(total)
        taken = dict.fromkeys(map(str, range(greedy)), 0)
        refused: set[str] = set()
        while len(refused) < greedy:
            for name in taken.keys() - refused:
                try:
                    held.enter_context(shares.place(name))
                    taken[name] += 1
                except NoRoom:
                    refused.add(name)
        assert sum(taken.values()) <= total
        if total > greedy:
            held.enter_context(shares.place("late"))
        if greedy == 1:
            assert taken["0"] == (total + 1) // 2
    with shares.place("0"):
        assert shares._free == total - 1, "all were given back"


def test_a_sandbox_that_takes_all_it_can(start_hollow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next preview is refused by name; another sandbox's answers."""
    # Of our own code, since all that a real limit allows would be thousands of connections.
    monkeypatch.setattr(_previews, "limit", lambda: 100)
    hollow = start_hollow()

    def serve(server: Any, connection: Any) -> None:
        head, _ = server.head(connection)
        if b"upgrade" in head.lower():
            connection.sendall(SWITCHED)
            connection.recv(1)
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    with tools.upstream(serve) as server, contextlib.ExitStack() as held:
        hollow.isolation.ports[tools.PORT] = server.port
        greedy = tools.Preview(hollow, hollow.create(), server)
        other = tools.Preview(hollow, hollow.create(), server)
        for _ in range(8):
            tools.read_until(held.enter_context(greedy.raw(SWITCH)), b"101 Switching")
        refused = greedy.get()
        assert (refused.status_code, refused.json()["error_code"]) == (503, "too_many_calls")
        assert (other.get().status_code, other.get().text) == (200, "hi")
    hollow.stop()
