"""What an engine keeps of sandboxes on disk: the files of each in one file, and a record beside it that makes it count.

    ROOT/claim                    locked by the engine that has the store
    ROOT/new/                     what is being written
    ROOT/paused/ID.json           the record of a paused sandbox: it is there, or it is not
    ROOT/paused/ID.NONCE.files    what the record names (see isolation/_archive)
    ROOT/snapshots/KEY.json, ...  the same for snapshots

Files first, then the record, by a rename: whoever is killed in between leaves files that no record names, which the
next one to open the store removes. One engine has a store at a time. The directory belongs to the engine's uid alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sandboxkit.local._config import EngineConfig
from sandboxkit.local._log import log
from sandboxkit.local.control._kept import KEY, Record
from sandboxkit.local.isolation._archive import Packed, Stopped, TooLarge

Kind = Literal["paused", "snapshots"]
KINDS: tuple[Kind, ...] = ("paused", "snapshots")
LEAST_FREE = 64 * 1024 * 1024
"""Bytes of the disk that are left to others."""

CLAIM_WITHIN = 2.0
"""Seconds that an engine which has just been killed gets to be gone."""

STOP_POLL = 0.05
LONGEST_RECORD = 4 * 1024 * 1024
Save = Callable[[int, int], Awaitable[Packed]]
"""Writes to a descriptor, so many bytes at most."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Files that no record names yet."""

    path: Path
    size: int


