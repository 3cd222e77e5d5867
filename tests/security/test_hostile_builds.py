"""Steps of a build that hide what they write to the host's disk from who watches it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

LONG_PATH = """
import os
for _ in range(20):
    os.mkdir("x" * 250)
    os.chdir("x" * 250)
open("hidden", "wb").write(os.urandom(4 << 20))
"""
NAMELESS = """
import os, time
unlinked = open("gone", "wb", buffering=0)
os.unlink("gone")
unlinked.write(os.urandom(4 << 20))
never = os.open(".", os.O_TMPFILE | os.O_WRONLY) if hasattr(os, "O_TMPFILE") else -1
os.write(never, os.urandom(4 << 20))
print("written", flush=True)
time.sleep(60)
"""
BEHIND_ITS_FIRST_THREAD = """
import ctypes, os, threading, time
def hold():
    file = open("gone", "wb", buffering=0)
    os.unlink("gone")
    file.write(os.urandom(4 << 20))
    time.sleep(0.2)
    print("written", flush=True)
    time.sleep(60)
threading.Thread(target=hold).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
"""


async def hide(isolation: Any) -> Any:
    """Write to a directory of the host's in ways that hide it; what the watch sees each time, in bytes."""
    import asyncio
    import os
    import shutil
    import tempfile
    from dataclasses import replace

    from box_tools import ENVIRONMENT, python, small

    from sandboxkit.local.images._disk import written_below
    from sandboxkit.local.isolation._base import HOME, Overlay
    from sandboxkit.local.isolation.processes._processes import nameless_bytes

    working = tempfile.mkdtemp(dir="/var/tmp")
    overlay = Overlay(target=HOME, upper="home")
    box = await isolation.create(replace(small("step"), kept=working, overlays=(overlay,)))
    try:
        seen = [written_below(working, most_entries=1000)[0] + nameless_bytes(box.init_pid)]
        done = await python(box, LONG_PATH)
        assert done.status.code == 0, done.output
        seen.append(written_below(working, most_entries=1000)[0])
        for code in (NAMELESS, BEHIND_ITS_FIRST_THREAD):
            read, write = os.pipe()
            await box.agent.spawn(["python3", "-I", "-c", code], envs=ENVIRONMENT, cwd=HOME, fds={1: write, 2: write})
            os.close(write)
            said = await asyncio.to_thread(os.read, read, 1000)
            os.close(read)
            assert said == b"written\n", said
            seen.append(nameless_bytes(box.init_pid))
    finally:
        await box.kill()
        shutil.rmtree(working, ignore_errors=True)
    return seen


@pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])
def test_what_is_hidden_counts(box_runner: Any, ordinary: bool) -> None:
    """Files past PATH_MAX, files that were unlinked while they are open, those that never had a name, and those of a
    process whose first thread has ended."""
    first, deep, nameless, more = box_runner(hide, as_ordinary_user=ordinary)
    assert first < 1 << 20
    assert 4 << 20 <= deep < 5 << 20
    assert 8 << 20 <= nameless < 9 << 20
    assert 12 << 20 <= more < 13 << 20
