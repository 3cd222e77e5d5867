"""Boxes by gVisor: find runsc and the platform that works here, and make boxes with it."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Mapping

from sandboxkit.errors import EngineUnavailable, IsolationUnavailable, UnsupportedOption
from sandboxkit.local.isolation._archive import Unkeepable
from sandboxkit.local.isolation._base import BoxEnd, BoxSpec, Layer, Limits
from sandboxkit.local.isolation.bubblewrap._bubblewrap import BOX_ID, BubblewrapIsolation
from sandboxkit.local.isolation.bubblewrap._watchdog import Watchdog
from sandboxkit.local.isolation.gvisor._box import GvisorBox
from sandboxkit.local.isolation.gvisor._plan import PLATFORMS, GvisorPlan
from sandboxkit.local.isolation.host import _runtime
from sandboxkit.local.isolation.host._namespace import EngineNamespace
from sandboxkit.local.isolation.host._remedies import MISSING_BWRAP, MISSING_RUNSC

VARIABLE = "SANDBOXKIT_RUNSC"


def find_runsc(environment: Mapping[str, str] = os.environ) -> str:
    """The runsc that is named by SANDBOXKIT_RUNSC, else the first on the PATH. IsolationUnavailable without one."""
    named = environment.get(VARIABLE, "")
    found = shutil.which(named or "runsc", path=environment.get("PATH", os.defpath))
    if found is None:
        what = f"{VARIABLE}={named!r} names no program." if named else "runsc was not found."
        raise IsolationUnavailable(f"gVisor was asked for, and {what} {MISSING_RUNSC}", remedy=MISSING_RUNSC)
    return os.path.realpath(found)


class GvisorIsolation:
    """Makes boxes; see `_base.Isolation`. Lives on one event loop, which must be the main thread's.

    Args:
        namespace: what `enter` returned; `runsc` has to be readable in it.
        runsc: what `find_runsc` returned.
    """

    name = "gvisor"

    def __init__(self, namespace: EngineNamespace, runsc: str) -> None:
        self._namespace = namespace
        self._runsc = runsc
        self._outer = BubblewrapIsolation(namespace)
        """Never started: it knows where bubblewrap, layers and cgroups are."""
        self._bwrap: str | None = None
        self._platform = ""
        self._boxes: dict[str, GvisorBox] = {}
        self._root = _runtime.host_root()
        self._watchdog = Watchdog(lambda: list(self._boxes.values()))
        self._closed = False

    @property
    def chosen(self) -> str:
        """What `start` chose, in words."""
        return f"{self._runsc} ({self._platform}) in {self._bwrap}"

    async def start(self) -> None:
        """Choose a bubblewrap and a platform by booting a box with them; see `_base.Isolation.start`."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("boxes can be made from the main thread only")
        candidates = self._outer._candidates()
        if not candidates:
            raise IsolationUnavailable(MISSING_BWRAP, remedy=MISSING_BWRAP)
        said = []
        for candidate in candidates:
            for platform in PLATFORMS:
                self._bwrap, self._platform = candidate, platform
                try:
                    box = await self.create(BoxSpec(box_id="probe", limits=Limits(disk=1 << 20)))
                except EngineUnavailable as error:
                    said.append(f"{platform} in {candidate}: {error}")
                    self._bwrap = None
                else:
                    await box.kill()
                    return
        cure = (
            f"`{self._runsc} --rootless --network=none do true`, run by an ordinary user, shows whether it works; "
            "SANDBOXKIT_RUNSC names another one, and `isolation` at `auto` means bubblewrap."
        )
        raise IsolationUnavailable(f"{self._runsc} boots no sandbox here. {' '.join(said)} {cure}", remedy=cure)

    async def create(self, spec: BoxSpec) -> GvisorBox:
        """Make a box; see `_base.Isolation.create`. EngineUnavailable where it does not start, ValueError for a
        `box_id` that is not 1-64 letters, digits, `-` and `_`, or that is in use, UnsupportedOption for overlays
        and volumes."""
        if not BOX_ID.fullmatch(spec.box_id) or spec.box_id in self._boxes:
            raise ValueError(f"box_id {spec.box_id!r} is malformed or in use")
        if self._bwrap is None or self._closed:
            raise EngineUnavailable("The isolation is not started, or closed.", sandbox_id=spec.box_id)
        if spec.overlays:
            raise UnsupportedOption(
                "A template with files of its own is not supported on gVisor; use bubblewrap (isolation='auto').",
                option="template",
            )
        if spec.volumes:
            raise UnsupportedOption(
                "Volumes are not supported on gVisor; use bubblewrap (isolation='auto').", option="volumeMounts"
            )
        if spec.files is not None:
            raise Unkeepable("with isolation 'gvisor' a sandbox cannot start with the files of another")
        cgroup, version = self._outer._cgroup(spec.box_id)
        directory = self._namespace.runtime / "boxes" / spec.box_id
        box = GvisorBox(spec, directory=directory, cgroup=cgroup, version=version, on_ended=self._ended)
        self._boxes[spec.box_id] = box
        try:
            try:
                box.prepare()
                layers = tuple(Layer(source=str(self._outer._layer(one)), target=one.target) for one in spec.layers)
                await box.boot(self._bwrap, lambda *fds: self._plan(spec, layers, *fds))
            except OSError as error:
                raise EngineUnavailable(f"A sandbox could not be prepared: {error}.", sandbox_id=spec.box_id) from error
        except BaseException:
            await box.end(BoxEnd("engine", "it did not start"))
            raise
        if box.watched:
            self._watchdog.wake()
        return box

    async def aclose(self) -> None:
        """Kill every box; see `_base.Isolation.aclose`."""
        self._closed = True
        await asyncio.gather(
            *(box.end(BoxEnd("engine", "the engine was closed")) for box in tuple(self._boxes.values()))
        )
        await self._watchdog.aclose()

    def _ended(self, box_id: str) -> None:
        self._boxes.pop(box_id, None)

    def _plan(
        self, spec: BoxSpec, layers: tuple[Layer, ...], config_fd: int, info_fd: int, block_fd: int
    ) -> GvisorPlan:
        runtime = self._namespace.runtime
        return GvisorPlan(
            runsc=self._runsc,
            platform=self._platform,
            root=self._root,
            etc=str(runtime / "etc"),
            python=str(runtime / "python"),
            agent=str(runtime / "agent"),
            layers=layers,
            skeleton=spec.skeleton,
            config_fd=config_fd,
            info_fd=info_fd,
            block_fd=block_fd,
        )
