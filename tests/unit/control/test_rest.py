"""The REST API over the wire, on an engine of empty boxes: what E2B's clients rely on, byte by byte."""

from __future__ import annotations

import ast
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import e2b.api.client.api
import httpx
import pytest


def wait_until(condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


# -- creating -----------------------------------------------------------------------------------------------------


def test_create_answers_what_the_sdk_needs(shared_hollow: Any) -> None:
    """201 with the required fields, a domain for get_host(), and an id that E2B's own proxy would take."""
    created = shared_hollow.create()
    assert re.fullmatch(r"i[a-z0-9]{19}", created["sandboxID"])
    port = httpx.URL(shared_hollow.endpoint.api_url).port
    assert created["domain"] == f"localhost:{port}"
    assert created["templateID"] == created["alias"] == "base"
    assert created["envdVersion"] == "0.6.13"
    assert created["envdAccessToken"]
    assert {"clientID"} <= created.keys()


def test_the_default_life_is_that_of_the_dialect(shared_hollow: Any) -> None:
    """v2 gives 300 seconds where nothing is said, v1 gives 15."""
    for path, seconds in (("/v2/sandboxes", 300), ("/sandboxes", 15)):
        made = shared_hollow.client.post(path, json={"templateID": "base"}).json()
        detail = shared_hollow.client.get(f"/sandboxes/{made['sandboxID']}").json()
        assert _life(detail) == seconds


def _life(detail: Any) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(detail["endAt"]) - datetime.fromisoformat(detail["startedAt"])).total_seconds()


