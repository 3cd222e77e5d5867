"""Nothing outlives its box, no box its engine, and what a killed engine left is taken away by the next one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]


async def kill_with_children(isolation: Any) -> Any:
    """Kill a box with daemons in it, twice, and look for what is left."""
    import asyncio

    from box_tools import ENVIRONMENT, HOME, small

    from sandboxkit.local.isolation import AgentLost
    from sandboxkit.local.isolation.processes._processes import processes_of

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    await (await isolation.create(small("warm-up"))).kill()
    before = descriptors()
    box = await isolation.create(small("one"))
    waiter = await box.agent.spawn(["sleep", "100"], envs=ENVIRONMENT, cwd=HOME, fds={})
    await box.agent.spawn(
        ["setsid", "sh", "-c", "setsid sleep 100 & exec sleep 100"], envs=ENVIRONMENT, cwd=HOME, fds={}
    )
    waiting = asyncio.ensure_future(waiter.wait())
    async with asyncio.timeout(10):
        while len(pids := processes_of(box.init_pid)) < 4:  # noqa: ASYNC110  nothing tells that the shell has forked
            await asyncio.sleep(0.01)
    await asyncio.gather(box.kill(), box.kill())
    await box.kill()
    try:
        await waiting
        lost = False
    except AgentLost:
        lost = True
    left = [pid for pid in pids if _state(pid) is not None]
    return [len(pids) >= 4, lost, box.ended.result().reason, left, descriptors() - before]


@pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])
def test_kill_leaves_nothing(box_runner: Any, ordinary: bool) -> None:
    """After kill() no process, descriptor, mount, directory or cgroup of the box is left, daemons included."""
    many, lost, reason, left, descriptors = box_runner(kill_with_children, as_ordinary_user=ordinary)
    assert many
    assert lost
    assert reason == "killed"
    assert left == []
    assert descriptors == 0


async def cancel_creates(isolation: Any) -> Any:
    """Cancel creates after ever longer times."""
    import asyncio

    from box_tools import run, small

    await (await isolation.create(small("warm-up"))).kill()
    files = len(os.listdir("/proc/self/fd"))
    warden = set(_children())
    finished = 0
    for number in range(30):
        task = asyncio.ensure_future(isolation.create(small(f"c{number}")))
        await asyncio.sleep(number * 0.001)
        task.cancel()
        try:
            await (await task).kill()
            finished += 1
        except asyncio.CancelledError:
            pass
    children = sorted(set(_children()) - warden)  # the engine is a subreaper: orphans would be among them
    box = await isolation.create(small("after"))
    alive = (await run(box, ["echo", "fine"])).output
    await box.kill()
    return [children, len(os.listdir("/proc/self/fd")) - files, alive, finished]


def _write(path: str, text: str) -> None:
    Path(path).write_text(text)


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def test_cancelled_create_leaves_nothing(box_runner: Any) -> None:
    """A create that is cancelled at any moment leaves no process, descriptor, mount or directory."""
    left, descriptors, alive, _finished = box_runner(cancel_creates)
    assert left == []
    assert descriptors == 0
    assert alive == "fine\n"


async def lose_agent(isolation: Any) -> Any:
    """Let user code kill the agent, which it may: both have one uid."""
    from box_tools import ENVIRONMENT, HOME, small

    from sandboxkit.local.isolation import AgentLost

    box = await isolation.create(small("one"))
    with contextlib.suppress(AgentLost):  # it may die before it has answered
        agent = 1 if isolation.name == "gvisor" else 2
        await box.agent.spawn(["sh", "-c", f"kill -9 {agent}"], envs=ENVIRONMENT, cwd=HOME, fds={})
    end = await box.ended
    return end.reason


def test_user_code_may_kill_its_agent(box_runner: Any) -> None:
    """A box whose agent was killed from inside ends by itself, and says why."""
    assert box_runner(lose_agent) in ("agent", "engine")


async def report_and_wait(isolation: Any, report: str) -> None:
    """Make two boxes, write down what there is to find, and wait to be killed."""
    import asyncio

    from box_tools import ENVIRONMENT, HOME, small

    from sandboxkit.local.isolation.processes._processes import processes_of

    boxes = [await isolation.create(small(f"b{number}")) for number in range(2)]
    for box in boxes:
        await box.agent.spawn(["setsid", "sleep", "600"], envs=ENVIRONMENT, cwd=HOME, fds={})
    found = {"engine": os.getpid(), "boxes": [pid for box in boxes for pid in processes_of(box.init_pid)]}
    _write(report, json.dumps(found))
    await asyncio.sleep(600)


@pytest.mark.parametrize("victim", ["started", "engine"])
def test_killed_engine(repository: Path, victim: str) -> None:
    """After kill -9 of the engine (or of its root supervisor) its boxes are gone at once, and the next engine removes
    its directory and cgroups."""
    root = Path(tempfile.mkdtemp(prefix="sandboxkit-boxes-", dir="/tmp"))
    report = Path(tempfile.mkdtemp(prefix="sandboxkit-report-", dir="/tmp"))
    report.chmod(0o777)
    command = [sys.executable, str(repository / "tests" / "box_child.py"), __file__]
    told = report / "told"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    child = subprocess.Popen(
        [
            *command,
            "report_and_wait",
            str(root / "first"),
            json.dumps({"report": str(told), "readable": [str(report)]}),
        ],
        env=env,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    try:
        deadline = time.monotonic() + 40
        while not (told.exists() and told.read_text()):
            if child.poll() == 77:
                pytest.skip("no boxes here")
            assert child.poll() is None, child.stderr and child.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        found = json.loads(told.read_text())
        os.kill(child.pid if victim == "started" else found["engine"], signal.SIGKILL)
        child.wait(30)
        deadline = time.monotonic() + 30
        everything = [found["engine"], *found["boxes"]]
        while left := [pid for pid in everything if _state(pid) not in (None, "Z")]:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)
        done = subprocess.run(
            [*command, "nothing", str(root / "second"), "{}"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert done.returncode == 0, done.stderr
        assert list(root.iterdir()) == []
        digest = hashlib.sha256(str(root / "first").encode()).hexdigest()[:8]
        groups = [path for path in Path("/sys/fs/cgroup").glob(f"**/sandboxkit-first-{digest}") if path.is_dir()]
        assert groups == []
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        if child.stderr is not None:
            child.stderr.close()
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(report, ignore_errors=True)


def _memory_group() -> Path | None:
    """Our cgroup of version 1's memory hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, names, path = line.split(":", 2)
        if "memory" in names.split(",") and Path(f"/sys/fs/cgroup/memory{path}").is_dir():
            return Path(f"/sys/fs/cgroup/memory{path}")
    return None


