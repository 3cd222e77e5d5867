"""Hostile programs after more than their share: memory by every way it can be had, descriptors, inodes, output."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])
MEMORY = 128

GREED = {
    "anonymous pages": """
held = []
for n in range(60):
    held.append(bytearray(b'x') * (8 << 20))
print('no limit', flush=True)
""",
    "shared pages": """
import mmap
held = []
for n in range(60):
    held.append(mmap.mmap(-1, 8 << 20))
    held[-1].write(b'x' * (8 << 20))
    time.sleep(0.01)
time.sleep(1)
print('no limit', flush=True)
""",
    "shared pages of many processes": """
import mmap
for n in range(6):
    if os.fork() == 0:
        held = mmap.mmap(-1, 60 << 20)
        held.write(b'x' * (60 << 20))
        time.sleep(10)
        os._exit(0)
ends = [os.wait()[1] for n in range(6)]
print('no limit' if not any(ends) else 'some died', flush=True)
""",
    "pages of processes whose first thread has ended": """
import ctypes, mmap, threading
def hog():
    held = mmap.mmap(-1, 60 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, 60 << 20, 4096):
        held[at] = 1
    time.sleep(5)
    os._exit(0)
for n in range(6):
    if os.fork() == 0:
        threading.Thread(target=hog).start()
        ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[os.uname().machine], 0)
ends = [os.wait()[1] for n in range(6)]
print('no limit' if not any(ends) else 'some died', flush=True)
""",
    "files": """
for place in ('/tmp', '/dev/shm', '/home/user'):
    fd = os.open(place + '/big', os.O_CREAT | os.O_WRONLY)
    for n in range(60):
        os.write(fd, b'x' * (1 << 20))
        time.sleep(0.002)
held = bytearray(b'x') * (90 << 20)
time.sleep(1)
print('no limit', flush=True)
""",
    "memfd": """
fds = []
for n in range(60):
    fds.append(os.memfd_create('x'))
    os.write(fds[-1], b'x' * (8 << 20))
print('no limit', flush=True)
""",
    "segments": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
for n in range(60):
    number = libc.shmget(0, ctypes.c_size_t(8 << 20), 0o1600)
    if number < 0:
        raise OSError(ctypes.get_errno(), 'shmget')
    at = libc.shmat(number, None, 0)
    ctypes.memset(at, 1, 8 << 20)
    libc.shmdt(ctypes.c_void_p(at))
print('no limit', flush=True)
""",
    "page tables": """
import mmap
held = []
for n in range(400):  # a page in each 2 MiB: a page of page table for each page of data
    held.append(mmap.mmap(-1, 1 << 28, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    for at in range(0, 1 << 28, 1 << 21):
        held[-1][at] = 1
print('no limit', flush=True)
""",
    "locked pages": """
import ctypes, mmap
held = mmap.mmap(-1, 64 << 20)
libc = ctypes.CDLL(None, use_errno=True)
if libc.mlock(ctypes.addressof(ctypes.c_char.from_buffer(held)), ctypes.c_size_t(64 << 20)) < 0:
    raise OSError(ctypes.get_errno(), 'mlock')
print('no limit', flush=True)
""",
    "message queues": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for n in range(200):
    number = libc.msgget(0, 0o1600)
    if number < 0:
        raise OSError(ctypes.get_errno(), 'msgget')
    for m in range(2):
        libc.msgsnd(number, ctypes.create_string_buffer(b'\\1' + b'x' * 8007), ctypes.c_size_t(8000), 0o4000)
print('bounded by their number: %d' % n, flush=True)
""",
}


async def be_greedy(isolation: Any, code: str) -> Any:
    """Run greedy code in one box, and a small program in another meanwhile; tell how it went."""
    import asyncio
    import contextlib

    from box_tools import python, run, small

    from sandboxkit.local.isolation import AgentLost

    greedy = await isolation.create(small("greedy", memory=MEMORY << 20, disk=256 << 20))
    other = await isolation.create(small("other"))
    running = asyncio.ensure_future(python(greedy, "import os, time\n" + code, seconds=25))
    peak = 0
    meanwhile = set()
    while not running.done():
        if not greedy.ended.done():
            with contextlib.suppress(AgentLost):  # it is ending
                peak = max(peak, (await greedy.usage()).memory)
        meanwhile.add((await run(other, ["echo", "fine"])).output)
        await asyncio.sleep(0.02)
    try:
        ran = await running
        how = [ran.status.code, ran.status.signal, ran.output[-300:]]
    except Exception as error:
        how = [None, None, type(error).__name__]
    ended = (await greedy.ended).reason if how[2] == "AgentLost" or greedy.ended.done() else None
    return {"how": how, "ended": ended, "peak": peak >> 20, "other": sorted(meanwhile)}


@BOTH
@pytest.mark.parametrize("way", [*sorted(set(GREED) - {"page tables", "files"}), "files", "page tables"])
def test_memory_by_every_way(box_runner: Any, ordinary: bool, way: str) -> None:
    """Whatever kind of memory a program asks for, it dies, is refused or loses its box soon after the limit."""
    got = box_runner(be_greedy, code=GREED[way], as_ordinary_user=ordinary)
    code, signal, output = got["how"]
    assert "no limit" not in output, got
    assert signal == 9 or got["ended"] in ("memory", "agent") or code not in (None,), got
    assert got["ended"] in (None, "memory"), got
    assert got["other"] == ["fine\n"]
    assert got["peak"] < MEMORY * 2, got


DESCRIPTORS = """
import socket
held = []
try:
    while True:
        held.append(os.open('/dev/null', os.O_RDONLY))