def test_info_has_every_field_of_the_sdk(shared_hollow: Any) -> None:
    """The detail of a sandbox has all that E2B's client requires, and says what it was made with."""
    made = shared_hollow.create(
        "code-interpreter-v1", metadata={"a": "b"}, timeout=77, network={"denyOut": ["0.0.0.0/0"]}
    )
    detail = shared_hollow.client.get(f"/sandboxes/{made['sandboxID']}").json()
    required = "templateID,sandboxID,clientID,startedAt,endAt,envdVersion,cpuCount,memoryMB,diskSizeMB,state"
    assert set(required.split(",")) <= detail.keys()
    assert detail["metadata"] == {"a": "b"}
    assert detail["state"] == "running"
    assert detail["network"] == {"denyOut": ["0.0.0.0/0"]}
    assert detail["allowInternetAccess"] is False
    assert detail["lifecycle"] == {"onTimeout": "kill", "autoResume": False}
    assert _life(detail) == 77


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"templateID": 5}, "templateID"),
        ({"templateID": ""}, "templateID"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"timeout": 1.5}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": "300"}, "timeout"),
        ({"timeout": 86_401}, "timeout"),
        ({"metadata": ["x"]}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {"a": "\ud800"}}, "metadata"),
        ({"envVars": {"a": None}}, "envVars"),
        ({"envVars": {"": "x"}}, "envVars"),
        ({"envVars": {"A=B": "x"}}, "envVars"),
        ({"envVars": {"A": "\x00"}}, "envVars"),
        ({"autoPause": True}, "autoPause"),
        ({"autoResume": {"enabled": True}}, "autoResume"),
        ({"iam": {"tokens": {"aws": {}}}}, "iam"),
        ({"mcp": {"server": {}}}, "mcp"),
        ({"volumeMounts": [{"name": "v", "path": "/v"}]}, "volumeMounts"),
        ({"allow_internet_access": True}, "--internet"),
        ({"allow_internet_access": "yes"}, "allow_internet_access"),
        ({"network": []}, "network"),
        ({"network": {"allowOut": ["example.com"]}}, "network.allowOut"),
        ({"network": {"denyOut": "0.0.0.0/0"}}, "network.denyOut"),
        ({"network": {"denyOut": ["10.0.0.0/99"]}}, "network.denyOut"),
        ({"network": {"denyOut": ["0x7f.1"]}}, "network.denyOut"),
        ({"network": {"allowOut": ["exa mple.com"]}}, "network.allowOut"),
        ({"network": {"rules": {"example.com": []}}}, "network.rules"),
        ({"network": {"egressProxy": {"address": "proxy:1080"}}}, "network.egressProxy"),
        ({"network": {"dnsServers": ["1.1.1.1"]}}, "network.dnsServers"),
        ({"network": {"allowPublicTraffic": False}}, "network.allowPublicTraffic"),
        ({"network": {"maskRequestHost": "x"}}, "network.maskRequestHost"),
        ({"network": {"httpsPorts": [443]}}, "network.httpsPorts"),
        ({"network": {"newThing": 1}}, "network.newThing"),
        ({"newThing": 1}, "newThing"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(shared_hollow: Any, fields: dict[str, Any], named: str) -> None:
    """A malformed value, or an option that the engine cannot carry out, is a 400 that names it; nothing is made."""
    made = shared_hollow.isolation.made
    body = json.dumps({"templateID": "base", **fields}).encode()
    answer = shared_hollow.client.post("/v2/sandboxes", content=body)
    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert named in answer.json()["message"]
    assert answer.json()["error_code"] in ("bad_request", "unsupported_option")
    assert shared_hollow.isolation.made == made


@pytest.mark.parametrize(
    "fields",
    [
        {
            "autoPause": False,
            "autoPauseMemory": True,
            "autoResume": {"enabled": False},
            "volumeMounts": [],
            "mcp": None,
        },
        {"iam": {"tokens": {}}},
        {"allow_internet_access": False},
        {"network": {}},
        {"network": {"allowOut": [], "denyOut": ["10.0.0.0/8"], "rules": {}, "allowPublicTraffic": True}},
    ],
)
def test_options_that_ask_for_nothing_are_accepted(shared_hollow: Any, fields: dict[str, Any]) -> None:
    """A switch that is off, an empty list, and a denial of what is denied anyway are no reason to refuse."""
    assert shared_hollow.create(**fields)["sandboxID"]


@pytest.mark.parametrize(
    ("path", "headers", "granted"),
    [
        ("/sandboxes", {"package_version": "2.50.0"}, True),
        ("/sandboxes", {}, True),
        ("/v2/sandboxes", {"package_version": "2.50.0"}, True),
        ("/v2/sandboxes", {"package_version": "2.51.0"}, False),
        ("/v2/sandboxes", {"package_version": "nonsense"}, False),
    ],
)
def test_internet_access_that_a_client_always_asks_for_counts_as_not_asked(
    shared_hollow: Any, path: str, headers: dict[str, str], granted: bool
) -> None:
    """Clients before 2.51 send true whatever their user said: they get a sandbox, whose info says false."""
    body = {"templateID": "base", "timeout": 60, "secure": True, "allow_internet_access": True}
    if path != "/sandboxes":
        del body["secure"]
    answer = shared_hollow.client.post(path, json=body, headers=headers)
    assert answer.status_code == (201 if granted else 400)
    if granted:
        detail = shared_hollow.client.get(f"/sandboxes/{answer.json()['sandboxID']}").json()
        assert detail["allowInternetAccess"] is False


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(shared_hollow: Any, body: bytes) -> None:
    """What is not a JSON object is a 400, however it is malformed."""
    assert shared_hollow.client.post("/v2/sandboxes", content=body).status_code == 400


def test_a_body_that_is_too_long_is_refused_at_once(shared_hollow: Any) -> None:
    """More than a mebibyte is a 413, whether the client announced it or not."""

    def endless() -> Any:
        for _ in range(64):
            yield b" " * 65_536

    assert shared_hollow.client.post("/v2/sandboxes", content=b" " * (1024 * 1024 + 1)).status_code == 413
    assert shared_hollow.client.post("/v2/sandboxes", content=endless()).status_code == 413


@pytest.mark.parametrize(
    ("template", "status", "code"),
    [
        ("nosuch", 404, "template_not_found"),
        ("base:v9", 404, "template_not_found"),
        ("unbuilt", 400, "template_not_built"),
    ],
)
def test_a_template_that_is_not_there_is_refused_by_code(
    shared_hollow: Any, template: str, status: int, code: str
) -> None:
    """An unknown template and one that is not built have codes of their own; the second names the command."""
    answer = shared_hollow.client.post("/v2/sandboxes", json={"templateID": template})
    assert answer.status_code == status
    assert answer.json()["error_code"] == code
    if code == "template_not_built":
        assert "sandboxkit templates build" in answer.json()["message"]


def test_the_default_tag_is_the_template(shared_hollow: Any) -> None:
    """`name:default` means the one build that there is."""
    assert shared_hollow.create("base:default")["templateID"] == "base"


def test_a_failed_creation_leaves_nothing_and_frees_its_key(hollow: Any) -> None:
    """A box that cannot be made is a 500 without our insides in it; the same key may try again."""
    hollow.isolation.failure = RuntimeError("/secret/path")
    headers = {"Idempotency-Key": "k"}
    answer = hollow.client.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    hollow.isolation.failure = None
    assert hollow.client.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers).status_code == 201
    assert len(hollow.client.get("/v2/sandboxes").json()) == 1


