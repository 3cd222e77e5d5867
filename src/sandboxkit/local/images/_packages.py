"""Which system packages this machine has: asked of its package database, or told by the programs that are there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable

from sandboxkit.local.images._steps import PROGRAMS
from sandboxkit.local.isolation._base import BASE_PATH


def missing_packages(packages: Iterable[str]) -> tuple[str, ...]:
    """Those of Debian's packages that are not here. Blocks for a moment."""
    database = shutil.which("dpkg-query", path=BASE_PATH)
    return tuple(name for name in packages if not _has_program(name) and not _is_installed(database, name))


def _has_program(package: str) -> bool:
    program = PROGRAMS.get(package, package)
    return program is None or shutil.which(program, path=BASE_PATH) is not None


def _is_installed(database: str | None, package: str) -> bool:
    if database is None:
        return False
    asked = subprocess.run(
        [database, "-W", "-f", "${db:Status-Status}", "--", package], capture_output=True, check=False, timeout=30
    )
    return asked.returncode == 0 and asked.stdout.startswith(b"installed")
