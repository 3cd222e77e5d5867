"""The rest of the REST API over the wire, on an engine of empty boxes: lives, lists, metrics, keys, routes."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import e2b.api.client.api
import httpx
import pytest

# -- lives --------------------------------------------------------------------------------------------------------


def test_connect_only_extends(shared_hollow: Any, life_of: Callable[..., Any]) -> None:
    """Connecting with a shorter timeout changes nothing; with a longer one it extends; in both dialects."""
    made = shared_hollow.create(timeout=100)
    path = f"/sandboxes/{made['sandboxID']}"
    before = shared_hollow.client.get(path).json()["endAt"]
    answer = shared_hollow.client.post(f"/v2{path}/connect", json={"timeout": 50, "memory": False})
    assert answer.status_code == 200
    assert answer.json() == made
    assert shared_hollow.client.get(path).json()["endAt"] == before
    assert shared_hollow.client.post(f"{path}/connect", json={"timeout": 200}).status_code == 200
    assert 199 < life_of(shared_hollow.client.get(path).json()) < 210
    assert shared_hollow.client.post(f"/v2{path}/connect", json={}).status_code == 200
    assert 299 < life_of(shared_hollow.client.get(path).json()) < 310


def test_timeout_sets_and_refresh_extends(shared_hollow: Any, life_of: Callable[..., Any]) -> None:
    """/timeout may shorten; /refreshes never does."""
    path = f"/sandboxes/{shared_hollow.create(timeout=100)['sandboxID']}"
    assert shared_hollow.client.post(f"{path}/timeout", json={"timeout": 20}).status_code == 204
    assert 19 < life_of(shared_hollow.client.get(path).json()) < 30
    assert shared_hollow.client.post(f"{path}/refreshes", json={"duration": 5}).status_code == 204
    assert 19 < life_of(shared_hollow.client.get(path).json()) < 30
    assert shared_hollow.client.post(f"{path}/refreshes", json={"duration": 60}).status_code == 204
    assert 59 < life_of(shared_hollow.client.get(path).json()) < 70
    assert shared_hollow.client.post(f"{path}/timeout", json={"timeout": -1}).status_code == 400
    assert shared_hollow.client.post(f"{path}/timeout", json={}).status_code == 400


def test_timeout_zero_kills_before_it_answers(hollow: Any) -> None:
    """A timeout of 0 ends the sandbox now."""
    path = f"/sandboxes/{hollow.create()['sandboxID']}"
    assert hollow.client.post(f"{path}/timeout", json={"timeout": 0}).status_code == 204
    assert hollow.client.get(path).status_code == 404
    assert hollow.isolation.killed == 1


@pytest.mark.slow
def test_a_sandbox_whose_time_is_up_is_killed(hollow: Any, wait_until: Callable[..., Any]) -> None:
    """At the end of its life its box is gone, without anybody asking."""
    hollow.create(timeout=1)
    wait_until(lambda: hollow.isolation.killed == 1)
    assert hollow.client.get("/v2/sandboxes").json() == []


def test_a_box_that_ends_by_itself_is_a_sandbox_that_is_gone(hollow: Any, wait_until: Callable[..., Any]) -> None:
    """When the box ends, its sandbox is not found any more, and what it held is cleaned up."""
    made = hollow.create()
    hollow.do(hollow.isolation.boxes[made["sandboxID"]].die)
    wait_until(lambda: hollow.isolation.killed == 1)
    assert hollow.client.get(f"/sandboxes/{made['sandboxID']}").status_code == 404
    assert hollow.client.delete(f"/sandboxes/{made['sandboxID']}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sandboxes/ix"),
        ("DELETE", "/sandboxes/ix"),
        ("POST", "/sandboxes/ix/timeout"),
        ("POST", "/sandboxes/ix/refreshes"),
        ("POST", "/v2/sandboxes/ix/connect"),
        ("GET", "/sandboxes/ix/metrics"),
        ("PUT", "/sandboxes/ix/network"),
    ],
)
def test_a_sandbox_that_is_not_there_is_404(shared_hollow: Any, method: str, path: str) -> None:
    """Every call about an unknown id answers 404 with a message and a code."""
    answer = shared_hollow.client.request(method, path, json={"timeout": 1} if path.endswith("timeout") else None)
    assert answer.status_code == 404
    assert answer.json()["error_code"] == "sandbox_not_found"


def test_shutting_down_kills_everything_also_what_is_being_made(hollow: Any, wait_until: Callable[..., Any]) -> None:
    """After an orderly end no box is left, and a create that was under way is told so."""
    for _ in range(3):
        hollow.create()
    hollow.do(hollow.isolation.making.clear)
    answers: list[Any] = []
    late = threading.Thread(
        target=lambda: answers.append(hollow.client.post("/v2/sandboxes", json={"templateID": "base"}))
    )
    late.start()
    wait_until(lambda: hollow.isolation.at_once == 1)
    hollow.stop()
    late.join()
    assert hollow.isolation.boxes == {}
    assert hollow.isolation.made == hollow.isolation.killed == 3
    assert answers[0].status_code == 503


# -- listing ------------------------------------------------------------------------------------------------------


def test_list_filters_by_metadata_encoded_three_times(hollow: Any) -> None:
    """The filter arrives quoted, urlencoded and encoded again, and matches subsets."""
    one = hollow.create(metadata={"a b": "c&d", "x": "1"})
    hollow.create(metadata={"a b": "other"})
    found = hollow.client.get("/v2/sandboxes?metadata=a%252520b%3Dc%252526d").json()
    assert [s["sandboxID"] for s in found] == [one["sandboxID"]]
    assert len(hollow.client.get("/sandboxes").json()) == 2
    assert hollow.client.get("/v2/sandboxes?metadata=nonsense").status_code == 400


def test_list_filters_and_orders(hollow: Any) -> None:
    """State, template, start time and order do what they say; newest first where nothing is said."""
    first, second = hollow.create("base"), hollow.create("code-interpreter-v1")

    def ids(query: str) -> list[str]:
        return [s["sandboxID"] for s in hollow.client.get(f"/v2/sandboxes?{query}").json()]

    both = [first["sandboxID"], second["sandboxID"]]
    assert ids("") == both[::-1]
    assert ids("order=asc") == both
    assert ids("state=running,paused&order=asc") == both
    assert ids("state=paused") == []
    assert ids("template=base") == both[:1]
    started = hollow.client.get(f"/sandboxes/{both[0]}").json()["startedAt"]
    assert ids(f"startedAfter={started}") == both[1:]
    for bad in ("state=flying", "order=up", "limit=0", "limit=101", "limit=x", "startedAfter=monday"):
        assert hollow.client.get(f"/v2/sandboxes?{bad}").status_code == 400


def test_pages_have_a_token_until_the_last(hollow: Any) -> None:
    """`x-next-token` leads to the next page and is absent on the last; a foreign token is refused in E2B's words."""
    ids = [hollow.create()["sandboxID"] for _ in range(5)]
    seen, token, pages = [], "", 0
    while True:
        answer = hollow.client.get("/v2/sandboxes", params={"limit": 2, "order": "asc", "nextToken": token})
        seen += [s["sandboxID"] for s in answer.json()]
        pages += 1
        token = answer.headers.get("x-next-token", "")
        if not token:
            break
    assert (seen, pages) == (ids, 3)
    answer = hollow.client.get("/v2/sandboxes", params={"nextToken": "bogus"})
    assert (answer.status_code, answer.json()["message"]) == (400, "Invalid next token")


