"""kill -9 of the engine, in each of its parts: what is left dies at once, and the next engine takes the rest away."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import e2b
import e2b_code_interpreter as interpreter
import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

BUSY = "(while :; do :; done & (setsid sleep 1000 &); exec setsid sleep 1000) >/dev/null 2>&1 </dev/null &"
if os.environ["SANDBOXKIT_ISOLATION"] == "gvisor":
    # Its programs are no processes of the host, so that a session of their own hides nothing; and in the version of
    # Debian 12 setsid stops the whole sandbox now and then (docs/how-to/run-on-gvisor.md).
    BUSY = "(while :; do :; done & exec sleep 1000) >/dev/null 2>&1 </dev/null &"

Victims = Callable[[Any], list[int]]

VICTIMS: dict[str, Victims] = {
    "the engine": lambda run: [run.pid],
    "its supervisor": lambda run: [run.process.pid],
    "both": lambda run: [run.process.pid, run.pid],
    "both, the engine first": lambda run: [run.pid, run.process.pid],
}


def gone_with(run: Any, tools: Any, victims: list[int]) -> None:
    """Kill some, and see all end."""
    everything = run.all_pids()
    run.kill(*dict.fromkeys(victims))
    tools.wait_until(lambda: not tools.alive(everything), what="processes outlived their engine")


def nothing_left_but(run: Any, tools: Any) -> None:
    """One live engine's own directory, and no port of the dead one."""
    assert run.cgroups() == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{run.url}/health")


@pytest.mark.parametrize("victim", VICTIMS)
def test_the_next_engine_finds_nothing(start: Any, tools: Any, who: str, victim: str) -> None:
    """After kill -9 all processes die at once; after the next start no directory, cgroup or port of it is left."""
    first = start(who=who)
    if victim != "the engine" and first.pid == first.process.pid:
        pytest.skip("an engine that no root started has no supervisor")
    with first.client() as client:
        for _ in range(2):
            first.run(client, first.create(client), BUSY)
    assert len(first.all_pids()) > 8
    gone_with(first, tools, VICTIMS[victim](first))
    second = start(who=who)
    nothing_left_but(first, tools)
    assert len(second.state_directories()) == 1
    with second.client() as client:
        assert client.get("/v2/sandboxes").json() == []
        assert "data" in second.run(client, second.create(client), "echo still here")
    assert second.stop() == 0
    assert second.state_directories() == []


@pytest.mark.parametrize("victim", VICTIMS)
def test_blanks_and_paused_sandboxes_end_with_it(start: Any, tools: Any, who: str, victim: str) -> None:
    """Boxes that wait for their sandbox, and sandboxes whose processes are stopped, die at once with the engine."""
    first = start(who=who, warm=2, log_level="debug")
    if victim != "the engine" and first.pid == first.process.pid:
        pytest.skip("an engine that no root started has no supervisor")
    with first.client() as client:
        sandbox = first.create(client)
        sandbox_id = sandbox["sandboxID"]
        first.run(client, sandbox, BUSY)
        tools.wait_until(lambda: first.log().count("blank.made") == 2)
        assert client.post(f"/sandboxes/{sandbox_id}/pause").status_code == 204
    gone_with(first, tools, VICTIMS[victim](first))
    start(who=who)
    nothing_left_but(first, tools)


@pytest.mark.full
@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", VICTIMS)
def test_twenty_busy_sandboxes(start: Any, tools: Any, who: str, victim: str) -> None:
    """The same while twenty sandboxes run busy processes and daemons."""
    first = start(who=who)
    if victim != "the engine" and first.pid == first.process.pid:
        pytest.skip("an engine that no root started has no supervisor")
    with first.client() as client:
        for _ in range(20):
            first.run(client, first.create(client), BUSY)
    assert len(first.all_pids()) >= 20 * 5
    gone_with(first, tools, VICTIMS[victim](first))
    second = start(who=who)
    nothing_left_but(first, tools)
    assert len(second.state_directories()) == 1


