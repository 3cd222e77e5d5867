"""The one table of what is not supported yet: each raises UnsupportedOption that names it. The table shrinks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sandboxkit._types import NetworkPolicy, TimeoutPolicy
from sandboxkit.errors import UnsupportedOption
from sandboxkit.fragment import Fragment
from sandboxkit.pool import AsyncSandboxPool, AsyncSession
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.template import Template
from sandboxkit.testing import FakeProvider

POOL_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("min_warm", {"min_warm": 1}),
    ("on_loss", {"on_loss": "recreate"}),
    ("on_loss", {"on_loss": "replay"}),
    ("timeouts.renew", {"timeouts": TimeoutPolicy(renew="heartbeat")}),
    ("timeouts.max_lifetime", {"timeouts": TimeoutPolicy(max_lifetime=3600)}),
    ("timeouts.at_end", {"timeouts": TimeoutPolicy(at_end="pause")}),
]
"""Refused when the pool is made."""

SESSION_CALLS: list[tuple[str, Callable[[AsyncSandboxPool, AsyncSession], Awaitable[Any]]]] = [
    ("pool.attach", lambda pool, session: pool.attach("sbx")),
    ("min_warm", lambda pool, session: pool.resize(min_warm=1)),
    ("session.interrupt", lambda pool, session: session.interrupt()),
    ("session.pause", lambda pool, session: session.pause()),
    ("language", lambda pool, session: session.run_code("1", language="js")),
    ("timeout", lambda pool, session: session.run_command("true", background=True, timeout=1)),  # type: ignore[call-overload]
]
"""Refused when they are called."""

NETWORKS: list[Any] = [NetworkPolicy(allow=("example.org",), deny=("8.8.8.0/24",))]
"""Refused by the door, when the first sandbox is asked for."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("option", "arguments"), POOL_ARGUMENTS, ids=str)
def test_a_pool_refuses_what_it_cannot_do(option: str, arguments: dict[str, Any]) -> None:
    """An argument whose work is not done is refused at construction, and named."""
    with pytest.raises(UnsupportedOption) as caught:
        AsyncSandboxPool(endpoint=FakeProvider(), **arguments)
    assert caught.value.option == option
    assert option in str(caught.value)


@pytest.mark.anyio
@pytest.mark.parametrize(("option", "call"), SESSION_CALLS, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_call_refuses_what_it_cannot_do(
    option: str, call: Callable[[AsyncSandboxPool, AsyncSession], Awaitable[Any]]
) -> None:
    """A method whose work is not done refuses when it is called, and leaves the session as it was."""
    async with AsyncSandboxPool(endpoint=FakeProvider()) as pool, pool.session("a") as session:
        with pytest.raises(UnsupportedOption) as caught:
            await call(pool, session)
        assert caught.value.option == option
        assert (await session.run_code("1")).text == "1"


@pytest.mark.anyio
@pytest.mark.parametrize("network", NETWORKS, ids=str)
async def test_a_network_that_cannot_be_had_is_refused(network: Any) -> None:
    """A sandbox whose network cannot be made as asked is not made at all."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, network=network) as pool:
        with pytest.raises(UnsupportedOption) as caught:
            await pool.session("a")
    assert caught.value.option == "network"
    assert fake.created == 0


@pytest.mark.parametrize("level", ["checked", "enforced"])
def test_safefs_refuses_levels_that_it_does_not_have(level: Any) -> None:
    """SafeFS promises no level that it cannot keep."""
    with pytest.raises(UnsupportedOption) as caught:
        AsyncSafeFS(object(), level=level)
    assert caught.value.option == "level"


@pytest.mark.anyio
async def test_a_fragment_for_an_app_is_refused() -> None:
    """A fragment whose template serves an app cannot be carried out yet; nothing is written."""
    template = Template("h8-app", file="app.py", port=8501, start="run app.py").register()
    fake = FakeProvider(templates=("h8-app",))
    async with (
        AsyncSandboxPool(endpoint=fake, template=template.id) as pool,
        pool.session("a") as session,
    ):
        with pytest.raises(UnsupportedOption) as caught:
            await session.run(Fragment(template="h8-app", code="1"))
        assert caught.value.option == "template"
        assert await session.files.list() == []
