"""The door against services that misbehave: scripted answers on a real socket, the unmodified SDK in between."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import e2b
import e2b_code_interpreter as interpreter
import pytest
from anyio.abc import SocketStream
from packaging.version import Version

from sandboxkit import Endpoint, errors
from sandboxkit.provider._base import CreateRequest
from sandboxkit.provider._e2b import E2BProvider, E2BSandbox
from sandboxkit.provider._e2b._request import connection_options

CREATED = {"templateID": "t", "sandboxID": "abc", "clientID": "c", "envdVersion": "0.6.13", "envdAccessToken": "k"}


@dataclass
class Request:
    """What arrived."""

    line: str
    headers: dict[str, str]
    body: Any


@dataclass
class Service:
    """Answers each request with the next of its script; the last one stays."""

    script: list[Callable[[Request], bytes | None]]
    requests: list[Request] = field(default_factory=list)
    url: str = ""

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            received = b""
            while True:
                while b"\r\n\r\n" not in received:
                    try:
                        received += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                head, _, received = received.partition(b"\r\n\r\n")
                line, *lines = head.decode().split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (text.partition(":") for text in lines)}
                length = int(headers.get("content-length", 0))
                while len(received) < length:
                    received += await stream.receive()
                body, received = received[:length], received[length:]
                self.requests.append(Request(line, headers, json.loads(body) if body else None))
                act = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                answer = act(self.requests[-1])
                if answer is None:
                    return  # dropped, without a word
                if answer == b"hang":
                    await anyio.sleep_forever()
                await stream.send(answer)


def answer(status: int, body: object, **headers: str) -> Callable[[Request], bytes]:
    """An HTTP answer with a JSON body (bytes as they are)."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return lambda _: "\r\n".join([*lines, "", ""]).encode() + (b"" if status == 204 else data)


def drop(_: Request) -> None:
    """Close the connection instead of answering."""


def hang(_: Request) -> bytes:
    """Never answer."""
    return b"hang"


@asynccontextmanager
async def service(*script: Callable[[Request], bytes | None]) -> AsyncIterator[tuple[Service, E2BProvider]]:
    """A service that follows the script, and a provider for it."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    served = Service(list(script), url=f"http://127.0.0.1:{port}")
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, served.serve)
        yield served, E2BProvider(Endpoint("e2b_k", served.url, served.url), "given")
        group.cancel_scope.cancel()


def request(timeout: float = 10.0) -> CreateRequest:
    return CreateRequest(template="t", lifetime=60.4, idempotency_key="key-1", timeout=timeout)


@pytest.mark.anyio
async def test_a_lost_reply_is_asked_for_again() -> None:
    """When the answer to a create is lost, the same question is asked once more, with the same key."""
    async with service(drop, answer(201, CREATED)) as (served, provider):
        sandbox = await provider.create(request())
    assert sandbox.sandbox_id == "abc"
    assert [r.headers["idempotency-key"] for r in served.requests] == ["key-1", "key-1"]
    assert served.requests[0].body == served.requests[1].body
    assert served.requests[0].body["timeout"] == 61
    assert served.requests[0].body["allow_internet_access"] is False


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([drop], errors.ProviderUnavailable),
        ([answer(401, {"code": 401, "message": "bad key"})], errors.AuthenticationFailed),
        ([answer(429, {"code": 429, "message": "slow"}, Should_Retry="false")], errors.RateLimited),
        ([answer(503, {"code": 503, "message": "busy"}, Should_Retry="false")], errors.ProviderUnavailable),
        ([answer(500, {"code": 500, "message": "oops"}, Should_Retry="false")], errors.ProviderUnavailable),
        ([answer(404, {"code": 404, "message": "template 't' not found"})], errors.TemplateNotFound),
        ([answer(400, b"<html>no</html>")], errors.ProviderError),
    ],
    ids=["dropped", "401", "429", "503", "500", "404", "html"],
)
async def test_answers_to_create(script: list[Any], error: type[Exception]) -> None:
    """Each bad answer to a create is the error of ours that says so."""
    async with service(*script) as (_, provider):
        with pytest.raises(error) as caught:
            await provider.create(request())
    assert type(caught.value) is error
    assert caught.value.__cause__ is not None


@pytest.mark.anyio
async def test_a_create_without_an_answer_has_a_limit() -> None:
    """A service that never answers is given up after the request's own limit, which the error names."""
    async with service(hang) as (_, provider):
        started = anyio.current_time()
        with pytest.raises(errors.ProviderUnavailable, match=r"TimeoutPolicy\.create"):
            await provider.create(request(timeout=0.2))
        assert anyio.current_time() - started < 5


