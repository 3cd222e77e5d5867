"""The self-check of inspect_ai, through the provider that the documentation shows."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from inspect_ai.util import SandboxEnvironment
from inspect_ai.util._sandbox.self_check import *  # noqa: F403
from recipe import PooledSandbox

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The SDK of E2B runs on asyncio."""
    return "asyncio"


@pytest.fixture
async def sandbox_env() -> AsyncIterator[SandboxEnvironment]:
    environments = await PooledSandbox.sample_init("self_check", None, {})
    try:
        yield environments["default"]
    finally:
        await PooledSandbox.sample_cleanup("self_check", None, environments, False)
        await PooledSandbox.task_cleanup("self_check", None, True)
