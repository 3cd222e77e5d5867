"""Server-sent events over silence: comments keep a connection open that proxies would cut."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import Request

from sandboxkit import AsyncSandboxPool
from sandboxkit.adapters.asgi import _events, routes
from sandboxkit.errors import ProviderUnavailable
from sandboxkit.testing import FakeProvider, Fault

pytestmark = pytest.mark.anyio
BODY = {"fragment": {"template": "code-interpreter-v1", "code": "6 * 7"}}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits 15 seconds for a test: silence is counted in hundredths."""
    monkeypatch.setattr(_events, "KEEP_ALIVE_EVERY", 0.05)


@pytest.fixture
def fake() -> FakeProvider:
    return FakeProvider()


async def who(request: Request) -> str | None:
    return "alice"


@pytest.fixture
async def http(fake: FakeProvider) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncSandboxPool(endpoint=fake) as pool:
        transport = httpx.ASGITransport(routes(pool, authorize=who))
        headers = {"accept": "text/event-stream"}
        async with httpx.AsyncClient(transport=transport, base_url="http://app", headers=headers) as client:
            yield client


def blocks(text: str) -> list[str]:
    """What comes between empty lines; each is an event or a comment, whole."""
    assert text.endswith("\n\n")
    return text.removesuffix("\n\n").split("\n\n")


def is_comment(block: str) -> bool:
    return block.startswith(":") and "\n" not in block


def names(text: str) -> list[str]:
    """The events' names; comments are none."""
    return [one.partition("\n")[0].removeprefix("event: ") for one in blocks(text) if not is_comment(one)]


async def test_silence_while_code_runs_is_broken_by_comments(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """They come between two events, and the events are what they were."""
    fake.inject("run_code", Fault(delay=0.3))
    answer = await http.post("/api/sandbox", json=BODY)
    kinds = [is_comment(one) for one in blocks(answer.text)]
    assert kinds.index(True) > kinds.index(False)
    assert kinds[-1] is False
    assert 2 <= sum(kinds) <= 6
    assert names(answer.text) == ["fragment.step", "fragment.step", "fragment.finished"]


async def test_waiting_for_a_sandbox_is_not_silent_either(http: httpx.AsyncClient, fake: FakeProvider) -> None:
    """The answer begins before there is a sandbox; what fails from then on is an event."""
    fake.inject("create", Fault(delay=0.2))
    answer = await http.post("/api/sandbox", json=BODY)
    assert is_comment(blocks(answer.text)[0])
    assert names(answer.text)[-1] == "fragment.finished"
    fake.inject("create", Fault(delay=0.2, error=ProviderUnavailable("secret"), times=9))
    answer = await http.post("/api/sandbox", json=BODY | {"session": "other"})
    assert (answer.status_code, names(answer.text)) == (200, ["error"])
    failure = json.loads(blocks(answer.text)[-1].partition("data: ")[2])
    assert failure["error"]["code"] == "provider_unavailable"
    assert "secret" not in answer.text


async def test_what_is_quick_has_no_comment(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent that nobody needs."""
    monkeypatch.setattr(_events, "KEEP_ALIVE_EVERY", 15.0)
    answer = await http.post("/api/sandbox", json=BODY)
    assert not any(is_comment(one) for one in blocks(answer.text))


async def test_a_server_that_says_so_at_once_when_the_client_has_gone(fake: FakeProvider) -> None:
    """Where sending fails, the run ends and the session is given back, though no disconnect was told."""
    fake.inject("run_code", Fault(delay=3600))
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}]

    async def receive() -> Any:
        if not messages:
            await anyio.sleep_forever()
        return messages.pop()

    async def send(message: Any) -> None:
        if message.get("body") == _events.KEEP_ALIVE:
            raise OSError("the client has gone")
        sent.append(message)

    headers = {"content-type": "application/json", "accept": "text/event-stream"}
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
    async with AsyncSandboxPool(endpoint=fake) as pool:
        with anyio.fail_after(30):
            await routes(pool, authorize=who)(scope, receive, send)
        assert pool.stats()["in_use"] == 0
    assert sent[0]["status"] == 200
    assert sent[-1]["more_body"] is True
