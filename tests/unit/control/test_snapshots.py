"""Snapshots, forks and logs, on an engine of empty boxes: names, pages, answers, and what comes at once."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.control._kept import Snapshot, read_snapshot, write_snapshot
from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control._snapshot_index import SnapshotIndex, SnapshotQuery, read_name, read_token
from sandboxkit.local.isolation._base import Limits


def _made(hollow: Any, contents: bytes = b"files", template: str = "base", **wanted: Any) -> str:
    sandbox_id = str(hollow.create(template, **wanted)["sandboxID"])
    hollow.isolation.boxes[sandbox_id].files = contents
    return sandbox_id


def _post(hollow: Any, sandbox_id: str, verb: str, **body: Any) -> Any:
    return hollow.client.post(f"/sandboxes/{sandbox_id}/{verb}", json=body)


def _taken(hollow: Any, sandbox_id: str, **body: Any) -> str:
    answer = _post(hollow, sandbox_id, "snapshots", **body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["snapshotID"])


def _files(hollow: Any, made: Any) -> bytes:
    return bytes(hollow.isolation.boxes[made["sandboxID"]].files)


def _delete(hollow: Any, snapshot: str) -> int:
    return int(hollow.client.delete(f"/templates/{quote(snapshot, safe='')}").status_code)


# -- snapshots ----------------------------------------------------------------------------------------------------


def test_a_snapshot_is_what_new_sandboxes_start_with(hollow: Any) -> None:
    """Taken from a sandbox that runs on, it outlives it; what starts from it says so, and that memory is lost."""
    made = _made(hollow, b"mine", "code-interpreter-v1")
    answer = _post(hollow, made, "snapshots")
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    snapshot = answer.json()["snapshotID"]
    assert answer.json()["names"] == []
    box = hollow.isolation.boxes[made]
    assert (box.is_paused, box.resumed) == (False, 1)
    assert hollow.client.get(f"/sandboxes/{made}").json()["state"] == "running"
    hollow.client.delete(f"/sandboxes/{made}")
    answer = hollow.client.post("/v2/sandboxes", json={"templateID": snapshot})
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    assert _files(hollow, answer.json()) == b"mine"
    info = hollow.client.get(f"/sandboxes/{answer.json()['sandboxID']}").json()
    assert info["templateID"] == snapshot.partition(":")[0]
    assert info["memory"] == "lost"
    to_interpreter = {"e2b-sandbox-id": info["sandboxID"], "e2b-sandbox-port": "49999"}
    assert hollow.client.get("/x", headers=to_interpreter).json()["service"] == "interpreter"
    again = _taken(hollow, info["sandboxID"])
    assert _files(hollow, hollow.create(again)) == b"mine"


@pytest.mark.parametrize("called", ["mine", "mine:default", "local/mine", "local/mine:default", "MINE"])
def test_a_snapshot_has_names(hollow: Any, called: str) -> None:
    """It is found by each of its names, for creating, listing, looking up and deleting."""
    made = _made(hollow)
    answer = _post(hollow, made, "snapshots", name="mine")
    assert answer.json() == {"snapshotID": "local/mine:default", "names": ["local/mine:default"]}
    _taken(hollow, made, name="mine:v2")
    assert hollow.create(called)["alias"] == "mine"
    assert hollow.client.get(f"/templates/aliases/{quote(called, safe='')}").status_code == 200
    listed = hollow.client.get("/snapshots", params={"name": called}).json()
    both = [{"snapshotID": f"local/mine:{tag}", "names": [f"local/mine:{tag}"]} for tag in ("v2", "default")]
    assert listed == (both[1:] if ":" in called else both)
    assert _delete(hollow, called) == 204
    assert _delete(hollow, called) == 404
    assert _delete(hollow, "local/mine:v2") == 204
    assert hollow.client.get("/snapshots").json() == []


def test_a_second_one_of_a_name_takes_its_place(hollow: Any) -> None:
    """The name leads to the newer one; what started from the older one lives on."""
    first, second = _made(hollow, b"1"), _made(hollow, b"2")
    _taken(hollow, first, name="mine")
    old = hollow.create("mine")
    _taken(hollow, second, name="mine")
    assert len(hollow.client.get("/snapshots").json()) == 1
    assert _files(hollow, hollow.create("mine")) == b"2"
    assert hollow.client.get(f"/sandboxes/{old['sandboxID']}").json()["state"] == "running"


@pytest.mark.parametrize(
    ("name", "status"),
    [("base", 409), ("local/base:v1", 409), ("a b", 400), ("../x", 400), ("x/y", 400), ("x:", 400), (5, 400)],
)
def test_a_name_that_cannot_be_had(shared_hollow: Any, name: Any, status: int) -> None:
    """A template's name is a 409, what is no name a 400; nothing is stopped for it."""
    made = _made(shared_hollow)
    answer = _post(shared_hollow, made, "snapshots", name=name)
    assert answer.status_code == status
    assert "name" in answer.json()["message"]
    assert shared_hollow.isolation.boxes[made].resumed == 0


