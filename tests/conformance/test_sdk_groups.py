"""A command's process group through the unmodified SDK: from a sandbox's first command on, however it came to be."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import e2b
import pytest

pytestmark = pytest.mark.engine

# What a program that calls setsid() itself, as pydantic-ai's and others do, must be able to do.
OWN_SESSION = "exec python3 -c 'import os; os.setsid(); print(os.getsid(0) == os.getpid())'"
NUMBERS = "read -r _ _ _ _ group _ < /proc/$$/stat; echo $$ $group"

# The agent's children, and what has ended and was not taken, but for those of the listing itself.
LEFT = "ps -eo pid=,ppid=,stat=,args= | grep -E ' Z|sleep' | grep -v grep || true"


@pytest.fixture(params=["base", "code-interpreter-v1"])
def sandbox(request: pytest.FixtureRequest, sdk: dict[str, str]) -> Iterator[e2b.Sandbox]:
    """A fresh sandbox, whose agent starts programs by fork or by vfork; no command has run in it."""
    with e2b.Sandbox.create(request.param, timeout=300, **sdk) as made:
        yield made


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def check(sandbox: e2b.Sandbox) -> None:
    """The next commands of a sandbox have groups that nobody leads, of their own, and a kill goes no further."""
    assert sandbox.commands.run(OWN_SESSION).stdout == "True\n"
    said = [sandbox.commands.run(NUMBERS).stdout.split() for _ in range(2)]
    assert len({number for numbers in said for number in numbers}) == 4, said
    first, second = (sandbox.commands.run(f"sleep 77{n} & wait", background=True) for n in range(2))
    until(lambda: sandbox.commands.run("pgrep -fc '^sleep 77' || true").stdout == "2\n")
    assert first.kill()
    until(lambda: sandbox.commands.run("pgrep -fa '^sleep 77' | cut -d' ' -f2- || true").stdout == "sleep 771\n")
    assert second.kill()
    until(lambda: sandbox.commands.run(LEFT).stdout == "")


def test_from_the_first_command_on(sandbox: e2b.Sandbox) -> None:
    """Of a new sandbox, and of one that was paused."""
    check(sandbox)
    sandbox.pause()
    sandbox.connect()
    check(sandbox)


def test_fifty_first_commands_at_once(sandbox: e2b.Sandbox) -> None:
    """The first commands of a sandbox may all come together: each is alone in its group, and nothing stays of them."""
    together = threading.Barrier(50)

    def run(_: int) -> list[str]:
        together.wait(50)
        return sandbox.commands.run(NUMBERS, timeout=120).stdout.split()

    with ThreadPoolExecutor(50) as threads:
        said = list(threads.map(run, range(50)))
    assert len({number for numbers in said for number in numbers}) == 100
    assert sandbox.commands.run(LEFT).stdout == ""


def test_of_forks_and_of_what_starts_from_a_snapshot(sandbox: e2b.Sandbox, sdk: dict[str, str]) -> None:
    """Nothing of the parent's groups is in them."""
    check(sandbox)
    made = sandbox.fork(timeout=100, count=2)
    taken = sandbox.create_snapshot(f"groups-{uuid.uuid4().hex}").snapshot_id
    try:
        made.append(e2b.Sandbox.create(taken, timeout=100, **sdk))
        for one in made:
            check(one)
        check(sandbox)
    finally:
        for one in made:
            one.kill()
        e2b.Sandbox.delete_snapshot(taken, **sdk)


def test_a_command_in_a_session_of_its_own_is_killed(sandbox: e2b.Sandbox) -> None:
    """What was started by setsid(1) has left its group, and is reached by a kill all the same."""
    command = sandbox.commands.run("exec setsid sleep 1000", background=True)
    until(lambda: sandbox.commands.run("pgrep -x sleep || true").stdout == f"{command.pid}\n")
    assert command.kill()
    with pytest.raises(e2b.CommandExitException) as caught:
        command.wait()
    assert caught.value.error == "signal: killed"
    assert sandbox.commands.run(LEFT).stdout == ""
