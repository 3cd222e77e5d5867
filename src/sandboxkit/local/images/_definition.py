"""What a template is made of, and the name of its layer: pure, but for reading the template's folder."""

from __future__ import annotations

import hashlib
import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandboxkit._types import CODE_INTERPRETER
from sandboxkit.errors import TemplateNotFound
from sandboxkit.local.isolation._base import HOME, PREFIX, Layer, Overlay
from sandboxkit.template import Template, folder

BASE = "base"
ENV_TARGET = f"{PREFIX}/env"
BUILDER_FORMAT = 5
"""Part of every layer's name: raise it whenever the builder puts something else into a layer."""

DISK = 1024 * 1024 * 1024
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltTemplate:
    """A template that boxes can start from. `memory` and `disk` are bytes, `cpus` a number of host CPUs."""

    id: str
    layers: tuple[Layer, ...] = ()
    cpus: float = 2.0
    memory: int = 2048 * MIB
    disk: int = DISK
    has_interpreter: bool = False
    shared_memory: bool = False
    envs: Mapping[str, str] = field(default_factory=dict)
    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    """The version of Python inside, as `3.N`: the engine's own."""
    build_id: str = ""
    overlays: tuple[Overlay, ...] = ()
    """What it brings to directories that a sandbox may write to, the home above all."""
    has_environment: bool = False
    """Whether it has packages of its own, in the environment that one layer is."""
    workdir: str = HOME
    start: str = ""
    """A command that runs in each sandbox from its creation on; empty for none."""
    ready: str = ""
    """A command that succeeds once what `start` started is ready; empty where nobody knows."""
    notes: tuple[str, ...] = ()
    """Where it is not what its definition asked for."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A template that has to be built: its description, and its pinned requirements."""

    template: Template
    requirements: bytes
    requirements_file: Path

    @property
    def layer_name(self) -> str:
        """The name of the layer: a digest of all that decides what is in it."""
        digest = hashlib.sha256()
        parts = (
            str(BUILDER_FORMAT).encode(),
            self.requirements,
            str(sysconfig.get_config_var("SOABI")).encode(),
            sysconfig.get_platform().encode(),
            "-".join(platform.libc_ver()).encode(),
        )
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()[:32]

    def built(self, layer: Path) -> BuiltTemplate:
        """Describe the built template, whose packages lie in `layer`."""
        return BuiltTemplate(
            id=self.template.id,
            layers=(Layer(source=str(layer), target=ENV_TARGET),),
            cpus=float(self.template.cpu),
            memory=self.template.memory_mb * MIB,
            shared_memory=self.template.shared_memory,
            has_interpreter=True,
            has_environment=True,
        )


OWN = (BASE, CODE_INTERPRETER)
"""Templates that the engine has of itself; nobody may build others under these names."""


def definition(template_id: str) -> Definition | None:
    """Read the definition of a template; None for `base`, which is nothing but the system and Python.

    Raises:
        TemplateNotFound: the engine does not serve this id.
    """
    if template_id == BASE:
        return None
    found = folder(template_id) if template_id in OWN else None
    if found is None:
        raise TemplateNotFound(
            f"The local engine has no template {template_id!r} of its own; it has {', '.join(OWN)}.",
            template=template_id,
            known=OWN,
        )
    file = found / "requirements.txt"
    return Definition(Template.get(template_id), file.read_bytes(), file)
