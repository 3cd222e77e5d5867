"""A pool whose own engine is killed with -9: its sandboxes are lost for certain, the next ones have a new engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from sandboxkit import Event, SandboxPool
from sandboxkit.errors import SandboxNotFound
from sandboxkit.local._child import running_engine, stop_engines

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    """The engine of this process ends with the test."""
    stop_engines()
    yield
    stop_engines()


def kill_the_engine() -> None:
    engine = running_engine()
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while engine.is_alive():  # what was asked just before may still be answered
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sessions_go_on_with_a_new_engine() -> None:
    """A held session's call says SandboxNotFound, an idle one gets a fresh sandbox, and no dead box counts."""
    events: list[Event] = []
    with SandboxPool(endpoint="local", max_live=2, acquire_timeout=40, on_event=events.append) as pool:
        held = pool.session("held")
        assert held.run_code("1").text == "1"
        idle = pool.session("idle")
        idle.close()
        first = {held.sandbox_id, idle.sandbox_id}
        kill_the_engine()
        with pytest.raises(SandboxNotFound):
            held.run_code("1")
        with pool.session("idle") as again:
            assert again.sandbox_id not in first
            assert again.run_code("2").text == "2"
        held.close()
        with pool.session("held") as again:
            assert again.sandbox_id not in first
            assert again.run_code("3").text == "3"
        stats = pool.stats()
        assert (stats["lost"], stats["live"], stats["killing"], stats["kill_errors"]) == (2, 2, 0, 0)
    lost = [event.sandbox_id for event in events if event.name == "sandbox.lost"]
    assert sorted(str(sandbox_id) for sandbox_id in lost) == sorted(first)


def test_replace_and_close_need_no_engine() -> None:
    """replace=True gets a new sandbox; closing a pool whose engine has died starts no engine to kill nothing in."""
    with SandboxPool(endpoint="local", max_live=1, acquire_timeout=40) as pool:
        pool.session("a").close()
        kill_the_engine()
        with pool.session("a", replace=True) as session:
            assert session.run_code("1").text == "1"
            assert session.files.list() == []
        kill_the_engine()
        assert pool.close() == ()
        assert running_engine() is None
