"""What the coverage table calls refused is refused by a real engine: a 400 that names it, and nothing happens."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import e2b
import httpx
import pytest

from sandboxkit._types import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.slow]

DATA = tomllib.loads((Path(__file__).parent.parent / "e2b-coverage.toml").read_text(encoding="utf-8"))
REFUSED = [
    pytest.param(what, told, id=re.sub(r"[^\w]+", "-", what))
    for name, part in DATA.items()
    if name != "files"
    for what, told in part["lines"].items()
    if isinstance(told, dict) and "refused" in told
]


@pytest.fixture(scope="module")
def sandbox(sdk: dict[str, str]) -> Iterator[e2b.Sandbox]:
    """One sandbox, for what is asked of one."""
    with e2b.Sandbox.create("code-interpreter-v1", timeout=300, **sdk) as made:
        yield made


def asked(client: httpx.Client, sandbox: e2b.Sandbox, what: str, told: dict[str, Any]) -> httpx.Response:
    """Send what the line is about, as raw as a client of another language would."""
    if "build" in told:
        build = client.post("/v3/templates", json={"name": "refusals"}).json()
        return client.post(f"/v2/templates/{build['templateID']}/builds/{build['buildID']}", json=told["build"])
    if what.startswith("Sandbox.create"):
        return client.post("/v2/sandboxes", json={"templateID": "base", **told["ask"]})
    method, path = re.sub(r"\{\w+\}", "x", told.get("route", what)).split()
    headers = {}
    if "port" in told:
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(told["port"])}
        headers |= {"X-Access-Token": sandbox._envd_access_token or ""}
    return client.request(method, path, json=told.get("ask"), headers=headers)


@pytest.mark.parametrize(("what", "told"), REFUSED)
def test_what_is_refused_is_a_400_that_names_it(
    engine: Endpoint, sandbox: e2b.Sandbox, what: str, told: dict[str, Any]
) -> None:
    """Nothing that the engine cannot do is accepted and ignored, or fails in words of its own."""
    assert engine.api_url is not None
    with httpx.Client(base_url=engine.api_url, headers={"X-API-KEY": engine.api_key}, timeout=60) as client:
        answer = asked(client, sandbox, what, told)
    assert answer.status_code == 400, answer.text
    assert answer.json()["code"] == 400
    assert told["refused"] in answer.json()["message"]