# -- the rest -----------------------------------------------------------------------------------------------------


def test_info_says_how_each_limit_is_held(hollow: Any) -> None:
    """Info has E2B's figures, and beyond them each limit with what holds it."""
    sandbox_id = hollow.create()["sandboxID"]
    info = hollow.client.get(f"/sandboxes/{sandbox_id}").json()
    assert (info["cpuCount"], info["memoryMB"], info["diskSizeMB"]) == (2, 2048, 1024)
    assert info["limits"] == [{"resource": "memory", "value": 2048 << 20, "heldBy": "watchdog", "note": "a note"}]


def test_metrics_are_measured(shared_hollow: Any) -> None:
    """Metrics have every field, come from the box, and respect the window."""
    sandbox_id = shared_hollow.create()["sandboxID"]
    (metric,) = shared_hollow.client.get(f"/sandboxes/{sandbox_id}/metrics").json()
    assert (metric["memUsed"], metric["diskUsed"], metric["cpuCount"]) == (1000, 2000, 2)
    assert metric["memCache"] == 300
    fields = "timestamp timestampUnix cpuCount cpuUsedPct memUsed memTotal memCache diskUsed diskTotal"
    assert set(fields.split()) == metric.keys()
    assert shared_hollow.client.get(f"/sandboxes/{sandbox_id}/metrics?end=1").json() == []
    assert len(shared_hollow.client.get(f"/sandboxes/{sandbox_id}/metrics").json()) == 3
    both = shared_hollow.client.get(f"/sandboxes/metrics?sandbox_ids={sandbox_id},igone").json()
    assert list(both["sandboxes"]) == [sandbox_id]


