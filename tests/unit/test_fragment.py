"""Fragments: what is accepted, what is refused, and the schema that models are given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sandboxkit.fragment import Fragment

IT = "code-interpreter-v1"


def test_one_piece_of_code() -> None:
    """A template and code are enough; everything else has a default."""
    fragment = Fragment(template=IT, code="print(1)")
    assert (fragment.code, fragment.files, fragment.file, fragment.port) == ("print(1)", None, None, None)
    assert fragment.dependencies == ()


def test_several_files() -> None:
    """Files come as path and text; one of them can be named as the one that is run."""
    fragment = Fragment(template=IT, files={"main.py": "import lib", "lib/__init__.py": ""}, file="./main.py")
    assert fragment.files == {"main.py": "import lib", "lib/__init__.py": ""}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "exactly one"),
        ({"code": "1", "files": {"a": "1"}}, "exactly one"),
        ({"files": {}}, "files"),
        ({"files": []}, "files"),
        ({"files": {"a": None}}, "files"),
        ({"files": {"a": b"\xff"}}, "files"),
        ({"files": {"../a": "1"}}, "leads out"),
        ({"files": {"/etc/passwd": "1"}}, "leads out"),
        ({"files": {"a\0": "1"}}, "NUL"),
        ({"files": {"": "1"}}, "directory"),
        ({"files": {".": "1"}}, "directory"),
        ({"files": {"a/": "1"}}, "directory"),
        ({"files": {"a" * 256: "1"}}, "255"),
        ({"files": {"a": "1", "./a": "2"}}, "same file"),
        ({"files": {"a": "1", "/home/user/a": "2"}}, "same file"),
        ({"files": {"a": "1", "a/b": "2"}}, "directory"),
        ({"files": {"a": "1"}, "file": "b"}, "not among"),
        ({"code": "1", "file": "../b"}, "leads out"),
        ({"code": "1", "template": ""}, "template"),
        ({"code": "1", "template": None}, "template"),
        ({"code": 1}, "code"),
        ({"code": "\ud800"}, "surrogate"),
        ({"files": {"a": "\ud800"}}, "surrogate"),
        ({"files": {"a\ud800": "1"}}, "surrogate"),
        ({"files": {"b\udc80": "1"}}, "surrogate"),
        ({"code": "1", "port": 0}, "port"),
        ({"code": "1", "port": 65536}, "port"),
        ({"code": "1", "port": True}, "port"),
        ({"code": "1", "port": "80"}, "port"),
        ({"code": "1", "dependencies": "numpy"}, "dependencies"),
        ({"code": "1", "dependencies": [""]}, "dependencies"),
        ({"code": "1", "dependencies": ["-r /etc/passwd"]}, "dependencies"),
        ({"code": "1", "dependencies": ["--index-url=http://x"]}, "dependencies"),
        ({"code": "1", "dependencies": ["a b"]}, "dependencies"),
        ({"code": "1", "dependencies": ["a; rm -rf /"]}, "dependencies"),
        ({"code": "1", "dependencies": ["a && b"]}, "dependencies"),
        ({"code": "1", "dependencies": ["a\nb"]}, "dependencies"),
        ({"code": "1", "dependencies": ["git+https://x/y"]}, "dependencies"),
        ({"code": "1", "dependencies": ["./here"]}, "dependencies"),
        ({"code": "1", "dependencies": ["x @ https://y/z.whl"]}, "dependencies"),
        ({"code": "1", "dependencies": ["$(id)"]}, "dependencies"),
        ({"code": "1", "dependencies": ["a" * 201]}, "dependencies"),
        ({"code": "1", "unknown": 1}, "unknown"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_malformed_fragment_is_refused(fields: dict[str, Any], says: str) -> None:
    """What a model got wrong is a ValidationError that says what it was."""
    with pytest.raises(ValidationError, match=says):
        Fragment.model_validate({"template": IT} | fields)


@pytest.mark.parametrize(
    "requirement",
    [
        "numpy",
        "polars>=1.2",
        "scikit-learn == 1.5.*",
        "a[b,c]~=1.0",
        "a>=1,<2",
        "a!=1.1",
        "react@19",
        "@types/node@^22.1",
        "vue@latest",
        "a; python_version < '3.13'",
        " numpy ",
    ],
)
def test_dependencies_may_be_requirements_of_pip_and_npm(requirement: str) -> None:
    """A package with a version, in either's grammar, is kept as it was written."""
    assert Fragment(template=IT, code="", dependencies=(requirement,)).dependencies == (requirement.strip(),)


