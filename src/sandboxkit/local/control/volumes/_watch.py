"""Ends the sandboxes that fill a volume: what a program writes to one, nothing else bounds."""

from __future__ import annotations

import asyncio

from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control._sandboxes import Sandboxes
from sandboxkit.local.control._states import Query
from sandboxkit.local.control.volumes._volumes import Volumes

LOOK_EVERY = 2.0
"""Seconds between two looks at the volumes that sandboxes have: in between they may write more."""


async def watch(volumes: Volumes, sandboxes: Sandboxes, *, most_sandboxes: int) -> None:
    """Look at each volume that a running sandbox has, for ever."""
    running = Query(states=frozenset({"running"}), limit=most_sandboxes)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        users: dict[str, list[str]] = {}
        for sandbox in sandboxes.page(running).sandboxes:
            for one in sandbox.wanted.volumes:
                users.setdefault(one.volume_id, []).append(sandbox.sandbox_id)
        for volume_id, ids in users.items():
            try:
                await volumes.room(volumes.get(volume_id))
            except Refused as refused:
                if refused.status == 507:  # and not destroyed meanwhile
                    for sandbox_id in ids:
                        sandboxes.lost(sandbox_id, "a volume is full")
