"""Fragments: what is accepted, what is refused, and the schema that models are given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

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
    """The JSON schema describes every field in words, needs only the template, and takes no unknown field."""
    schema = Fragment.model_json_schema()
    json.dumps(schema)
    assert schema["required"] == ["template"]
    assert schema["additionalProperties"] is False
    assert all(field["description"] for field in schema["properties"].values())
    assert set(schema["properties"]) == set(Fragment.model_fields)
