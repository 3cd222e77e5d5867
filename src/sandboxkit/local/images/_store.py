"""What this engine's user has built: layers, uploaded files, and the records of templates, in one directory.

    SANDBOXKIT_HOME/built/UID/layers/NAME      one layer: a directory for each place it holds something of
    SANDBOXKIT_HOME/built/UID/files/DIGEST     an uploaded archive
    SANDBOXKIT_HOME/built/UID/templates/NAME   a record, as JSON

The user's id is part of the path: an overlay cannot take over a file whose owner the engine's namespace does not map,
so each user's layers are its own. Several engines of one user may work here at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from sandboxkit.local._config import engine_uid
from sandboxkit.local._trees import remove_tree
from sandboxkit.local.images import _manifest
from sandboxkit.local.images._as_owner import do_as_owner
from sandboxkit.local.images._cache import (
    TEMPORARY,
    find_layer,
    hold_layer,
    lock,
    next_generation,
    prune_layers,
    remove_left,
)
from sandboxkit.local.isolation.link._open_files import in_thread

LOCK_POLL = 0.2
LOCKS = 256
MAX_RECORD = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """One successful build. `layers` are names, the topmost first; `base` is what it was made from, as it was named."""

    build_id: str
    layers: tuple[str, ...]
    base: str
    made_at: str
    cpus: float
    memory_mb: int
    disk_mb: int
    envs: dict[str, str] = field(default_factory=dict)
    workdir: str
    places: tuple[str, ...] = ()
    start: str = ""
    ready: str = ""
    notes: tuple[str, ...] = ()
    has_interpreter: bool = False
    python: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRecord:
    """A template: its builds, and which of them each tag means."""

    name: str
    made_at: str
    builds: dict[str, BuildRecord] = field(default_factory=dict)
    tags: dict[str, tuple[str, str]] = field(default_factory=dict)
    """tag -> (build, when it was assigned)"""


def give_store(home: Path, uid: int) -> None:
    """Make the store of a user; root makes it for the one that the engine becomes. OSError where that cannot be."""
    root = Store(home, uid=uid).root
    for folder in (root.parent, root, *(root / name for name in ("layers", "files", "templates"))):
        folder.mkdir(exist_ok=True)
        if os.geteuid() == 0 and folder != root.parent:
            # By descriptor: what lies there belongs to the engine's user, who may have put a link in its place.
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchown(place, uid, uid)
            finally:
                os.close(place)


class Store:
    """One user's store beneath `home`. Methods block for a few file system calls, unless they say otherwise."""

    def __init__(self, home: Path, *, uid: int | None = None) -> None:
        self._uid = engine_uid() if uid is None else uid
        self.root = home / "built" / str(self._uid)

    # -- layers ---------------------------------------------------------------------------------------------------

    def layer(self, name: str) -> Path | None:
        """The directory of a layer that is made."""
        return find_layer(self.root, name)

    async def make(
        self,
        name: str,
        fill: Callable[[Path], Awaitable[None]],
        *,
        on_wait: Callable[[], object] = lambda: None,
        force: bool = False,
    ) -> Path:
        """Return a layer, filling an empty directory for it if it is not made yet, or not whole.

        One maker of a layer at a time, in whatever process; another waits and finds it made. If filling fails, nothing
        is left. `force` makes it again, unless another maker has done so meanwhile.
        """
        before = self.layer(name)
        async with self._turn(name, on_wait):
            found = self.layer(name)
            usable = found is not None and (not force or found != before)
            if usable and found is not None and await asyncio.to_thread(_manifest.layer_damage, found) is None:
                return found
            with contextlib.ExitStack() as held:
                working = await asyncio.to_thread(self._begin, held)
                try:
                    await fill(working)
                    # To its end, whoever waits: what is removed in the middle of it would have the layer's name.
                    return await in_thread(self._finish, working, name)
                except BaseException:
                    await asyncio.shield(asyncio.to_thread(remove_tree, working))
                    raise

    def _begin(self, held: contextlib.ExitStack) -> Path:
        """A new directory that is held, after what dead makers have left was removed."""
        layers = self.root / "layers"
        with lock(layers / ".lock", on_wait=lambda: None):
            remove_left(layers)
            working = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=layers))
            working.chmod(0o755)
            held.enter_context(hold_layer(working))
        return working

    def _finish(self, working: Path, name: str) -> Path:
        _manifest.write(working)
        os.sync()  # after a loss of power, a name without its contents would look like a whole layer for ever
        made = working.parent / next_generation(self.root, name)
        working.rename(made)
        return made

    @contextlib.asynccontextmanager
    async def _turn(self, name: str, on_wait: Callable[[], object]) -> AsyncIterator[None]:
        bucket = int(name[:8], 16) % LOCKS
        descriptor = os.open(self.root / "layers" / f".lock-{bucket:02x}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            told = False
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        on_wait()
                        told = True
                    await asyncio.sleep(LOCK_POLL)
            yield
        finally:
            os.close(descriptor)

    def trees(self, names: tuple[str, ...], place: str) -> tuple[str, ...] | None:
        """The directories that hold something of a place, the topmost first; None where a layer is missing."""
        found = []
        for name in names:
            layer = self.layer(name)
            if layer is None:
                return None
            tree = layer / quote(place, safe="")
            if tree.is_dir():
                found.append(str(tree))
        return tuple(found)

    # -- files ----------------------------------------------------------------------------------------------------

    def file(self, digest: str) -> Path:
        """Where an uploaded archive lies, or is to lie."""
        return self.root / "files" / digest

    @contextlib.contextmanager
    def new_file(self, digest: str) -> Iterator[int]:
        """A descriptor to write an archive to; it takes its place at the end, unless something is raised."""
        descriptor, path = tempfile.mkstemp(prefix=TEMPORARY, dir=self.root / "files")
        try:
            yield descriptor
            os.replace(path, self.file(digest))
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(descriptor)

    # -- records --------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Names of all templates that have a record."""
        with contextlib.suppress(FileNotFoundError):
            entries = os.listdir(self.root / "templates")
            return tuple(sorted(unquote(name) for name in entries if not name.startswith(".")))
        return ()

    def stamp(self, name: str) -> int:
        """Changes whenever the record of a template does; 0 where there is none."""
        try:
            return self._record(name).stat().st_mtime_ns
        except OSError:
            return 0

    def read(self, name: str) -> TemplateRecord | None:
        """The record of a template; None where there is none, or none that can be read."""
        try:
            with open(self._record(name), "rb") as file:
                values = json.loads(file.read(MAX_RECORD))
            builds = {
                key: BuildRecord(
                    **{
                        **value,
                        "layers": tuple(value["layers"]),
                        "places": tuple(value["places"]),
                        "notes": tuple(value["notes"]),
                    }
                )
                for key, value in values["builds"].items()
            }
            tags = {tag: (str(build), str(at)) for tag, (build, at) in values["tags"].items()}
            return TemplateRecord(name=values["name"], made_at=values["made_at"], builds=builds, tags=tags)
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[Callable[[TemplateRecord | None], None]]:
        """Hold the records, so that what is read within and what is then written (None removes) belong together."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)

            def write(record: TemplateRecord | None) -> None:
                place = self._record(name)
                if record is None:
                    place.unlink(missing_ok=True)
                    return
                working = place.with_name(f".{place.name}.new")
                working.write_text(json.dumps(asdict(record)))
                os.replace(working, place)

            yield write
        finally:
            os.close(descriptor)

    def _record(self, name: str) -> Path:
        return self.root / "templates" / quote(name, safe="")

    # -- room -----------------------------------------------------------------------------------------------------

    def prune(self, keep_bytes: int) -> int:
        """Remove uploads, and layers that nobody holds, least recently used first; returns the bytes. Root does so as
        the store's user."""
        return do_as_owner(self.root, self._uid, lambda root: _prune(root, keep_bytes))

    def free(self) -> int:
        """Bytes that are free on its disk."""
        return shutil.disk_usage(self.root).free


def _prune(root: Path, keep_bytes: int) -> int:
    freed = 0
    for path in (root / "files").glob("*"):
        with contextlib.suppress(OSError):
            freed += path.lstat().st_blocks * 512
            path.unlink()
    return freed + prune_layers(root, keep_bytes=keep_bytes)
