"""Signals that whoever started the engine ignored are none of its sandboxes' business."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the agent is Linux's")

PROGRAM = """
import signal
from sandboxkit.local.agent._programs import heed_signals
heed_signals()
print(*(signal.getsignal(one) == signal.SIG_IGN for one in (1, 2, 3, 15, signal.SIGPIPE)))
"""


def ignore() -> None:
    """As nohup and a shell's `&` leave it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def test_they_are_heeded_again() -> None:
    """Hang-up, interrupt and quit reach programs; what Python itself ignores is set at each program's start."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], preexec_fn=ignore, capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.split() == ["False", "False", "False", "False", "True"]
