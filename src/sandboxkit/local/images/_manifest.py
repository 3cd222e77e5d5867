"""Whether a layer still is what was built: what it held when it was made, and the comparison with what it holds now."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

NAME = ".manifest.json"
"""In the layer itself, so that both appear and go together."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a layer holds beside `__pycache__`: how many entries, how many bytes in files, and a digest over all paths,
    kinds and sizes. A bundle of certificates counts by its name only: some machines add their own authorities to it.

    Contents are not read: that would take seconds, and what befalls a cache is files that are missing or cut short.
    """

    entries: int
    size: int
    digest: str


def write(root: Path) -> None:
    """Write the manifest of a layer that is complete."""
    (root / NAME).write_text(json.dumps(asdict(_measure(root))))
    (root / NAME).chmod(0o644)


def damage_at_a_glance(root: Path) -> str | None:
    """Say what is wrong with the few files that nothing works without; None when they are there. A few calls."""
    packages = next((root / "lib").glob("python3*/site-packages"), root / "lib" / "site-packages")
    needed = (root / NAME, root / "pyvenv.cfg", root / "bin" / "python3", packages / "IPython" / "__init__.py")
    for path in needed:
        # Not exists(): the interpreter's link leads somewhere only inside a box.
        if not os.path.lexists(path):
            return f"{path.relative_to(root)} is missing"
    return None


def damage(root: Path) -> str | None:
    """Compare an environment with its manifest, and say how they differ; None when they don't. Some tenths of a
    second."""
    if (found := damage_at_a_glance(root)) is not None:
        return found
    return layer_damage(root)


def layer_damage(root: Path) -> str | None:
    """The same for any layer."""
    try:
        then = Manifest(**json.loads((root / NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return f"{NAME} cannot be read"
    now = _measure(root)
    if now == then:
        return None
    if now.entries != then.entries:
        return f"it has {now.entries:,} files and folders, and had {then.entries:,}"
    if now.size != then.size:
        return f"its files have {now.size:,} bytes, and had {then.size:,}"
    return "its files have other names or sizes than when it was built"


def _measure(root: Path) -> Manifest:
    lines = sorted(_lines(str(root), ""))
    digest = hashlib.sha256()
    for line, _ in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return Manifest(len(lines), sum(size for _, size in lines), digest.hexdigest())


def _lines(folder: str, within: str) -> Iterator[tuple[str, int]]:
    # A list of what is to be done, not a function that calls itself: a build step may nest as deep as it likes.
    waiting = [(folder, within)]
    while waiting:
        folder, within = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{within}{entry.name}"
                # Compiled files come and go: an interpreter of the host that looks into the layer writes some.
                if path == NAME or entry.name == "__pycache__":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield f"{path}/", 0
                    waiting.append((entry.path, f"{path}/"))
                else:
                    found = entry.stat(follow_symlinks=False)
                    size = 0 if entry.name == "cacert.pem" else found.st_size
                    yield f"{path}\0{stat.S_IFMT(found.st_mode):o}\0{size}", size
