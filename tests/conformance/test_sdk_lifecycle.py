"""The lives of sandboxes through the unmodified E2B SDK, sync and async, on the real engine over a real socket."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import e2b
import e2b_code_interpreter
import httpx
import pytest
from e2b.sandbox.sandbox_api import SandboxQuery, SandboxState

pytestmark = pytest.mark.engine

Options = dict[str, str]


@pytest.fixture
def group() -> dict[str, str]:
    """Metadata of this test alone: other tests share the engine."""
    return {"test": uuid.uuid4().hex}


@pytest.fixture
def create(sdk: Options, group: dict[str, str]) -> Iterator[Callable[..., e2b.Sandbox]]:
    """Create a sandbox of the template `base` that this test's end kills."""
    made: list[e2b.Sandbox] = []

    def create(**values: Any) -> e2b.Sandbox:
        values.setdefault("template", "base")
        metadata = {**group, **values.pop("metadata", {})}
        made.append(e2b.Sandbox.create(metadata=metadata, **values, **sdk))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


def all_of(paginator: Any) -> list[Any]:
    """Every sandbox of every page."""
    found = []
    while paginator.has_next:
        found += paginator.next_items()
    return found


# -- sync ---------------------------------------------------------------------------------------------------------


def test_create_info_kill(create: Callable[..., e2b.Sandbox], group: dict[str, str]) -> None:
    """What create was given is what info says; after kill() the sandbox is gone, and killing again is no error."""
    before = datetime.now(UTC)
    sandbox = create(timeout=120, metadata={"a b": "c&d=ü/%20"})
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.template_id == info.name == "base"
    assert info.metadata == {**group, "a b": "c&d=ü/%20"}
    assert info.state is SandboxState.RUNNING
    assert before - timedelta(seconds=1) < info.started_at < datetime.now(UTC) + timedelta(seconds=1)
    assert info.end_at - info.started_at == timedelta(seconds=120)
    assert (info.cpu_count, info.memory_mb) == (2, 2048)
    assert info.allow_internet_access is False
    assert sandbox.is_running()
    assert sandbox.kill()
    assert not sandbox.is_running()
    assert not sandbox.kill()
    assert not e2b.Sandbox.kill(sandbox.sandbox_id, **_connection(sandbox))


def _connection(sandbox: e2b.Sandbox) -> dict[str, Any]:
    config = sandbox.connection_config
    return {"api_key": config.api_key, "api_url": config.api_url, "sandbox_url": config._sandbox_url}


def test_get_host_names_the_engine(create: Callable[..., e2b.Sandbox], sdk: Options) -> None:
    """`get_host()` is `<port>-<id>.localhost:<engine's port>`: a browser finds the engine, and it the sandbox."""
    sandbox = create()
    assert sandbox.get_host(3000) == f"3000-{sandbox.sandbox_id}.localhost:{httpx.URL(sdk['api_url']).port}"


def test_envs_reach_commands(create: Callable[..., e2b.Sandbox]) -> None:
    """Environment variables of the sandbox are those of its processes."""
    assert create(envs={"GREETING": "hello there"}).commands.run("echo $GREETING").stdout == "hello there\n"


def test_gone_sandboxes_raise_what_the_sdk_promises(create: Callable[..., e2b.Sandbox], sdk: Options) -> None:
    """Commands and files of a killed sandbox raise SandboxNotRunning; REST calls about it SandboxNotFound."""
    sandbox = create()
    sandbox.kill()
    with pytest.raises(e2b.SandboxNotRunningException):
        sandbox.commands.run("true")
    with pytest.raises(e2b.SandboxNotRunningException):
        sandbox.files.read("/etc/passwd")
    for call in (sandbox.get_info, lambda: sandbox.set_timeout(10), sandbox.connect, sandbox.get_metrics):
        with pytest.raises(e2b.SandboxNotFoundException):
            call()
    with pytest.raises(e2b.SandboxNotFoundException):
        e2b.Sandbox.connect("inosuchsandbox", **sdk)


