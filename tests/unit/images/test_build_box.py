"""The box of a build's step goes, whatever happens to who waits for it."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]


async def cancel_again(isolation: Any) -> int:
    """Cancel a step, and once more while its network is closed; how many boxes are left."""
    import asyncio
    import shutil
    import tempfile
    from pathlib import Path

    from sandboxkit.local.images._build_box import Network, step_box

    inside, closing = asyncio.Event(), asyncio.Event()

    async def close() -> None:
        closing.set()
        await asyncio.sleep(0.1)

    async def connect(box: Any) -> Network:
        return Network(variables={}, close=close)

    async def step() -> None:
        async with step_box(
            isolation, connect, box_id="step", overlays=(), working=working, tell=lambda *_: None, step="1"
        ):
            inside.set()
            await asyncio.sleep(60)

    working = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        task = asyncio.create_task(step())
        await inside.wait()
        task.cancel()
        await closing.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return len(isolation._boxes)
    finally:
        shutil.rmtree(working, ignore_errors=True)


def test_a_step_that_is_cancelled_twice(box_runner: Any) -> None:
    """Its box is gone when it is over: nobody else would end it before the engine does."""
    assert box_runner(cancel_again) == 0
