"""Fragments: pieces of code that a model wrote, checked before anything touches a sandbox; and what came of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypeVar

from sandboxkit._confine import confine
from sandboxkit._types import DEFAULT_ROOT, Execution, FileNode
from sandboxkit._written import FILES_SCHEMA, strict_schema, with_our_names
from sandboxkit.errors import AppNotReady, AppStartFailed, DependencyError, FragmentError


def _is_file_path(path: str) -> str:
    if confine(path) == DEFAULT_ROOT or path.endswith("/"):
        raise ValueError(f"{path!a} names a directory, not a file")
    return path


def _is_text(text: str) -> str:
    # A lone surrogate is what is left of a broken "\ud83d\ude00" in a model's JSON; no file can hold it.
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the character {error.start} is a lone surrogate, which no file can hold") from error
    return text


# A requirement in the grammar that pip and npm have in common: name, extras, versions, marker. No URL, no local path
# and no leading "-": each would let the text choose where code comes from, or become an option of the installer.
_REQUIREMENT = re.compile(
    r"(@[a-z0-9][a-z0-9._-]*/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
    r"(\s*\[\s*[A-Za-z0-9._-]+(\s*,\s*[A-Za-z0-9._-]+)*\s*\])?"
    r"(\s*(===?|>=|<=|~=|!=|<|>|@)\s*[\^~<>=]*[A-Za-z0-9.*+!_-]+(\s*,\s*(===?|>=|<=|~=|!=|<|>)\s*[A-Za-z0-9.*+!_-]+)*)?"
    r"(\s*;[A-Za-z0-9_.,'\"()<>=!~ -]+)?"
)


def _is_requirement(text: str) -> str:
    text = text.strip()
    if not _REQUIREMENT.fullmatch(text):
        raise ValueError(f"{text!a} is not one package with its version, such as 'pandas', 'polars>=1.2' or 'react@19'")
    return text


def _by_path(given: object) -> object:
    """Files by path, where they come as a list of `{"path", "text"}`, which is how models are asked to write them."""
    if not isinstance(given, list | tuple):
        return given
    files: dict[object, object] = {}
    for entry in given:
        if not isinstance(entry, Mapping) or set(entry) != {"path", "text"}:
            raise ValueError("a list of files has `path` and `text` in each entry, and nothing else")
        path = entry["path"]
        if not isinstance(path, str) or path in files:
            raise ValueError(f"{path!a} is no path, or is there twice")
        files[path] = entry["text"]
    return files


Text = Annotated[str, AfterValidator(_is_text)]
FilePath = Annotated[Text, AfterValidator(_is_file_path)]
Requirement = Annotated[str, Field(max_length=200), AfterValidator(_is_requirement)]


class _Written(BaseModel):
    """What models write: frozen, no unknown fields, and a schema for strict structured output."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, json_schema_extra=strict_schema
    )


class Edit(_Written):
    """A change to a file that is there already: one passage is replaced by another."""

    path: FilePath
    """The file, relative to the home directory."""
    search: Text = Field(min_length=1)
    """The passage as it stands in the file, whole lines where possible; it must occur exactly once."""
    replace: Text
    """What stands there afterwards."""


Files = Annotated[dict[FilePath, Text], Field(min_length=1), BeforeValidator(_by_path), WithJsonSchema(FILES_SCHEMA)]


class Fragment(_Written):
    """Code for one template: a single piece as `code`, several as `files`, or changes to files that are there as
    `edits`.

    Give `Fragment.model_json_schema()` to a model as the form of its answer, and its answer to
    `Fragment.model_validate_json()`. The schema is one that strict structured output takes: every property is
    required, and none is free in its names, so that files are a list there; a dictionary by path is as good here. The
    field names of older apps (`file_path`, `additional_dependencies`, `has_additional_dependencies`,
    `install_dependencies_command`) are understood.

    An object of this class cannot be changed; its paths stay below the sandbox's home, whatever a model wrote.

    Raises:
        pydantic.ValidationError: a field is missing, unknown, or malformed; the message lists each.
    """

    commentary: str = ""
    """The plan, in detail: what will be written, and why. Write it first."""
    template: str = Field(min_length=1)
    """The id of the template that this is for."""
    title: str = ""
    """A title of at most three words."""
    description: str = ""
    """What it does, in one sentence."""
    files: Files | None = None
    """Several files: path relative to the home directory, and text. Either this or `code`, the other is null."""
    code: Text | None = None
    """The one piece of code. Either this or `files`, the other is null."""
    edits: tuple[Edit, ...] = ()
    """Changes to files that are there already, made in this order after `files` are written."""
    file: FilePath | None = None
    """The path of `code`, or the one of `files` that is run. The template's own file when null."""
    dependencies: tuple[Requirement, ...] = ()
    """Packages that the template does not have, one requirement each."""
    port: int | None = Field(default=None, ge=1, le=65535, strict=True)
    """The port where the app answers; the template's own when null."""
    install_command: SkipJsonSchema[Text | None] = None
    """A shell command that installs more. It is in no schema, and is carried out only where the caller permits it."""

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, given: object) -> object:
        return with_our_names(given) if isinstance(given, Mapping) else given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.files is None) == (self.code is None) and not (self.edits and self.files is None):
            raise ValueError("exactly one of `files` and `code` is needed, or `edits` alone")
        if self.files is None:
            return self
        places = {confine(path): path for path in self.files}
        if len(places) < len(self.files):
            raise ValueError("two paths of `files` name the same file")
        for place, path in places.items():
            for parent in PurePosixPath(place).parents:
                if str(parent) in places:
                    raise ValueError(f"{places[str(parent)]!a} cannot be a file and the directory of {path!a}")
        if self.file is not None and not self.edits and confine(self.file) not in places:
            raise ValueError(f"`file` is {self.file!a}, which is not among `files`")
        return self


AnyApp = TypeVar("AnyApp", default=Any)
"""The app of a result, in the colour of the session that made it: `App` or `AsyncApp`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentResult(Generic[AnyApp]):
    """What came of a fragment.

    Attributes:
        sandbox_id, template: where it ran.
        execution: what its code did, an exception included; None for a template whose fragments are apps.
        app: what serves its port, with `url`, `browser_url`, `log()`, `stop()` and `restart()`; None for a template
            whose fragments are code.
        files: the entries of the home directory afterwards, as trees (bounded; see `FileNode.complete`).
        duration: how long all of it took, in seconds.
    """

    sandbox_id: str
    template: str
    execution: Execution | None
    app: AnyApp | None = None
    files: tuple[FileNode, ...] = ()
    duration: float = 0.0


Edit.__module__ = Fragment.__module__ = FragmentResult.__module__ = "sandboxkit"

__all__ = [
    "AppNotReady",
    "AppStartFailed",
    "DependencyError",
    "Edit",
    "Fragment",
    "FragmentError",
    "FragmentResult",
]