def test_a_network_update_may_only_deny(shared_hollow: Any) -> None:
    """What is denied already may be denied again; anything that would open a way is refused by name."""
    path = f"/sandboxes/{shared_hollow.create()['sandboxID']}"
    assert shared_hollow.client.put(f"{path}/network", json={"denyOut": ["8.8.8.8"]}).status_code == 204
    assert shared_hollow.client.get(path).json()["network"] == {"denyOut": ["8.8.8.8"]}
    answer = shared_hollow.client.put(f"{path}/network", json={"allowOut": ["8.8.8.8"]})
    assert answer.status_code == 400
    assert "allowOut" in answer.json()["message"]


def test_the_key_is_needed_everywhere_but_for_health(shared_hollow: Any) -> None:
    """A missing or wrong key is a 401 in JSON; /health tells nothing and needs none."""
    for headers in ({}, {"X-API-KEY": ""}, {"X-API-KEY": "e2b_wrong"}, {"X-API-KEY": "é".encode("latin-1")}):
        with httpx.Client(base_url=shared_hollow.endpoint.api_url, headers=headers) as client:
            answer = client.get("/v2/sandboxes")
            assert (answer.status_code, answer.json()["code"]) == (401, 401)
            assert client.get("/health").status_code == 200


def test_unknown_paths_and_methods_answer_in_json(shared_hollow: Any) -> None:
    """What nobody knows is a 404, a known path with another method a 405, both as E2B's error object."""
    assert shared_hollow.client.get("/nosuch").json()["code"] == 404
    assert shared_hollow.client.patch("/v2/sandboxes").json()["code"] == 405


def test_templates_can_be_looked_up_by_name(shared_hollow: Any) -> None:
    """`Template.exists()` works: 200 for what the engine serves, 404 for the rest."""
    assert shared_hollow.client.get("/templates/aliases/base").json() == {"templateID": "base", "public": True}
    assert shared_hollow.client.get("/templates/aliases/no%2Fsuch").status_code == 404


def _generated_routes() -> list[tuple[str, str]]:
    """Every method and path that the SDK's generated client can call, read from its source."""
    found = set()
    for file in Path(str(e2b.api.client.api.__file__)).parent.glob("*/*.py"):
        source = file.read_text()
        methods = re.findall(r'"method": "(\w+)"', source)
        paths = re.findall(r'"url": (f?".*")', source)
        found |= {
            (m.upper(), re.sub(r"\{\w+\}", "x", ast.literal_eval(p.lstrip("f"))))
            for m, p in zip(methods, paths, strict=True)
        }
    return sorted(found)


@pytest.mark.parametrize(("method", "path"), _generated_routes())
def test_every_route_of_the_sdk_is_answered_on_purpose(shared_hollow: Any, method: str, path: str) -> None:
    """No route that the installed SDK knows falls through to `unknown path`: it works, or says why not."""
    answer = shared_hollow.client.request(method, path)
    if answer.status_code >= 400:
        assert answer.json().get("error_code") in (
            "bad_request",
            "sandbox_not_found",
            "template_not_found",
            "no_such_build",
            "volume_not_found",
            "unsupported_option",
        ), answer.text
