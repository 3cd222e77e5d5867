"""The routes for templates, over an engine whose boxes are empty: what is asked for, refused, uploaded, tagged."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from sandboxkit.local.control import _builds, _template_routes
from sandboxkit.local.images._store import BuildRecord, TemplateRecord

DIGEST = "c" * 64
MOMENT = "2026-11-27T10:00:00+00:00"


def asked(hollow: Any, name: str = "app", **more: Any) -> Any:
    """Ask for a build, and return the answer's fields."""
    answer = hollow.client.post("/v3/templates", json={"name": name, **more})
    assert answer.status_code == 202, answer.text
    return answer.json()


def start(hollow: Any, build: Any, **body: Any) -> httpx.Response:
    """Start a build that was asked for."""
    body = {"fromImage": "python:3", **body}
    answer = hollow.client.post(f"/v2/templates/{build['templateID']}/builds/{build['buildID']}", json=body)
    assert isinstance(answer, httpx.Response)
    return answer


def record(hollow: Any, name: str, *tags: str) -> str:
    """Write a record as a build would; returns the build's id."""
    build_id = str(uuid.uuid4())
    build = BuildRecord(
        build_id=build_id, layers=(), base="python", made_at=MOMENT, cpus=2, memory_mb=512, disk_mb=1024, workdir="/"
    )
    found = TemplateRecord(
        name=name, made_at=MOMENT, builds={build_id: build}, tags=dict.fromkeys(tags, (build_id, MOMENT))
    )
    with hollow.engine._store.changing(name) as write:
        write(found)
    return build_id


@pytest.fixture
def told(shared_hollow: Any) -> str:
    """A template of two tags, gone after the test."""
    name = f"t{uuid.uuid4().hex[:8]}"
    record(shared_hollow, name, "default", "v1")
    return name


def test_a_build_is_asked_for(shared_hollow: Any) -> None:
    """The answer has what the SDK reads; a tag may be in the name, in the list, or in both."""
    answer = asked(shared_hollow, "My-App:v1", tags=["v1", "stable"])
    assert (answer["templateID"], answer["names"], answer["tags"]) == ("my-app", ["my-app"], ["v1", "stable"])
    uuid.UUID(answer["buildID"])
    assert asked(shared_hollow)["tags"] == ["default"]
    status = shared_hollow.client.get(f"/templates/my-app/builds/{answer['buildID']}/status").json()
    assert (status["status"], status["logEntries"], status["logs"]) == ("waiting", [], [])


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({}, 400, "name"),
        ({"name": "no good"}, 400, "name"),
        ({"name": "team/app"}, 400, "namespace"),
        ({"name": "../../etc"}, 400, "name"),
        ({"name": "app:"}, 202, ""),
        ({"name": "app:no good"}, 400, "tag"),
        ({"name": "app", "tags": [3]}, 400, "tag"),
        ({"name": "app", "tags": "v1"}, 400, "tags"),
        ({"name": "app", "cpuCount": 0}, 400, "cpuCount"),
        ({"name": "app", "memoryMB": "much"}, 400, "memoryMB"),
        ({"name": "app", "minFreeDiskMb": -1}, 400, "minFreeDiskMb"),
        ({"name": "app", "novel": 1}, 400, "novel"),
        ({"name": "code-interpreter-v1"}, 403, "own"),
        ({"name": "base:v2"}, 403, "own"),
    ],
)
def test_what_cannot_be_asked_for_is_named(shared_hollow: Any, body: Any, status: int, says: str) -> None:
    """Malformed values and the engine's own names are refused."""
    answer = shared_hollow.client.post("/v3/templates", json=body)
    assert answer.status_code == status
    assert says in answer.text


