"""Homes made to hurt whoever copies them: keeping one follows nothing, runs nothing, and ends within bounds."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

pytestmark = [pytest.mark.engine, pytest.mark.slow]

HOSTILE = r"""
import os, socket
os.chdir("/home/user")
os.mkfifo("pipe")
socket.socket(socket.AF_UNIX).bind("sock")
os.symlink("/etc/passwd", "passwd")
os.symlink("/", "root")
os.symlink("../../../../../../../../tmp", "up")
os.symlink("loop", "loop")
os.mkdir("closed"); open("closed/f", "w").write("in a closed one"); os.chmod("closed", 0)
open("unreadable", "w").write("mine"); os.chmod("unreadable", 0)
open(b"\xff\xfe\n'\" -rf", "w").write("odd")
for n in range(20):
    os.link("unreadable", f"link{n}")
with open("huge", "wb") as file:
    file.truncate((1 << 62))
open("script", "w").write("#!/bin/sh\ntouch /tmp/ran\n"); os.chmod("script", 0o6777)
try:
    os.setxattr("script", "user.e2b.key", b"value")
except OSError:
    pass
os.mkdir("/tmp/below"); os.symlink("/home/user", "/tmp/below/home")
at = os.getcwd()
for n in range(200):
    os.mkdir("d"); os.chdir("d")
open("deep", "w").write("deep")
"""

LOOK = r"""
import os, stat
os.chdir("/home/user")
os.chmod("closed", 0o700); os.chmod("unreadable", 0o600)
print(sorted(n for n in os.listdir(b".") if not n.startswith(b"link")))
print(open("closed/f").read(), open("unreadable").read(), open(b"\xff\xfe\n'\" -rf").read())
print(os.readlink("passwd"), os.readlink("root"), os.readlink("up"), os.readlink("/tmp/below/home"))
print(os.stat("unreadable").st_nlink, os.stat("huge").st_size == 1 << 62, os.stat("huge").st_blocks < 100)
print(oct(os.stat("script").st_mode & 0o7777), os.path.exists("/tmp/ran"), os.getuid() == os.stat("script").st_uid)
for n in range(200):
    os.chdir("d")
print(open("deep").read())
"""


async def kept_and_restored(isolation: Any) -> dict[str, Any]:
    """A hostile home goes into a file and into a new box."""
    from box_tools import python, small

    box = await isolation.create(small("one"))
    made = await python(box, HOSTILE)
    assert made.output == "", made.output
    await box.pause()
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        packed = await box.save(file.fileno(), most=1 << 30, stop=threading.Event())
        await box.kill()
        new = await isolation.create(replace(small("two"), files=file.fileno()))
    looked = await python(new, LOOK)
    await new.kill()
    return {"output": looked.output, "passed_over": packed.passed_over, "size": packed.size}


@pytest.mark.parametrize("as_ordinary_user", [False, True])
def test_a_hostile_home_is_copied_as_it_is(box_runner: Callable[..., Any], as_ordinary_user: bool) -> None:
    """Links stay links, holes holes, closed directories closed; pipes and sockets are passed over; nothing runs."""
    found = box_runner(kept_and_restored, as_ordinary_user=as_ordinary_user)
    lines = found["output"].splitlines()
    assert lines[1:] == [
        "in a closed one mine odd",
        "/etc/passwd / ../../../../../../../../tmp /home/user",
        "21 True True",
        "0o6777 False True",
        "deep",
    ], found["output"]
    assert "pipe" not in lines[0]
    assert "sock" not in lines[0]
    assert found["passed_over"] == 2
    assert found["size"] < 1 << 20


async def bounded(isolation: Any) -> dict[str, Any]:
    """What is too much for the new box, for the bound, and a file that is damaged."""
    from box_tools import python, small

    from sandboxkit.local.isolation._archive import ArchiveError, TooLarge

    box = await isolation.create(small("one"))
    await python(box, "open('/home/user/big', 'wb').write(b'x' * (20 << 20))")
    await box.pause()
    told = []
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        try:
            await box.save(file.fileno(), most=10 << 20, stop=threading.Event())
        except TooLarge:
            told.append("too large")
        told.append("bounded" if os.fstat(file.fileno()).st_size <= 10 << 20 else "not bounded")
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        await box.save(file.fileno(), most=1 << 30, stop=threading.Event())
        try:
            await isolation.create(replace(small("two", disk=8 << 20), files=file.fileno()))
        except Exception as error:
            cause = error.__cause__
            told.append(errno.errorcode[cause.errno or 0] if isinstance(cause, OSError) else repr(error))
        os.pwrite(file.fileno(), b"y", 5 << 20)
        try:
            await isolation.create(replace(small("three"), files=file.fileno()))
        except ArchiveError:
            told.append("damaged")
    await box.kill()
    return {"told": told}


def test_what_is_kept_is_bounded_and_checked(box_runner: Callable[..., Any]) -> None:
    """Bytes are bounded on the way out and, by the new box's limits, on the way in; damage is refused; nothing is left
    of a box that could not be made."""
    assert box_runner(bounded)["told"] == ["too large", "bounded", "ENOSPC", "damaged"]


async def killed_meanwhile(isolation: Any) -> str:
    """A box ends while its files are copied."""
    import asyncio

    from box_tools import python, small

    from sandboxkit.local.isolation._archive import Stopped

    box = await isolation.create(small("one"))
    await python(box, "open('/home/user/big', 'wb').write(b'x' * (40 << 20))")
    await box.pause()
    stop = threading.Event()
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        saving = asyncio.ensure_future(box.save(file.fileno(), most=1 << 30, stop=stop))
        await asyncio.sleep(0)
        stop.set()
        await box.kill()
        try:
            await saving
        except Stopped:
            return "stopped"
    return "done"


def test_a_box_can_end_while_it_is_copied(box_runner: Callable[..., Any]) -> None:
    """Its end does not wait for the copy, and nothing of it is left mounted."""
    assert box_runner(killed_meanwhile) == "stopped"