@pytest.mark.anyio
async def test_a_cancelled_create_kills_what_was_made() -> None:
    """When the caller is gone by the time the answer comes, the sandbox that it names is killed."""
    asked = anyio.Event()

    def create(_: Request) -> bytes:
        asked.set()
        return answer(201, CREATED)(_)

    async with service(create, answer(204, b"")) as (served, provider):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await provider.create(request())
        assert scope.cancelled_caught
    lines = [r.line.split()[:2] for r in served.requests]
    assert lines in ([], [["POST", "/v2/sandboxes"], ["DELETE", "/sandboxes/abc"]])

    async with service(create, answer(204, b"")) as (served, provider), anyio.create_task_group() as group:
        group.start_soon(provider.create, request())
        await asked.wait()
        group.cancel_scope.cancel()
    lines = [r.line.split()[:2] for r in served.requests]
    assert lines == [["POST", "/v2/sandboxes"], ["DELETE", "/sandboxes/abc"]]


@pytest.mark.anyio
async def test_debug_is_always_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """E2B_DEBUG, which makes the SDK pretend, changes nothing."""
    monkeypatch.setenv("E2B_DEBUG", "true")
    async with service(answer(201, CREATED)) as (served, provider):
        sandbox = await provider.create(request())
    assert sandbox.sandbox_id == "abc"
    assert len(served.requests) == 1


@pytest.mark.anyio
@pytest.mark.slow
async def test_nobody_listens() -> None:
    """Where nobody listens at all, that is ProviderUnavailable, a ConnectionError."""
    async with service(drop) as (served, _):
        url = served.url
    provider = E2BProvider(Endpoint("e2b_k", url, url), "given")
    with pytest.raises(ConnectionError) as caught:
        await provider.kill("abc")
    assert isinstance(caught.value, errors.ProviderUnavailable)
    assert caught.value.sandbox_id == "abc"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        (Endpoint("e2b_k"), "https://3000-ibox.e2b.app"),
        (Endpoint("e2b_k", domain="e2b.example"), "https://3000-ibox.e2b.example"),
        (Endpoint("e2b_k", "http://10.0.0.1:80", "http://10.0.0.1:81", "e2b.lan"), "http://3000-ibox.e2b.lan"),
        (Endpoint("e2b_k", "https://api.test", "https://box.test", "localhost:9"), "https://3000-ibox.localhost:9"),
    ],
)
def test_urls_have_the_scheme_of_the_endpoint(endpoint: Endpoint, expected: str) -> None:
    """browser_url() has the scheme by which the endpoint serves its sandboxes, whatever their host looks like."""
    raw: Any = interpreter.AsyncSandbox(
        sandbox_id="ibox",
        envd_version=Version("0.6.13"),
        envd_access_token=None,
        sandbox_domain=endpoint.domain,
        connection_config=e2b.ConnectionConfig(**connection_options(endpoint)),
    )
    assert E2BSandbox(raw, "base", None).browser_url(3000) == expected