except OSError as error:
    print(error.errno, len(held), flush=True)
"""

PAIRS = """
import resource, socket
pairs = []
stuck = 0
try:
    while True:
        a, b = socket.socketpair()
        a.setblocking(False)
        pairs.append((a, b))
        try:
            while True:
                stuck += a.send(b'x' * 65536)
        except BlockingIOError:
            pass
except (OSError, MemoryError) as error:
    print('ended', stuck >> 20, flush=True)
"""


@BOTH
def test_descriptors(box_runner: Any, ordinary: bool) -> None:
    """Open files of one process are bounded, and the agent still opens its own."""
    got = box_runner(be_greedy, code=DESCRIPTORS, as_ordinary_user=ordinary)
    number, held = map(int, got["how"][2].split())
    assert number == 24
    assert 1000 < held < 4100
    assert got["other"] == ["fine\n"]


@BOTH
def test_socket_buffers(box_runner: Any, ordinary: bool) -> None:
    """What lies in sockets that nobody reads counts where a cgroup counts, and is bounded by the number of open files
    where none does; the other box does not notice."""
    got = box_runner(be_greedy, code=PAIRS, as_ordinary_user=ordinary)
    assert got["other"] == ["fine\n"]
    code, signal, output = got["how"]
    assert signal == 9 or got["ended"] == "memory" or (code == 0 and int(output.split()[1]) < 512), got


ON_THEIR_WAY = """
import array, os, socket, time
held = []
try:
    while True:
        held += socket.socketpair()
        held[-2].setblocking(False)
        try:
            while True:
                held[-2].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 250))])
        except BlockingIOError:
            continue
except OSError as error:
    print(error.errno, flush=True)
time.sleep(1000)
"""

SERVER = "import socket, time; s = socket.create_server(('127.0.0.1', 8000)); print('up', flush=True); time.sleep(1000)"


async def send_descriptors(isolation: Any) -> Any:
    """Have one box put as many descriptors on their way as it may, and ask for all that passes some of another one."""
    import asyncio
    import os
    import resource

    from box_tools import ENVIRONMENT, run, small

    from sandboxkit.errors import EngineUnavailable
    from sandboxkit.local.isolation import AgentError

    # As many as a program may have: the kernel compares what is on its way, of all boxes, with the sender's limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    greedy, other = await isolation.create(small("greedy")), await isolation.create(small("other"))

    async def start(box: Any, code: str) -> str:
        read, write = os.pipe()
        await box.agent.spawn(["python3", "-I", "-c", code], envs=ENVIRONMENT, cwd="/", fds={1: write})
        os.close(write)
        said = await asyncio.to_thread(os.read, read, 100)
        os.close(read)
        return said.decode().strip()

    async def attempt(way: Any) -> str:
        try:
            made = await way()
        except AgentError:
            return "refused"
        if isinstance(made, int):
            os.close(made)
        return "done"

    async def terminal() -> int:
        return (await other.agent.spawn_pty(["sleep", "1"], envs=ENVIRONMENT, cwd="/", cols=80, rows=24))[1]  # type: ignore[no-any-return]

    ways = [lambda: other.agent.dial(8000), terminal, lambda: run(other, ["true"]), other.agent.ping]
    told = [await start(other, SERVER), await start(greedy, ON_THEIR_WAY)]
    during = [await attempt(way) for way in ways]
    made = []
    for number in range(8):
        try:
            box = await isolation.create(small(f"made-{number}"))
        except EngineUnavailable as error:
            made.append(str(error))
        else:
            await box.kill()
    await asyncio.sleep(1.5)  # programs that were started and refused would have ended by now, which nobody awaits
    await greedy.kill()
    after = [await attempt(way) for way in ways]
    box = await isolation.create(small("last"))
    return {"told": told, "during": during, "made": made, "after": after, "entered": getattr(box, "_entered", 1) > 0}


@BOTH
def test_descriptors_on_their_way(box_runner: Any, ordinary: bool) -> None:
    """The kernel counts those of all boxes together: another one gets errors while there are too many, and it lives;
    once they are gone, all is as it was."""
    got = box_runner(send_descriptors, as_ordinary_user=ordinary)
    assert got["told"][0] == "up"
    assert got["during"][3] == "done"
    assert got["made"] == []
    assert got["after"] == ["done"] * 4
    assert got["entered"]


WATCHED = """
import os, resource, select, time
most = (min(3900, resource.getrlimit(resource.RLIMIT_NOFILE)[0]) - 100) // 2
def fill():
    watched = [os.eventfd(0) for _ in range(most)]
    watching = []
    while len(watching) < most:
        watching.append(select.epoll())
        for one in watched:
            watching[-1].register(one, 0)
