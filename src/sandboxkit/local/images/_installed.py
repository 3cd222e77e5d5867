"""What is installed in a built template, read from its layers: to hold what a registry says of it against it."""

from __future__ import annotations

import contextlib
import json
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from sandboxkit.local.images._definition import BuiltTemplate
from sandboxkit.local.isolation._base import HOME

LARGEST = 4 * 1024 * 1024


def versions(built: BuiltTemplate, libraries: Iterable[str]) -> dict[str, str | None]:
    """The version of each library, as a Python distribution or as a Node package of the home; None where it is not."""
    environments = [Path(tree) for layer in built.layers for tree in (layer.source, *layer.below)]
    homes = [Path(tree) for one in built.overlays if one.target == HOME for tree in one.lowers]
    python = {_plain(name): version for tree in reversed(environments) for name, version in _distributions(tree)}
    return {library: _node(homes, library) or python.get(_plain(library)) for library in libraries}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _distributions(tree: Path) -> Iterable[tuple[str, str]]:
    for found in tree.glob("lib/python3*/site-packages/*.dist-info"):
        # By its name alone, unless it is a piece of what another layer has: that is none.
        with contextlib.suppress(OSError):
            if stat.S_ISREG((found / "METADATA").lstat().st_mode):
                name, _, version = found.name.removesuffix(".dist-info").partition("-")
                yield name, version


def _node(homes: Iterable[Path], library: str) -> str | None:
    if not re.fullmatch(r"(@[a-z0-9._~-]+/)?[A-Za-z0-9._~-]+", library):
        return None
    for home in homes:
        # What a template's author has made is read like any file that a stranger sends: no links, no surprises.
        file = home / "node_modules" / library / "package.json"
        is_within = file.resolve().is_relative_to(home.resolve())
        if is_within and file.is_file() and not file.is_symlink() and file.stat().st_size < LARGEST:
            try:
                return str(json.loads(file.read_bytes())["version"])
            except (ValueError, KeyError, TypeError):
                return None
    return None
