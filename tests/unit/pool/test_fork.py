"""A pool in a forked child: refused at once, in a process of its own, where a hang would be seen."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import os, sys, warnings
import anyio
from sandboxkit.errors import ForkedProcess
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.testing import FakeProvider

warnings.simplefilter("ignore")

async def refuses(use):
    try:
        await use()
    except ForkedProcess:
        return True
    return False

async def main():
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake) as pool:
        session = await pool.session("a")
        child = os.fork()
        if child == 0:
            uses = [
                lambda: pool.session("b"), pool.close, pool.drain, lambda: pool.resize(max_live=2),
                lambda: session.run_code("1"), lambda: session.run_command("true"), session.close, session.kill,
                lambda: session.files.read_text("x"), lambda: pool.__aexit__(None, None, None),
            ]
            refused = []
            for use in uses:
                async def call(use=use):
                    return await use()
                refused.append(await refuses(call))
            os._exit(0 if all(refused) and fake.ended == {} else 1)
        _, status = os.waitpid(child, 0)
        assert (await session.run_code("6 * 7")).text == "42"
        print(os.waitstatus_to_exitcode(status), flush=True)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_is_refused_at_once(backend: str) -> None:
    """Every use in the child raises ForkedProcess and touches no sandbox; the parent's session goes on."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), backend],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("0", 0), done.stderr
