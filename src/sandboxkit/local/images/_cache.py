"""The cache of layers: each appears whole or not at all, is made once, and is removed only while nobody uses it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

TEMPORARY = ".making-"


def find_layer(home: Path, name: str) -> Path | None:
    """The layer's directory, or None if it was not made yet."""
    path = home / "layers" / name
    return path if path.is_dir() else None


def make_layer(home: Path, name: str, make: Callable[[Path], None], *, on_wait: Callable[[], object]) -> Path:
    """Return the layer's directory, calling `make` with an empty one if it is not there yet.

    One maker at a time: others wait (after `on_wait()`), and find the layer made. What a maker that was killed left
    behind is removed by the next one.
    """
    layers = home / "layers"
    for folder in (home, layers):
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)
    with _lock(layers / ".lock", on_wait=on_wait):
        for left in layers.glob(f"{TEMPORARY}*"):
            _remove(left)
        if (found := find_layer(home, name)) is not None:
            return found
        working = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=layers))
        try:
            working.chmod(0o755)
            make(working)
            # After a loss of power, a name without its contents would look like a whole layer for ever.
            os.sync()
            working.rename(layers / name)
        except BaseException:
            _remove(working)
            raise
        return layers / name


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
    with _lock(layers / ".lock", on_wait=lambda: None):
        for left in layers.glob(f"{TEMPORARY}*"):
            freed += _size(left)
            _remove(left)
        found = sorted((path for path in layers.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
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
        _remove(gone)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path, *, on_wait: Callable[[], object]) -> Iterator[None]:
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # A maker that was killed may have left a tool that still writes there; the next maker tries again.
    shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return total
