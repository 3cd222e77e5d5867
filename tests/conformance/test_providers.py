"""Every provider does what the contract says: the fake, the local engine, and E2B where a key is given."""

from __future__ import annotations

import os

import pytest

from sandboxkit import testing
from sandboxkit._types import Endpoint
from sandboxkit.testing import conformance

pytestmark = [pytest.mark.parametrize("check", conformance.CHECKS, ids=conformance.name_of)]


@pytest.mark.anyio
@pytest.mark.slow
async def test_fake(check: conformance.Check) -> None:
    """The in-memory provider does what the contract says, on each backend."""
    provider = testing.FakeProvider()
    await check(provider)
    assert not provider.live
    assert provider.created == len(provider.ended)


@pytest.mark.anyio
@pytest.mark.engine
@pytest.mark.slow
async def test_engine(check: conformance.Check, engine: Endpoint) -> None:
    """The door on the local engine does what the contract says, on each backend (trio crosses to the portal)."""
    from sandboxkit.provider._e2b import E2BProvider

    await check(E2BProvider(engine, "given"))


@pytest.mark.anyio
@pytest.mark.cloud
@pytest.mark.slow
async def test_e2b(check: conformance.Check) -> None:
    """The door on E2B does what the contract says."""
    from sandboxkit.provider._e2b import E2BProvider

    key = os.environ.get("SANDBOXKIT_TEST_E2B_API_KEY", "")
    await check(E2BProvider(Endpoint(key), "e2b"))
