"""The one table of what is not supported yet: each raises UnsupportedOption that names it. The table shrinks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sandboxkit._types import NetworkPolicy
from sandboxkit.errors import UnsupportedOption
from sandboxkit.pool import AsyncSandboxPool, AsyncSession
from sandboxkit.testing import FakeProvider

SESSION_CALLS: list[tuple[str, Callable[[AsyncSandboxPool, AsyncSession], Awaitable[Any]]]] = [
    ("language", lambda pool, session: session.run_code("1", language="js")),
    ("timeout", lambda pool, session: session.run_command("true", background=True, timeout=1)),  # type: ignore[call-overload]
]
"""Refused when they are called."""

NETWORKS: list[Any] = [NetworkPolicy(allow=("example.org",), deny=("8.8.8.0/24",))]
"""Refused by the door, when the first sandbox is asked for."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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
