"""Templates: the registry, the prompt, and the ones that come with the library."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sandboxkit import template as module
from sandboxkit.errors import ConfigurationError, TemplateNotFound
from sandboxkit.template import Template, folder


@pytest.fixture(autouse=True)
def registry_as_it_was() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(module._registered())
    yield
    module._registered().clear()
    module._registered().update(before)


def test_the_interpreter_comes_with_the_library(repository: Path) -> None:
    """code-interpreter-v1 is registered by itself, as its template.json describes it."""
    template = Template.get("code-interpreter-v1")
    written = json.loads((repository / "sandbox-templates/code-interpreter-v1/template.json").read_text())
    assert template.runs_cells
    assert (template.id, template.file, template.language) == (written["id"], written["file"], written["language"])
    assert template.libraries == tuple(written["libraries"])


def test_folder_finds_the_build_files() -> None:
    """A template of the library has a folder with its build files."""
    found = folder("code-interpreter-v1")
    assert found is not None
    assert (found / "template.json").is_file()


@pytest.mark.parametrize(
    "template_id", ["nope", "", ".", "..", "../sandbox-templates/code-interpreter-v1", "/etc", "a/b"]
)
def test_folder_finds_nothing_else(template_id: str) -> None:
    """An id is a name, never a path: nothing beside the templates' folders is found."""
    assert folder(template_id) is None


def test_an_app_registers_its_own() -> None:
    """A registered template is found by its id, and listed after the library's own."""
    mine = Template("mine", file="main.py", libraries=("numpy",)).register()
    assert Template.get("mine") is mine
    assert Template.all()[-1] is mine


def test_registering_twice_is_fine_if_it_is_the_same() -> None:
    """Modules are imported twice now and then: the same template may be registered again, another one may not."""
    Template("mine", file="main.py").register()
    Template("mine", file="main.py").register()
    with pytest.raises(ConfigurationError, match="'mine'"):
        Template("mine", file="other.py").register()
    assert Template.get("mine").file == "main.py"


def test_an_unknown_id_is_named_with_those_that_are_known() -> None:
    """TemplateNotFound says what was asked for and what there is, as attributes too; it is a LookupError."""
    with pytest.raises(TemplateNotFound, match=r"'nope'.*code-interpreter-v1") as caught:
        Template.get("nope")
    assert caught.value.template == "nope"
    assert "code-interpreter-v1" in caught.value.known
    assert isinstance(caught.value, LookupError)


def test_the_prompt_numbers_templates_and_says_what_a_model_must_know() -> None:
    """Each template is one numbered line with id, instructions, file, libraries and port."""
    chosen = [
        Template("web", file="app.py", instructions="Serve a page.", libraries=("flask", "numpy"), port=8000),
        Template("bare", file="main.py", description="Nothing but Python."),
    ]
    assert Template.to_prompt(chosen).splitlines() == [
        "1. web: Serve a page. File: app.py. Libraries installed: flask, numpy. Port: 8000.",
        "2. bare: Nothing but Python. File: main.py. Libraries installed: none beyond the language. Port: none.",
    ]


def test_the_prompt_has_all_templates_by_default() -> None:
    """Without a choice, every registered template is described."""
    Template("mine", file="main.py").register()
    lines = Template.to_prompt().splitlines()
    assert len(lines) == len(Template.all())
    assert lines[0].startswith("1. code-interpreter-v1: ")
    assert lines[-1].startswith(f"{len(lines)}. mine: ")


@pytest.mark.parametrize(
    "wrong",
    [
        {"file": "../x"},
        {"file": "/etc/passwd"},
        {"file": "a\0"},
        {"file": 3},
        {"id": ""},
        {"id": "../x"},
        {"id": "a b"},
        {"port": 0},
        {"port": 65536},
        {"port": True},
        {"port": "80"},
        {"cpu": 0},
        {"memory_mb": 1},
        {"libraries": "numpy"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_malformed_template_is_refused(wrong: dict[str, Any]) -> None:
    """A field with a wrong type or value, or one that is unknown, is a ValidationError that names it."""
    fields = {"id": "mine", "file": "main.py"} | wrong
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Template(fields.pop("id"), **fields)


def test_a_file_is_needed() -> None:
    """A template says where code goes."""
    with pytest.raises(ValidationError, match="file"):
        Template("mine")  # type: ignore[call-arg]


def test_a_template_cannot_be_changed() -> None:
    """Templates are shared between sessions, so they are frozen."""
    with pytest.raises(AttributeError):
        Template.get("code-interpreter-v1").file = "x"  # type: ignore[misc]


def test_a_broken_template_json_is_named(tmp_path: Path) -> None:
    """A malformed template.json is an error that says which file and what is wrong."""
    file = tmp_path / "mine" / "template.json"
    file.parent.mkdir()
    file.write_text('{"id": "mine", "file": "main.py", "prot": 80}')
    with pytest.raises(ConfigurationError, match=r"template\.json.*(?s:.)*prot"):
        module._read(file)
    file.write_text('{"id": "other", "file": "main.py"}')
    with pytest.raises(ConfigurationError, match="'other'"):
        module._read(file)