@pytest.mark.slow
def test_killing_ends_a_running_command(create: Callable[..., e2b.Sandbox]) -> None:
    """A command that runs when its sandbox is killed raises SandboxNotRunning: not a hang, not a bare Exception."""
    sandbox = create()
    command = sandbox.commands.run("sleep 100", background=True)
    sandbox.kill()
    with pytest.raises(e2b.SandboxNotRunningException):
        command.wait()


def test_an_interpreter_that_the_template_lacks_is_a_closed_port(
    create: Callable[..., e2b.Sandbox], sdk: Options
) -> None:
    """`base` has no interpreter: running code is a typed error, and the sandbox stays."""
    sandbox = create()
    interpreter = e2b_code_interpreter.Sandbox.connect(sandbox.sandbox_id, **sdk)
    with pytest.raises(Exception, match="port is not open"):
        interpreter.run_code("1")
    assert sandbox.is_running()


def test_connect_extends_and_never_shortens(create: Callable[..., e2b.Sandbox], sdk: Options) -> None:
    """Connecting finds the same sandbox and its files; a longer timeout moves its end, a shorter does not."""
    sandbox = create(timeout=100)
    sandbox.files.write("here.txt", "1")
    end = sandbox.get_info().end_at
    again = e2b.Sandbox.connect(sandbox.sandbox_id, timeout=10, **sdk)
    assert again.files.read("here.txt") == "1"
    assert again.get_info().end_at == end
    assert e2b.Sandbox.connect(sandbox.sandbox_id, timeout=500, **sdk).get_info().end_at > end


def test_set_timeout_sets(create: Callable[..., e2b.Sandbox]) -> None:
    """`set_timeout` moves the end either way."""
    sandbox = create(timeout=100)
    sandbox.set_timeout(20)
    left = sandbox.get_info().end_at - datetime.now(UTC)
    assert timedelta(seconds=15) < left <= timedelta(seconds=21)
    sandbox.set_timeout(200)
    assert sandbox.get_info().end_at - datetime.now(UTC) > timedelta(seconds=190)


def test_timeout_zero_ends_it_now(create: Callable[..., e2b.Sandbox]) -> None:
    """`set_timeout(0)` kills."""
    sandbox = create()
    sandbox.set_timeout(0)
    assert not sandbox.is_running()


@pytest.mark.slow
def test_a_sandbox_expires(create: Callable[..., e2b.Sandbox]) -> None:
    """At the end of its life it is gone, without anybody asking for it."""
    sandbox = create(timeout=1)
    deadline = time.monotonic() + 30
    while sandbox.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(e2b.SandboxNotFoundException):
        sandbox.get_info()


def test_listing_filters_pages_and_orders(
    create: Callable[..., e2b.Sandbox], sdk: Options, group: dict[str, str]
) -> None:
    """The paginator yields each matching sandbox once, oldest or newest first, whatever the size of the pages."""
    ids = [create(metadata={"n": str(n), "odd &=ü": str(n % 2)}).sandbox_id for n in range(5)]

    def listed(limit: int | None = None, order: Any = None, **query: Any) -> list[str]:
        metadata = {**group, **query.pop("metadata", {})}
        paginator = e2b.Sandbox.list(query=SandboxQuery(metadata=metadata, **query), limit=limit, order=order, **sdk)
        return [info.sandbox_id for info in all_of(paginator)]

    assert listed(order="asc") == ids
    assert listed(limit=2) == ids[::-1]
    assert listed(limit=2, order="asc") == ids
    assert listed(metadata={"odd &=ü": "1"}, order="asc") == ids[1::2]
    assert listed(state=[SandboxState.RUNNING, SandboxState.PAUSED], order="asc") == ids
    assert listed(state=[SandboxState.PAUSED]) == []
    assert listed(template="base", order="asc") == ids
    assert listed(template="code-interpreter-v1") == []
    with pytest.raises(e2b.SandboxException, match="Invalid next token"):
        e2b.Sandbox.list(next_token="bogus", **sdk).next_items()


def test_idempotency_through_the_sdk(create: Callable[..., e2b.Sandbox]) -> None:
    """The same key gives the same sandbox, with the same rights to it; another request under it is refused."""
    key = uuid.uuid4().hex
    first, second = create(idempotency_key=key), create(idempotency_key=key)
    assert first.sandbox_id == second.sandbox_id
    first.files.write("a", "1")
    assert second.files.read("a") == "1"
    with pytest.raises(e2b.SandboxException, match="different request"):
        create(idempotency_key=key, timeout=77)


