"""What a build's record means: names and tags, and the template that boxes start from."""

from __future__ import annotations

import re

from sandboxkit.local.images._definition import MIB, BuiltTemplate
from sandboxkit.local.images._steps import ENV_TARGET
from sandboxkit.local.images._store import BuildRecord, Store, TemplateRecord
from sandboxkit.local.isolation._base import HOME, Layer, Overlay

DEFAULT_TAG = "default"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def split_name(text: str) -> tuple[str, str]:
    """`name:tag` as both, the name in lower case; the tag is `default` where there is none."""
    name, _, tag = text.partition(":")
    return name.lower(), tag or DEFAULT_TAG


def build_of(record: TemplateRecord, tag: str) -> BuildRecord | None:
    """The build that a tag means, or whose id it is; `latest` is the default one where nobody has assigned it."""
    assigned = record.tags.get(tag) or (record.tags.get(DEFAULT_TAG) if tag == "latest" else None)
    return record.builds.get(tag if assigned is None else assigned[0])


def built_from(name: str, build: BuildRecord, store: Store) -> BuiltTemplate | None:
    """The template that a build has made; None where layers of it are missing."""
    environment = store.trees(build.layers, ENV_TARGET)
    if environment is None:
        return None
    overlays = []
    for place in (HOME, *build.places):
        trees = store.trees(build.layers, place)
        if trees is None:
            return None
        if trees or place != HOME:
            overlays.append(Overlay(target=place, lowers=trees))
    layers = (Layer(source=environment[0], target=ENV_TARGET, below=environment[1:]),) if environment else ()
    return BuiltTemplate(
        id=name,
        build_id=build.build_id,
        layers=layers,
        overlays=tuple(overlays),
        cpus=build.cpus,
        memory=build.memory_mb * MIB,
        disk=build.disk_mb * MIB,
        envs=build.envs,
        workdir=build.workdir,
        start=build.start,
        ready=build.ready,
        notes=build.notes,
        has_interpreter=build.has_interpreter,
        has_environment=bool(environment),
    )
