"""The schema of a fragment as the form of an answer: the documented rules of strict structured output, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sandboxkit.fragment import Fragment

OPENAI = {"type", "properties", "required", "additionalProperties", "description", "items", "anyOf", "$ref", "$defs"}
"""All three take these in strict output; more are left out, since each of the three refuses others."""
ANTHROPIC = OPENAI | {"enum", "const", "allOf", "default", "format"}
GEMINI = OPENAI | {"enum", "title", "format", "minimum", "maximum", "minItems", "maxItems", "prefixItems", "oneOf"}


def parts(schema: Any, depth: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each schema within a schema, with how many objects and lists it lies in; references are followed."""
    yield depth, schema
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    for part in below:
        yield from parts(part, depth + 1)
    for part in schema.get("anyOf", []):
        yield from parts(part, depth)
    if "$ref" in schema:
        assert schema["$ref"].startswith("#/$defs/")
        yield from parts(Fragment.model_json_schema()["$defs"][schema["$ref"].removeprefix("#/$defs/")], depth)


ALL = list(parts(Fragment.model_json_schema()))


@pytest.mark.parametrize("known", [OPENAI, ANTHROPIC, GEMINI], ids=["openai", "anthropic", "gemini"])
def test_no_keyword_is_refused(known: set[str]) -> None:
    """Every keyword is one that the vendor's strict output has."""
    assert {word for _, part in ALL for word in part} <= known


def test_every_object_is_closed_and_says_all_of_itself() -> None:
    """All three: each property is required, none may be added; what may be absent is null instead."""
    objects = [part for _, part in ALL if part.get("type") == "object"]
    assert len(objects) == 3  # the fragment, a file, an edit
    for part in objects:
        assert part["additionalProperties"] is False
        assert part["required"] == list(part["properties"])


def test_the_top_is_an_object_and_no_union() -> None:
    """OpenAI: the root is an object without anyOf, so that a tool's parameters can be it."""
    _, top = ALL[0]
    assert top["type"] == "object"
    assert "anyOf" not in top


def test_a_reference_stands_alone() -> None:
    """OpenAI: `$ref` has no keyword beside it, not even a description."""
    references = [part for _, part in ALL if "$ref" in part]
    assert references
    assert all(set(part) == {"$ref"} for part in references)


def test_its_size_is_within_all_limits() -> None:
    """OpenAI: 10 levels, 5,000 properties, 120,000 characters of names. Anthropic: 16 properties of several types."""
    assert max(depth for depth, _ in ALL) <= 10
    names = [name for _, part in ALL for name in part.get("properties", {})]
    assert len(names) <= 100
    assert sum(map(len, names)) < 1000
    assert sum("anyOf" in part or isinstance(part.get("type"), list) for _, part in ALL) <= 16


def test_nothing_contains_itself() -> None:
    """Anthropic: no recursion; a walk that follows every reference has come to its end."""
    assert len(ALL) < 100


def test_a_model_knows_what_each_part_is_for() -> None:
    """Each property has a description, the plan comes before the code, and the texts are short enough to be sent."""
    _, top = ALL[0]
    described = [prop for _, part in ALL for prop in part.get("properties", {}).values()]
    assert all(prop["description"] for prop in described)
    order = list(top["properties"])
    assert order.index("commentary") < order.index("template") < order.index("code")
    assert len(json.dumps(top)) < 4000


# -- what the vendors' own packages make of it --------------------------------------------------------------------


@pytest.mark.full
def test_openai_sends_it_as_it_is() -> None:
    """OpenAI's package makes a model's schema strict; there is nothing left for it to do."""
    pydantic = pytest.importorskip("openai.lib._pydantic", reason="nox -s full installs openai")
    assert pydantic.to_strict_json_schema(Fragment) == Fragment.model_json_schema()


@pytest.mark.full
def test_anthropic_sends_it_as_it_is() -> None:
    """Anthropic's package moves what its strict output does not know into descriptions; there is nothing to move."""
    anthropic = pytest.importorskip("anthropic", reason="nox -s full installs anthropic")
    assert anthropic.transform_schema(Fragment.model_json_schema()) == Fragment.model_json_schema()


@pytest.mark.full
def test_gemini_reads_all_of_it() -> None:
    """Google's package reads it into its own form, with every property, its kind, its null and its description."""
    genai = pytest.importorskip("google.genai", reason="nox -s full installs google-genai")
    with genai.Client(api_key="none") as client:
        read = genai._transformers.t_schema(client._api_client, Fragment).properties
    ours = Fragment.model_json_schema()["properties"]
    assert {name: one.description for name, one in read.items()} == {
        name: one["description"] for name, one in ours.items()
    }
    assert {name for name, one in read.items() if one.nullable} == {"files", "code", "file", "port"}
    assert set(read["edits"].items.properties) == {"path", "search", "replace"}
