"""The warden: what it holds stays its own, whatever number it was given."""

from __future__ import annotations

import os
import sys
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
