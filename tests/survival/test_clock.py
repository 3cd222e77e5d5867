"""The wall clock jumps: nothing that was promised in seconds is shorter or longer for it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import e2b
import e2b_code_interpreter as interpreter
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

CLOCK = """
import datetime as real, sys, time
from pathlib import Path

given = Path({path!r})
true_time = time.time

def stepped():
    return true_time() + float(given.read_text())

class Stepped(real.datetime):
    @classmethod
    def now(cls, tz=None):
        return real.datetime.fromtimestamp(stepped(), tz)

time.time = stepped
real.datetime = Stepped
from sandboxkit.local.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("step", [-400 * 86_400.0, -60.0, 60.0, 400 * 86_400.0])
def test_a_clock_that_jumps(start: Any, tools: Any, step: float) -> None:
    """The wall clock is stepped back or forth: sandboxes live as long as they were given and no longer, commands keep
    their deadlines, and what runs goes on."""
    root = Path(f"/tmp/sandboxkit-clock-{os.getpid()}-{time.monotonic_ns()}")
    root.mkdir()
    offset = root / "offset"
    offset.write_text("0")
    try:
        # The clock of Python, which is where wall time enters the engine: the host's own is not ours to step.
        run = start(wrapper=CLOCK.format(path=str(offset)), env={"PYTHONPATH": ":".join(sys.path)})
        sandbox = interpreter.Sandbox.create(timeout=120, **run.sdk)
        running = sandbox.commands.run("sleep 1.5; echo done", background=True)
        created = time.monotonic()
        short = e2b.Sandbox.create(timeout=3, **run.sdk)
        offset.write_text(str(step))
        assert running.wait().stdout == "done\n"
        assert sandbox.run_code("6 * 7").text == "42"
        assert short.is_running() or time.monotonic() > created + 2.5
        with pytest.raises(e2b.TimeoutException):
            sandbox.commands.run("sleep 100", timeout=1)
        tools.wait_until(lambda: not short.is_running())
        assert 2.5 < time.monotonic() - created < 40
        sandbox.set_timeout(100)
        info = sandbox.get_info()
        assert 60 < info.end_at.timestamp() - (time.time() + step) < 101
        assert len(e2b.Sandbox.list(**run.sdk).next_items()) == 1
        tools.no_tracebacks(run)
    finally:
        offset.unlink()
        root.rmdir()
