"""Creating sandboxes over the wire: what is made, what is refused by name, what a repeated request gets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

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


def test_the_default_life_is_that_of_the_dialect(shared_hollow: Any, life_of: Callable[..., Any]) -> None:
    """v2 gives 300 seconds where nothing is said, v1 gives 15."""
    for path, seconds in (("/v2/sandboxes", 300), ("/sandboxes", 15)):
        made = shared_hollow.client.post(path, json={"templateID": "base"}).json()
        detail = shared_hollow.client.get(f"/sandboxes/{made['sandboxID']}").json()
        assert life_of(detail) == seconds


def test_info_has_every_field_of_the_sdk(shared_hollow: Any, life_of: Callable[..., Any]) -> None:
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
    assert life_of(detail) == 77


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
        ({"autoPause": "yes"}, "autoPause"),
        ({"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}, "autoPauseMemory"),
        ({"autoPauseMemory": 1}, "autoPauseMemory"),
        ({"autoResume": True}, "autoResume"),
        ({"autoResume": {"enabled": "yes"}}, "autoResume.enabled"),
        ({"autoResume": {"after": 1}}, "autoResume.after"),
        ({"iam": {"tokens": {"aws": {}}}}, "iam"),
        ({"mcp": {"server": {}}}, "mcp"),
        ({"volumeMounts": [{"name": "v"}]}, "volumeMounts"),
        ({"volumeMounts": [{"name": "v", "path": "/etc"}]}, "volumeMounts"),
        ({"allow_internet_access": True}, "--internet"),
        ({"allow_internet_access": "yes"}, "allow_internet_access"),
        ({"network": []}, "network"),
        ({"network": {"allowOut": ["example.com"]}}, "network.allowOut"),
        ({"network": {"denyOut": "0.0.0.0/0"}}, "network.denyOut"),
        ({"network": {"denyOut": ["10.0.0.0/99"]}}, "network.denyOut"),
        ({"network": {"allowOut": ["exa mple.com"]}}, "network.allowOut"),
        ({"network": {"rules": {"example.com": []}}}, "network.rules"),
        ({"network": {"egressProxy": {"address": "proxy:1080"}}}, "network.egressProxy"),
        ({"network": {"dnsServers": ["1.1.1.1"]}}, "network.dnsServers"),
        ({"network": {"allowPublicTraffic": "no"}}, "network.allowPublicTraffic"),
        ({"network": {"maskRequestHost": "x y"}}, "network.maskRequestHost"),
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


def test_so_many_are_made_at_once_and_no_more(start_hollow: Callable[..., Any], wait_until: Callable[..., Any]) -> None:
    """Creations beyond `max_creating` wait for their turn."""
    hollow = start_hollow(max_creating=2)
    hollow.do(hollow.isolation.making.clear)
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(hollow.create) for _ in range(6)]
        wait_until(lambda: hollow.isolation.at_once == 2)
        hollow.do(hollow.isolation.making.set)
        assert len({answer.result()["sandboxID"] for answer in answers}) == 6
    assert hollow.isolation.most_at_once == 2


def test_the_cap_on_memory_counts_what_was_promised(start_hollow: Callable[..., Any]) -> None:
    """A create whose sandbox could use more than what is left of `max_memory` is a 429 until another one is gone."""
    hollow = start_hollow(max_memory=5 << 30)
    first, _ = hollow.create(), hollow.create()
    answer = hollow.client.post("/v2/sandboxes", json={"templateID": "base"})
    assert answer.status_code == 429
    assert answer.json()["error_code"] == "too_much_memory"
    assert "5120 MiB" in answer.json()["message"]
    assert hollow.client.delete(f"/sandboxes/{first['sandboxID']}").status_code == 204
    assert hollow.create()["sandboxID"]


def test_the_cap_holds_until_a_kill_is_confirmed(
    start_hollow: Callable[..., Any], wait_until: Callable[..., Any]
) -> None:
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


def test_a_repeated_request_returns_the_same_sandbox(hollow: Any, wait_until: Callable[..., Any]) -> None:
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
        hollow.client.post("/v2/sandboxes", **request, timeout=httpx.Timeout(20, read=0.2))
    hollow.do(hollow.isolation.making.set)
    answer = hollow.client.post("/v2/sandboxes", **request)
    assert answer.status_code == 201
    assert hollow.isolation.made == 1
