"""Files that are kept of paused sandboxes, on an engine of empty boxes: when they count, and for whom."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local.control import _kept
from sandboxkit.local.control._network import Network, NetworkRequest
from sandboxkit.local.control._states import Sandbox, State, Wanted
from sandboxkit.local.control._store import CLAIM_WITHIN
from sandboxkit.local.isolation._archive import TooLarge


def _info(hollow: Any, sandbox_id: str) -> Any:
    answer = hollow.client.get(f"/sandboxes/{sandbox_id}")
    return answer.json() if answer.status_code == 200 else None


def _made(hollow: Any, contents: bytes = b"files", **wanted: Any) -> str:
    """A sandbox with something in it."""
    sandbox_id = str(hollow.create(**wanted)["sandboxID"])
    hollow.isolation.boxes[sandbox_id].files = contents
    return sandbox_id


def _post(hollow: Any, sandbox_id: str, verb: str, **body: Any) -> Any:
    return hollow.client.post(f"/sandboxes/{sandbox_id}/{verb}", json=body)


def _left(kept: Path) -> list[str]:
    """What lies in a store, but for its lock."""
    return sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file() and path.name != "claim")


@contextmanager
def _copies_held(hollow: Any) -> Iterator[None]:
    """Copies do not come to their end until this does."""
    hollow.do(hollow.isolation.letting_save.clear)
    try:
        yield
    finally:
        hollow.do(hollow.isolation.letting_save.set)


@pytest.fixture
def keeping(start_hollow: Callable[..., Any], tmp_path: Path) -> Any:
    """An engine whose store outlives it."""
    hollow = start_hollow(kept=tmp_path / "kept")
    hollow.kept = tmp_path / "kept"
    return hollow


@pytest.fixture
def persisted(keeping: Any, wait_until: Callable[..., None]) -> Any:
    """The same, with a paused sandbox whose copy is done."""
    keeping.sandbox = _made(keeping, metadata={"a": "b"}, envVars={"SECRET": "x"}, timeout=77)
    assert _post(keeping, keeping.sandbox, "pause").status_code == 204
    wait_until(lambda: _info(keeping, keeping.sandbox)["persisted"])
    return keeping


def test_a_pause_is_persisted_in_the_background(keeping: Any, wait_until: Callable[..., None]) -> None:
    """The pause is answered before its copy is done; `persisted` says when it is."""
    with _copies_held(keeping):
        made = _made(keeping)
        assert _post(keeping, made, "pause").status_code == 204
        info = _info(keeping, made)
        assert (info["state"], info["pauseMode"], info["persisted"]) == ("paused", "full", False)
        assert _left(keeping.kept / "paused") == []
    wait_until(lambda: _info(keeping, made)["persisted"])
    assert len(_left(keeping.kept / "paused")) == 2
    assert "memory" not in _info(keeping, made)


def test_only_its_owner_can_read_what_is_kept(persisted: Any) -> None:
    """Files and record may hold secrets: they are the engine's user's alone. The token is not among them."""
    token = _info(persisted, persisted.sandbox)["envdAccessToken"]
    for path in (persisted.kept / "paused").iterdir():
        assert path.stat().st_mode & 0o077 == 0
        assert token.encode() not in path.read_bytes()


@pytest.mark.parametrize("ends", ["resumed", "killed"])
def test_a_copy_of_what_goes_on_or_ends_does_not_stay(persisted: Any, ends: str) -> None:
    """Once a paused sandbox goes on its copy is old, and of a killed one there is to be nothing."""
    if ends == "resumed":
        answer = _post(persisted, persisted.sandbox, "connect", timeout=50)
        assert answer.status_code == 201
        assert "x-sandboxkit-memory" not in answer.headers
        assert "persisted" not in _info(persisted, persisted.sandbox)
    else:
        assert persisted.client.delete(f"/sandboxes/{persisted.sandbox}").status_code == 204
    assert _left(persisted.kept) == []


@pytest.mark.parametrize("verb", ["connect", "kill"])
def test_a_copy_that_is_wanted_no_more_stops(keeping: Any, wait_until: Callable[..., None], verb: str) -> None:
    """Who connects, or kills, does not wait for the copy; it leaves nothing."""
    made = _made(keeping)
    with _copies_held(keeping):
        _post(keeping, made, "pause")
        wait_until(lambda: keeping.isolation.saving == 1)
        if verb == "connect":
            assert _post(keeping, made, "connect").status_code == 201
        else:
            assert keeping.client.delete(f"/sandboxes/{made}").status_code == 204
        wait_until(lambda: keeping.isolation.saving == 0)
    wait_until(lambda: _left(keeping.kept) == [])


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), TooLarge("too much")])
def test_what_cannot_be_kept_is_not_persisted(
    keeping: Any, wait_until: Callable[..., None], failure: Exception
) -> None:
    """A full disk or a bound: the pause holds in memory, the log says so, nothing is left."""
    made = _made(keeping)
    keeping.isolation.save_failure = failure
    assert _post(keeping, made, "pause").status_code == 204

    def told() -> bool:
        logs = keeping.client.get(f"/v2/sandboxes/{made}/logs").json()["logs"]
        return any(one["message"] == "sandbox.not_persisted" and one["level"] == "warn" for one in logs)

    wait_until(told)
    assert _info(keeping, made)["persisted"] is False
    assert _left(keeping.kept) == []
    assert _post(keeping, made, "connect").status_code == 201


def test_the_store_is_bounded(start_hollow: Callable[..., Any], tmp_path: Path) -> None:
    """All that is kept together stays below `keep_bytes`; what does not fit is refused by name, and runs on."""
    hollow = start_hollow(kept=tmp_path / "kept", keep_bytes=1500)
    first, second = _made(hollow, b"x" * 1000), _made(hollow, b"x" * 1000)
    assert _post(hollow, first, "pause", memory=False).status_code == 204
    answer = _post(hollow, second, "pause", memory=False)
    assert (answer.status_code, answer.json()["error_code"]) == (507, "cannot_be_kept")
    assert _info(hollow, second)["state"] == "running"
    assert hollow.isolation.boxes[second].resumed == 1
    assert hollow.client.delete(f"/sandboxes/{first}").status_code == 204
    assert _post(hollow, second, "pause", memory=False).status_code == 204


# -- pauses of the files alone ------------------------------------------------------------------------------------


def test_a_pause_of_the_files_alone(hollow: Any) -> None:
    """Its box ends, it holds no place; who connects gets a new box with the files, and is told that memory is lost."""
    made = _made(hollow, b"mine")
    assert _post(hollow, made, "pause", memory=False).status_code == 204
    assert hollow.isolation.boxes == {}
    info = _info(hollow, made)
    assert (info["state"], info["pauseMode"], info["persisted"]) == ("paused", "filesystem", False)
    assert hollow.client.get(f"/sandboxes/{made}/metrics").json() == []
    assert _post(hollow, made, "pause", memory=False).status_code == 409
    answer = _post(hollow, made, "connect", timeout=50)
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    assert answer.json()["envdAccessToken"] == info["envdAccessToken"]
    assert hollow.isolation.boxes[made].files == b"mine"
    info = _info(hollow, made)
    assert (info["state"], info["memory"]) == ("running", "lost")
    assert "pauseMode" not in info
    again = _post(hollow, made, "connect", timeout=50)
    assert (again.status_code, "x-sandboxkit-memory" in again.headers) == (200, False)


def test_a_paused_one_can_be_started_anew(hollow: Any) -> None:
    """Who connects without the memory gets the files alone, whatever the pause has kept."""
    made = _made(hollow, b"mine")
    assert _post(hollow, made, "pause").status_code == 204
    old = hollow.isolation.boxes[made]
    answer = _post(hollow, made, "connect", memory=False)
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    assert hollow.isolation.boxes[made] is not old
    assert hollow.isolation.boxes[made].files == b"mine"
    assert _post(hollow, made, "connect", memory=False).status_code == 200


def test_its_time_being_up_keeps_the_files_alone(hollow: Any, wait_until: Callable[..., None]) -> None:
    """With `autoPauseMemory` off the end of its time is a pause of the files; traffic does not bring it back."""
    made = _made(hollow, autoPause=True, autoPauseMemory=False)
    assert _post(hollow, made, "timeout", timeout=0).status_code == 204
    wait_until(lambda: hollow.isolation.boxes == {})
    assert _info(hollow, made)["pauseMode"] == "filesystem"
    assert hollow.client.get("/x", headers={"e2b-sandbox-id": made}).status_code == 502
    assert _post(hollow, made, "connect").status_code == 201


def test_where_the_files_cannot_be_kept_its_memory_is(hollow: Any, wait_until: Callable[..., None]) -> None:
    """At the end of its time, one whose files cannot be kept is paused in memory: nobody is there to be told."""
    made = _made(hollow, autoPause=True, autoPauseMemory=False)
    hollow.isolation.save_failure = OSError(errno.ENOSPC, "No space left on device")
    assert _post(hollow, made, "timeout", timeout=0).status_code == 204
    wait_until(lambda: _info(hollow, made).get("pauseMode") == "full")
    assert hollow.isolation.boxes[made].is_paused
    assert _post(hollow, made, "connect").status_code == 201


def test_a_place_is_needed_to_come_back(start_hollow: Callable[..., Any]) -> None:
    """Stored sandboxes hold no place under the cap, and get one when they come back: 429 where there is none."""
    hollow = start_hollow(max_sandboxes=1)
    made = _made(hollow)
    _post(hollow, made, "pause", memory=False)
    other = _made(hollow)
    assert _post(hollow, made, "connect").status_code == 429
    assert _info(hollow, made)["state"] == "paused"
    hollow.client.delete(f"/sandboxes/{other}")
    assert _post(hollow, made, "connect").status_code == 201


def test_a_box_that_cannot_be_made_leaves_it_paused(hollow: Any) -> None:
    """A restoration that fails says why, and can be tried again."""
    made = _made(hollow)
    _post(hollow, made, "pause", memory=False)
    hollow.isolation.failure = OSError("no")
    assert _post(hollow, made, "connect").status_code == 500
    assert _info(hollow, made)["state"] == "paused"
    hollow.isolation.failure = None
    assert _post(hollow, made, "connect").status_code == 201


def test_a_kill_ends_a_restoration(keeping: Any, wait_until: Callable[..., None]) -> None:
    """Who kills a sandbox whose box is being made gets a 204, who connects a 404; nothing is left."""
    made = _made(keeping)
    _post(keeping, made, "pause", memory=False)
    keeping.do(keeping.isolation.making.clear)
    with ThreadPoolExecutor(2) as threads:
        connects = [threads.submit(_post, keeping, made, "connect") for _ in range(2)]
        wait_until(lambda: keeping.isolation.at_once == 1)
        assert keeping.client.delete(f"/sandboxes/{made}").status_code == 204
        assert [connect.result().status_code for connect in connects] == [404, 404]
    keeping.do(keeping.isolation.making.set)
    assert _info(keeping, made) is None
    assert (keeping.isolation.boxes, _left(keeping.kept)) == ({}, [])


# -- the next engine ----------------------------------------------------------------------------------------------


def test_the_next_engine_gives_it_back(persisted: Any, start_hollow: Callable[..., Any]) -> None:
    """It is listed as paused with all that it was made with, and comes back with its files and a new token."""
    before = _info(persisted, persisted.sandbox)
    persisted.stop()
    second = start_hollow(kept=persisted.kept)
    info = _info(second, persisted.sandbox)
    for name in ("metadata", "templateID", "startedAt", "lifecycle", "cpuCount", "memoryMB", "allowInternetAccess"):
        assert info[name] == before[name]
    assert (info["state"], info["persisted"], info["memory"]) == ("paused", True, "lost")
    assert [one["sandboxID"] for one in second.client.get("/v2/sandboxes?state=paused").json()] == [persisted.sandbox]
    answer = _post(second, persisted.sandbox, "connect", timeout=60)
    assert (answer.status_code, answer.headers["x-sandboxkit-memory"]) == (201, "lost")
    assert second.isolation.boxes[persisted.sandbox].files == b"files"
    assert _left(persisted.kept) == []


def test_what_was_not_persisted_is_not_found(keeping: Any, start_hollow: Callable[..., Any]) -> None:
    """One that ran when its engine ended is a 404 for the next."""
    made = _made(keeping)
    keeping.stop()
    second = start_hollow(kept=keeping.kept)
    assert _post(second, made, "connect").status_code == 404


def test_an_engine_that_ends_waits_for_its_copies(keeping: Any, start_hollow: Callable[..., Any]) -> None:
    """A pause just before an orderly end is kept."""
    made = _made(keeping)
    _post(keeping, made, "pause")
    keeping.stop()
    assert _info(start_hollow(kept=keeping.kept), made)["state"] == "paused"


def test_it_gets_no_more_than_the_next_engine_allows(persisted: Any, start_hollow: Callable[..., Any]) -> None:
    """A network that the next engine does not grant is a 400 that names the flag; the sandbox stays paused."""
    persisted.stop()
    record = next((persisted.kept / "paused").glob("*.json"))
    said = json.loads(record.read_text())
    said["of"]["wanted"]["asked_network"]["internet"] = True
    record.write_text(json.dumps(said))
    second = start_hollow(kept=persisted.kept)
    answer = _post(second, persisted.sandbox, "connect")
    assert answer.status_code == 400
    assert "--internet" in answer.json()["message"]
    assert _info(second, persisted.sandbox)["state"] == "paused"


def test_a_strict_engine_loses_no_memory_unasked(persisted: Any, start_hollow: Callable[..., Any]) -> None:
    """Where the engine is strict, a lost memory is a 400 until the caller gives it up."""
    persisted.stop()
    second = start_hollow(kept=persisted.kept, strict=True)
    answer = _post(second, persisted.sandbox, "connect")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "memory_lost")
    assert _post(second, persisted.sandbox, "connect", memory=False).status_code == 201
    assert _post(second, persisted.sandbox, "pause", memory=False).status_code == 204
    assert _post(second, persisted.sandbox, "connect").status_code == 201


def test_what_is_too_old_is_given_up(persisted: Any, start_hollow: Callable[..., Any]) -> None:
    """A pause that is longer ago than `keep_for` is not given back, and nothing of it stays."""
    persisted.stop()
    record = next((persisted.kept / "paused").glob("*.json"))
    said = json.loads(record.read_text())
    said["of"]["paused_at"] = (datetime.now(UTC) - timedelta(days=31)).isoformat()
    record.write_text(json.dumps(said))
    assert _info(start_hollow(kept=persisted.kept), persisted.sandbox) is None
    assert _left(persisted.kept) == []


@pytest.mark.parametrize("damage", ["no json", "[]", "{}", '{"files": "../x", "size": 1, "of": {}}', "files", "other"])
def test_damage_is_no_obstacle(persisted: Any, start_hollow: Callable[..., Any], damage: str) -> None:
    """A record that nobody can read, or without files, is removed and logged; the engine starts."""
    persisted.stop()
    record = next((persisted.kept / "paused").glob("*.json"))
    if damage == "files":
        next((persisted.kept / "paused").glob("*.files")).unlink()
    elif damage == "other":
        record.write_text(record.read_text().replace(persisted.sandbox, "i" + "0" * 19))
    else:
        record.write_text(damage)
    (persisted.kept / "new" / "half").write_text("x")
    (persisted.kept / "paused" / "ix.nonce.files").write_text("x")
    assert _info(start_hollow(kept=persisted.kept), persisted.sandbox) is None
    assert _left(persisted.kept) == []


def test_one_engine_at_a_time_has_a_store(
    persisted: Any, start_hollow: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second engine does not get what the first one has; what it keeps itself ends with it."""
    assert CLAIM_WITHIN < 10
    (tmp_path / "state").mkdir()
    monkeypatch.setattr("sandboxkit.local.control._store.CLAIM_WITHIN", 0.0)  # it would wait for the first one's end
    second = start_hollow(kept=persisted.kept, state=tmp_path / "state")
    assert second.client.get("/v2/sandboxes").json() == []
    made = _made(second)
    assert _post(second, made, "pause", memory=False).status_code == 204
    assert _info(second, made)["persisted"] is False
    assert _info(persisted, persisted.sandbox)["persisted"] is True


