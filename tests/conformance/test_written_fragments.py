"""Fragments of the kind that models write, kept as data in `tests/fragments`, with what has to come of each.

A file has `fragment`, as a model wrote it, and `expects`:

    stdout              all of it
    results             of each: its formats, a part of its text, a part of its chart
    results_have        formats that one of them has
    error, says         the exception in the code, and a part of its message
    raises, says        the error of the library's, and a part of its message or log
    files               paths below the home directory that are there afterwards
    pages               path, and a part of the page
    streamlit           texts that a browser is told over the WebSocket
    calls               of Gradio's API: name, what it is given, what it gives

Those marked `quick` are run in every run, the others in the full tier.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkit import Endpoint, Fragment, FragmentResult, SandboxPool, TimeoutPolicy, errors
from sandboxkit.local import images
from sandboxkit.template import Template

FOLDER = Path(__file__).parents[1] / "fragments"
WRITTEN: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
KNOWN = {"stdout", "results", "results_have", "error", "says", "raises", "files", "pages", "streamlit", "calls"}
RERUN = b"\x5a\x00"
"""The message of Streamlit's browser side that asks for the page: field 11, `rerun_script`, with nothing in it."""


def test_there_are_some_for_each_template() -> None:
    """At least twenty, over all templates that come with the library; each is a fragment, and expects something."""
    assert len(WRITTEN) >= 20
    used = {one["fragment"]["template"] for one in WRITTEN.values()}
    assert used == {"code-interpreter-v1"} | {f"{name}-developer" for name in ("gradio", "nextjs", "streamlit", "vue")}
    for name, one in WRITTEN.items():
        Fragment.model_validate_json(json.dumps(one["fragment"]))
        assert one["about"].endswith("."), name
        assert one["expects"], name
        assert set(one["expects"]) <= KNOWN, name


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if one.get("quick") else [pytest.mark.full]) for name, one in WRITTEN.items()]
)
def test_a_written_fragment_does_what_it_says(name: str, engine: Endpoint) -> None:
    """Run on the engine as it was written, it has the outcome that its file expects."""
    one = WRITTEN[name]
    expects, fragment = one["expects"], Fragment.model_validate_json(json.dumps(one["fragment"]))
    try:
        images.find(fragment.template)
    except errors.TemplateNotBuilt as error:
        pytest.skip(f"not built here: sandboxkit templates build {error.template}")
    limits = TimeoutPolicy(code=one.get("code_timeout", 60.0), ready=120, install=180)
    network = one.get("network", "deny")
    with (
        SandboxPool(endpoint=engine, template=fragment.template, timeouts=limits, network=network) as pool,
        pool.session(None) as session,
    ):
        if "raises" in expects:
            with pytest.raises(getattr(errors, expects["raises"])) as caught:
                session.run(fragment)
            assert expects["says"] in f"{caught.value}\n{getattr(caught.value, 'log_tail', '')}"
            return
        result = session.run(fragment)
        there = {path for node in result.files for path in _paths(node)}
        assert {f"/home/user/{path}" for path in expects.get("files", ())} <= there
        if Template.get(fragment.template).runs_cells:
            _see_what_the_code_did(result, expects)
        else:
            _see_what_the_app_shows(result, expects)


def _paths(node: Any) -> Iterator[str]:
    yield node.path
    for child in node.children:
        yield from _paths(child)


def _see_what_the_code_did(result: FragmentResult[Any], expects: dict[str, Any]) -> None:
    done = result.execution
    assert done is not None
    if "error" in expects:
        assert done.error is not None
        assert done.error.name == expects["error"]
        assert expects.get("says", "") in done.error.value
    else:
        assert done.error is None, done.error
    if "stdout" in expects:
        assert done.stdout == expects["stdout"]
    for wanted, given in zip(expects.get("results", ()), done.results, strict="results" in expects):
        assert list(given.formats()) == wanted["formats"]
        assert wanted.get("text", "") in (given.text or "")
        assert wanted.get("chart", {}).items() <= (given.chart or {}).items()
    if "results_have" in expects:
        assert any(set(expects["results_have"]["formats"]) <= set(given.formats()) for given in done.results)


def _see_what_the_app_shows(result: FragmentResult[Any], expects: dict[str, Any]) -> None:
    assert result.app is not None
    url = result.app.url.rstrip("/")
    for path, text in expects.get("pages", {}).items():
        assert text in _get(url + path), path
    if "streamlit" in expects:
        _until_streamlit_has_said(url, [text.encode() for text in expects["streamlit"]])
    for name, call in expects.get("calls", {}).items():
        body = json.dumps({"data": call["data"], "session_hash": "test"}).encode()
        event = json.loads(_get(f"{url}/gradio_api/call/{name}", body))["event_id"]
        answer = _get(f"{url}/gradio_api/call/{name}/{event}")
        assert f"event: complete\ndata: {json.dumps(call['gives'])}" in answer, answer


def _get(url: str, body: bytes | None = None) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, body, {"content-type": "application/json"} if body else {})
    with opener.open(request, timeout=60) as answer:
        assert answer.status == 200
        text: str = answer.read().decode()
        return text


def _until_streamlit_has_said(url: str, texts: list[bytes]) -> None:
    """Be a browser: open the page's WebSocket, ask for the page, and read until all of it has come."""
    client = pytest.importorskip("websockets.sync.client", reason="nox -s full installs websockets")
    said, deadline = b"", time.monotonic() + 60
    where = url.replace("http://", "ws://") + "/_stcore/stream"
    with client.connect(where, subprotocols=["streamlit"], proxy=None, max_size=None) as connection:
        connection.send(RERUN)
        while not all(text in said for text in texts):
            try:
                said += connection.recv(max(deadline - time.monotonic(), 0.01))
            except TimeoutError:
                missing = [text.decode() for text in texts if text not in said]
                pytest.fail(f"Streamlit did not say {missing}; it said {said[-3000:]!r}")