def test_a_definition_that_is_not_supported_is_refused_at_once(shared_hollow: Any) -> None:
    """Before anything runs, with the name of what is not supported and the step; the build can be started again."""
    build = asked(shared_hollow)
    answer = start(shared_hollow, build, fromImage="ubuntu:24.04")
    assert (answer.status_code, answer.json()["error_code"]) == (400, "unsupported_option")
    assert "ubuntu:24.04" in answer.text
    answer = start(shared_hollow, build, steps=[{"type": "RUN", "args": ["useradd x"]}])
    assert "useradd" in answer.text
    assert "step 1" in answer.text
    answer = start(shared_hollow, build, fromImage="", fromTemplate="unbuilt")
    assert "sandboxkit templates build unbuilt" in answer.text
    answer = start(shared_hollow, build, steps=[{"type": "USER", "args": ["bob"]}])
    assert (answer.status_code, "user 'bob'" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("body", "step", "says"),
    [
        ({"fromImage": "", "fromTemplate": "nosuch"}, "base", "nosuch"),
        ({"steps": [{"type": "RUN", "args": ["true"]}, {"type": "USER", "args": ["; exit 1"]}]}, "2", "; exit 1"),
    ],
)
def test_what_no_engine_has_fails_the_build_at_its_step(shared_hollow: Any, body: Any, step: str, says: str) -> None:
    """As at E2B, whose SDK then shows the line of the definition; nothing is run before."""
    build = asked(shared_hollow)
    assert start(shared_hollow, build, **body).status_code == 202
    status = shared_hollow.client.get(f"/templates/app/builds/{build['buildID']}/status").json()
    assert (status["status"], status["reason"]["step"]) == ("error", step)
    assert says in status["reason"]["message"]
    assert start(shared_hollow, build).status_code == 409


def test_a_build_begins_once_and_tells_why_it_failed(shared_hollow: Any, wait_until: Any) -> None:
    """The second start is a 409; a step that cannot be carried out ends in an error that names it."""
    build = asked(shared_hollow)
    steps = [{"type": "COPY", "args": ["x", "y", "", ""], "filesHash": "d" * 64}]
    assert start(shared_hollow, build, steps=steps).status_code == 202
    assert start(shared_hollow, build).status_code == 409
    path = f"/templates/app/builds/{build['buildID']}"

    def status() -> Any:
        return shared_hollow.client.get(f"{path}/status").json()

    wait_until(lambda: status()["status"] == "error", seconds=30)
    assert status()["reason"]["step"] == "1"
    assert "not uploaded" in status()["reason"]["message"]
    assert status()["reason"]["logEntries"][-1]["level"] == "error"
    last = shared_hollow.client.get(f"{path}/logs?direction=backward&limit=1").json()["logs"]
    assert "not uploaded" in last[0]["message"]
    assert shared_hollow.client.get(f"{path}/logs?level=error").json()["logs"] == last
    assert shared_hollow.client.get(f"{path}/status?logsOffset=9999").json()["logEntries"] == []


def test_files_are_uploaded_once_with_a_link(shared_hollow: Any) -> None:
    """The link needs no key, works once, for its digest alone; the archive is then present."""
    path = f"/templates/app/files/{DIGEST}"
    answer = shared_hollow.client.get(path)
    assert (answer.status_code, answer.json()["present"]) == (201, False)
    link = answer.json()["url"]
    with httpx.Client(timeout=20) as anybody:
        assert anybody.get(link.replace(f"/{link.rsplit('/')[-1]}", "")).status_code == 401
        other = link.replace(DIGEST, "e" * 64)
        assert anybody.put(other, content=b"x").status_code == 403
        link = shared_hollow.client.get(path).json()["url"]
        assert anybody.put(link, content=b"archive").status_code == 200
        assert anybody.put(link, content=b"again").status_code == 403
        assert anybody.put(link[:-4] + "0000", content=b"x").status_code == 403
    assert shared_hollow.client.get(path).json()["present"]
    assert shared_hollow.engine._store.file(DIGEST).read_bytes() == b"archive"
    assert shared_hollow.client.get("/templates/app/files/..%2F..%2Fx").status_code in (404, 405)
    assert shared_hollow.client.get("/templates/app/files/XYZ").status_code == 400


