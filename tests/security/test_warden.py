"""The warden: what it holds stays its own, whatever number it was given."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]


async def make_with_many_open(isolation: Any, upto: int) -> Any:
    """Make a box while all numbers below `upto` are taken; tell what its first process has open."""
    from box_tools import small

    taken = [os.open("/dev/null", os.O_RDONLY)]
    while taken[-1] < upto - 1:
        taken.append(os.open("/dev/null", os.O_RDONLY))
    init = (await isolation.create(small("one"))).init_pid
    for fd in taken:
        os.close(fd)
    return {number: os.readlink(f"/proc/{init}/fd/{number}") for number in os.listdir(f"/proc/{init}/fd")}


# An engine that serves has many open. Those around 25 are numbers that the warden gives to what it keeps.
@pytest.mark.parametrize("upto", [23, 24, 25, 300])
def test_its_socket_is_open_in_no_box(box_runner: Any, upto: int) -> None:
    """The requests for all boxes of a template come over it, with their files and control groups: whoever writes into
    the memory of a box's first process, as code in the box may, could otherwise have them."""
    null = "/dev/null"
    assert box_runner(make_with_many_open, zygote="only", upto=upto) == {"0": null, "1": null, "2": null}


async def make_with_few_left(isolation: Any) -> Any:
    """Have boxes made with one descriptor more each time, until that goes well: how many that takes, and whether there
    were more descriptors or processes after a failure than before."""
    from box_tools import small

    from sandboxkit.errors import EngineUnavailable
    from sandboxkit.local.isolation.zygote._warden_link import WardenLost

    await (await isolation.create(small("one"))).kill()
    (nursery,) = isolation._nurseries.all()
    children = Path(f"/proc/{nursery.warden._process.pid}/task/{nursery.warden._process.pid}/children")
    children = Path(f"/proc/{int(children.read_text())}/task/{int(children.read_text())}/children")
    before = len(children.read_text().split()), len(os.listdir("/proc/self/fd"))
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = [number for number in range(1000) if number not in used]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    same = []
    for count in range(20):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], limits[1]))
        try:
            init, end = await nursery._view(nursery.warden)
        except (EngineUnavailable, WardenLost, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            os.close(init)
            await end()
        same.append((len(children.read_text().split()), len(os.listdir("/proc/self/fd"))) == before)
    return same


def test_no_box_is_there_that_nobody_knows(box_runner: Any) -> None:
    """Wherever the engine runs out of descriptors while a box is made, nothing is left of it."""
    assert box_runner(make_with_few_left, zygote="only") == [True] * 20
