"""All volumes of an engine, on its disk.

    ROOT/ID/record.json    what it is called
    ROOT/ID/data/          what sandboxes see of it
    ROOT/.ID/              one that is being made or removed

What lies in `data` was written by sandboxes and is hostile; it is touched here by `_files` alone, and to be measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sandboxkit.local._log import log
from sandboxkit.local.agent import _removal
from sandboxkit.local.control.volumes._rules import NAME, Mounted, Wish, full, in_use, no_such_volume
from sandboxkit.local.images._disk import TooDeep, written_below
from sandboxkit.local.isolation._base import Layer

RECORD = "record.json"
LONGEST_RECORD = 64 * 1024
LEAST_FREE = 512 * 1024 * 1024
"""Bytes of the disk that are left to others."""
MOST_ENTRIES = 1_000_000
REMOVALS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume. Its token opens its content, and nothing else; it is another one after each start."""

    volume_id: str
    name: str
    token: str = field(repr=False)


class Volumes:
    """See above. `most` bounds each volume, in bytes; `new_id` and `new_token` make ids and tokens."""

    def __init__(self, root: Path, *, most: int, new_id: Callable[[], str], new_token: Callable[[], str]) -> None:
        self._root = root
        self.most = most
        self._new_id = new_id
        self._new_token = new_token
        self._by_id: dict[str, Volume] = {}

    def start(self) -> None:
        """Take in the volumes that an engine before this one has kept, and remove what was not completed. Blocks."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        for place in sorted(self._root.iterdir()):
            try:
                name = _read(place)
            except (OSError, ValueError, KeyError, TypeError) as error:
                if not place.name.startswith("."):
                    log(logging.ERROR, "volume.damaged", volume=place.name[:64], error=str(error))
                    continue  # what lies in it may be somebody's only copy
                _remove(place)
                continue
            self._by_id[place.name] = Volume(volume_id=place.name, name=name, token=self._new_token())

    # -- asking ---------------------------------------------------------------------------------------------------

    def all(self) -> Sequence[Volume]:
        """List them, in the order of their names."""
        return sorted(self._by_id.values(), key=lambda one: one.name)

    def get(self, volume_id: str) -> Volume:
        """Find one. Refused: 404."""
        if (volume := self._by_id.get(volume_id)) is None:
            raise no_such_volume(volume_id)
        return volume

    def wanted(self, wishes: Iterable[Wish]) -> tuple[Mounted, ...]:
        """Find those that a sandbox is to have. Refused: 404 by name."""
        by_name = {volume.name: volume for volume in self._by_id.values()}
        return tuple(Mounted(self._named(by_name, wish.name).volume_id, wish.name, wish.path) for wish in wishes)

    def layers(self, mounted: Iterable[Mounted]) -> tuple[Layer, ...]:
        """What a box gets of them. Refused: 404 where one was destroyed meanwhile."""
        return tuple(Layer(source=str(self.data(self.get(one.volume_id))), target=one.path) for one in mounted)

    def data(self, volume: Volume) -> Path:
        """Where its content lies."""
        return self._root / volume.volume_id / "data"

    async def check_room(self, mounted: Iterable[Mounted]) -> None:
        """Let nobody have a volume that is full. Refused: 507."""
        for one in mounted:
            await self.room(self.get(one.volume_id))

    async def room(self, volume: Volume) -> int:
        """Bytes that may still be written to one. Refused: 507 where there are none."""
        left = await asyncio.to_thread(self._left, volume.volume_id)
        if left <= 0:
            raise full(volume.name, self.most)
        return left

    def is_overfull(self, volume_id: str, *, nameless: int) -> bool:
        """Whether more is written to one than it may hold; also to one that was destroyed, for who has it may go on.
        Blocks.

        Args:
            nameless: bytes in files that have no name there.
        """
        return self._left(volume_id) <= nameless

    def device(self) -> int:
        """The file system that they lie on."""
        return os.stat(self._root).st_dev

    @staticmethod
    def _named(by_name: Mapping[str, Volume], name: str) -> Volume:
        if (found := by_name.get(name)) is None:
            raise no_such_volume(name)
        return found

    # -- doing ----------------------------------------------------------------------------------------------------

    async def create(self, name: str) -> Volume:
        """Make an empty one. Refused: 409 where there is one of this name; OSError where the disk is full."""
        if any(one.name == name for one in self._by_id.values()):
            raise in_use(name)
        volume = Volume(volume_id=self._new_id(), name=name, token=self._new_token())
        self._by_id[volume.volume_id] = volume
        try:
            await asyncio.to_thread(self._make, volume)
        except BaseException:
            del self._by_id[volume.volume_id]
            raise
        log(logging.INFO, "volume.created", volume=volume.volume_id)
        return volume

    async def destroy(self, volume_id: str) -> None:
        """Remove one with all that lies in it; sandboxes that have it see an empty directory. Refused: 404."""
        volume = self.get(volume_id)
        del self._by_id[volume.volume_id]
        gone = self._root / f".{volume.volume_id}"
        os.rename(self._root / volume.volume_id, gone)
        await asyncio.shield(asyncio.to_thread(_remove, gone))
        log(logging.INFO, "volume.destroyed", volume=volume.volume_id)

    def _left(self, volume_id: str) -> int:
        """Bytes that may still be written; what cannot be measured has no room."""
        written = 0
        try:
            space = os.statvfs(self._root)
            for name in (volume_id, f".{volume_id}"):
                with contextlib.suppress(FileNotFoundError):
                    size, entries = written_below(self._root / name / "data", most_entries=MOST_ENTRIES)
                    written += size
                    if entries > MOST_ENTRIES:
                        return 0
        except (OSError, TooDeep) as error:
            log(logging.WARNING, "volume.unmeasured", volume=volume_id, error=type(error).__name__)
            return 0
        return min(self.most - written, space.f_bavail * space.f_frsize - LEAST_FREE)

    def _make(self, volume: Volume) -> None:
        place = self._root / f".{volume.volume_id}"
        try:
            (place / "data").mkdir(parents=True, mode=0o755)
            (place / "data").chmod(0o755)
            (place / RECORD).write_text(json.dumps({"name": volume.name}))
            os.rename(place, self._root / volume.volume_id)
        except BaseException:
            _remove(place)
            raise


def _remove(place: Path) -> None:
    """Remove a volume with all that is in it, while sandboxes are at work there: through open directories, so that what
    they exchange for a link meanwhile leads nowhere. What they do not let go of is removed by the next start."""
    above = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for attempt in range(REMOVALS):
            try:
                for _ in _removal.remove(os.fsencode(place.name), above):
                    pass
            except OSError as error:
                if attempt == REMOVALS - 1:
                    log(logging.ERROR, "volume.left", volume=place.name[:64], error=str(error))
            else:
                return
    finally:
        os.close(above)


def _read(place: Path) -> str:
    if place.name.startswith("."):
        raise ValueError("it was not completed")
    with open(place / RECORD, encoding="utf-8") as file:
        name = json.loads(file.read(LONGEST_RECORD))["name"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError("its name is none")
    return name
