"""The routes are as their description says: a validator reads it, and Schemathesis tries it against the real engine."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings
from starlette.requests import Request

from sandboxkit import AsyncSandboxPool, Endpoint, TimeoutPolicy
from sandboxkit.adapters.asgi import openapi, routes

schemathesis = pytest.importorskip("schemathesis", reason="nox -s full installs schemathesis")

pytestmark = [pytest.mark.full, pytest.mark.slow, pytest.mark.timeout(900)]
IT = "code-interpreter-v1"
KEY = {"authorization": "Bearer alice"}
BOUNDED = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


async def who(request: Request) -> str | None:
    """There is one token, alice's."""
    return "alice" if request.headers.get("authorization") == KEY["authorization"] else None


@pytest.fixture(scope="module")
def server(engine: Endpoint) -> Iterator[str]:
    """The routes behind a real server, over a pool on the real engine; its address."""
    import uvicorn

    running: list[uvicorn.Server] = []

    async def serve() -> None:
        limits = TimeoutPolicy(code=5, install=5, ready=5)
        async with AsyncSandboxPool(endpoint=engine, timeouts=limits, max_live=40, min_warm=1) as pool:
            app = routes(pool, authorize=who, max_body=64 * 1024)
            running.append(uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5)))
            await running[0].serve()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not (running and running[0].started):
            assert thread.is_alive()
            thread.join(0.05)
        yield f"http://127.0.0.1:{running[0].servers[0].sockets[0].getsockname()[1]}"
    finally:
        running[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive()


class Alive:
    """A sandbox of alice's, and another one where it was ended."""

    def __init__(self, server: str) -> None:
        self._http = httpx.Client(base_url=server, headers=KEY, timeout=60, trust_env=False)
        self._id: str | None = None
        self.seen: defaultdict[str, set[int]] = defaultdict(set)
        """The statuses of each operation."""

    def again(self, *, ended: bool) -> str:
        """The id; it is ended by whoever asks for it, if so said."""
        if self._id is None:
            fragment = {"template": IT, "code": "open('data.bin', 'wb').write(b'\\xff')"}
            answer = self._http.post("/api/sandbox", json={"fragment": fragment})
            assert answer.status_code == 200, answer.text
            self._id = str(answer.json()["sandbox_id"])
        found, self._id = self._id, None if ended else self._id
        return found

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()


@pytest.fixture(scope="module")
def alive(server: str) -> Iterator[Alive]:
    """So that requests reach more than the 404 of an id that was made up."""
    made = Alive(server)
    yield made
    made.close()
    for operation, statuses in made.seen.items():
        assert {200, 204} & statuses, f"{operation} never did its work: {statuses}"
        assert 401 in statuses, operation


ACCEPTED = ["2xx", "401", "403", "404", "409", "413", "422", "5xx"]
"""What a request may get that fits the schemas. No schema says that exactly one of two fields is needed, or that text
is base64: that is a 422."""
CONFIG = {
    "request-timeout": 60,
    "auth": {"openapi": {"bearer": {"bearer": "alice"}}},
    "checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTED}},
}

schema = schemathesis.openapi.from_dict(openapi(), config=schemathesis.Config.from_dict(CONFIG))


def likely(case: Any, alive: Alive) -> None:
    """Make most of the requests that fit their schema such that there is what they ask for."""
    fragment = case.body.get("fragment") if isinstance(case.body, dict) else None
    luck = len(f"{case.path_parameters}{case.query}{case.body}") % 5
    if "id" in case.path_parameters and luck:
        case.path_parameters["id"] = alive.again(ended=case.method == "DELETE")
    if "path" in case.query and luck:
        case.query["path"] = ("data.bin", "script.py", ".", "../up")[luck - 1]
    if isinstance(fragment, dict) and luck:
        fragment |= {"template": IT, "files": None, "edits": [], "file": None, "port": None}
        fragment["code"] = fragment.get("code") or "1"


@pytest.mark.engine
@schema.parametrize()
@BOUNDED
def test_each_operation_does_what_it_says(case: Any, server: str, alive: Alive) -> None:
    """Requests, right and wrong ones: the status, the headers and the body are those of the description, and none is
    a failure of the server's."""
    if case.meta is None or case.meta.generation.mode.is_positive:
        likely(case, alive)
    alive.seen[case.operation.label].add(case.call_and_validate(base_url=server).status_code)


@pytest.mark.engine
def test_one_request_after_another(server: str) -> None:
    """Sequences by the links of the description: run, look, read, write, end, and what an ended sandbox says."""
    config = schemathesis.Config.from_dict(CONFIG)
    told = schemathesis.openapi.from_url(f"{server}/openapi.json", config=config)
    told.as_state_machine().run(settings=settings(BOUNDED, max_examples=15, stateful_step_count=6))


def test_the_description_is_openapi_3_1() -> None:
    """A validator that reads the specification's own schema finds nothing, below the root and below a prefix."""
    validator = pytest.importorskip("openapi_spec_validator", reason="nox -s full installs openapi-spec-validator")
    for told in (openapi(), openapi(server="/tools")):
        assert told["openapi"].startswith("3.1")
        assert list(validator.OpenAPIV31SpecValidator(told).iter_errors()) == []
    broken = openapi()
    del broken["paths"]["/api/sandbox/{id}"]["parameters"]
    assert list(validator.OpenAPIV31SpecValidator(broken).iter_errors()), "it does see what is wrong"
