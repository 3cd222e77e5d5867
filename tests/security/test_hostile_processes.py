"""Hostile programs after processes: the agent, pid 1, their memory and descriptors, and what is left when they die."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])


async def attacked(isolation: Any, code: str) -> Any:
    """See `hostile_tools.attack`."""
    from hostile_tools import attack

    return await attack(isolation, code)


AGENT = r"""
for name in ('mem', 'environ', 'maps', 'smaps', 'pagemap', 'auxv', 'stack', 'syscall', 'personality', 'io', 'wchan',
             'root/etc/passwd', 'cwd/x', 'fd/0', 'fdinfo/0', 'map_files', 'ns/net', 'exe', 'mountinfo', 'patch_state'):
    path = '/proc/%d/%s' % (AGENT, name)
    attempt('read ' + name, lambda: read(path) if not os.path.isdir(path) else os.listdir(path))
    attempt('write ' + name, lambda: os.close(os.open(path, os.O_RDWR)))
for name in ('oom_score_adj', 'coredump_filter', 'clear_refs', 'comm', 'timerslack_ns', 'attr/current', 'setgroups'):
    attempt('set ' + name, write, '/proc/%d/%s' % (AGENT, name), b'0')
for number in range(64):
    attempt('descriptor %d' % number, lambda: os.open('/proc/%d/fd/%d' % (AGENT, number), os.O_RDWR))
for pid in (AGENT, INIT):
    handle = os.pidfd_open(pid)
    for number in range(12):
        attempt('pidfd_getfd %d of %d' % (number, pid), syscall, NUMBERS['pidfd_getfd'], handle, number, 0)
    iov = struct.pack('QQ', ctypes.addressof(ctypes.create_string_buffer(64)), 64)
    vector = ctypes.create_string_buffer(iov)
    attempt('process_vm_readv %d' % pid, syscall, NUMBERS['process_vm_readv'], pid, vector, 1, vector, 1, 0)
    attempt('process_vm_writev %d' % pid, syscall, NUMBERS['process_vm_writev'], pid, vector, 1, vector, 1, 0)
    for request in (0, 16, 0x4206):  # TRACEME, ATTACH, SEIZE
        attempt('ptrace %x %d' % (request, pid), syscall, NUMBERS['ptrace'], request, pid, 0, 0)
    attempt('kcmp %d' % pid, syscall, NUMBERS['kcmp'], os.getpid(), pid, 0, 0, 0)
    attempt('process_madvise %d' % pid, syscall, NUMBERS['process_madvise'], handle, vector, 1, 21, 0)
    attempt('process_mrelease %d' % pid, syscall, NUMBERS['process_mrelease'], handle, 0)
    attempt('move_pages %d' % pid, syscall, NUMBERS['move_pages'], pid, 0, 0, 0, 0, 0)
    attempt('migrate_pages %d' % pid, syscall, NUMBERS['migrate_pages'], pid, 0, 0, 0)
# A descriptor of ours that is not ours: nothing but 0, 1 and 2 comes into a program.
out['own descriptors'] = sorted(int(n) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n))[:3]
# The socket of the agent cannot be reached by its inode either.
for number in os.listdir('/proc/1/fd'):
    if os.readlink('/proc/1/fd/' + number).startswith('socket'):
        attempt('socket ' + number, os.open, '/proc/1/fd/' + number, os.O_RDWR)
out['fds of pid 1'] = sorted({os.readlink('/proc/1/fd/' + n).split(':')[0] for n in os.listdir('/proc/1/fd')})
out['environ of pid 1'] = read('/proc/1/environ').decode()
"""


@BOTH
def test_the_agent_is_closed(box_runner: Any, ordinary: bool) -> None:
    """Memory, environment, descriptors and socket of the agent are closed to its own user; pid 1 holds nothing but
    /dev/null, a pipe that nobody reads and the event of its end."""
    told = box_runner(attacked, code=AGENT, as_ordinary_user=ordinary)
    assert told.pop("own descriptors") == [0, 1, 2]
    assert set(told.pop("fds of pid 1")) <= {"/dev/null", "pipe", "anon_inode"}
    assert told.pop("environ of pid 1") == ""
    # What /proc shows of it to everybody: no fact of the host's is in it.
    harmless = {"read personality", "read wchan", "write comm", "read mountinfo"}
    told = {name: what for name, what in told.items() if name not in harmless and what != "worked: b''"}
    assert {name: what for name, what in told.items() if what.startswith("worked")} == {}


RUIN = {
    "kill": "os.kill(AGENT, signal.SIGKILL)",
    "kill process 2": "os.kill(2, signal.SIGKILL)",
    "stop then kill": "os.kill(AGENT, signal.SIGSTOP); os.kill(AGENT, signal.SIGKILL)",
    "memory of pid 1": """
with open('/proc/1/maps') as file:
    start, end = next(line for line in file if 'r-xp' in line).split()[0].split('-')