def test_an_upload_is_bounded_and_leaves_nothing(shared_hollow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too long, announced or not, is refused; no half of it stays."""
    monkeypatch.setattr(_template_routes, "UPLOAD_LIMIT", 1000)
    digest = "f" * 64

    def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 100

    for content in (b"x" * 2000, pieces()):
        link = shared_hollow.client.get(f"/templates/app/files/{digest}").json()["url"]
        assert httpx.put(link, content=content).status_code == 413
    files = shared_hollow.engine._store.root / "files"
    assert not [path for path in files.iterdir() if path.name == digest or path.name.startswith(".")]


def test_tags(shared_hollow: Any, told: str) -> None:
    """Tags are assigned to what a tag means, told, and removed; `default` stays."""
    client = shared_hollow.client
    answer = client.post("/templates/tags", json={"target": f"{told}:v1", "tags": ["v2", "stable"]})
    assert answer.status_code == 201
    assert answer.json()["tags"] == ["v2", "stable"]
    tags = {one["tag"]: one["buildID"] for one in client.get(f"/templates/{told}/tags").json()}
    assert tags.keys() == {"default", "v1", "v2", "stable"}
    assert set(tags.values()) == {build := answer.json()["buildID"]}
    assert client.post("/templates/tags", json={"target": f"{told}:{build}", "tags": ["v2"]}).status_code == 201
    assert client.request("DELETE", "/templates/tags", json={"name": told, "tags": ["v1"]}).status_code == 204
    assert client.get(f"/templates/{told}/tags/exists?tag=v1").json() == {"exists": False}
    assert client.request("DELETE", "/templates/tags", json={"name": told, "tags": ["default"]}).status_code == 400
    assert client.post("/templates/tags", json={"target": f"{told}:nosuch", "tags": ["x"]}).status_code == 404
    assert client.post("/templates/tags", json={"target": "nosuch", "tags": ["x"]}).status_code == 404
    assert client.get("/templates/nosuch/tags").status_code == 404


def test_templates_are_listed_told_and_deleted(shared_hollow: Any, told: str) -> None:
    """Lists hold every field that the SDK reads; a deleted one is gone; the engine's own cannot be deleted."""
    client = shared_hollow.client
    (listed,) = [one for one in client.get("/v2/templates").json() if one["templateID"] == told]
    from e2b.api.client.models import Template, TemplateWithBuilds

    assert Template.from_dict(listed).memory_mb == 512
    assert len(TemplateWithBuilds.from_dict(client.get(f"/templates/{told}").json()).builds) == 1
    assert client.delete(f"/templates/{told}").status_code == 204
    assert client.delete(f"/templates/{told}").status_code == 404
    assert client.get(f"/templates/{told}").status_code == 404
    assert client.delete("/templates/base").status_code == 403
    assert client.delete("/templates/ns%2Fname%3Atag").status_code == 404


def test_the_key_guards_every_route(shared_hollow: Any) -> None:
    """Without it nothing of a template is told or done."""
    with httpx.Client(base_url=shared_hollow.endpoint.api_url) as anybody:
        for method, path in (
            ("POST", "/v3/templates"),
            ("GET", f"/templates/app/files/{DIGEST}"),
            ("POST", "/v2/templates/app/builds/x"),
            ("GET", "/templates/app/builds/x/status"),
            ("POST", "/templates/tags"),
            ("DELETE", "/templates/tags"),
            ("DELETE", "/templates/app"),
            ("GET", "/templates"),
        ):
            assert anybody.request(method, path).status_code == 401, path


def test_a_log_is_bounded_in_text_too() -> None:
    """Long lines use a build's log up as many short ones do, and the last line says so."""
    for line in ("x", "x" * 4096):
        build = _builds.Build("b", "t", (), 1, 512, 512, datetime.now(UTC))
        for _ in range(3 * _builds.MAX_LOG):
            build.tell(line)
        assert sum(len(entry.message) for entry in build.entries) < _builds.MAX_LOG_TEXT
        assert len(build.entries) <= _builds.MAX_LOG + 1
        assert build.entries[-1].message == "No more of this log is kept."