def test_killed_again_and_again(start: Any, tools: Any) -> None:
    """Engines that are killed at any moment of their start or life leave nothing that a later one does not find."""
    for _ in range(4):
        run = start()
        everything = run.all_pids()
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(10)
        tools.wait_until(lambda everything=everything: not tools.alive(everything))
    # Killed between the making of its directory and that of its lock.
    (run.root / "run" / "engine-1").mkdir()
    last = start()
    assert len(last.state_directories()) == 1


# -- the env-file -------------------------------------------------------------------------------------------------


def writer_of(run: Any, tools: Any) -> int:
    """The env-file's writer: the child that is not the engine, no sandbox, and has the same program."""
    own = Path(f"/proc/{run.process.pid}/cmdline").read_bytes()
    same = [
        pid
        for pid, parent in tools.parents().items()
        if parent == run.process.pid and pid != run.pid and Path(f"/proc/{pid}/cmdline").read_bytes() == own
    ]
    assert len(same) == 1, same
    return same[0]


def test_no_key_is_left_when_its_writer_is_killed(start: Any, tools: Any, who: str) -> None:
    """The writer of the env-file is killed: an orderly end removes the file all the same."""
    run = start(who=who)
    file = run.root / "engine.env"
    assert run.stop() == 0
    run = start(who=who, env_file=str(file))
    assert file.exists()
    os.kill(writer_of(run, tools), signal.SIGKILL)
    with run.client() as client:
        assert client.get("/health").status_code == 200
    assert run.stop() == 0
    assert not file.exists()


def test_no_key_is_left_when_all_are_killed(start: Any, tools: Any, who: str) -> None:
    """Engine, supervisor and writer are killed at once: the next engine removes the file, and none but that."""
    run = start(who=who, env_file=str(Path("/tmp", f"sandboxkit-{os.getpid()}-{who}.env")))
    file = Path("/tmp", f"sandboxkit-{os.getpid()}-{who}.env")
    try:
        assert "E2B_API_KEY" in file.read_text()
        gone_with(run, tools, [writer_of(run, tools), run.process.pid, run.pid])
        assert file.exists()
        start(who=who).stop()
        assert not file.exists()
    finally:
        file.unlink(missing_ok=True)


def test_another_engines_env_file_stays(start: Any, tools: Any) -> None:
    """A file that was written since by somebody else is not the dead engine's to remove."""
    file = Path("/tmp", f"sandboxkit-{os.getpid()}-other.env")
    try:
        run = start(env_file=str(file))
        gone_with(run, tools, [writer_of(run, tools), run.process.pid, run.pid])
        file.write_text("E2B_API_KEY='somebody else'\n")
        start().stop()
        assert file.read_text() == "E2B_API_KEY='somebody else'\n"
    finally:
        file.unlink(missing_ok=True)


# -- what is inside -----------------------------------------------------------------------------------------------


def inside(run: Any, tools: Any) -> dict[str, int]:
    """The processes of the only sandbox: its init, the agent, and bubblewrap outside where that has made it (on gVisor,
    whose programs have no life of their own on the host, its kernel)."""
    if os.environ["SANDBOXKIT_ISOLATION"] == "gvisor":
        below = sorted(tools.descendants(run.pid))
        [init] = [pid for pid in below if len(namespaced(pid)) == 2 and namespaced(pid)[-1] == 1]
        [kernel] = [pid for pid in below if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"runsc-sandbox")]
        return {"bubblewrap": tools.parents()[init], "init": init, "agent": kernel}
    depths = {pid: len(namespaced(pid)) for pid in tools.descendants(run.pid)}
    # Where there is a warden, that is in a process namespace of its own, and a sandbox in one below that.
    deepest = max(depths.values())
    made_by_bubblewrap = deepest == 2
    init, agent, *_ = sorted(
        (pid for pid, depth in depths.items() if depth == deepest), key=lambda pid: namespaced(pid)[-1]
    )
    found = {"init": init, "agent": agent}
    return {**found, "bubblewrap": tools.parents()[init]} if made_by_bubblewrap else found


