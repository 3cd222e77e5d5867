"""A box that takes all it can get ends with an error of its own, while another one goes on working."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])

FORKS = """
import os, signal, time
pids = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        pids.append(pid)
except OSError as error:
    print(error.errno, len(pids), flush=True)
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"""

HOG = """
held = []
try:
    while True:
        held.append(bytearray(b'x') * (8 << 20))
        if len(held) == 200:
            break
except MemoryError:
    held = len(held) * 8  # what follows needs some
    print('MemoryError', held, flush=True)
    raise SystemExit(3)
print('no limit', flush=True)
"""

MANY_HOGS = """
import os, time
read, write = os.pipe()
for _ in range(12):
    if os.fork() == 0:
        held = bytearray(b'x') * (60 << 20)
        os.close(write)
        os.read(read, 1)  # until all hold as much, or are dead
        time.sleep(3)
        os._exit(0)
os.close(write)
failed = sum(1 for _ in range(12) if os.wait()[1] != 0)
print('failed', failed, flush=True)
"""

DISK = """
import os
fd = os.open({path!r}, os.O_CREAT | os.O_WRONLY)
written = 0
try:
    while True:
        written += os.write(fd, b'x' * (1 << 20))
except OSError as error:
    print(error.errno, written >> 20)
"""

INODES = """
import os
made = 0
try:
    while True:
        os.close(os.open('/home/user/f%d' % made, os.O_CREAT | os.O_WRONLY)); made += 1
except OSError as error:
    print(error.errno, made)
"""


async def take_all(isolation: Any, code: str) -> Any:
    """Run greedy code in one box and a small program in another meanwhile; then see whether both boxes live."""
    import asyncio

    from box_tools import python, run, small

    from sandboxkit.local.isolation import AgentLost

    greedy, other = await isolation.create(small("greedy")), await isolation.create(small("other"))
    running = asyncio.ensure_future(python(greedy, code))
    meanwhile = []
    while not running.done() or not meanwhile:
        meanwhile.append((await run(other, ["echo", "fine"])).output)
        await asyncio.sleep(0.02)
    try:
        ran = await running
        result = [ran.status.code, ran.status.signal, ran.output]
    except Exception as error:
        result = [type(error).__name__, "", ""]
    ended = greedy.ended.result().reason if greedy.ended.done() else None
    alive = None
    if ended is None:
        try:
            alive = (await run(greedy, ["echo", "alive"])).output
        except AgentLost:  # it was ending already
            ended = (await greedy.ended).reason
    return {"result": result, "ended": ended, "alive": alive, "other": sorted(set(meanwhile))}


@BOTH
def test_fork_bomb(box_runner: Any, ordinary: bool) -> None:
    """Processes are bounded: fork fails with EAGAIN at the limit, and the agent still starts programs."""
    got = box_runner(take_all, code=FORKS, as_ordinary_user=ordinary)
    number, forks = map(int, got["result"][2].split())
    assert number == 11
    assert 40 <= forks <= 64
    assert got["alive"] == "alive\n"
    assert got["other"] == ["fine\n"]


@BOTH
@pytest.mark.parametrize("code", [HOG, MANY_HOGS], ids=["one", "many"])
def test_memory_hog(box_runner: Any, ordinary: bool, code: str) -> None:
    """Memory is bounded over all processes together: a hog dies or fails, or its box ends for memory."""
    got = box_runner(take_all, code=code, as_ordinary_user=ordinary)
    code_, signum, output = got["result"]
    assert "no limit" not in output
    assert "failed 0" not in output
    died = signum == 9 or code_ == 3 or output.startswith("failed")
    lost = got["ended"] == "memory"
    assert died or lost, got
    assert got["ended"] in (None, "memory")
    assert got["other"] == ["fine\n"]


async def fill_and_free(isolation: Any, code: str, free: str, write: str) -> Any:
    """Fill a fresh box while another one writes; then see what the full box can do, before and after it is freed."""
    import asyncio

    from box_tools import python, run, small

    greedy, other = await isolation.create(small("greedy")), await isolation.create(small("other"))
    running = asyncio.ensure_future(python(greedy, code))
    meanwhile = []
    while not running.done() or not meanwhile:
        meanwhile.append((await run(other, ["sh", "-c", "echo fine > note && cat note && rm note"])).output)
        await asyncio.sleep(0.02)
    filled = (await running).output
    alive = (await run(greedy, ["echo", "alive"])).output
    full = (await run(greedy, ["sh", "-c", write])).output
    await run(greedy, ["sh", "-c", free])
    return {
        "filled": filled,
        "alive": alive,
        "full": full,
        "freed": (await run(greedy, ["sh", "-c", write])).output,
        "ended": greedy.ended.done(),
        "other": sorted(set(meanwhile)),
    }


def check_filled(got: Any, *, most: int) -> None:
    """ENOSPC within the limit; the box answers, writes nothing while it is full, and writes again once freed."""
    number, took = map(int, got["filled"].split())
    assert number == 28
    assert 0 < took <= most
    assert got["alive"] == "alive\n"
    assert "No space left on device" in got["full"]
    assert got["freed"] == "written\n"
    assert not got["ended"]
    assert got["other"] == ["fine\n"]


@BOTH
@pytest.mark.parametrize("path", ["/home/user/big", "/tmp/big", "/dev/shm/big"])
def test_disk_filler(box_runner: Any, ordinary: bool, path: str) -> None:
    """Every writable place ends with ENOSPC at the box's own size; once the file is removed there is room again."""
    write = f"head -c 65536 /dev/zero > {path}2 && echo written"
    got = box_runner(
        fill_and_free, code=DISK.format(path=path), free=f"rm {path}*", write=write, as_ordinary_user=ordinary
    )
    check_filled(got, most=64)