fd = os.open('/proc/1/mem', os.O_RDWR)
os.pwrite(fd, b'\\xcc' * (int(end, 16) - int(start, 16)), int(start, 16))
os.kill(AGENT, signal.SIGKILL)
time.sleep(20)
""",
    "descriptors of the agent": "import resource; resource.prlimit(AGENT, resource.RLIMIT_NOFILE, (3, 3))",
    "processor time of the agent": "import resource; resource.prlimit(AGENT, resource.RLIMIT_CPU, (1, 1))",
}


async def ruined(isolation: Any, code: str) -> Any:
    """Let a program ruin its own sandbox, and see that this is all it does."""
    import asyncio

    from box_tools import ENVIRONMENT, HOME, run, small
    from hostile_tools import PRELUDE

    from sandboxkit.local.isolation import AgentError, AgentLost

    box, other = await isolation.create(small("ruined")), await isolation.create(small("other"))
    program = PRELUDE + code
    told = "lived"
    try:
        process = await box.agent.spawn(["python3", "-I", "-c", program, "{}"], envs=ENVIRONMENT, cwd=HOME, fds={})
        async with asyncio.timeout(10):
            await process.wait()
            (await box.agent.open_file("/home/user/x", os.O_CREAT | os.O_WRONLY)).close()
    except AgentLost:
        told = "lost"
    except AgentError as error:
        told = f"refused {error.errno}"
    await box.kill()
    again = await isolation.create(small("again"))
    return [told, (await run(other, ["echo", "fine"])).output, (await run(again, ["echo", "fine"])).output]


@BOTH
@pytest.mark.parametrize("how", sorted(RUIN))
def test_ruining_ones_own_sandbox(box_runner: Any, ordinary: bool, how: str) -> None:
    """A program that kills or cripples the agent or pid 1 loses its own sandbox, typed; others and the engine go on."""
    told, other, again = box_runner(ruined, code=RUIN[how], as_ordinary_user=ordinary)
    assert other == again == "fine\n"
    if how in ("kill", "kill process 2", "stop then kill", "memory of pid 1"):
        assert told == "lost"
    else:
        assert told in ("lost", "lived", "refused 24")


def _field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(name + ":")).partition(":")[2].strip()


async def stopped(isolation: Any) -> Any:
    """Let a program stop the agent, and end the box nevertheless."""
    import asyncio
    import time

    from box_tools import ENVIRONMENT, HOME, small

    from sandboxkit.local.isolation.processes._processes import processes_of

    box = await isolation.create(small("stopped"))
    reading, writing = os.pipe()
    process = await box.agent.spawn(
        ["sh", "-c", "read told; kill -STOP $PPID; sleep 600"], envs=ENVIRONMENT, cwd=HOME, fds={0: reading}
    )
    os.close(reading)
    if isolation.name == "gvisor":  # its programs are no processes of the host's: the agent's silence is what there is
        os.write(writing, b"\n")
        os.close(writing)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(20):
                while True:
                    await asyncio.wait_for(box.agent.ping(), 2)
                    await asyncio.sleep(0.01)
    else:
        assert process.pid > 2
        inside = processes_of(box.init_pid)
        program = next(pid for pid in inside if _field(pid, "NSpid").split()[-1] == str(process.pid))
        agent = int(_field(program, "PPid"))
        os.write(writing, b"\n")
        os.close(writing)
        async with asyncio.timeout(20):
            while not _field(agent, "State").startswith("T"):  # noqa: ASYNC110 (another process's state)
                await asyncio.sleep(0.01)
    pinging = asyncio.ensure_future(box.agent.ping())
    done, _ = await asyncio.wait([pinging], timeout=0.2)
    began = time.monotonic()
    await box.kill()
    took = time.monotonic() - began
    lost = type((await asyncio.gather(pinging, return_exceptions=True))[0]).__name__
    return [len(done), lost, took]


@BOTH
def test_a_stopped_agent(box_runner: Any, ordinary: bool) -> None:
    """A box whose agent a program has stopped is killed as fast as any other, and who waits is told."""
    answered, lost, took = box_runner(stopped, as_ordinary_user=ordinary)
    assert (answered, lost) == (0, "AgentLost")
    assert took < 30


async def flooded(isolation: Any) -> Any:
    """Let daemons, orphans and stopped processes fill a box, and end it."""
    from box_tools import run, small

    from sandboxkit.local.isolation.processes._processes import all_pids, namespace_of

    box = await isolation.create(small("flooded"))
    code = (
        "import os, signal\n"
        "for n in range(40):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid(); os.closerange(0, 3)\n"
        "        for s in range(1, 32):\n"
        "            try: signal.signal(s, signal.SIG_IGN)\n"
        "            except OSError: pass\n"
        "        if n % 2: os.kill(os.getpid(), signal.SIGSTOP)\n"
        "        while True: signal.pause()\n"
    )
    await run(box, ["python3", "-I", "-c", code + "print('done')"])
    place = namespace_of(box.init_pid)
    before = len([pid for pid in all_pids() if namespace_of(pid) == place])
    await box.kill()
    return [before, len([pid for pid in all_pids() if namespace_of(pid) == place])]


@BOTH
def test_nothing_survives_the_box(box_runner: Any, ordinary: bool) -> None:
    """Forty daemons that ignore every signal, half of them stopped, are gone with their box."""
    before, after = box_runner(flooded, as_ordinary_user=ordinary)
    assert before > 40
    assert after == 0