@pytest.mark.skipif(os.geteuid() != 0, reason="root makes these cgroups")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_cgroups_of_a_forgotten_engine(repository: Path, elsewhere: bool) -> None:
    """Cgroups of a dead engine go at the next root start even when its state directory has been deleted, and when the
    next one lives in another memory cgroup (of another session, say) than it did."""
    group = _memory_group()
    if group is None:
        pytest.skip("no cgroup version 1 here")
    if elsewhere:
        group = group / f"session-{os.getpid()}"
        group.mkdir()
    roots = [Path(tempfile.mkdtemp(prefix="sandboxkit-boxes-", dir="/tmp")) for _ in range(2)]
    code = (
        "import sys; from sandboxkit.local.isolation import enter; "
        "enter(sys.argv[1]); print(flush=True); sys.stdin.read()"
    )
    try:
        name = f"forgotten-{os.getpid()}"
        join = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
        first = subprocess.Popen(
            [*join, sys.executable, "-c", code, str(roots[0] / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == b"\n"
        groups = [*Path("/sys/fs/cgroup").glob(f"*/sandboxkit-{name}-*"), *group.glob(f"sandboxkit-{name}-*")]
        first.kill()
        first.wait(30)
        first.stdin.close()
        first.stdout.close()
        if not groups:
            pytest.skip("no cgroup version 1 here")
        shutil.rmtree(roots[0])
        deadline = time.monotonic() + 40
        while any(path.exists() for path in groups):  # the engine dies a moment after its supervisor
            assert time.monotonic() < deadline
            subprocess.run(
                [sys.executable, "-c", code, str(roots[1] / "next")],
                stdin=subprocess.DEVNULL,
                check=True,
                cwd="/",
                stdout=subprocess.DEVNULL,
            )
    finally:
        for root in roots:
            shutil.rmtree(root, ignore_errors=True)
        if elsewhere:
            group.rmdir()


def test_engines_that_start_together(repository: Path) -> None:
    """Engines that start at the same moment do not take one another for dead; each leaves nothing."""
    root = Path(tempfile.mkdtemp(prefix="sandboxkit-boxes-", dir="/tmp"))
    code = "import sys; from sandboxkit.local.isolation import enter, release; release(enter(sys.argv[1]))"
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(root / f"e{number}")], stderr=subprocess.PIPE, cwd="/")
        for number in range(6)
    ]
    try:
        for child in children:
            _, errors = child.communicate(timeout=50)
            if b"IsolationUnavailable" in errors:
                pytest.skip("no boxes here")
            assert child.returncode == 0, errors.decode()
        assert list(root.iterdir()) == []
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.communicate()
        shutil.rmtree(root, ignore_errors=True)


async def nothing(isolation: Any) -> None:
    """Start and stop."""


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
