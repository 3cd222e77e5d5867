"""What goes in and comes out, as models, and the values of sandboxes made fit for JSON."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sandboxkit import _types
from sandboxkit._types import Execution, FileNode
from sandboxkit.adapters.asgi._refusals import Refusal
from sandboxkit.fragment import Fragment, FragmentResult


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RunRequest(_Body):
    """A fragment to carry out."""

    fragment: Fragment
    """What to carry out."""
    session: str = Field(default="default", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Which of the caller's sessions: the same one, with the same template, is the same sandbox."""


class RunResult(_Body):
    """What came of a fragment."""

    sandbox_id: str
    """The id for the other routes."""
    template: str
    """The template's id."""
    url: str | None
    """Where a browser finds the app; null where the fragment is code."""
    execution: Execution | None
    """What the code did, an exception included; null where the fragment is an app."""
    files: tuple[FileNode, ...]
    """The entries of the home directory, as trees."""
    duration: float
    """Seconds."""


class FileTree(_Body):
    """The files of a sandbox."""

    files: tuple[FileNode, ...]
    """The entries of the home directory, directories first; `complete` is false where more is below."""


class FileContent(_Body):
    """A file's content: the answer of GET, the body of POST."""

    path: str
    """Relative to the home directory, or absolute and below it."""
    content: str
    """The text, or base64."""
    encoding: Literal["utf-8", "base64"] = "utf-8"
    """What `content` is."""


class FileWritten(_Body):
    """A file was written."""

    path: str
    """Its absolute path in the sandbox."""
    size: int
    """Bytes."""


class Logs(_Body):
    """The end of what the app has printed."""

    sandbox_id: str
    """The sandbox's id."""
    log: str
    """Text; empty where there is no app."""


class Problem(BaseModel):
    """An error: `code` is stable, `message` is for people; the rest depends on the code."""

    model_config = ConfigDict(frozen=True, extra="allow")
    code: str
    message: str


class Failure(_Body):
    """The body of every error."""

    error: Problem


# The library's dataclasses go by the package's name, where pydantic would look their own names up.
for _model in (RunResult, FileTree):
    _model.model_rebuild(_types_namespace={**vars(_types), **globals()})


def run_result(result: FragmentResult[Any]) -> dict[str, Any]:
    """A fragment's result, as RunResult describes it."""
    plain: dict[str, Any] = fit(
        {
            "sandbox_id": result.sandbox_id,
            "template": result.template,
            "url": None if result.app is None else result.app.browser_url,
            "execution": result.execution,
            "files": result.files,
            "duration": result.duration,
        }
    )
    return plain


def content_of(path: str, data: bytes) -> dict[str, Any]:
    """A file's content: text where it is UTF-8, else base64."""
    try:
        return {"path": path, "content": data.decode(), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"path": path, "content": base64.b64encode(data).decode(), "encoding": "base64"}


def bytes_of(given: FileContent) -> bytes:
    """The bytes that a body stands for.

    Raises:
        Refusal: it is no base64.
    """
    if given.encoding == "utf-8":
        return given.content.encode("utf-8")
    try:
        return base64.b64decode(given.content, validate=True)
    except (binascii.Error, ValueError):
        problem = {"loc": ["content"], "type": "base64", "msg": "The content is no base64."}
        raise invalid([problem]) from None


def invalid(problems: list[Any]) -> Refusal:
    """The refusal of a body that is JSON and does not fit; what was sent is not repeated."""
    return Refusal(422, "validation_error", "The request does not fit.", (("details", fit(problems)),))


def fit(value: Any) -> Any:
    """A value of a sandbox as one that JSON has: names that are no text, and numbers that are none, are replaced."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {fit(str(name)): fit(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [fit(part) for part in value]
    if dataclasses.is_dataclass(value):
        return {field.name: fit(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"
