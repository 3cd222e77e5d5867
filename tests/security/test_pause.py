"""A paused box: nothing in it runs, nobody takes that for a failure, and it can be resumed or killed at any time."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COUNTER = """
import os, sys, time
for _ in range(3):
    os.fork()
while True:
    with open("/tmp/counted", "a") as file:
        file.write("x")
    time.sleep(0.001)
"""

FORKER = """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        if os.fork() == 0:
            os._exit(0)
    except OSError:
        pass
"""


def _jiffies(pids: list[int]) -> dict[int, bytes]:
    """CPU time by process."""
    spent = {}
    for pid in pids:
        try:
            spent[pid] = b" ".join(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[11:13])
        except OSError:
            continue
    return spent


async def _started(box: Any, code: str, *, expect: int) -> Any:
    """Start a program in a box, and wait until so many processes are there."""
    from box_tools import ENVIRONMENT

    process = await box.agent.spawn(["python3", "-I", "-c", code], envs=ENVIRONMENT, cwd="/tmp", fds={})
    async with asyncio.timeout(40):
        while (await box.usage()).processes < expect:  # noqa: ASYNC110  (the kernel tells nobody)
            await asyncio.sleep(0.01)
    return process


async def counters(isolation: Any) -> dict[str, Any]:
    """Pause and resume a box in which eight processes count."""
    from box_tools import small

    from sandboxkit.local.isolation.processes._processes import processes_of

    box = await isolation.create(small("counters"))
    counted = box.files.path / "tmp" / "counted"
    process = await _started(box, COUNTER, expect=10)
    began = time.perf_counter()
    await box.pause()
    took = time.perf_counter() - began
    await box.pause()
    before = (counted.stat().st_size, _jiffies(processes_of(box.init_pid)))
    ping = asyncio.create_task(box.agent.ping())
    await asyncio.sleep(0.2)
    after = (counted.stat().st_size, _jiffies(processes_of(box.init_pid)))
    waited = not ping.done()
    await box.resume()
    await box.resume()
    async with asyncio.timeout(40):
        await ping
        while counted.stat().st_size <= after[0]:  # noqa: ASYNC110  (the file tells nobody)
            await asyncio.sleep(0.01)
    alive = await box.agent.signal(process.pid, 0)
    await box.kill()
    return {"still": before == after, "seen": len(after[1]), "waited": waited, "alive": alive, "ms": took * 1000}


@pytest.mark.parametrize("as_ordinary_user", [False, True], ids=["root", "user"])
def test_nothing_runs_while_paused(box_runner: Callable[..., Any], as_ordinary_user: bool) -> None:
    """No process of a paused box uses CPU or writes; the agent's answer waits; all goes on after it."""
    told = box_runner(counters, as_ordinary_user=as_ordinary_user)
    assert told["seen"] >= 10
    assert {name: told[name] for name in ("still", "waited", "alive")} == {"still": True, "waited": True, "alive": True}


async def forker(isolation: Any) -> dict[str, Any]:
    """Pause a box that forks without end, then kill it as it is."""
    from box_tools import small

    from sandboxkit.local.isolation.processes._processes import processes_of

    box = await isolation.create(small("forker"))
    await _started(box, FORKER, expect=3)
    paused = True
    try:
        await box.pause()
    except TimeoutError:
        paused = False
    pids = processes_of(box.init_pid)
    before = _jiffies(pids)
    await asyncio.sleep(0.1)
    still = before == _jiffies(processes_of(box.init_pid))
    await box.kill()
    return {"paused": paused, "still": still, "left": [pid for pid in pids if os.path.exists(f"/proc/{pid}")]}


@pytest.mark.parametrize("as_ordinary_user", [False, True], ids=["root", "user"])
def test_what_forks_without_end_is_stopped_too(box_runner: Callable[..., Any], as_ordinary_user: bool) -> None:
    """A fork loop is stopped, and a paused box is killed as it is: nothing is left."""
    told = box_runner(forker, as_ordinary_user=as_ordinary_user)
    assert told == {"paused": True, "still": True, "left": []}


async def stopped_inside(isolation: Any) -> dict[str, Any]:
    """A process that the user had stopped is not woken by a resumption."""
    from box_tools import small

    box = await isolation.create(small("stopped"))
    process = await _started(box, "import time; time.sleep(1000)", expect=3)
    await box.agent.signal(process.pid, signal.SIGSTOP)
    from sandboxkit.local.isolation.processes._processes import processes_of

    def states() -> list[str]:
        pids = processes_of(box.init_pid)
        return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]

    async with asyncio.timeout(10):
        while "T" not in states():  # noqa: ASYNC110  (the kernel tells nobody)
            await asyncio.sleep(0.005)
    await box.pause()
    await box.resume()
    await box.agent.ping()
    async with asyncio.timeout(10):
        while states().count("T") > 1:  # noqa: ASYNC110  (the others wake in their time)
            await asyncio.sleep(0.005)
    stopped = states().count("T")
    await box.kill()
    return {"stopped": stopped}


def test_what_was_stopped_before_stays_stopped(box_runner: Callable[..., Any]) -> None:
    """A process that was stopped from inside is still stopped after pause and resume."""
    assert box_runner(stopped_inside) == {"stopped": 1}


async def lost_in_between(isolation: Any) -> dict[str, Any]:
    """A box that is killed while it is being paused, and one whose init dies while paused."""
    from box_tools import small

    from sandboxkit.local.isolation import AgentLost

    box = await isolation.create(small("killed"))
    pausing = asyncio.create_task(box.pause())
    await box.kill()
    try:
        await pausing
        first = "paused before it was killed"
    except AgentLost:
        first = "lost"
    answers = []
    for verb in (box.pause, box.resume):
        try:
            await verb()
        except AgentLost:
            answers.append("lost")
    other = await isolation.create(small("dies"))
    await other.pause()
    signal.pidfd_send_signal(other._init_fd, signal.SIGKILL)
    async with asyncio.timeout(10):
        end = await asyncio.shield(other.ended)
    return {"first": first, "answers": answers, "end": end.reason}


def test_a_box_that_ends_meanwhile_is_lost(box_runner: Callable[..., Any]) -> None:
    """Pausing or resuming a box that ended is `AgentLost`; a paused one whose first process dies ends as any other."""
    told = box_runner(lost_in_between)
    assert told["first"] in ("lost", "paused before it was killed")
    assert (told["answers"], told["end"]) == (["lost", "lost"], "engine")


async def foreign(isolation: Any) -> dict[str, Any]:
    """Pause, resume and end a box that takes another process's number for that of its agent, as where its agent ended
    and the number was given away before anybody noticed."""
    import subprocess

    from box_tools import small

    def state() -> str:
        return Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[0]

    box = await isolation.create(small("numbers"))
    states = []
    with subprocess.Popen(["sleep", "60"]) as other:
        entered, box._entered = box._entered, other.pid
        await box.pause()
        states.append(state())
        other.send_signal(signal.SIGSTOP)
        while state() != "T":  # noqa: ASYNC110  (the kernel tells nobody)
            await asyncio.sleep(0.001)
        await box.resume()
        states.append(state())
        box._entered = entered
        await box.agent.ping()
        await box.kill()
        states.append(state())
        other.kill()
    return {"states": states}


def test_a_number_that_is_anothers_by_now(box_runner: Callable[..., Any]) -> None:
    """Who is not in the box's namespace is neither stopped, nor woken, nor killed."""
    assert box_runner(foreign) == {"states": ["S", "T", "T"]}
