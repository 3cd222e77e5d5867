"""Pause and resume over the wire, on an engine of empty boxes: states, answers, and what happens at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest


def _state(hollow: Any, sandbox_id: str) -> str | None:
    answer = hollow.client.get(f"/sandboxes/{sandbox_id}")
    return answer.json()["state"] if answer.status_code == 200 else None


def _ask(hollow: Any, sandbox_id: str, path: str = "/x") -> int:
    """Send a request to a sandbox's envd."""
    return int(hollow.client.get(path, headers={"e2b-sandbox-id": sandbox_id}).status_code)


@contextmanager
def _pausing_held(hollow: Any) -> Iterator[None]:
    """Boxes are not stopped until this ends."""
    hollow.do(hollow.isolation.pausing.clear)
    try:
        yield
    finally:
        hollow.do(hollow.isolation.pausing.set)


@pytest.fixture
def paused(hollow: Any) -> Any:
    """An engine, its client, and a sandbox that is paused."""
    hollow.sandbox = hollow.create("code-interpreter-v1", timeout=100)["sandboxID"]
    hollow.path = f"/sandboxes/{hollow.sandbox}"
    assert hollow.client.post(f"{hollow.path}/pause").status_code == 204
    return hollow


def test_a_paused_sandbox_is_listed_and_not_found(paused: Any) -> None:
    """It is shown as paused, has no time to lose, and answers no traffic; pausing it again is a 409."""
    assert paused.isolation.boxes[paused.sandbox].is_paused
    assert _state(paused, paused.sandbox) == "paused"
    for query, count in (("", 1), ("?state=paused", 1), ("?state=running", 0), ("?state=running,paused", 1)):
        assert len(paused.client.get(f"/v2/sandboxes{query}").json()) == count
    assert paused.client.get("/sandboxes").json() == []
    for path in ("/health", "/x"):
        assert _ask(paused, paused.sandbox, path) == 502
    answer = paused.client.post(f"{paused.path}/pause", json={})
    assert (answer.status_code, answer.json()["error_code"]) == (409, "sandbox_paused")
    for path, body in (("timeout", {"timeout": 5}), ("refreshes", {"duration": 5})):
        assert paused.client.post(f"{paused.path}/{path}", json=body).status_code == 404


@pytest.mark.parametrize(("path", "prefix"), [("connect", ""), ("connect", "/v2"), ("resume", "")])
def test_who_connects_resumes(paused: Any, path: str, prefix: str) -> None:
    """Connecting (or v1's resume) lets it go on with a 201 and the time asked for; again it is a 200 (a 409)."""
    url = f"{prefix}{paused.path}/{path}"
    answer = paused.client.post(url, json={"timeout": 50})
    assert (answer.status_code, answer.json()["sandboxID"]) == (201, paused.sandbox)
    assert not paused.isolation.boxes[paused.sandbox].is_paused
    assert _state(paused, paused.sandbox) == "running"
    assert _ask(paused, paused.sandbox) == 200
    assert paused.client.post(url, json={"timeout": 50}).status_code == (409 if path == "resume" else 200)


def test_a_paused_sandbox_can_be_killed(paused: Any) -> None:
    """Killing it is a 204, and nothing is left; everything after that is a 404."""
    assert paused.client.delete(paused.path).status_code == 204
    assert paused.isolation.boxes == {}
    for path in ("pause", "connect", "resume"):
        assert paused.client.post(f"{paused.path}/{path}").status_code == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("pause", {"memory": 1}),
        ("pause", {"new": 1}),
        ("connect", {"memory": 1}),
        ("resume", {"autoPause": True}),
        ("resume", {"timeout": 0}),
    ],
)
def test_what_a_pause_cannot_do_is_refused_by_name(hollow: Any, path: str, body: dict[str, Any]) -> None:
    """A pause without memory, a start anew, and what nobody knows are a 400 that names them; nothing changes."""
    sandbox = hollow.create()["sandboxID"]
    if path != "pause":
        assert hollow.client.post(f"/sandboxes/{sandbox}/pause").status_code == 204
    before = _state(hollow, sandbox)
    answer = hollow.client.post(f"/sandboxes/{sandbox}/{path}", json=body)
    assert answer.status_code == 400
    assert next(iter(body)) in answer.json()["message"]
    assert _state(hollow, sandbox) == before


def test_a_sandbox_that_must_be_healthy_is_asked_first(hollow: Any) -> None:
    """With `requireHealthyGuest` an agent that does not answer is a 503 of its own, and the sandbox runs on."""
    sandbox = hollow.create()["sandboxID"]
    hollow.isolation.boxes[sandbox].is_silent = True
    answer = hollow.client.post(f"/sandboxes/{sandbox}/pause", json={"requireHealthyGuest": True})
    assert (answer.status_code, answer.json()["error_code"]) == (503, "sandbox_snapshot_guest_agent_unresponsive")
    assert _state(hollow, sandbox) == "running"
    hollow.isolation.boxes[sandbox].is_silent = False
    assert hollow.client.post(f"/sandboxes/{sandbox}/pause", json={"requireHealthyGuest": True}).status_code == 204


