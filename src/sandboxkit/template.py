"""Templates: what a sandbox starts from, as a language model and a runner need to know it.

A template's build files live in `sandbox-templates/<id>/`; its `template.json` there has the fields of `Template`.
The ones that come with the library are registered by themselves; an app adds its own with `Template(...).register()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from sandboxkit._confine import confine
from sandboxkit.errors import ConfigurationError, TemplateNotFound


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Template:
    """One kind of sandbox.

    Attributes:
        id: its name at the service, and in `Fragment.template`.
        name, description: for people.
        language: of the code that it runs.
        libraries: what is installed beyond the language itself.
        file: where a fragment's code goes when the fragment names no file; below the sandbox's home.
        instructions: for a language model that writes a fragment for it.
        port: where its app answers; None for one that runs code cell by cell.
        install: how to add packages, before the package names; None where that is not possible.
        start: the command that starts its app.
        ready: the path that answers over HTTP once the app is ready.
        cpu, memory_mb: the resources of one sandbox, in CPUs and MiB.
        shared_memory: whether its programs need System V segments or memfd_create. The local engine refuses them
            where it has no cgroup to count them; with this it allows them, and their memory is then not bounded.

    Raises:
        pydantic.ValidationError: a field has a wrong type or value.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")
    name: str = Field(default="", kw_only=True)
    description: str = Field(default="", kw_only=True)
    language: str = Field(default="python", kw_only=True)
    libraries: tuple[str, ...] = Field(default=(), kw_only=True)
    file: str = Field(kw_only=True)
    instructions: str = Field(default="", kw_only=True)
    port: int | None = Field(default=None, ge=1, le=65535, strict=True, kw_only=True)
    install: str | None = Field(default=None, kw_only=True)
    start: str | None = Field(default=None, kw_only=True)
    ready: str | None = Field(default=None, kw_only=True)
    cpu: int = Field(default=2, ge=1, le=256, kw_only=True)
    memory_mb: int = Field(default=2048, ge=128, kw_only=True)
    shared_memory: bool = Field(default=False, kw_only=True)

    @field_validator("file")
    @classmethod
    def _is_below_home(cls, file: str) -> str:
        confine(file)
        return file

    @property
    def runs_cells(self) -> bool:
        """Whether code runs in its interpreter, cell by cell, instead of as an app behind a port."""
        return self.port is None

    def register(self) -> Self:
        """Make it known under its id, so that fragments can name it. Registering the same template again is fine.

        Raises:
            ConfigurationError: another template has this id.
        """
        known = _registered().setdefault(self.id, self)
        if known != self:
            raise ConfigurationError(
                f"A different template is registered as {self.id!r} already; give this one an id of its own."
            )
        return self

    @classmethod
    def get(cls, template_id: str) -> Template:
        """Look a template up by its id.

        Raises:
            TemplateNotFound: no template of this id is registered; the message lists those that are.
        """
        found = _registered().get(template_id)
        if found is None:
            known = tuple(sorted(_registered()))
            raise TemplateNotFound(
                f"No template {template_id!r} is registered. Known: {', '.join(known) or 'none'}. "
                f"Add yours with Template(...).register().",
                template=template_id,
                known=known,
            )
        return found

    @classmethod
    def all(cls) -> tuple[Template, ...]:
        """All registered templates: those of the library by id, then the app's own in the order of registration."""
        return tuple(_registered().values())

    @classmethod
    def to_prompt(cls, templates: Iterable[Template] | None = None) -> str:
        """Describe templates to a language model: one numbered line each, with what it must know to write a fragment.

        Args:
            templates: which ones, in which order; all registered ones when None.
        """
        chosen = cls.all() if templates is None else tuple(templates)
        return "\n".join(f"{number}. {_prompt_line(template)}" for number, template in enumerate(chosen, start=1))

    @classmethod
    def from_e2b_toml(
        cls, path: str | os.PathLike[str], *, file: str | None = None, port: int | None = None
    ) -> Template:
        """Read a template from the older form of E2B's templates: an `e2b.toml`, and the Dockerfile beside it.

        Name, start command, CPUs and memory are the file's; language and libraries are told by the Dockerfile's base
        and by what it installs, by name or from the requirements.txt or package.json beside it; the port and the main
        file by the start command, or the script that it is; the ready path by the URL in `ready_cmd`, where one is. A
        template that starts E2B's own interpreter runs code, and has none of these. It is not registered by this.

        Args:
            path: of the `e2b.toml`.
            file: the main file, where the start command does not say it.
            port: where its app answers, where neither the two commands nor EXPOSE say it.

        Raises:
            ConfigurationError: a file is missing or malformed, a value is out of range, or the main file or the port
                is not to be found; the message says which argument gives it.
            UnsupportedOption: the file has a field that is not known here.
        """
        from sandboxkit._e2b_toml import read_e2b_toml

        found = read_e2b_toml(path)
        main, at = file or found.file, port or found.port
        for name, value in (("file", main), ("port", at)):
            if value is None and found.start is not None:
                raise ConfigurationError(
                    f"{os.fspath(path)} starts {found.start!r}, which does not say its {name}: pass {name}=... to "
                    "Template.from_e2b_toml."
                )
        try:
            return cls(
                found.name,
                name=found.name,
                language=found.language,
                libraries=found.libraries,
                file=main or "script.py",
                port=at,
                install=found.install,
                start=found.start,
                ready=None if at is None else found.ready or "/",
                cpu=2 if found.cpu is None else found.cpu,
                memory_mb=2048 if found.memory_mb is None else found.memory_mb,
            )
        except ValidationError as error:
            raise ConfigurationError(f"{os.fspath(path)} does not make a template: {error}") from error


