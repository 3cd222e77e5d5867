"""What a sandbox has of its own of the memory of its agent and its interpreter: counted in pages, not in seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox

from sandboxkit.local._child import start_engine
from sandboxkit.local._config import EngineConfig

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="an agent's memory is closed to users"),
    pytest.mark.skipif(os.environ.get("SANDBOXKIT_ISOLATION") == "gvisor", reason="there is no zygote on gVisor"),
]

TEMPLATE = "code-interpreter-v1"


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """SDK options for an engine of this module's own, whose zygote has served before."""
    config = EngineConfig(state_root=str(tmp_path_factory.mktemp("pages") / "run"), log_level="warning", warm=0)
    engine = start_engine(config)
    endpoint = engine.endpoint
    given = {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}
    with Sandbox.create(template=TEMPLATE, **given) as sandbox:
        sandbox.run_code("print(1)")
    yield given
    engine.stop()


def descendants() -> dict[int, list[bytes]]:
    """The processes below this one, and their command lines."""
    parents, lines = {}, {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            lines[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended

    def is_ours(pid: int) -> bool:
        while pid != os.getpid():
            if pid not in parents:
                return False
            pid = parents[pid]
        return True

    return {pid: line for pid, line in lines.items() if is_ours(pid)}


def kilobytes(pid: int, field: str) -> int:
    """One field of what a process has in memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def kernels() -> set[int]:
    """The interpreters."""
    return {pid for pid, line in descendants().items() if line[1:2] == [b"/opt/sandboxkit/agent/kernel.py"]}


@pytest.mark.parametrize("code", ["print(1)", "1 + 1"])
def test_what_an_interpreter_writes_to(options: dict[str, Any], code: str) -> None:
    """Of the memory that it had together with the zygote, an idle interpreter makes little its own, and a first cell
    not much more: what it runs was run before there were forks. Without that it was 0.12 for the one, and 0.15 and 0.19
    for the other."""
    before = kernels()
    with Sandbox.create(template=TEMPLATE, timeout=120, **options) as sandbox:
        deadline = time.monotonic() + 20
        while not (made := kernels() - before):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (kernel,) = made
        time.sleep(0.5)  # it says that it is ready, and sleeps
        whole = kilobytes(kernel, "Anonymous")
        idle = kilobytes(kernel, "Private_Dirty")
        assert sandbox.run_code(code).error is None
        used = kilobytes(kernel, "Private_Dirty")
    assert idle < whole * 0.1
    assert used - idle < whole * 0.14


LOOK = """
import linecache, os
shell = get_ipython()
shown = sorted((name, type(value).__name__) for name, value in globals().items())
(shown, In, Out, [_, __, ___, _i, _ii], sorted(shell.user_ns_hidden), shell.execution_count,
 shell.last_execution_result, shell.history_manager.dir_hist, sorted(linecache.cache), __name__, __doc__,
 __spec__, os.getcwd())
"""


def test_a_used_shell_is_like_a_new_one(options: dict[str, Any]) -> None:
    """Of the cells that were run before there were forks nothing shows: a forked interpreter is as one that a command
    has started, which is what a variable makes of it that Python reads at its start only."""
    with Sandbox.create(template=TEMPLATE, timeout=120, **options) as forked:
        first = forked.run_code(LOOK)
    with Sandbox.create(template=TEMPLATE, timeout=120, envs={"PYTHONDEVMODE": ""}, **options) as started:
        second = started.run_code(LOOK)
    assert first.text is not None
    assert first.error is second.error is None
    assert first.text == second.text


def test_interpreters_of_one_agent_have_random_numbers_of_their_own(options: dict[str, Any]) -> None:
    """Both are forks of it, and it has never drawn one."""
    with Sandbox.create(template=TEMPLATE, timeout=120, **options) as sandbox:
        code = "import random; random.random()"
        contexts = [None, sandbox.create_code_context(), sandbox.create_code_context()]
        drawn = [sandbox.run_code(code, context=one).text for one in contexts]
    assert len(set(drawn)) == 3
