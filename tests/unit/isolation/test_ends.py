"""How a box ends, as far as numbers of processes go: by the time it does, they may be somebody else's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxkit.local.isolation._base import BoxSpec
from sandboxkit.local.isolation.bubblewrap._box import BubblewrapBox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")


def test_the_number_of_its_first_process_is_anothers(tmp_path: Path) -> None:
    """Its parent has taken it, and a child of the engine's has got its number: that one is not waited for, and its end
    is left to who has started it."""

    async def end(first: int, number: int) -> None:
        box = BubblewrapBox(BoxSpec(box_id="one"), directory=tmp_path, cgroup=None, version=0, on_ended=lambda _: None)
        box._init_fd, box._init = first, number
        await asyncio.wait_for(box.kill(), 5)

    first = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(first.pid)
    first.wait()
    with subprocess.Popen(["sh", "-c", "sleep 0.5; exit 7"]) as another:
        asyncio.run(end(pidfd, another.pid))
        assert another.wait() == 7