def test_a_creation_that_takes_too_long_is_given_up(start_hollow: Callable[..., Any]) -> None:
    """Past the limit the client gets a 503 that says so, is told not to repeat it, and nothing is left."""
    hollow = start_hollow(create_timeout=0.05)
    hollow.do(hollow.isolation.making.clear)
    answer = hollow.client.post("/v2/sandboxes", json={"templateID": "base"})
    assert answer.status_code == 503
    assert answer.headers["Should-Retry"] == "false"
    assert hollow.isolation.at_once == hollow.isolation.made == 0


def test_so_many_are_made_at_once_and_no_more(start_hollow: Callable[..., Any]) -> None:
    """Creations beyond `max_creating` wait for their turn."""
    hollow = start_hollow(max_creating=2)
    hollow.do(hollow.isolation.making.clear)
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(hollow.create) for _ in range(6)]
        wait_until(lambda: hollow.isolation.at_once == 2)
        hollow.do(hollow.isolation.making.set)
        assert len({answer.result()["sandboxID"] for answer in answers}) == 6
    assert hollow.isolation.most_at_once == 2


def test_the_cap_holds_until_a_kill_is_confirmed(start_hollow: Callable[..., Any]) -> None:
    """At the cap a create is a 429, and a sandbox that is being killed still counts."""
    hollow = start_hollow(max_sandboxes=1)
    first = hollow.create()
    hollow.do(hollow.isolation.killing.clear)
    with ThreadPoolExecutor(1) as threads:
        kill = threads.submit(hollow.client.delete, f"/sandboxes/{first['sandboxID']}")
        wait_until(lambda: hollow.client.get(f"/sandboxes/{first['sandboxID']}").status_code == 404)
        answer = hollow.client.post("/v2/sandboxes", json={"templateID": "base"})
        assert answer.status_code == 429
        assert answer.json()["error_code"] == "too_many_sandboxes"
        hollow.do(hollow.isolation.killing.set)
        assert kill.result().status_code == 204
    assert hollow.create()["sandboxID"]


# -- idempotency --------------------------------------------------------------------------------------------------


def test_a_repeated_request_returns_the_same_sandbox(hollow: Any) -> None:
    """The same key and body give one sandbox: at once, while it is being made, and after it was killed."""
    hollow.do(hollow.isolation.making.clear)
    request = {"json": {"templateID": "base"}, "headers": {"Idempotency-Key": "a-1"}}
    with ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(hollow.client.post, "/v2/sandboxes", **request) for _ in range(3)]
        wait_until(lambda: hollow.isolation.at_once == 1)
        hollow.do(hollow.isolation.making.set)
        bodies = [answer.result().json() for answer in answers]
    bodies.append(hollow.client.post("/v2/sandboxes", **request).json())
    hollow.client.delete(f"/sandboxes/{bodies[0]['sandboxID']}")
    bodies.append(hollow.client.post("/v2/sandboxes", **request).json())
    assert all(body == bodies[0] for body in bodies)
    assert hollow.isolation.made == 1


def test_a_key_cannot_stand_for_two_requests(shared_hollow: Any) -> None:
    """The same key with another body is a conflict that has a name."""
    headers = {"Idempotency-Key": "conflict"}
    assert shared_hollow.client.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers).status_code == 201
    answer = shared_hollow.client.post("/v2/sandboxes", json={"templateID": "base", "timeout": 9}, headers=headers)
    assert (answer.status_code, answer.json()["error_code"]) == (409, "idempotency_conflict")


