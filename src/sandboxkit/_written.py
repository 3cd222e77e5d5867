"""What models write, apart from ours: the schema that they are given, and the names that older apps used."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

FILES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Relative to the home directory."},
            "text": {"type": "string", "description": "The whole text of the file."},
        },
        "required": ["path", "text"],
        "additionalProperties": False,
    },
}
"""How models are asked for several files: strict structured output knows no object whose names are free."""

_NOT_STRICT = frozenset(
    ("default", "title", "minLength", "maxLength", "pattern", "minimum", "maximum", "minItems", "maxItems")
)
"""Keywords that some of the usual models refuse in a schema; what they say is checked when the answer is read."""


def strict_schema(schema: dict[str, Any]) -> None:
    """Make the schema of one of our models fit strict structured output, in place: every property is required, none
    may be added, and there is no keyword but the common ones."""
    schema["additionalProperties"] = False
    schema["required"] = list(schema["properties"])
    # Written for our callers; what a model needs to know stands at the properties.
    schema["description"] = str(schema.get("description", "")).partition("\n\n")[0].replace("\n", " ")
    schema.pop("title", None)
    for name, value in schema["properties"].items():
        schema["properties"][name] = _common(value)


def _common(value: Any) -> Any:
    if isinstance(value, list):
        return [_common(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        name: {key: _common(one) for key, one in entry.items()} if name == "properties" else _common(entry)
        for name, entry in value.items()
        if name not in _NOT_STRICT
    }


# -- older names --------------------------------------------------------------------------------------------------

_INSTALLERS = (
    ("pip", "install"),
    ("pip3", "install"),
    ("python", "-m", "pip", "install"),
    ("python3", "-m", "pip", "install"),
    ("uv", "pip", "install"),
    ("uv", "add"),
    ("npm", "install"),
    ("npm", "i"),
    ("npm", "add"),
    ("pnpm", "add"),
    ("pnpm", "install"),
    ("yarn", "add"),
)
_HARMLESS = frozenset(
    ("-q", "--quiet", "-U", "--upgrade", "--no-cache-dir", "--user", "--save", "-S", "--save-dev", "-D")
)


def with_our_names(given: Mapping[Any, Any]) -> dict[Any, Any]:
    """A fragment's fields under the names of today. What both name is left as it is, and refused later.

    A command that installs just what is listed as dependencies says nothing more than the list, and is left out: the
    list is installed by argument, without a shell.
    """
    fields = dict(given)
    _rename(fields, "file_path", "file")
    _rename(fields, "additional_dependencies", "dependencies")
    _rename(fields, "install_dependencies_command", "install_command")
    needs = fields.pop("has_additional_dependencies", None)
    if needs is False:
        # The apps that had this flag installed nothing then.
        fields.pop("dependencies", None)
        fields.pop("install_command", None)
    if isinstance(fields.get("code"), list):
        fields = _with_listed_files(fields)
    for name in ("files", "code"):
        other = "code" if name == "files" else "files"
        if not fields.get(name) and fields.get(other) and fields.get(name) in ([], {}, ""):
            fields[name] = None  # what strict output leaves empty
    command = fields.get("install_command")
    if isinstance(command, str) and (not command.strip() or _is_said_already(command, fields.get("dependencies"))):
        fields["install_command"] = None
    return fields


def _rename(fields: dict[Any, Any], old: str, new: str) -> None:
    if old in fields and new not in fields:
        fields[new] = fields.pop(old)


def _with_listed_files(fields: dict[Any, Any]) -> dict[Any, Any]:
    """`code` as a list of files, as some apps had it."""
    files = []
    for entry in fields["code"]:
        if not isinstance(entry, Mapping):
            return fields
        path = entry.get("file_path", entry.get("path"))
        text = entry.get("file_content", entry.get("code", entry.get("text")))
        files.append({"path": path, "text": text})
    rest = {name: value for name, value in fields.items() if name not in ("code", "files")}
    return {**rest, "files": files}


def _is_said_already(command: str, dependencies: object) -> bool:
    if not isinstance(dependencies, list | tuple) or not all(isinstance(one, str) for one in dependencies):
        return False
    if re.search(r"[\n$`{}\\]", command):
        return False
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        return False
    # What a shell would act on comes as a word of its own; in quotes it is part of one.
    if any(not set(word) - set("();<>|&") for word in words):
        return False
    for installer in _INSTALLERS:
        if tuple(words[: len(installer)]) == installer:
            named = [word for word in words[len(installer) :] if word not in _HARMLESS]
            return set(named) <= {one.strip() for one in dependencies}
    return False