def test_a_wrong_key_is_an_authentication_error(sdk: Options) -> None:
    """The SDK's own exception for a bad key, on every kind of call."""
    wrong = {**sdk, "api_key": "e2b_" + "0" * 40}
    for call in (
        lambda: e2b.Sandbox.create(**wrong),
        lambda: e2b.Sandbox.connect("ix", **wrong),
        lambda: e2b.Sandbox.kill("ix", **wrong),
        lambda: e2b.Sandbox.list(**wrong).next_items(),
    ):
        with pytest.raises(e2b.AuthenticationException):
            call()


def test_an_unknown_template_is_named(sdk: Options) -> None:
    """An error that says which template, and which there are."""
    with pytest.raises(e2b.SandboxException, match="'nosuch'") as raised:
        e2b.Sandbox.create(template="nosuch", **sdk)
    assert "code-interpreter-v1" in str(raised.value)
    assert "template_not_found" in str(raised.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"network": {"allow_out": ["0x7f.1"]}}, "network.allowOut"),
        ({"network": {"rules": {"example.com": [{"transform": {"headers": {"A": "b"}}}]}}}, "network.rules"),
        ({"network": {"egress_proxy": {"address": "proxy.example:1080"}}}, "network.egressProxy"),
        ({"network": {"dns_servers": ["192.0.2.1"]}}, "network.dnsServers"),
        ({"volume_mounts": {"/etc": "volume"}}, "volumeMounts"),
        ({"timeout": 10**9}, "timeout"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_unsupported_options_are_refused_by_name(sdk: Options, values: dict[str, Any], named: str) -> None:
    """What the engine does not do is refused when the sandbox is created, not ignored."""
    with pytest.raises(e2b.SandboxException, match=named):
        e2b.Sandbox.create(template="base", **values, **sdk)


def test_options_that_hold_already_are_accepted(create: Callable[..., e2b.Sandbox]) -> None:
    """No internet access is what every sandbox has: asking for it is no reason to refuse, and info shows it."""
    info = create(allow_internet_access=False, network={"deny_out": ["0.0.0.0/0"]}, secure=True).get_info()
    assert info.allow_internet_access is False
    assert info.network is not None
    assert info.network.get("deny_out") == ["0.0.0.0/0"]


def test_calls_that_come_later_say_so(create: Callable[..., e2b.Sandbox], sdk: Options) -> None:
    """Secrets are refused with a message that names them."""
    sandbox = create()
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: e2b.Secret.list(**{k: v for k, v in sdk.items() if k != "sandbox_url"}).next_items(), "secrets"),
    ]
    for call, named in calls:
        with pytest.raises(Exception, match=f"{named} is not supported"):
            call()
    assert sandbox.is_running()


def test_metrics_are_of_this_sandbox(create: Callable[..., e2b.Sandbox]) -> None:
    """Memory and disk are measured: a file of 4 MiB shows."""
    sandbox = create()
    before = sandbox.get_metrics()[-1]
    sandbox.files.write("big", b"x" * (4 * 1024 * 1024))
    after = sandbox.get_metrics()[-1]
    assert after.disk_used - before.disk_used >= 4 * 1024 * 1024
    assert after.mem_total == 2048 * 1024 * 1024
    assert after.mem_used > 0


def test_signed_urls_find_their_sandbox(create: Callable[..., e2b.Sandbox]) -> None:
    """A signed URL names no sandbox: the right one of several answers, and a forged one gets a 401 in JSON."""
    one, two = create(), create()
    one.files.write("f.txt", "one")
    two.files.write("f.txt", "two")
    assert httpx.get(one.download_url("f.txt")).text == "one"
    assert httpx.get(two.download_url("f.txt")).text == "two"
    assert httpx.post(two.upload_url("g.txt"), files={"file": ("g.txt", b"up")}).status_code == 200
    assert two.files.read("g.txt") == "up"
    assert not one.files.exists("g.txt")
    forged = httpx.get(one.download_url("f.txt").replace("f.txt", "e.txt"))
    assert (forged.status_code, forged.json()["code"]) == (401, 401)