@pytest.mark.parametrize("key", ["A", "a_b", "a" * 256, ""])
def test_a_malformed_key_is_refused(shared_hollow: Any, key: str) -> None:
    """A key is 1 to 255 of a-z, 0-9 and -."""
    answer = shared_hollow.client.post("/v2/sandboxes", json={"templateID": "base"}, headers={"Idempotency-Key": key})
    assert answer.status_code == 400


def test_a_client_that_hangs_up_does_not_undo_its_request(hollow: Any) -> None:
    """A create whose client is gone goes on, and its key finds the sandbox."""
    hollow.do(hollow.isolation.making.clear)
    request = {"json": {"templateID": "base"}, "headers": {"Idempotency-Key": "k"}}
    with pytest.raises(httpx.ReadTimeout):
        hollow.client.post("/v2/sandboxes", **request, timeout=0.2)
    hollow.do(hollow.isolation.making.set)
    answer = hollow.client.post("/v2/sandboxes", **request)
    assert answer.status_code == 201
    assert hollow.isolation.made == 1


# -- lives --------------------------------------------------------------------------------------------------------


def test_connect_only_extends(shared_hollow: Any) -> None:
    """Connecting with a shorter timeout changes nothing; with a longer one it extends; in both dialects."""
    made = shared_hollow.create(timeout=100)
    path = f"/sandboxes/{made['sandboxID']}"
    before = shared_hollow.client.get(path).json()["endAt"]
    answer = shared_hollow.client.post(f"/v2{path}/connect", json={"timeout": 50, "memory": False})
    assert answer.status_code == 200
    assert answer.json() == made
    assert shared_hollow.client.get(path).json()["endAt"] == before
    assert shared_hollow.client.post(f"{path}/connect", json={"timeout": 200}).status_code == 200
    assert 199 < _life(shared_hollow.client.get(path).json()) < 210
    assert shared_hollow.client.post(f"/v2{path}/connect", json={}).status_code == 200
    assert 299 < _life(shared_hollow.client.get(path).json()) < 310


def test_timeout_sets_and_refresh_extends(shared_hollow: Any) -> None:
    """/timeout may shorten; /refreshes never does."""
    path = f"/sandboxes/{shared_hollow.create(timeout=100)['sandboxID']}"
    assert shared_hollow.client.post(f"{path}/timeout", json={"timeout": 20}).status_code == 204
    assert 19 < _life(shared_hollow.client.get(path).json()) < 30
    assert shared_hollow.client.post(f"{path}/refreshes", json={"duration": 5}).status_code == 204
    assert 19 < _life(shared_hollow.client.get(path).json()) < 30
    assert shared_hollow.client.post(f"{path}/refreshes", json={"duration": 60}).status_code == 204
    assert 59 < _life(shared_hollow.client.get(path).json()) < 70
    assert shared_hollow.client.post(f"{path}/timeout", json={"timeout": -1}).status_code == 400
    assert shared_hollow.client.post(f"{path}/timeout", json={}).status_code == 400


def test_timeout_zero_kills_before_it_answers(hollow: Any) -> None:
    """A timeout of 0 ends the sandbox now."""
    path = f"/sandboxes/{hollow.create()['sandboxID']}"
    assert hollow.client.post(f"{path}/timeout", json={"timeout": 0}).status_code == 204
    assert hollow.client.get(path).status_code == 404
    assert hollow.isolation.killed == 1


@pytest.mark.slow
def test_a_sandbox_whose_time_is_up_is_killed(hollow: Any) -> None:
    """At the end of its life its box is gone, without anybody asking."""
    hollow.create(timeout=1)
    wait_until(lambda: hollow.isolation.killed == 1)
    assert hollow.client.get("/v2/sandboxes").json() == []


def test_a_box_that_ends_by_itself_is_a_sandbox_that_is_gone(hollow: Any) -> None:
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


def test_shutting_down_kills_everything_also_what_is_being_made(hollow: Any) -> None:
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


def test_metrics_are_measured(shared_hollow: Any) -> None:
    """Metrics have every field, come from the box, and respect the window."""
    sandbox_id = shared_hollow.create()["sandboxID"]
    (metric,) = shared_hollow.client.get(f"/sandboxes/{sandbox_id}/metrics").json()
    assert (metric["memUsed"], metric["diskUsed"], metric["cpuCount"]) == (1000, 2000, 2)
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
            "unsupported_option",
        ), answer.text