def test_a_fragment_cannot_be_changed() -> None:
    """What was checked stays as it was checked."""
    fragment = Fragment(template=IT, code="1")
    with pytest.raises(ValidationError, match="frozen"):
        fragment.code = "2"  # type: ignore[misc]


def test_it_survives_json() -> None:
    """A fragment written as JSON and read again is the same fragment."""
    fragment = Fragment(template=IT, files={"a.py": "\u00e9"}, dependencies=("numpy",), title="T", port=80)
    assert Fragment.model_validate_json(fragment.model_dump_json()) == fragment


def test_the_schema_tells_a_model_what_to_write() -> None:
    """It describes every field in words, and has all but what no model is to write."""
    schema = Fragment.model_json_schema()
    json.dumps(schema)
    assert all(field["description"] for field in schema["properties"].values())
    assert set(schema["properties"]) == set(Fragment.model_fields) - {"install_command"}
    assert "\n" not in schema["description"]


def objects(schema: Any) -> list[dict[str, Any]]:
    """All parts of a schema that are objects."""
    if isinstance(schema, list):
        return [found for entry in schema for found in objects(entry)]
    if not isinstance(schema, dict):
        return []
    return [schema, *(found for entry in schema.values() for found in objects(entry))]


@pytest.mark.parametrize("make", [Fragment.model_json_schema, lambda: TypeAdapter(list[Fragment]).json_schema()])
def test_the_schema_fits_strict_structured_output(make: Any) -> None:
    """Every property of every object is required, none may be added, and no keyword is one that models refuse."""
    parts = objects(make())
    found = [part for part in parts if part.get("type") == "object"]
    assert len(found) >= 3
    for part in found:
        assert part["required"] == list(part["properties"])
        assert part["additionalProperties"] is False
    words = {key for part in parts for key in part if not isinstance(part.get("properties"), str)}
    properties = {name for part in found for name in part["properties"]}
    known = {"type", "properties", "required", "additionalProperties", "description", "items", "anyOf", "$ref", "$defs"}
    assert words - properties <= known | {"Edit", "Fragment"}


def test_an_answer_by_the_schema_is_a_fragment() -> None:
    """All fields given, null or empty where they say nothing, files as a list."""
    answer = {
        "commentary": "",
        "template": IT,
        "title": "T",
        "description": "",
        "files": [{"path": "a.py", "text": "1"}, {"path": "b.py", "text": "2"}],
        "code": None,
        "edits": [],
        "file": "a.py",
        "dependencies": [],
        "port": None,
    }
    assert Fragment.model_validate(answer).files == {"a.py": "1", "b.py": "2"}
    assert Fragment.model_validate(answer | {"code": ""}).code is None
    assert Fragment.model_validate(answer | {"files": [], "code": "1"}).files is None
    alone = answer | {"files": None, "edits": [{"path": "a.py", "search": "1", "replace": "2"}]}
    assert Fragment.model_validate(alone).edits[0].replace == "2"


