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
from sandboxkit.local.isolation.host._stale import LOCK, reap_stale
from sandboxkit.local.isolation.zygote._strays import end_strays

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


def deep(top: Path) -> None:
    """Nest directories deeper than Python calls, and longer than a path may be."""
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        inner = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


def test_what_an_engine_leaves_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    """A sandbox may nest directories in a volume as deep as it likes: neither the engine's end nor the start of the
    next one, which clears up after one that was killed, trips over them."""
    volume = tmp_path / "engine-1" / "kept" / "volumes" / "id" / "data"
    volume.mkdir(parents=True)
    (tmp_path / "engine-1" / LOCK).touch()
    deep(volume)
    assert reap_stale(tmp_path) == ["engine-1"]
    assert list(tmp_path.iterdir()) == []


def test_a_view_that_has_ended_has_no_strays() -> None:
    """Who looks for processes that see its files finds none: other zombies see no files, either."""
    with subprocess.Popen(["true"]) as view, subprocess.Popen(["true"]) as other:
        for one in (view, other):
            os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        pidfd = os.pidfd_open(view.pid)
        with pytest.raises(ProcessLookupError):
            end_strays(pidfd, zygote=0)
        os.close(pidfd)
