"""The routes inside applications of FastAPI and of Starlette, behind a real server, on the real engine."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from threading import Thread
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from sandboxkit import AsyncSandboxPool, Endpoint
from sandboxkit.adapters.asgi import openapi, routes

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(300)]
CODE = {"template": "code-interpreter-v1", "code": "print('hi')\n6 * 7"}
ALICE, BOB = {"x-user": "alice"}, {"x-user": "bob"}


async def who(request: Request) -> str | None:
    """The principal is what the header says."""
    return request.headers.get("x-user")


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on a socket; its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            thread.join(0.05)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def starlette_app(pool: AsyncSandboxPool) -> Any:
    """An application of Starlette's, with a route of its own."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with pool:
            yield

    async def home(request: Request) -> PlainTextResponse:
        return PlainTextResponse("home")

    return Starlette(
        routes=[Route("/", home), Mount("/tools", routes(pool, authorize=who))],
        lifespan=lifespan,
    )


def fastapi_app(pool: AsyncSandboxPool) -> Any:
    """An application of FastAPI's, with a route of its own; its description has ours."""
    fastapi = pytest.importorskip("fastapi", reason="nox -s full installs fastapi")

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with pool:
            yield

    app = fastapi.FastAPI(lifespan=lifespan)

    @app.get("/", response_class=fastapi.responses.PlainTextResponse)  # type: ignore[untyped-decorator]
    async def home() -> str:
        return "home"

    app.mount("/tools", routes(pool, authorize=who))
    told, ours = app.openapi(), openapi()
    told["paths"] |= {f"/tools{path}": item for path, item in ours["paths"].items()}
    told.setdefault("components", {}).setdefault("schemas", {}).update(ours["components"]["schemas"])
    told["components"]["securitySchemes"] = ours["components"]["securitySchemes"]
    app.openapi_schema = told
    return app


@pytest.mark.parametrize("make", [starlette_app, fastapi_app])
def test_mounted(engine: Endpoint, make: Callable[[AsyncSandboxPool], Any]) -> None:
    """The pool is made with the application and opened in its lifespan; what is run, read and written below the
    prefix is its principal's alone, the application's own routes stay, and nothing is left at its end."""
    pool = AsyncSandboxPool(endpoint=engine)
    app = make(pool)
    with served(app) as address, httpx.Client(base_url=address, timeout=60, trust_env=False, headers=ALICE) as http:
        assert http.get("/").text == "home"
        done = http.post("/tools/api/sandbox", json={"fragment": CODE})
        assert done.status_code == 200, done.text
        assert (done.json()["execution"]["stdout"], done.json()["execution"]["results"][0]["text"]) == ("hi\n", "42")
        at = f"/tools/api/sandbox/{done.json()['sandbox_id']}"
        assert http.post(f"{at}/files/content", json={"path": "a/b", "content": "é"}).json()["size"] == 2
        assert http.get(f"{at}/files/content", params={"path": "a/b"}).json()["content"] == "é"
        assert http.get(f"{at}/files/content", params={"path": "../../etc/passwd"}).status_code == 403
        for answer in (http.get(f"{at}/files", headers=BOB), http.delete(at, headers=BOB)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "sandbox_not_found")
        assert http.put(f"{at}/files/content").headers["allow"]
        told = http.get("/tools/openapi.json").json()
        assert told["servers"] == [{"url": "/tools"}]
        assert http.delete(at).status_code == 204
        assert pool.stats()["in_use"] == 0


def test_what_fastapi_tells_has_ours(engine: Endpoint) -> None:
    """Merged, the description is one that a validator takes, and its page is served."""
    app = fastapi_app(AsyncSandboxPool(endpoint=engine))
    with served(app) as address, httpx.Client(base_url=address, timeout=60, trust_env=False) as http:
        told = http.get("/openapi.json").json()
        assert http.get("/docs").status_code == 200
    assert {"/", "/tools/api/sandbox", "/tools/api/sandbox/{id}/files/content"} <= set(told["paths"])
    validator = pytest.importorskip("openapi_spec_validator", reason="nox -s full installs openapi-spec-validator")
    assert list(validator.OpenAPIV31SpecValidator(told).iter_errors()) == []


def test_events_arrive_as_they_happen_and_a_client_that_goes_ends_the_run(engine: Endpoint) -> None:
    """Behind a real server: the first event comes before the code has ended, and when its reader goes, the code is
    interrupted and the sandbox is free."""
    pool = AsyncSandboxPool(endpoint=engine)
    endless = {"template": CODE["template"], "code": "import time\ntime.sleep(3600)"}
    headers = {**ALICE, "accept": "text/event-stream"}
    with (
        served(starlette_app(pool)) as address,
        httpx.Client(base_url=address, timeout=30, trust_env=False) as http,
    ):
        with http.stream("POST", "/tools/api/sandbox", json={"fragment": endless}, headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()  # kept: httpx hangs up when nobody has it any more
            for line in lines:
                if line.startswith("data: ") and json.loads(line.removeprefix("data: "))["step"] == "run":
                    break
            assert pool.stats()["in_use"] == 1
        deadline = time.monotonic() + 20
        while pool.stats()["in_use"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        again = http.post("/tools/api/sandbox", json={"fragment": CODE}, headers=ALICE)
        assert again.json()["execution"]["stdout"] == "hi\n"
