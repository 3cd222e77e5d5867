"""Ends the sandboxes that fill a volume: what a program writes to one, nothing else bounds."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.control._states import Query
from sandboxkit.local.control.volumes._volumes import Volumes
from sandboxkit.local.isolation.processes._processes import nameless_bytes

LOOK_EVERY = 2.0
"""Seconds between two looks at the volumes that sandboxes have: in between they may write more."""


async def watch(volumes: Volumes, sandboxes: Sandboxes, *, most_sandboxes: int) -> None:
    """Look at each volume that a running sandbox has, for ever."""
    running = Query(states=frozenset({"running"}), limit=most_sandboxes)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        users: dict[str, dict[str, int]] = {}
        for sandbox in sandboxes.page(running).sandboxes:
            if (live := sandboxes.live(sandbox.sandbox_id)) is not None:
                for one in sandbox.wanted.volumes:
                    users.setdefault(one.volume_id, {})[sandbox.sandbox_id] = live.box.init_pid
        for volume_id, inits in users.items():
            with contextlib.suppress(OSError):  # no descriptors left for a look: there is another one
                if await asyncio.to_thread(_is_overfull, volumes, volume_id, list(inits.values())):
                    for sandbox_id in inits:
                        sandboxes.lost(sandbox_id, "a volume is full")


def _is_overfull(volumes: Volumes, volume_id: str, inits: Iterable[int]) -> bool:
    """Whether it is filled, by what has a name there and by files of these boxes that have none."""
    device = volumes.device()
    return volumes.is_overfull(volume_id, nameless=sum(nameless_bytes(init, device=device) for init in inits))
