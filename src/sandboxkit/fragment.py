"""Fragments: pieces of code that a model wrote, checked before anything touches a sandbox; and what came of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sandboxkit._confine import confine
from sandboxkit._types import DEFAULT_ROOT, Execution, FileNode
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


Text = Annotated[str, AfterValidator(_is_text)]
FilePath = Annotated[Text, AfterValidator(_is_file_path)]
Requirement = Annotated[str, Field(max_length=200), AfterValidator(_is_requirement)]


class Fragment(BaseModel):
    """Code for one template: a single piece as `code`, or several as `files`.

    Give `Fragment.model_json_schema()` to a model as the form of its answer, and its answer to
    `Fragment.model_validate_json()`. An object of this class cannot be changed; its paths stay below the sandbox's
    home, whatever a model wrote.

    Raises:
        pydantic.ValidationError: a field is missing, unknown, or malformed; the message lists each.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # The schema is read by models: what they are to write, not what our callers catch.
        json_schema_extra={"description": "Code for one template: a single piece as `code`, or several as `files`."},
    )

    commentary: str = ""
    """The plan, in detail: what will be written, and why. Write it first."""
    template: str = Field(min_length=1)
    """The id of the template that this is for."""
    title: str = ""
    """A title of at most three words."""
    description: str = ""
    """What it does, in one sentence."""
    files: dict[FilePath, Text] | None = Field(default=None, min_length=1)
    """Several files: path relative to the home directory, and text. Either this or `code`."""
    code: Text | None = None
    """The one piece of code. Either this or `files`."""
    file: FilePath | None = None
    """The path of `code`, or the one of `files` that is run. The template's own file when left out."""
    dependencies: tuple[Requirement, ...] = ()
    """Packages that the template does not have, one requirement each."""
    port: int | None = Field(default=None, ge=1, le=65535, strict=True)
    """The port where the app answers; the template's own when left out."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.files is None) == (self.code is None):
            raise ValueError("exactly one of `files` and `code` is needed")
        if self.files is None:
            return self
        places = {confine(path): path for path in self.files}
        if len(places) < len(self.files):
            raise ValueError("two paths of `files` name the same file")
        for place, path in places.items():
            for parent in PurePosixPath(place).parents:
                if str(parent) in places:
                    raise ValueError(f"{places[str(parent)]!a} cannot be a file and the directory of {path!a}")
        if self.file is not None and confine(self.file) not in places:
            raise ValueError(f"`file` is {self.file!a}, which is not among `files`")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentResult:
    """What came of a fragment.

    Attributes:
        sandbox_id, template: where it ran.
        execution: what its code did, an exception included; None for a template whose fragments are apps.
        files: the entries of the home directory afterwards, as trees (bounded; see `FileNode.complete`).
        duration: how long all of it took, in seconds.
    """

    sandbox_id: str
    template: str
    execution: Execution | None
    files: tuple[FileNode, ...] = ()
    duration: float = 0.0


Fragment.__module__ = FragmentResult.__module__ = "sandboxkit"

__all__ = ["AppNotReady", "AppStartFailed", "DependencyError", "Fragment", "FragmentError", "FragmentResult"]