def test_paused_sandboxes_too(hollow: Any) -> None:
    """A snapshot of a paused one, with its memory or stored, leaves it as it is."""
    for memory in (True, False):
        made = _made(hollow, b"mine")
        _post(hollow, made, "pause", memory=memory)
        assert _files(hollow, hollow.create(_taken(hollow, made))) == b"mine"
        assert hollow.client.get(f"/sandboxes/{made}").json()["state"] == "paused"
        assert _post(hollow, made, "connect").status_code == 201


def test_pages_of_snapshots(hollow: Any) -> None:
    """Newest first, each once, whatever goes between two pages; filtered by their sandbox."""
    one, other = _made(hollow), _made(hollow)
    taken = [_taken(hollow, one if number % 2 else other, name=f"n{number}") for number in range(5)]
    seen: list[str] = []
    token = None
    while True:
        query = {"limit": "2", **({"nextToken": token} if token else {})}
        answer = hollow.client.get("/snapshots", params=query)
        seen += [found["snapshotID"] for found in answer.json()]
        if (token := answer.headers.get("x-next-token")) is None:
            break
        if len(seen) == 2:
            _delete(hollow, taken[4])
            _delete(hollow, taken[0])
    assert seen == [*taken[:2:-1], *taken[2:0:-1]]
    listed = hollow.client.get("/snapshots", params={"sandboxID": one}).json()
    assert [found["snapshotID"] for found in listed] == [taken[3], taken[1]]
    for name, value in (("limit", "0"), ("limit", "101"), ("nextToken", "x")):
        assert hollow.client.get("/snapshots", params={name: value}).status_code == 400


def test_snapshots_outlive_their_engine(start_hollow: Callable[..., Any], tmp_path: Path) -> None:
    """The next engine of the same store has them, and goes on counting."""
    first = start_hollow(kept=tmp_path / "kept")
    made = _made(first, b"mine")
    taken = [_taken(first, made, name="a"), _taken(first, made)]
    first.stop()
    second = start_hollow(kept=tmp_path / "kept")
    assert _files(second, second.create("a")) == b"mine"
    taken.append(_taken(second, _made(second)))
    assert [one["snapshotID"] for one in second.client.get("/snapshots").json()] == taken[::-1]
    assert _delete(second, taken[1]) == 204
    second.stop()
    third = start_hollow(kept=tmp_path / "kept")
    assert len(third.client.get("/snapshots").json()) == 2


def test_a_strict_engine_takes_files_alone(start_hollow: Callable[..., Any]) -> None:
    """Where the engine is strict, what would lose memory is a 400 that names it; what was asked for without is made."""
    hollow = start_hollow(strict=True)
    made = _made(hollow, b"mine")
    for verb, named in (("snapshots", "snapshot"), ("fork", "fork")):
        answer = _post(hollow, made, verb)
        assert (answer.status_code, answer.json()["error_code"]) == (400, "memory_lost")
        assert named in answer.json()["message"]
    answer = _post(hollow, made, "snapshots", memory=False)
    assert (answer.status_code, "x-sandboxkit-memory" in answer.headers) == (201, False)
    made = hollow.create(answer.json()["snapshotID"])
    assert _files(hollow, made) == b"mine"
    assert "memory" not in hollow.client.get(f"/sandboxes/{made['sandboxID']}").json()