@pytest.mark.slow
def test_a_sandbox_whose_agent_is_killed_from_inside_is_lost(create: Callable[..., e2b.Sandbox]) -> None:
    """User code may kill everything it can see, our agent included: the sandbox is then gone, typed, for all calls."""
    sandbox = create()
    with pytest.raises(e2b.SandboxNotRunningException):
        sandbox.commands.run("kill -9 -1; sleep 100", timeout=30)
    deadline = time.monotonic() + 30
    while sandbox.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- async --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def create_async(
    sdk: Options, group: dict[str, str]
) -> AsyncIterator[Callable[..., Awaitable[e2b.AsyncSandbox]]]:
    """The same for the SDK's asynchronous form."""
    made: list[e2b.AsyncSandbox] = []

    async def create(**values: Any) -> e2b.AsyncSandbox:
        values.setdefault("template", "base")
        made.append(await e2b.AsyncSandbox.create(metadata=group, **values, **sdk))
        return made[-1]

    yield create
    for sandbox in made:
        await sandbox.kill()


@pytest.fixture
def anyio_backend() -> str:
    """The SDK runs on asyncio only."""
    return "asyncio"


async def test_async_life(create_async: Any, sdk: Options) -> None:
    """Create, info, connect, set_timeout, kill and the errors after it, asynchronously."""
    sandbox = await create_async(timeout=100, envs={"A": "b"})
    assert (await sandbox.commands.run("echo $A")).stdout == "b\n"
    info = await sandbox.get_info()
    assert info.end_at - info.started_at == timedelta(seconds=100)
    again = await e2b.AsyncSandbox.connect(sandbox.sandbox_id, timeout=10, **sdk)
    assert (await again.get_info()).end_at == info.end_at
    await sandbox.set_timeout(20)
    assert (await sandbox.get_info()).end_at < info.end_at
    assert await sandbox.is_running()
    assert await sandbox.kill()
    assert not await sandbox.kill()
    assert not await sandbox.is_running()
    with pytest.raises(e2b.SandboxNotRunningException):
        await sandbox.commands.run("true")
    with pytest.raises(e2b.SandboxNotFoundException):
        await sandbox.get_info()


async def test_async_listing(create_async: Any, sdk: Options, group: dict[str, str]) -> None:
    """Pages over sandboxes that were created at the same time cover each once."""
    sandboxes = await asyncio.gather(*(create_async() for _ in range(5)))
    paginator = e2b.AsyncSandbox.list(query=SandboxQuery(metadata=group), limit=2, **sdk)
    found = []
    while paginator.has_next:
        found += [info.sandbox_id for info in await paginator.next_items()]
    assert sorted(found) == sorted(sandbox.sandbox_id for sandbox in sandboxes)


async def test_async_idempotency(create_async: Any) -> None:
    """Ten requests at once under one key make one sandbox."""
    key = uuid.uuid4().hex
    sandboxes = await asyncio.gather(*(create_async(idempotency_key=key) for _ in range(10)))
    assert len({sandbox.sandbox_id for sandbox in sandboxes}) == 1


async def test_async_errors(sdk: Options) -> None:
    """A bad key and an unknown template raise what the SDK promises."""
    with pytest.raises(e2b.AuthenticationException):
        await e2b.AsyncSandbox.create(**{**sdk, "api_key": "wrong"})
    with pytest.raises(e2b.SandboxException, match="template_not_found"):
        await e2b.AsyncSandbox.create(template="nosuch", **sdk)


async def test_async_interpreter_lives(sdk: Options) -> None:
    """The interpreter's SDK creates its template by default, runs code in it, and sees its end."""
    sandbox = await e2b_code_interpreter.AsyncSandbox.create(timeout=60, **sdk)
    try:
        await sandbox.run_code("x = 20")
        assert (await sandbox.run_code("x + 1")).text == "21"
        assert (await sandbox.get_info()).template_id == "code-interpreter-v1"
    finally:
        await sandbox.kill()
    with pytest.raises(e2b.TimeoutException):
        await sandbox.run_code("1")