def test_time_that_is_up_pauses_where_it_was_wanted(hollow: Any, wait_until: Callable[..., None]) -> None:
    """With `autoPause` the end of its time, and a timeout of 0, pause a sandbox instead of killing it."""
    made = hollow.create(timeout=1, autoPause=True)["sandboxID"]
    assert hollow.client.get(f"/sandboxes/{made}").json()["lifecycle"] == {"onTimeout": "pause", "autoResume": False}
    wait_until(lambda: hollow.isolation.boxes[made].is_paused)
    assert _state(hollow, made) == "paused"
    assert hollow.client.post(f"/sandboxes/{made}/connect", json={"timeout": 100}).status_code == 201
    assert hollow.client.post(f"/sandboxes/{made}/timeout", json={"timeout": 0}).status_code == 204
    assert hollow.isolation.boxes[made].is_paused
    assert _state(hollow, made) == "paused"


def test_traffic_resumes_where_it_was_wanted(hollow: Any) -> None:
    """With `autoResume` a request to a paused sandbox lets it go on, and is answered; asking for health does not."""
    made = hollow.create(autoPause=True, autoResume={"enabled": True})["sandboxID"]
    hollow.client.post(f"/sandboxes/{made}/pause")
    assert _ask(hollow, made, "/health") == 502
    assert _state(hollow, made) == "paused"
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: _ask(hollow, made), range(8))) == {200}
    assert _state(hollow, made) == "running"


@pytest.mark.parametrize(("wanted", "least"), [(10, 300), (1000, 1000)])
def test_traffic_resumes_for_five_minutes_or_what_was_wanted(hollow: Any, wanted: int, least: int) -> None:
    """What traffic resumes lives for its creator's timeout, and for five minutes at least, as at E2B."""
    made = hollow.create(timeout=wanted, autoPause=True, autoResume={"enabled": True})["sandboxID"]
    hollow.client.post(f"/sandboxes/{made}/pause")
    before = datetime.now(UTC)
    assert _ask(hollow, made) == 200
    left = datetime.fromisoformat(hollow.client.get(f"/sandboxes/{made}").json()["endAt"]) - before
    assert least <= left.total_seconds() < least + 10


def test_a_connect_waits_for_a_pause_in_progress(hollow: Any, wait_until: Callable[..., None]) -> None:
    """Who connects while a sandbox is being paused gets it resumed, after it was paused."""
    made = hollow.create()["sandboxID"]
    with ThreadPoolExecutor(3) as threads:
        with _pausing_held(hollow):
            pause = threads.submit(hollow.client.post, f"/sandboxes/{made}/pause")
            wait_until(lambda: _state(hollow, made) == "paused")
            assert hollow.client.post(f"/sandboxes/{made}/pause").status_code == 409
            connects = [threads.submit(hollow.client.post, f"/sandboxes/{made}/connect", json={}) for _ in range(2)]
        assert pause.result().status_code == 204
        assert sorted(connect.result().status_code for connect in connects) == [200, 201]
    assert not hollow.isolation.boxes[made].is_paused
    assert _state(hollow, made) == "running"


def test_a_kill_does_not_wait_for_a_pause(hollow: Any, wait_until: Callable[..., None]) -> None:
    """Who kills a sandbox that is being paused gets a 204; the pause is then a 404, and so is a connect that waits."""
    made = hollow.create()["sandboxID"]
    with ThreadPoolExecutor(3) as threads:
        with _pausing_held(hollow):
            pause = threads.submit(hollow.client.post, f"/sandboxes/{made}/pause")
            wait_until(lambda: _state(hollow, made) == "paused")
            connect = threads.submit(hollow.client.post, f"/sandboxes/{made}/connect", json={})
            assert hollow.client.delete(f"/sandboxes/{made}").status_code == 204
        assert pause.result().status_code == 404
        assert connect.result().status_code == 404
    assert hollow.isolation.boxes == {}


def test_a_box_that_ends_is_gone_also_when_paused(paused: Any, wait_until: Callable[..., None]) -> None:
    """A paused sandbox whose box ends is a 404 for everybody."""
    box = paused.isolation.boxes[paused.sandbox]
    paused.do(box.die)
    wait_until(lambda: paused.isolation.killed == 1)
    assert paused.client.post(f"{paused.path}/connect").status_code == 404


def test_paused_sandboxes_keep_their_places_and_end_with_the_engine(start_hollow: Callable[..., Any]) -> None:
    """A paused sandbox counts towards the cap, and an engine that ends takes it with it."""
    hollow = start_hollow(max_sandboxes=1)
    made = hollow.create()["sandboxID"]
    hollow.client.post(f"/sandboxes/{made}/pause")
    assert hollow.client.post("/v2/sandboxes", json={"templateID": "base"}).status_code == 429
    hollow.stop()
    assert hollow.isolation.boxes == {}


def test_whatever_comes_at_once_ends_in_one_state(hollow: Any, wait_until: Callable[..., None]) -> None:
    """Pauses, connects and a kill in a heap: every answer is one that the protocol has, and the kill wins."""
    made = hollow.create()["sandboxID"]
    path = f"/sandboxes/{made}"
    start = threading.Barrier(9)

    def do(number: int) -> tuple[str, int]:
        with httpx.Client(base_url=hollow.client.base_url, headers=hollow.client.headers, timeout=20) as client:
            start.wait(10)
            if number == 8:
                return "kill", client.delete(path).status_code
            verb = ("pause", "connect")[number % 2]
            return verb, client.post(f"{path}/{verb}", json={}).status_code

    with ThreadPoolExecutor(9) as threads:
        answers = list(threads.map(do, range(9)))
    allowed = {"pause": {204, 409, 404}, "connect": {200, 201, 404}, "kill": {204}}
    assert [one for one in answers if one[1] not in allowed[one[0]]] == []
    assert _state(hollow, made) is None
    wait_until(lambda: hollow.isolation.boxes == {})