@BOTH
def test_inode_filler(box_runner: Any, ordinary: bool) -> None:
    """Empty files are bounded, too: they would eat the kernel's memory; once they are removed there is room again."""
    write = "echo written > note && cat note"
    free = "find /home/user -name 'f*' -delete"
    got = box_runner(fill_and_free, code=INODES, free=free, write=write, as_ordinary_user=ordinary)
    check_filled(got, most=2000)


async def spin(isolation: Any) -> Any:
    """Let four busy loops run in one box with half a CPU, and end them from outside."""
    import asyncio
    import time

    from box_tools import ENVIRONMENT, HOME, run, small

    greedy, other = await isolation.create(small("greedy", cpus=0.5)), await isolation.create(small("other"))
    loops = [
        await greedy.agent.spawn(["sh", "-c", "while :; do :; done"], envs=ENVIRONMENT, cwd=HOME, fds={})
        for _ in range(4)
    ]
    before, began = await greedy.usage(), time.monotonic()
    outputs = []
    while time.monotonic() < began + 1.5:
        outputs.append((await run(other, ["echo", "fine"])).output)
        await asyncio.sleep(0.05)
    after, elapsed = await greedy.usage(), time.monotonic() - began
    for loop in loops:
        await greedy.agent.signal(loop.pid, 9)
    ends = [(await loop.wait()).signal for loop in loops]
    by = next(limit.by for limit in greedy.limits if limit.resource == "cpus")
    return [(after.cpu_seconds - before.cpu_seconds) / elapsed, by, ends, sorted(set(outputs))]


@BOTH
def test_busy_loop(box_runner: Any, ordinary: bool) -> None:
    """A busy box leaves others able to work, is held to its share where that is said, and can be stopped."""
    share, by, ends, others = box_runner(spin, as_ordinary_user=ordinary)
    assert ends == [9, 9, 9, 9]
    assert others == ["fine\n"]
    if by in ("cgroup1", "cgroup2"):
        assert share < 0.75


async def describe(isolation: Any) -> Any:
    """What the box says about its limits."""
    from box_tools import small

    box = await isolation.create(small("limits"))
    return {limit.resource: [limit.value, limit.by] for limit in box.limits}


@BOTH
def test_limits_are_reported(box_runner: Any, ordinary: bool) -> None:
    """Each resource has its value and the mechanism that holds it."""
    told = box_runner(describe, as_ordinary_user=ordinary)
    counted = told["memory"][1] in ("cgroup2", "cgroup1")
    assert {name: value for name, (value, _by) in told.items()} == {
        "memory": 256 << 20,
        "swap": 0,
        "shared_memory": 256 << 20 if counted else 0,
        "locked_memory": 8 << 20,
        "cpus": 2.0,
        "processes": 64,
        "open_files": 4096 if counted else 1024,
        "disk": 64 << 20,
        "inodes": 2000,
    }
    assert told["disk"][1] == told["inodes"][1] == "tmpfs"
    assert told["memory"][1] in ("cgroup2", "cgroup1", "watchdog")
    assert counted or told["shared_memory"][1] == "seccomp"
