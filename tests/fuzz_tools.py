"""What the fuzz tests throw: values of any form, bytes that are nearly right, and how many of them."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

ASKED = int(os.environ.get("SANDBOXKIT_FUZZ_EXAMPLES") or 0)
ANSWER_WITHIN = 20.0


def bounded(least: int) -> settings:
    """So many examples in the quick tier (each is a request or more of a real engine), more with a longer profile or
    as SANDBOXKIT_FUZZ_EXAMPLES says."""
    return settings(
        max_examples=ASKED or (least if settings().max_examples <= 100 else least * 10),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\0", "../..", "/", "\ud800", "é" * 5000, "10", "-1", "NaN", "base", "/home/user", "x=y"])
)
JSON = st.recursive(
    SCALARS,
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(max_size=8), each, max_size=4),
    max_leaves=8,
)


def objects(likely: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields, of the likely values or of any, and sometimes with others."""
    fields = {name: values | values | JSON for name, values in likely.items()}
    known = st.fixed_dictionaries({}, optional=fields)
    return st.builds(lambda some, more: {**more, **some}, known, st.dictionaries(st.text(max_size=8), JSON, max_size=1))


def as_bytes(value: Any) -> bytes:
    """JSON, with whatever Python lets through (NaN, lone surrogates)."""
    return json.dumps(value).encode()


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some pieces cut out, put in, doubled or changed."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        piece = draw(
            st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\0", b"\xff" * 4, b"-1", b"chunked", b":", b" "])
        )
        match draw(st.sampled_from(["cut", "put", "change", "double"])):
            case "cut":
                del data[at : at + size]
            case "put":
                data[at:at] = piece
            case "change":
                data[at : at + len(piece)] = piece
            case _:
                data[at:at] = data[at : at + size]
    return bytes(data)


def again(steady: Any, box: dict[str, Any], client: httpx.Client) -> dict[str, Any]:
    """The sandbox, alive."""
    if client.get("/health", headers=steady.to(box["now"])).status_code != 204:
        box["now"] = steady.create(client, timeout=3000)
    sandbox: dict[str, Any] = box["now"]
    return sandbox