for n in range(12 if most == 1900 else 50):
    if os.fork() == 0:
        try:
            fill()
        except OSError as error:
            print(error.errno, flush=True)
        time.sleep(1000)
time.sleep(1000)
"""


async def watch_everything(isolation: Any) -> Any:
    """Have one box take all the room that epoll has for its user's descriptors, and see what the engine still can."""
    import asyncio
    import os

    from box_tools import ENVIRONMENT, run, small

    from sandboxkit.errors import EngineUnavailable
    from sandboxkit.local.isolation import AgentError

    greedy, other = await isolation.create(small("greedy", memory=4 << 30)), await isolation.create(small("other"))
    read, write = os.pipe()
    await greedy.agent.spawn(["python3", "-I", "-c", WATCHED], envs=ENVIRONMENT, cwd="/", fds={1: write})
    os.close(write)
    async with asyncio.timeout(40):
        said = await asyncio.to_thread(os.read, read, 100)
    os.close(read)
    await other.agent.ping()
    during = []
    for _ in range(3):
        try:
            during.append((await run(other, ["echo", "fine"])).output)
        except AgentError as error:
            during.append(str(error.errno))
    try:
        await (await isolation.create(small("new"))).kill()
    except EngineUnavailable:
        during.append("28")
    await other.agent.ping()
    await greedy.kill()
    return {"said": said.decode(), "during": during, "after": (await run(other, ["echo", "fine"])).output}


@pytest.mark.full
def test_what_epoll_has_room_for(box_runner: Any) -> None:
    """The kernel counts what all epolls of a user watch together, and a gigabyte of it is enough: the engine hears of
    everything all the same, and ends the box; programs in another one get an error meanwhile, or do not notice."""
    with open("/proc/sys/fs/epoll/max_user_watches") as file:
        if int(file.read()) > 10_000_000:
            pytest.skip("this machine has so much memory that the room is not filled")
    got = box_runner(watch_everything)
    assert got["said"].startswith("28\n")
    assert set(got["during"]) <= {"fine\n", "28"}
    assert got["after"] == "fine\n"


async def tell_limits(isolation: Any) -> Any:
    """What the box says of itself, and what its programs find."""
    from box_tools import python, small

    box = await isolation.create(small("told"))
    code = (
        "import json, os, resource as r\n"
        "open('/home/user/file', 'wb').write(b'x' * (4 << 20))\n"
        "names = ('NOFILE', 'NPROC', 'MEMLOCK', 'CORE', 'MSGQUEUE', 'SIGPENDING')\n"
        "print(json.dumps({n: r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in names}))\n"
    )
    inside = (await python(box, code)).output
    usage = await box.usage()
    held = {limit.resource: [limit.value, limit.by] for limit in box.limits}
    return {"inside": inside, "held": held, "cache": usage.cache, "memory": usage.memory, "disk": usage.disk}


@BOTH
def test_what_is_told_is_true(box_runner: Any, ordinary: bool) -> None:
    """The limits that a box reports are those that its programs find, and its files count as memory."""
    import json

    told = box_runner(tell_limits, as_ordinary_user=ordinary)
    inside = json.loads(told["inside"])
    held = told["held"]
    assert inside["NOFILE"] == [held["open_files"][0]] * 2
    assert inside["MEMLOCK"][1] <= held["locked_memory"][0]
    assert inside["CORE"] == [0, 0]
    assert inside["MSGQUEUE"][1] <= 819_200
    assert inside["SIGPENDING"][1] <= 4096
    assert inside["NPROC"][1] >= held["processes"][0]
    assert told["disk"] >= 4 << 20
    assert told["cache"] >= 4 << 20
    assert told["memory"] >= told["cache"]
    assert {by for _value, by in held.values()} <= {
        "cgroup1",
        "cgroup2",
        "rlimit",
        "tmpfs",
        "watchdog",
        "seccomp",
        "none",
    }
    assert held["memory"][1] != "none"
