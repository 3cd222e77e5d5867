"""Fragments under arbitrary input: accepted ones are safe to write, and nothing but a ValidationError comes out."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sandboxkit._confine import confine
from sandboxkit.fragment import Fragment

names = st.one_of(st.sampled_from(["a", "b", "..", ".", "", "home", "user", "\u00e9", "x" * 256]), st.text(max_size=3))
paths = st.builds("/".join, st.lists(names, max_size=4))
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=8,
)
fields = st.fixed_dictionaries(
    {"template": st.one_of(st.just("t"), json_values)},
    optional={
        "files": st.one_of(st.dictionaries(paths, st.text(max_size=5), max_size=4), json_values),
        "code": st.one_of(st.text(), json_values),
        "file": st.one_of(paths, json_values),
        "dependencies": st.one_of(st.lists(st.text(max_size=8), max_size=3), json_values),
        "port": st.one_of(st.integers(-1, 70000), json_values),
        "title": json_values,
        "edits": st.one_of(st.lists(st.fixed_dictionaries({"path": paths, "search": st.text(), "replace": st.text()}))),
        "file_path": st.one_of(paths, json_values),
        "additional_dependencies": st.one_of(st.lists(st.text(max_size=8), max_size=3), json_values),
        "has_additional_dependencies": json_values,
        "install_dependencies_command": st.one_of(st.text(), json_values),
    },
)


@given(fields)
def test_arbitrary_fields_are_a_fragment_or_a_validation_error(given_fields: dict[str, Any]) -> None:
    """Whatever a model answers, it becomes a fragment that keeps its promises, or a ValidationError."""
    try:
        fragment = Fragment.model_validate(given_fields)
    except ValidationError:
        return
    assert (fragment.files is None) != (fragment.code is None) or fragment.edits
    places = [confine(path) for path in fragment.files or {}]
    assert len(set(places)) == len(places)
    assert not any(a != b and b.startswith(a + "/") for a in places for b in places)
    assert "/home/user" not in places
    assert all(not text.startswith("-") and "\n" not in text for text in fragment.dependencies)


@given(st.dictionaries(paths, st.text(max_size=5), min_size=1, max_size=4))
def test_json_round_trip(files: dict[str, str]) -> None:
    """A valid fragment is the same after JSON."""
    try:
        fragment = Fragment(template="t", files=files)
    except ValidationError:
        return
    assert Fragment.model_validate_json(fragment.model_dump_json()) == fragment