def test_a_full_disk_is_said(hollow: Any) -> None:
    """Files that cannot be kept are a 507 with the reason; the sandbox runs on, nothing is listed."""
    made = _made(hollow)
    hollow.isolation.save_failure = OSError(errno.ENOSPC, "No space left on device")
    for verb in ("snapshots", "fork"):
        answer = _post(hollow, made, verb)
        assert answer.status_code == 507
        assert "No space left" in answer.json()["message"]
    assert not hollow.isolation.boxes[made].is_paused
    assert hollow.client.get("/snapshots").json() == []


# -- forks --------------------------------------------------------------------------------------------------------


def test_a_fork_has_its_parents_files(hollow: Any, life_of: Callable[..., Any]) -> None:
    """Each fork is a sandbox of its own, with the files, environment and metadata; its time is 15 s unless said."""
    made = _made(hollow, b"mine", "code-interpreter-v1", metadata={"a": "b"}, timeout=99)
    answer = _post(hollow, made, "fork", count=3)
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    forks = [one["sandbox"] for one in answer.json()]
    assert len({made, *(one["sandboxID"] for one in forks)}) == 4
    assert len({one["envdAccessToken"] for one in forks}) == 3
    for one in forks:
        assert _files(hollow, one) == b"mine"
        info = hollow.client.get(f"/sandboxes/{one['sandboxID']}").json()
        assert (info["metadata"], info["memory"], info["templateID"]) == ({"a": "b"}, "lost", "code-interpreter-v1")
        assert life_of(info) == 15
    assert life_of(hollow.client.get(f"/sandboxes/{made}").json()) == 99
    (single,) = _post(hollow, made, "fork", timeout=50).json()
    assert life_of(hollow.client.get(f"/sandboxes/{single['sandbox']['sandboxID']}").json()) == 50


def test_each_fork_is_made_or_refused_for_itself(start_hollow: Callable[..., Any]) -> None:
    """Past the cap a fork is an error of its own, with status and message, beside those that were made."""
    hollow = start_hollow(max_sandboxes=3)
    made = _made(hollow)
    answer = _post(hollow, made, "fork", count=4)
    assert answer.status_code == 201
    assert sorted(next(iter(one)) for one in answer.json()) == ["error", "error", "sandbox", "sandbox"]
    errors = [one["error"] for one in answer.json() if "error" in one]
    assert all(error["code"] == 429 and "too_many_sandboxes" in error["message"] for error in errors)


@pytest.mark.parametrize(
    "body", [{"count": 0}, {"count": 21}, {"count": "1"}, {"count": True}, {"timeout": 0}, {"new": 1}]
)
def test_what_is_no_fork_is_refused_by_name(shared_hollow: Any, body: dict[str, Any]) -> None:
    """Nothing is made for a request that cannot be read."""
    made = _made(shared_hollow)
    answer = _post(shared_hollow, made, "fork", **body)
    assert answer.status_code == 400
    assert next(iter(body)) in answer.json()["message"]


@pytest.mark.parametrize("verb", ["fork", "snapshots", "logs"])
def test_nobody_is_a_404(shared_hollow: Any, verb: str) -> None:
    """Of a sandbox that is not there nothing can be had."""
    method = "GET" if verb == "logs" else "POST"
    answer = shared_hollow.client.request(method, f"/sandboxes/inosuch/{verb}")
    assert (answer.status_code, answer.json()["error_code"]) == (404, "sandbox_not_found")


# -- at once ------------------------------------------------------------------------------------------------------


def test_a_kill_does_not_wait_for_a_snapshot(hollow: Any, wait_until: Callable[..., None]) -> None:
    """Who kills a sandbox that is being copied gets a 204 at once, who copies a 404; nothing is left."""
    made = _made(hollow)
    hollow.do(hollow.isolation.letting_save.clear)
    with ThreadPoolExecutor(4) as threads:
        copies = [threads.submit(_post, hollow, made, verb) for verb in ("snapshots", "fork", "snapshots")]
        wait_until(lambda: hollow.isolation.saving == 1)
        assert hollow.client.delete(f"/sandboxes/{made}").status_code == 204
        assert {copy.result().status_code for copy in copies} == {404}
    hollow.do(hollow.isolation.letting_save.set)
    assert hollow.isolation.boxes == {}
    assert hollow.client.get("/snapshots").json() == []


