"""The parts of the routes that need no request: the table of errors, keys and ids, values for JSON, the description."""

from __future__ import annotations

import inspect
import json

import pytest
from starlette.requests import Request

from sandboxkit import AsyncSandboxPool, FileNode, errors
from sandboxkit.adapters.asgi import openapi, routes
from sandboxkit.adapters.asgi._bodies import fit
from sandboxkit.adapters.asgi._owned import Owned, session_key
from sandboxkit.adapters.asgi._refusals import SENTENCES, refusal
from sandboxkit.errors import ConfigurationError, SandboxkitError
from sandboxkit.testing import FakeProvider


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def who(request: Request) -> str | None:
    return "alice"


def test_w13_every_error_of_the_library_has_an_answer() -> None:
    """No error falls through to a sentence that is not ours, but those of fragments; codes are the errors' own."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        facts = {"option": "x"} if kind is errors.UnsupportedOption else {}
        answer = refusal(kind("/srv/secret", **facts))
        assert 400 <= answer.status < 600
        assert ("secret" in answer.message) == issubclass(kind, errors.FragmentError), name
        assert answer.code == ("sandbox_not_found" if issubclass(kind, errors.SandboxLost) else kind.code)
    assert refusal(RuntimeError("secret")).body == {
        "error": {"code": "internal_error", "message": "Something went wrong."}
    }
    assert set(SENTENCES) >= {SandboxkitError}


def test_names_and_numbers_that_json_does_not_have() -> None:
    """A file's name that is no text, and a number that is none, do not break an answer."""
    node = FileNode(name="a\udcff", path="/home/user/a\udcff", type="file")
    assert fit({"files": (node,), "x\ud800": [float("nan"), object()]}) == {
        "files": [
            {
                "name": "a?",
                "path": "/home/user/a?",
                "type": "file",
                "size": 0,
                "link_target": None,
                "children": [],
                "complete": True,
            }
        ],
        "x?": [None, "<object>"],
    }


@pytest.mark.anyio
async def test_the_description_names_what_there_is() -> None:
    """Every route and method is in it, and every reference leads somewhere."""
    told = openapi()
    app = routes(AsyncSandboxPool(endpoint=FakeProvider()), authorize=who)
    assert told["openapi"] == "3.1.0"
    served = {(r.path, m.lower()) for r in app.routes for m in r.methods - {"HEAD"}}  # type: ignore[attr-defined]
    described = {(path, m) for path, item in told["paths"].items() for m in item if m != "parameters"}
    assert described == served - {("/openapi.json", "get")}
    text = json.dumps(told)
    names = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= set(told["components"]["schemas"])
    assert "$defs" not in text


@pytest.mark.anyio
async def test_arguments_that_cannot_work() -> None:
    """A wrong pool, hook or limit is refused when the application is made."""
    pool = AsyncSandboxPool(endpoint=FakeProvider())
    for given in ({"pool": object()}, {"authorize": None}, {"max_body": 0}):
        with pytest.raises(ConfigurationError):
            routes(**({"pool": pool, "authorize": who} | given))  # type: ignore[arg-type]
    assert inspect.signature(routes).parameters["authorize"].default is inspect.Parameter.empty


def test_keys_are_of_one_principal_alone() -> None:
    """No separator in a name makes two principals one, and a name of any length has a key that the pool takes."""
    triples = [("a", "b", "c"), ("a/b", "", "c"), ("a", "b/c", ""), ("a%2Fb", "", "c"), ("a" * 500, "b", "c")]
    keys = {session_key(*triple) for triple in triples}
    assert len(keys) == len(triples)
    assert max(map(len, keys)) <= 256


def test_ids_are_bounded() -> None:
    """The id that was used longest ago is forgotten first."""
    owned = Owned(most=2)
    for name in ("a", "b"):
        owned.give(name, "alice", name)
    assert owned.key_of("a", "alice") == "a"
    owned.give("c", "alice", "c")
    assert [owned.key_of(name, "alice") for name in "abc"] == ["a", None, "c"]