@pytest.mark.anyio
async def test_urls_for_programs_are_asked_for_where_names_do_not_resolve() -> None:
    """Where the service's names end in localhost a loopback port is asked for; a service that has none is called by
    its name, a refusal is told, and elsewhere nothing is asked."""
    created = {**CREATED, "domain": "localhost:9"}
    gone = answer(404, {"code": 404, "message": "gone", "error_code": "sandbox_not_found"})
    script = [
        answer(201, created),
        answer(201, {"port": 3000, "url": "http://127.0.0.1:77", "browserUrl": "x"}),
        answer(404, {"code": 404, "message": "Not Found"}),
        answer(429, {"code": 429, "message": "too many"}),
        gone,
    ]
    async with service(*script) as (served, provider):
        sandbox = await provider.create(request())
        assert await sandbox.url(3000) == "http://127.0.0.1:77"
        assert served.requests[-1].line.startswith("POST /sandboxes/abc/ports/3000 ")
        assert served.requests[-1].headers["x-api-key"] == "e2b_k"
        assert await sandbox.url(3000) == sandbox.browser_url(3000) == "http://3000-abc.localhost:9"
        with pytest.raises(errors.ProviderError, match="too many"):
            await sandbox.url(3000)
        with pytest.raises(errors.SandboxNotFound):
            await sandbox.url(3000)
    async with service(answer(201, {**CREATED, "domain": "e2b.example"})) as (served, provider):
        sandbox = await provider.create(request())
        assert await sandbox.url(3000) == "http://3000-abc.e2b.example"
        assert len(served.requests) == 1


async def refusal_of_code(execute: Callable[[Request], bytes | None], **arguments: Any) -> Exception:
    """What run_code raises where the interpreter answers so."""

    def route(asked: Request) -> bytes | None:
        return (execute if "/execute" in asked.line else answer(201, CREATED))(asked)

    async with service(route) as (_, provider):
        sandbox = await provider.create(request())
        with pytest.raises(errors.SandboxkitError) as caught:
            await sandbox.run_code("1", **arguments)
    return caught.value


@pytest.mark.anyio
async def test_an_interpreter_that_does_not_start() -> None:
    """The error says that the code was not run, and how to mend the template; not that the code ended something."""
    event = {"type": "error", "name": "InterpreterUnavailable", "value": "no module named kernel", "traceback": ""}
    error = await refusal_of_code(answer(200, json.dumps(event).encode() + b"\n"))
    assert isinstance(error, errors.KernelDied)
    assert "could not be started (no module named kernel)" in str(error)
    assert "templates build t --force" in str(error)
    assert "while it ran" not in str(error)


@pytest.mark.anyio
async def test_a_language_that_the_interpreter_lacks() -> None:
    """Its refusal becomes UnsupportedOption; other refusals of the request stay what they are."""
    error = await refusal_of_code(
        answer(400, {"code": 400, "message": "Language 'go' is not supported"}), language="go"
    )
    assert isinstance(error, errors.UnsupportedOption)
    assert error.option == "language"
    other = await refusal_of_code(answer(400, {"code": 400, "message": "no"}), language="go")
    assert isinstance(other, errors.ProviderError)


@pytest.mark.anyio
async def test_a_given_endpoint_that_goes_away_is_not_a_loss() -> None:
    """Only the end of this process's own engine is certain: another service may come back, with its sandboxes."""
    async with service(answer(201, CREATED), drop) as (_, provider):
        sandbox = await provider.create(request())
        with pytest.raises(errors.ProviderUnavailable):
            await sandbox.extend(60)


@pytest.mark.anyio
async def test_a_sandbox_cannot_have_us_keep_a_cookie_or_follow_it_elsewhere() -> None:
    """One client sends all that runs in a sandbox: what one answer sets comes back with none that follow, and where
    one leads to nobody goes."""
    ran = answer(200, b'{"type": "end_of_execution"}\n', Set_Cookie="a=1; Path=/")
    leads_away = answer(302, b"", Location="/elsewhere", Set_Cookie="b=2")
    async with service(answer(201, CREATED), ran, leads_away, ran) as (served, provider):
        sandbox = await provider.create(request())
        assert (await sandbox.run_code("1")).error is None
        with pytest.raises(errors.ProviderError):
            await sandbox.run_code("2")
        assert (await sandbox.run_code("3")).error is None
    runs = served.requests[1:]
    assert [run.line.split()[1] for run in runs] == ["/execute"] * 3
    assert [run.body["code"] for run in runs] == ["1", "2", "3"]
    assert not any("cookie" in run.headers for run in runs)