def test_a_pause_waits_for_a_snapshot(hollow: Any, wait_until: Callable[..., None]) -> None:
    """A sandbox that is paused while it is copied is paused after it, and stays so. Copies that wait before the pause
    find a box that counts as paused and is not: it stands still for them all the same."""
    made = _made(hollow)
    hollow.do(hollow.isolation.letting_save.clear)
    with ThreadPoolExecutor(4) as threads:
        copies = [threads.submit(_post, hollow, made, "snapshots") for _ in range(3)]
        wait_until(lambda: hollow.isolation.saving == 1)
        pause = threads.submit(_post, hollow, made, "pause")
        wait_until(lambda: hollow.client.get(f"/sandboxes/{made}").json()["state"] == "paused")
        hollow.do(hollow.isolation.letting_save.set)
        assert [copy.result().status_code for copy in copies] == [201] * 3
        assert pause.result().status_code == 204
    assert hollow.isolation.boxes[made].is_paused


@pytest.mark.parametrize("kills", [True, False])
def test_whatever_comes_at_once_ends_in_one_state(
    start_hollow: Callable[..., Any], tmp_path: Path, wait_until: Callable[..., None], kills: bool
) -> None:
    """Pauses of both kinds, connects of both kinds, snapshots, forks and a kill in a heap: every answer is one that the
    protocol has, the state in the end is one, and it is true of the box."""
    hollow = start_hollow(kept=tmp_path / "kept")
    made = _made(hollow, b"mine")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("pause", {}),
        ("pause", {"memory": False}),
        ("connect", {}),
        ("connect", {"memory": False}),
        ("snapshots", {}),
        ("fork", {"timeout": 100}),
    ] * 3
    start = threading.Barrier(len(calls) + kills)

    def do(number: int) -> tuple[str, int]:
        with httpx.Client(base_url=hollow.client.base_url, headers=hollow.client.headers, timeout=20) as client:
            start.wait(10)
            if number == len(calls):
                return "kill", client.delete(f"/sandboxes/{made}").status_code
            verb, body = calls[number]
            return verb, client.post(f"/sandboxes/{made}/{verb}", json=body).status_code

    with ThreadPoolExecutor(len(calls) + kills) as threads:
        answers = list(threads.map(do, range(len(calls) + kills)))
    gone = {404} if kills else set()
    allowed = {
        "pause": {204, 409} | gone,
        "connect": {200, 201} | gone,
        "snapshots": {201} | gone,
        "fork": {201} | gone,
        "kill": {204},
    }
    assert [one for one in answers if one[1] not in allowed[one[0]]] == []
    answer = hollow.client.get(f"/sandboxes/{made}")
    if kills:
        assert answer.status_code == 404
        wait_until(lambda: made not in hollow.isolation.boxes)
        assert list((tmp_path / "kept" / "paused").iterdir()) == []
    else:
        state, mode = answer.json()["state"], answer.json().get("pauseMode")
        box = hollow.isolation.boxes.get(made)
        if state == "running":
            assert not box.is_paused
        else:
            assert (box is None, mode) in [(True, "filesystem"), (False, "full")]
        assert _post(hollow, made, "connect").status_code in (200, 201)
        assert hollow.isolation.boxes[made].files == b"mine"
    for name in hollow.isolation.boxes:
        assert hollow.isolation.boxes[name].files == b"mine"


# -- logs ---------------------------------------------------------------------------------------------------------