class Store:
    """One directory of kept files. `most` bounds all of them together, in bytes; `outlives` says whether it is there
    for the next engine, `keeps_for` after how many seconds of its pause a sandbox is given up at an engine's start."""

    def __init__(self, root: Path, *, most: int, outlives: bool, keeps_for: float = float("inf")) -> None:
        self._root = root
        self._most = most
        self.outlives = outlives
        self.keeps_for = keeps_for
        self._claim = -1
        self._kept: dict[tuple[Kind, str], Draft] = {}
        self._drafts: dict[Path, int] = {}
        """Bytes of what no record names yet: what was promised to it, or what it has got."""
        self._writing: set[Path] = set()
        self._greedy = 0
        """How many wait for all that is left."""
        self._over = asyncio.Event()
        """Set when one of either is done."""

    def open(self, *, wait: float = 0.0) -> bool:
        """Claim the store and put it in order; False where another engine has it, after so many seconds. Blocks."""
        self._root.mkdir(mode=0o700, exist_ok=True)
        claim = os.open(self._root / "claim", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(claim)
                    return False
                time.sleep(0.05)
        self._claim = claim
        shutil.rmtree(self._root / "new", ignore_errors=True)
        for name in ("new", *KINDS):
            (self._root / name).mkdir(mode=0o700, exist_ok=True)
        return True

    def close(self) -> None:
        """Let another engine have it. Idempotent."""
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1

    def records(self, kind: Kind) -> list[tuple[str, Record]]:
        """Read what is kept, and remove what is of no use: files without a record, records without files. Blocks."""
        found: dict[str, Record] = {}
        files: set[str] = set()
        folder = self._root / kind
        for path in sorted(folder.glob("*.json")):
            key = path.name.removesuffix(".json")
            try:
                record, draft = _read(path)
                if not KEY.fullmatch(key) or not draft.path.exists():
                    raise ValueError("its files are gone")
            except (OSError, ValueError, KeyError, TypeError) as error:
                log(logging.ERROR, "kept.damaged", kind=kind, key=key[:64], error=str(error))
                path.unlink(missing_ok=True)
                continue
            found[key] = record
            files.add(draft.path.name)
            self._kept[kind, key] = draft
        for path in list(folder.iterdir()):
            if path.suffix == ".files" and path.name not in files:
                path.unlink(missing_ok=True)
        return list(found.items())

    @property
    def volumes(self) -> Path:
        """Where volumes lie; they live as long as what is kept."""
        return self._root / "volumes"

    def used(self) -> int:
        """Bytes in all that is kept."""
        return sum(draft.size for draft in self._kept.values())

    def files(self, kind: Kind, key: str) -> Path | None:
        """Where the files of one lie."""
        draft = self._kept.get((kind, key))
        return None if draft is None else draft.path

    # -- keeping --------------------------------------------------------------------------------------------------

    async def draft(self, save: Save, *, stop: Callable[[], bool] = lambda: False) -> Draft:
        """Write files that no record names yet. `save` may be called twice; `stop` says when to wait no more.

        What it may write is promised to it alone: half of what is left, and where that is too little, all of it, once
        nobody else writes.

        Raises:
            TooLarge: there is more than the store may hold.
            ArchiveError, OSError: as `save` raises; nothing is left.
        """
        try:
            await self._until(lambda: not self._greedy, stop)
            return await self._write(*self._promise(0.5), save)
        except TooLarge:
            self._greedy += 1
            try:
                await self._until(lambda: not self._writing, stop)
                return await self._write(*self._promise(1.0), save)
            finally:
                self._greedy -= 1
                self._over.set()

    async def _until(self, is_free: Callable[[], bool], stop: Callable[[], bool]) -> None:
        while not is_free():
            if stop():
                raise Stopped("it is wanted no more")
            self._over.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_POLL):
                    await self._over.wait()

    def _promise(self, share: float) -> tuple[Path, int]:
        """The place of a new draft, and how many bytes it may have. TooLarge where there are none."""
        room = os.statvfs(self._root)
        promised = sum(self._drafts[path] for path in self._writing)
        left = min(
            self._most - self.used() - sum(self._drafts.values()),
            room.f_bavail * room.f_frsize - LEAST_FREE - promised,
        )
        most = int(left * share)
        if most <= 0:
            raise TooLarge("the engine's store, or its disk, is full")
        path = self._root / "new" / secrets.token_hex(8)
        self._drafts[path] = most
        self._writing.add(path)
        return path, most

    async def _write(self, path: Path, most: int, save: Save) -> Draft:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                packed = await save(descriptor, most)
                await asyncio.to_thread(os.fsync, descriptor)
            finally:
                os.close(descriptor)
            self._drafts[path] = packed.size
            return Draft(path, packed.size)
        except BaseException:
            self.discard(Draft(path, 0))
            raise
        finally:
            self._writing.discard(path)
            self._over.set()

    async def draft_of(self, kind: Kind, key: str) -> Draft:
        """The same from what is kept already. FileNotFoundError where there is none."""
        kept = self._kept.get((kind, key))
        if kept is None:
            raise FileNotFoundError(f"nothing is kept of {key}")
        path = self._root / "new" / secrets.token_hex(8)
        os.link(kept.path, path, follow_symlinks=False)
        return Draft(path, kept.size)

    def commit(self, draft: Draft, kind: Kind, key: str, record: Record) -> None:
        """Let a draft count from now on, in the place of what was kept under this key. A few file system calls.

        Raises:
            OSError: the disk is full; the draft is discarded, what was kept before is still there.
        """
        folder = self._root / kind
        place = folder / f"{key}.{draft.path.name}.files"
        note = draft.path.with_suffix(".json")
        try:
            os.rename(draft.path, place)
            with open(note, "x", encoding="utf-8", opener=_for_us_alone) as file:
                json.dump({"files": place.name, "size": draft.size, "of": record}, file)
            os.rename(note, folder / f"{key}.json")
        except BaseException:
            for path in (draft.path, place, note):
                path.unlink(missing_ok=True)
            raise
        finally:
            self._drafts.pop(draft.path, None)
        before = self._kept.get((kind, key))
        self._kept[kind, key] = Draft(place, draft.size)
        if before is not None:
            before.path.unlink(missing_ok=True)

    def discard(self, draft: Draft) -> None:
        """Remove a draft that nobody wants."""
        self._drafts.pop(draft.path, None)
        draft.path.unlink(missing_ok=True)

    async def remove(self, kind: Kind, key: str) -> bool:
        """Remove what is kept under a key; False where there is nothing. It counts no more before this first waits."""
        draft = self._forget(kind, key)
        if draft is not None:
            await asyncio.to_thread(draft.path.unlink, missing_ok=True)
        return draft is not None

    def drop(self, kind: Kind, key: str) -> None:
        """The same at once, before anybody waits for the engine. Blocks."""
        if (draft := self._forget(kind, key)) is not None:
            draft.path.unlink(missing_ok=True)

    def _forget(self, kind: Kind, key: str) -> Draft | None:
        draft = self._kept.pop((kind, key), None)
        if draft is not None:
            (self._root / kind / f"{key}.json").unlink(missing_ok=True)
        return draft


def open_store(config: EngineConfig, kept: Path, state_dir: Path) -> Store:
    """Open the store of an engine: at `kept` if it can have that, else in its state directory. Blocks."""
    store = Store(kept, most=config.keep_bytes, outlives=config.keep, keeps_for=config.keep_for)
    if not store.open(wait=CLAIM_WITHIN):
        log(logging.WARNING, "kept.taken", kept=str(kept), reason="another engine has it; nothing is kept past the end")
        store = Store(state_dir / "kept", most=config.keep_bytes, outlives=False)
        store.open()
    return store


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of kept files, which stay readable through it when they are removed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _read(path: Path) -> tuple[Record, Draft]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, encoding="utf-8") as file:
        said: Any = json.loads(file.read(LONGEST_RECORD))
    name, size = str(said["files"]), int(said["size"])
    if "/" in name or name in ("", ".", ".."):
        raise ValueError("it names no file")
    return said["of"], Draft(path.parent / name, size)
