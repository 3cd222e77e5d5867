"""The cache of layers: each appears whole or not at all, is made once, and is removed only while nobody uses it.

A layer that is made again, because it was damaged, gets the next generation: NAME, then NAME.1, NAME.2 and so on. The
latest one counts. So nothing is changed under an engine that holds the one before, and its next sandboxes find the new
one; the one before is removed once nobody holds it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sandboxkit.local._trees import remove_tree

TEMPORARY = ".making-"


def find_layer(home: Path, name: str) -> Path | None:
    """The latest generation of the layer, or None if it was not made yet."""
    return max(_generations(home / "layers", name), key=_generation, default=None)


def make_layer(
    home: Path,
    name: str,
    make: Callable[[Path], None],
    *,
    on_wait: Callable[[], object],
    is_good: Callable[[Path], bool] = lambda layer: True,
) -> Path:
    """Return the layer's directory, calling `make` with an empty one if there is none that is good.

    One maker at a time: others wait (after `on_wait()`), and find the layer made. What a maker that was killed left
    behind is removed by the next one, and so are earlier generations that nobody holds.
    """
    layers = home / "layers"
    for folder in (home, layers):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
    with lock(layers / ".lock", on_wait=on_wait):
        remove_left(layers)
        found = find_layer(home, name)
        if found is not None and is_good(found):
            return found
        working = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=layers))
        try:
            working.chmod(0o755)
            make(working)
            # After a loss of power, a name without its contents would look like a whole layer for ever.
            os.sync()
            made = layers / next_generation(home, name)
            working.rename(made)
        except BaseException:
            remove_tree(working)
            raise
        remove_superseded(layers)
        return made


def remove_left(layers: Path) -> int:
    """Remove what makers that died have left; returns the bytes. The caller has the lock. A maker that works without
    it holds its directory by `hold_layer`."""
    import fcntl

    freed = 0
    for left in layers.glob(f"{TEMPORARY}*"):
        descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = _size(left)
            remove_tree(left)
            freed += size
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    return freed


def remove_superseded(layers: Path) -> int:
    """Remove generations that have a later one and that nobody holds; returns the bytes. The caller has the lock."""
    freed = 0
    for path in _all(layers):
        if path != find_layer(layers.parent, _base(path)):
            size = _size(path)
            freed += size if _take_away(path) else 0
    return freed


def next_generation(home: Path, name: str) -> str:
    """What the next directory of this layer is called."""
    found = find_layer(home, name)
    return name if found is None else f"{name}.{_generation(found) + 1}"


def _all(layers: Path) -> list[Path]:
    return [path for path in layers.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _base(layer: Path) -> str:
    return layer.name.partition(".")[0]


def _generation(layer: Path) -> int:
    return int(layer.name.partition(".")[2] or 0)


def _generations(layers: Path, name: str) -> list[Path]:
    later = [path for path in layers.glob(f"{name}.*") if path.name.partition(".")[2].isdecimal()]
    return [path for path in (layers / name, *later) if path.is_dir()]


@contextlib.contextmanager
def hold_layer(layer: Path) -> Iterator[None]:
    """Keep a layer from being pruned while it is in use."""
    import fcntl

    descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):  # another user's cache: when it was last used is only a hint
            os.utime(layer)
        yield
    finally:
        os.close(descriptor)


def prune_layers(home: Path, *, keep_bytes: int) -> int:
    """Remove layers, least recently used first, until at most `keep_bytes` are left; ones in use stay.

    Returns:
        how many bytes were freed.
    """
    layers = home / "layers"
    if not layers.is_dir():
        return 0
    freed = 0
    with lock(layers / ".lock", on_wait=lambda: None):
        freed += remove_left(layers)
        freed += remove_superseded(layers)
        found = sorted(_all(layers), key=lambda path: path.stat().st_mtime)
        sizes = {path: _size(path) for path in found}
        for path in found:
            if sum(sizes.values()) <= keep_bytes:
                break
            if _take_away(path):
                freed += sizes.pop(path)
    return freed


def _take_away(layer: Path) -> bool:
    import fcntl

    descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Renamed first: a half-removed layer must not have a layer's name.
        gone = layer.with_name(f"{TEMPORARY}{layer.name}")
        layer.rename(gone)
        remove_tree(gone)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path, *, on_wait: Callable[[], object]) -> Iterator[None]:
    import fcntl

    # Only for reading: root, who clears up in another user's store, may have made it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    total = 0
    with contextlib.suppress(RecursionError):  # of what is nested too deeply for Python 3.11's walk, what it saw counts
        for folder, _, files in os.walk(path):
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