# -- the record ---------------------------------------------------------------------------------------------------


def test_a_record_says_all_of_a_sandbox() -> None:
    """Whatever belongs to a sandbox comes back from its record; a field that is added is kept, or named as not kept."""
    asked = NetworkRequest(internet=False, allow=("example.com",), deny=("10.0.0.0/8",))
    wanted = Wanted(
        template_id="t",
        timeout=5,
        fingerprint="f",
        idempotency_key="k",
        alias="a",
        has_interpreter=True,
        metadata={"m": "ü"},
        envs={"E": "x"},
        auto_pause=True,
        auto_pause_memory=False,
        auto_resume=True,
        network=Network(asked=asked),
        built_from="b",
        from_files=True,
        public_traffic=False,
        mask_host="h",
    )
    now = datetime.now(UTC)
    sandbox = Sandbox(
        sandbox_id="i1",
        access_token="secret",
        wanted=wanted,
        state=State.PAUSED,
        started_at=now,
        end_at=now + timedelta(seconds=1),
        deadline=3.0,
    )
    record = json.loads(json.dumps(_kept.write_sandbox(sandbox, memory=True)))
    read = _kept.read_sandbox(record, new_token=lambda: "new")
    for one in fields(Wanted):
        if one.name not in _kept.NOT_KEPT:
            assert getattr(read.wanted, one.name) == getattr(wanted, one.name), one.name
    assert read.wanted.network.asked == asked
    assert (read.sandbox_id, read.started_at, read.end_at) == ("i1", sandbox.started_at, sandbox.end_at)
    assert read.traffic_token == "new"
    assert (read.access_token, read.memory_lost, read.state) == ("new", True, State.STORED)
    assert {one.name for one in fields(Sandbox)} == {
        *("sandbox_id", "access_token", "wanted", "state", "number", "started_at", "end_at", "deadline"),
        *("pause_mode", "persisted", "memory_lost", "traffic_token", "has_place"),
    }, "a new field: keep it in _kept, or name it here"