def test_logs_tell_a_life(hollow: Any) -> None:
    """Both dialects tell what has happened, in order, with E2B's field names; filters and limits hold."""
    made = _made(hollow, envVars={"SECRET": "hunter2"})
    _post(hollow, made, "pause")
    _post(hollow, made, "connect", timeout=44)
    path = f"/v2/sandboxes/{made}/logs"
    found = hollow.client.get(path).json()["logs"]
    assert [one["message"] for one in found] == ["sandbox.created", "sandbox.paused", "sandbox.resumed"]
    assert all(set(one) == {"timestamp", "level", "message", "fields"} for one in found)
    assert found[2]["fields"]["timeout"] == "44"
    assert "hunter2" not in str(found)
    backward = hollow.client.get(path, params={"direction": "backward", "limit": 1}).json()["logs"]
    assert [one["message"] for one in backward] == ["sandbox.resumed"]
    cursor = int(datetime.fromisoformat(found[1]["timestamp"]).timestamp() * 1000)
    later = hollow.client.get(path, params={"cursor": cursor, "search": "resumed"}).json()["logs"]
    assert [one["message"] for one in later] == ["sandbox.resumed"]
    assert hollow.client.get(path, params={"level": "error"}).json()["logs"] == []
    v1 = hollow.client.get(f"/sandboxes/{made}/logs", params={"limit": 2}).json()
    lines = [json.loads(one["line"]) for one in v1["logs"]]
    assert [(one["level"], one["logger"], one["message"]) for one in lines] == [
        ("info", "engine", "sandbox.created"),
        ("info", "engine", "sandbox.paused"),
    ]
    assert lines[0]["template"] == found[0]["fields"]["template"]
    assert v1["logEntries"] == found[:2]
    for name, value in (("limit", "1001"), ("direction", "up"), ("level", "loud"), ("cursor", "x")):
        assert hollow.client.get(path, params={name: value}).status_code == 400


# -- the index ----------------------------------------------------------------------------------------------------


def _snapshot(number: int, name: str | None = None, tag: str = "default") -> Snapshot:
    return Snapshot(
        key=f"k{number}",
        name=name,
        tag=tag,
        number=number,
        sandbox_id="i1",
        built_from="base",
        limits=Limits(),
        has_interpreter=False,
        memory_lost=True,
        made_at=datetime.now(UTC),
    )


def test_a_snapshots_record_comes_back() -> None:
    """All of it."""
    snapshot = _snapshot(3, "name", "v1")
    assert read_snapshot(write_snapshot(snapshot)) == snapshot
    for record in ({}, {"form": 2, "snapshot": {}}, {"form": 1, "snapshot": {"key": 1}}):
        with pytest.raises(ValueError, match="form"):
            read_snapshot(record)


@given(
    moves=st.lists(st.tuples(st.sampled_from(["add", "remove"]), st.sampled_from(["a", "b", None]), st.booleans())),
    limit=st.integers(min_value=1, max_value=3),
)
def test_pages_are_stable(moves: list[tuple[str, str | None, bool]], limit: int) -> None:
    """Whatever is added and removed between pages: each that stays is listed once, newest first, none twice; and of
    each name there is one."""
    index = SnapshotIndex()
    for _ in range(4):
        index.add(_snapshot(index.next_number()))
    staying = [f"k{number}" for number in (4, 3, 2, 1)]
    seen: list[str] = []
    before = None
    waiting = list(moves)
    while True:
        shown, token = index.page(SnapshotQuery(limit=limit, before=before))
        seen += [one.key for one in shown]
        if token is None:
            break
        before = read_token(token)
        if waiting:
            move, name, tagged = waiting.pop()
            if move == "add":
                index.add(_snapshot(index.next_number(), name, "v1" if tagged else "default"))
            elif (found := index.find(name or "-")) is not None:
                index.remove(found)
    assert len(seen) == len(set(seen))
    assert [one for one in seen if one in staying] == staying
    names = [(one.name, one.tag) for one in index.page(SnapshotQuery())[0] if one.name is not None]
    assert len(names) == len(set(names))


@given(text=st.text(max_size=40))
def test_any_name_is_read_or_refused(text: str) -> None:
    """A name comes out that is found again, or a refusal."""
    name, tag = None, ""
    with contextlib.suppress(Refused):
        name, tag = read_name(text, taken={"base"})
    if name is not None:
        index = SnapshotIndex()
        index.add(_snapshot(1, name, tag))
        assert index.find(f"local/{name}:{tag}") is not None