@pytest.mark.parametrize(
    "files",
    [
        [{"path": "a"}],
        [{"path": "a", "text": "1", "more": 1}],
        [{"path": "a", "text": "1"}, {"path": "a", "text": "2"}],
        [{"path": ["a"], "text": "1"}],
        [{"path": "../a", "text": "1"}],
        ["a"],
        [None],
        "a",
    ],
    ids=str,
)
def test_a_list_of_files_is_as_strict_as_a_dictionary(files: Any) -> None:
    """What is no list of files, or leads out, is refused."""
    with pytest.raises(ValidationError, match="files"):
        Fragment.model_validate({"template": IT, "files": files})


OLD = {
    "commentary": "c",
    "template": IT,
    "title": "T",
    "description": "d",
    "additional_dependencies": ["numpy", "polars>=1"],
    "has_additional_dependencies": True,
    "install_dependencies_command": "pip install -q numpy 'polars>=1'",
    "port": None,
    "file_path": "script.py",
    "code": "1",
}


def test_the_names_of_older_apps_are_understood() -> None:
    """A fragment of an older app is one of today; a command that installs what is listed is no command."""
    fragment = Fragment.model_validate(OLD)
    assert (fragment.file, fragment.dependencies, fragment.install_command) == (
        "script.py",
        ("numpy", "polars>=1"),
        None,
    )
    assert Fragment.model_validate_json(json.dumps(OLD)) == fragment


@pytest.mark.parametrize(
    ("changes", "dependencies", "command"),
    [
        ({"has_additional_dependencies": False}, (), None),
        ({"install_dependencies_command": ""}, ("numpy", "polars>=1"), None),
        ({"install_dependencies_command": "npm i numpy"}, ("numpy", "polars>=1"), None),
        ({"install_dependencies_command": "uv pip install numpy"}, ("numpy", "polars>=1"), None),
        ({"install_dependencies_command": "pip install evil"}, ("numpy", "polars>=1"), "pip install evil"),
        ({"install_dependencies_command": "pip install numpy; id"}, ("numpy", "polars>=1"), "pip install numpy; id"),
        ({"install_dependencies_command": "pip install -r x"}, ("numpy", "polars>=1"), "pip install -r x"),
        ({"install_dependencies_command": "pip install 'x"}, ("numpy", "polars>=1"), "pip install 'x"),
        ({"additional_dependencies": [], "install_dependencies_command": "make"}, (), "make"),
    ],
    ids=str,
)
def test_an_install_command_is_kept_only_where_it_says_more(
    changes: dict[str, Any], dependencies: tuple[str, ...], command: str | None
) -> None:
    """What is kept needs permission; what says the same as the list does not."""
    fragment = Fragment.model_validate(OLD | changes)
    assert (fragment.dependencies, fragment.install_command) == (dependencies, command)


def test_a_list_as_code_is_files() -> None:
    """Some apps had several files in `code`."""
    listed = [
        {"file_name": "a.py", "file_path": "src/a.py", "file_content": "1", "file_finished": True},
        {"path": "b.py", "code": "2"},
    ]
    old = {name: value for name, value in OLD.items() if name not in ("code", "file_path")}
    assert Fragment.model_validate(old | {"code": listed}).files == {"src/a.py": "1", "b.py": "2"}


def test_old_and_new_names_at_once_are_refused() -> None:
    """Which one would count?"""
    with pytest.raises(ValidationError, match="file_path"):
        Fragment.model_validate(OLD | {"file": "b.py"})


@pytest.mark.parametrize(
    "edit",
    [
        {"path": "a", "search": "", "replace": "x"},
        {"path": "../a", "search": "y", "replace": "x"},
        {"path": "a", "search": "y"},
        {"path": "a", "search": "y", "replace": "\ud800"},
        {"path": "a/", "search": "y", "replace": "x"},
        {"path": "a", "search": "y", "replace": "x", "all": True},
    ],
    ids=str,
)
def test_a_malformed_edit_is_refused(edit: dict[str, Any]) -> None:
    """Edits are as strict as files."""
    with pytest.raises(ValidationError, match="edits"):
        Fragment.model_validate({"template": IT, "edits": [edit]})