def namespaced(pid: int) -> list[int]:
    """A process's numbers, from the outermost process namespace to its own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return [int(word) for word in next(line for line in lines if line.startswith("NSpid:")).split()[1:]]


@pytest.mark.parametrize("victim", ["bubblewrap", "init", "agent"])
def test_a_sandbox_whose_pillar_is_killed(start: Any, tools: Any, victim: str) -> None:
    """kill -9 of bubblewrap, of a box's init or of the agent: a command that runs and all later calls get the SDK's
    typed answers, nothing of the sandbox is left, and the registry says so."""
    run = start(zygote=victim != "bubblewrap")
    interpreter.Sandbox.create(**run.sdk).kill()  # the template's layers stay mounted from now on
    before = run.size()
    sandbox = interpreter.Sandbox.create(**run.sdk)
    running = sandbox.commands.run("sleep 1000", background=True)
    everything = set().union(*map(tools.descendants, inside(run, tools).values()))
    os.kill(inside(run, tools)[victim], signal.SIGKILL)
    with pytest.raises((e2b.SandboxException, httpx.TransportError)) as told:
        running.wait()
    assert isinstance(told.value, e2b.SandboxException), told.value
    tools.wait_until(lambda: not sandbox.is_running())
    with pytest.raises((e2b.SandboxNotFoundException, e2b.TimeoutException)):
        sandbox.commands.run("true")
    with pytest.raises((e2b.SandboxNotFoundException, e2b.TimeoutException)):
        sandbox.run_code("1")
    tools.wait_until(lambda: not tools.alive(everything))
    assert e2b.Sandbox.list(**run.sdk).next_items() == []
    tools.wait_until(lambda: (run.size().mounts, run.size().processes) == (before.mounts, before.processes))
    assert interpreter.Sandbox.create(**run.sdk).run_code("6 * 7").text == "42"
    tools.no_tracebacks(run)


def zombies(parent: int) -> list[str]:
    """The names of processes that have ended and that this one has not taken yet."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            state, above = rest.split()[:2]
            if state == "Z" and int(above) == parent:
                found.append(f"{entry.name} {name}")
    return found


@pytest.mark.parametrize("victim", ["outer half", "inner half", "both"])
def test_a_warden_that_is_killed(start: Any, tools: Any, victim: str) -> None:
    """kill -9 of what makes boxes, in each of its halves: its boxes end with it, nothing of it is left behind, not even
    as a zombie, and the next sandbox is made by another one."""
    if os.environ["SANDBOXKIT_ISOLATION"] == "gvisor":
        pytest.skip("a warden makes bubblewrap's boxes, and no others")
    run = start()
    sandbox = interpreter.Sandbox.create(**run.sdk)
    (outer,) = (pid for pid, parent in tools.parents().items() if parent == run.pid and len(namespaced(pid)) == 1)
    (inner,) = (pid for pid, parent in tools.parents().items() if parent == outer)
    assert namespaced(inner)[-1] == 1
    everything = tools.descendants(outer)
    for pid in {"outer half": [outer], "inner half": [inner], "both": [inner, outer]}[victim]:
        os.kill(pid, signal.SIGKILL)
    tools.wait_until(lambda: not tools.alive(everything))
    tools.wait_until(lambda: not sandbox.is_running())
    tools.wait_until(lambda: zombies(run.pid) == [], seconds=5)
    assert interpreter.Sandbox.create(**run.sdk).run_code("6 * 7").text == "42"
    assert zombies(run.pid) == []
    tools.no_tracebacks(run)


def test_a_kernel_that_is_killed_comes_back(start: Any, tools: Any) -> None:
    """kill -9 of a kernel in the middle of a cell: the client gets a typed error, and the context a fresh kernel."""
    run = start()
    sandbox = interpreter.Sandbox.create(**run.sdk)
    assert sandbox.run_code("x = 1; x").text == "1"
    pid = sandbox.commands.run("pgrep -f kernel.py | head -1 || true").stdout.strip()
    assert pid, "no kernel is seen"
    sandbox.commands.run(f"(sleep 0.3; kill -9 {pid}) >/dev/null 2>&1 &")
    execution = sandbox.run_code("import time; time.sleep(1000)")
    assert execution.error is not None
    assert execution.error.name == "ContextRestarting"
    assert sandbox.run_code("'x' in dir()").text == "False"
    assert sandbox.is_running()
    tools.no_tracebacks(run)
