"""Each command's process group: its own, led by nobody, and reached by a kill. The real agent, without a box."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

if sys.platform == "linux":
    from sandboxkit.local.agent._programs import leaderless

NO_PROGRAM = 0x40
"""PF_FORKNOEXEC among a process's flags: it has not executed anything since it was made."""


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def told(pid: int | str) -> list[str]:
    """The fields of a process's /proc/PID/stat from its state on; none when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def lives(pid: int) -> bool:
    """Whether it runs, or could."""
    return told(pid)[:1] not in ([], ["Z"], ["X"])


def children(parent: int) -> list[int]:
    """All children of a process, those that have ended and were not taken among them."""
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and told(pid)[1:2] == [str(parent)]]


def start(envd: Any, live: Callable[..., Any], script: str) -> tuple[Any, int, list[int]]:
    """Start a script that prints a line of numbers: its stream, its pid, the numbers."""
    stream = live("Process/Start", envd.script(script))
    pid = next(stream)["event"]["start"]["pid"]
    return stream, pid, [int(word) for word in envd.output([next(stream)]).split()]


def kill(envd: Any, pid: int) -> None:
    """Kill a command as a client does."""
    answer = envd.call("Process/SendSignal", {"process": {"pid": pid}, "signal": "SIGNAL_SIGKILL"})
    assert answer.json() == {}


def test_a_groups_leader_runs_no_program_and_leaves_nothing() -> None:
    """It executes nothing, ends at once, and is taken with the end of the block: no process, thread or file stays."""
    mine = (threading.active_count(), os.listdir("/proc/self/fd"))
    for _ in range(50):
        with leaderless() as group:
            until(lambda: told(group)[0] == "Z")
            state, parent, its_group, *_ = told(group)
            assert (state, int(parent), int(its_group)) == ("Z", os.getpid(), group)
            assert int(told(group)[6]) & NO_PROGRAM
        assert told(group) == []
    assert mine == (threading.active_count(), os.listdir("/proc/self/fd"))


def test_fifty_at_once_have_fifty_groups(envd: Any) -> None:
    """Nobody leads or shares one, and when all have ended the agent has no child left, not even one that has ended."""

    def run(_: int) -> list[int]:
        events = envd.bash("read -r _ _ _ _ group _ < /proc/$$/stat; echo $$ $group $PPID")
        return [int(word) for word in envd.output(events).split()]

    with ThreadPoolExecutor(50) as threads:
        said = list(threads.map(run, range(50)))
    pids, groups, agents = ({one[at] for one in said} for at in range(3))
    assert len(pids) == len(groups) == 50
    assert not pids & groups
    (agent,) = agents
    until(lambda: not children(agent))


def test_a_kill_reaches_the_children_of_its_command_alone(envd: Any, live: Callable[..., Any]) -> None:
    """Those of another command, which was started before or after it, live on."""
    script = "sleep 100 & echo $!; wait"
    started = [start(envd, live, script) for _ in range(3)]
    stream, pid, (child,) = started[1]
    kill(envd, pid)
    assert envd.end(stream.rest())["status"] == "signal: killed"
    until(lambda: not lives(child))
    assert all(lives(pid) and lives(child) for _, pid, (child,) in (started[0], started[2]))
    for _, pid, _ in (started[0], started[2]):
        kill(envd, pid)
    until(lambda: not any(lives(child) for *_, (child,) in started))


def test_a_kill_reaches_a_command_in_a_session_of_its_own(envd: Any, live: Callable[..., Any]) -> None:
    """A program that has called setsid() is in its first group no more: it is killed with those whom it leads."""
    stream, pid, (leader, child) = start(envd, live, "exec setsid bash -c 'sleep 100 & echo $$ $!; wait'")
    assert leader == pid
    kill(envd, pid)
    assert envd.end(stream.rest())["status"] == "signal: killed"
    until(lambda: not lives(child))


def test_a_kill_spares_the_group_that_a_command_has_joined(envd: Any, live: Callable[..., Any]) -> None:
    """A program that has put itself into another command's group is killed; the other is not its own."""
    other, other_pid, (group,) = start(
        envd, live, "read -r _ _ _ _ group _ < /proc/$$/stat; echo $group; exec sleep 100"
    )
    joins = f"import os, time; os.setpgid(0, {group}); print(os.getpgrp(), flush=True); time.sleep(100)"
    stream, pid, (joined,) = start(envd, live, f'exec {sys.executable} -c "{joins}"')
    assert joined == group
    kill(envd, pid)
    assert envd.end(stream.rest())["status"] == "signal: killed"
    assert lives(other_pid)
    kill(envd, other_pid)
    assert envd.end(other.rest())["status"] == "signal: killed"
