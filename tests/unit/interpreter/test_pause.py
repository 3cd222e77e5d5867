"""What a pause of the sandbox means for the interpreter's cells: nobody's absence during it counts."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local.interpreter import _contexts

WAITS = "import os, time\nopen('began', 'w').close()\nwhile not os.path.exists('go'):\n    time.sleep(0.005)\n"


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (a file tells nobody)
            await asyncio.sleep(0.005)


def test_a_cell_that_is_cut_off_by_a_pause_goes_on(play: Callable[..., None], tmp_path: Path) -> None:
    """The cell whose client a pause has cut off is not interrupted; the next one waits for its end."""

    async def scenario(client: Any) -> None:
        first = client.start(WAITS + "kept = 'to the end'")
        await _until((tmp_path / "began").exists)
        client.service.pause()
        await first.leave()
        client.service.resume()
        second = client.start("kept")
        assert await second.status == 200
        (tmp_path / "go").touch()
        events = await second.rest()
        assert events.main["text"] == "to the end"

    play(scenario)


@pytest.mark.slow
def test_a_pause_is_no_reason_to_restart_a_kernel(
    play: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that does not heed its interrupts because its sandbox is paused is asked again, and keeps its memory."""
    monkeypatch.setattr(_contexts, "ATTEMPTS", (_contexts.Attempt(False, 1.0),))  # one, as no other may help

    async def scenario(client: Any) -> None:
        pid = int((await client.run("import os; kept = 1; os.getpid()")).main["text"])
        first = client.start(WAITS)
        await _until((tmp_path / "began").exists)
        os.kill(pid, signal.SIGSTOP)
        try:
            await first.leave()
            client.service.pause()
            second = asyncio.ensure_future(client.run("kept"))
            # Past the patience; nothing may have happened at its end.
            done, _ = await asyncio.wait({second}, timeout=1.3)
            assert not done
        finally:
            os.kill(pid, signal.SIGCONT)
        client.service.resume()
        assert (await second).main["text"] == "1"

    play(scenario)


def test_an_adopted_kernel_has_its_owners_environment(play: Callable[..., None]) -> None:
    """Settings that are taken over hold for the kernel that runs, its children, and the contexts that come after."""
    import dataclasses

    async def scenario(client: Any) -> None:
        settings = client.service._settings
        await client.service._defaults["python"].start()
        client.service.adopt(dataclasses.replace(settings, envs={**settings.envs, "MINE": "a=b"}))
        first = await client.run("import os; kept = os.getpid(); os.environ['MINE']")
        assert (first.main["text"], first[0]["execution_count"]) == ("a=b", 1)
        assert (await client.run("!echo $MINE")).stdout == "a=b\n"
        context = await client.context()
        assert (await client.run("import os; os.environ['MINE']", context_id=context)).main["text"] == "a=b"
        assert (await client.run("kept == os.getpid()")).main["text"] == "True"

    play(scenario)
