"""All nurseries of an engine: one for each set of layers in use, not too many, for as long as they are used."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from sandboxkit.local.isolation import _argv
from sandboxkit.local.isolation._base import PREFIX, BoxEnd, BoxSpec, Layer
from sandboxkit.local.isolation.bubblewrap._box import BubblewrapBox
from sandboxkit.local.isolation.seccomp import _filter
from sandboxkit.local.isolation.zygote._nursery import Nursery
from sandboxkit.local.isolation.zygote._warden_link import Warden

MOST = 8
"""Templates that have a nursery at a time: each takes the memory of two or three Pythons. Others' agents are exec'd."""
IDLE_AFTER = 600.0
"""Seconds after which a zygote that nobody has used is let go."""

MakePlan = Callable[[tuple[Layer, ...]], _argv.Plan]
"""What a box looks like in which nothing can be written."""


class Nurseries:
    """See above. `boxes` is where boxes have their directories; `without` is for tests, see `Nursery`."""

    def __init__(self, plan: MakePlan, *, boxes: Path, without: Sequence[str] = ()) -> None:
        self._plan = plan
        self._boxes = boxes
        self._without = tuple(without)
        self._by_layers: dict[tuple[Layer, ...], Nursery] = {}
        self._timers: dict[tuple[Layer, ...], asyncio.TimerHandle] = {}
        self._views = 0

    def get(self, layers: tuple[Layer, ...]) -> Nursery | None:
        """The nursery for boxes with these layers (as the engine's namespace has them), if there may be one."""
        nursery = self._by_layers.get(layers)
        if nursery is None:
            if len(self._by_layers) >= MOST:
                return None
            nursery = self._by_layers[layers] = self._make(layers)
        if (timer := self._timers.pop(layers, None)) is not None:
            timer.cancel()
        self._timers[layers] = asyncio.get_running_loop().call_later(IDLE_AFTER, nursery.rest)
        return None if nursery.given_up else nursery

    def all(self) -> list[Nursery]:
        """Those there are."""
        return list(self._by_layers.values())

    async def aclose(self) -> None:
        """End all. Idempotent."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for nursery in self.all():
            await nursery.aclose()
        self._by_layers.clear()

    def _make(self, layers: tuple[Layer, ...]) -> Nursery:
        machine = os.uname().machine

        async def view(warden: Warden) -> tuple[int, Callable[[], Awaitable[None]]]:
            self._views += 1
            box = BubblewrapBox(
                BoxSpec(box_id=f"view-{self._views}"),
                directory=self._boxes / f"view-{self._views}",  # never made
                cgroup=None,
                version=0,
                on_ended=lambda _: None,
            )

            async def end() -> None:
                await box.end(BoxEnd("killed"))

            try:
                await box.hold(warden, self._plan(layers), _filter.filter_for(machine))
                return os.dup(box.init_fd), end
            except BaseException:
                await end()
                raise

        return Nursery(
            view=view,
            has_kernel=any(layer.target == f"{PREFIX}/env" for layer in layers),
            filter_bytes=_filter.filter_for(machine, entering=True),
            without=self._without,
        )