@pytest.mark.parametrize("field", ["form", "sandbox_id", "wanted", "started_at", "memory"])
def test_a_record_of_another_form_is_a_value_error(field: str) -> None:
    """What is missing, or of another kind, is one kind of error."""
    now = datetime.now(UTC)
    wanted = Wanted(template_id="t", timeout=5, fingerprint="f")
    sandbox = Sandbox(
        sandbox_id="i1",
        access_token="",
        wanted=wanted,
        state=State.PAUSED,
        started_at=now,
        end_at=now,
        deadline=0.0,
    )
    for value in (None, 7, "x", {"new": 1}):
        record = {**_kept.write_sandbox(sandbox, memory=False), field: value}
        if field == "sandbox_id" and value == "x":
            continue
        if field == "memory":
            del record["memory"]
        with pytest.raises(ValueError, match=r"."):
            _kept.read_sandbox(record, new_token=str)


def test_nothing_is_followed_out_of_the_store(persisted: Any, start_hollow: Callable[..., Any], tmp_path: Path) -> None:
    """A record that is a link is damage, and what it leads to stays as it is."""
    persisted.stop()
    record = next((persisted.kept / "paused").glob("*.json"))
    record.rename(tmp_path / "elsewhere")
    record.symlink_to(tmp_path / "elsewhere")
    assert _info(start_hollow(kept=persisted.kept), persisted.sandbox) is None
    assert os.path.exists(tmp_path / "elsewhere")
