"""A thread that Python did not start may be inside Python when the program's last line has run."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, sys, time
from sandboxkit import _foreign

inside = []

@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
def enter(_):
    inside.append(True)
    time.sleep(float(sys.argv[1]))
    os.write(1, b"left")
    return None

_foreign.LIMIT = float(sys.argv[2])
_foreign.wait_at_exit()
thread = ctypes.c_ulong()
assert ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, enter, None) == 0
while not inside:
    time.sleep(0.001)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="pthreads are POSIX's")
@pytest.mark.slow
@pytest.mark.parametrize(("stays", "limit", "output"), [("0.2", "15", b"left"), ("50", "0.5", b"")])
def test_the_interpreter_waits_for_it(stays: str, limit: str, output: bytes) -> None:
    """It gets out before the interpreter ends, but one that stays does not keep the interpreter from ending."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, stays, limit], stdout=subprocess.PIPE, timeout=40)
    assert (done.returncode, done.stdout) == (0, output)