def folder(template_id: str) -> Path | None:
    """The folder of a template that comes with the library (its build files), or None for any other id."""
    for root in _roots():
        path = root / template_id
        if path.parent == root and (path / "template.json").is_file():
            return path
    return None


def folders() -> tuple[str, ...]:
    """Ids of the templates that come with the library."""
    root = next(iter(roots()), None)
    return tuple(sorted(file.parent.name for file in root.glob("*/template.json"))) if root is not None else ()


def roots() -> tuple[Path, ...]:
    """Where the folders of the templates that come with the library lie."""
    return tuple(root for root in _roots() if root.is_dir())


def _roots() -> tuple[Path, ...]:
    here = Path(__file__).resolve()
    # In a wheel the folders are package data; in a checkout (an editable install) they lie beside `src`.
    return here.parent / "_templates", here.parents[2] / "sandbox-templates"


@cache
def _registered() -> dict[str, Template]:
    """The registry, filled at first use with the library's own templates."""
    files = [file for root in roots()[:1] for file in sorted(root.glob("*/template.json"))]
    own = [_read(file) for file in files]
    return {template.id: template for template in own}


def read_template(file: Path) -> Template:
    """Read a `template.json`. ConfigurationError where it is none."""
    try:
        template = TypeAdapter(Template).validate_json(file.read_bytes())
    except ValidationError as error:
        raise ConfigurationError(f"{file} is not a valid template: {error}") from error
    return template


def _read(file: Path) -> Template:
    template = read_template(file)
    if template.id != file.parent.name:
        raise ConfigurationError(f"{file} says id {template.id!r}; it has to be the name of its folder.")
    return template


def _prompt_line(template: Template) -> str:
    facts = [
        template.instructions or template.description or template.name,
        f"File: {template.file}.",
        f"Libraries installed: {', '.join(template.libraries) or 'none beyond the language'}.",
        f"Port: {template.port if template.port is not None else 'none'}.",
    ]
    return f"{template.id}: " + " ".join(fact for fact in facts if fact)


Template.__module__ = "sandboxkit"
