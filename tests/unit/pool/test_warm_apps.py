"""Waiting for warm sandboxes: ready means that they are there, and that the apps of their templates answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import anyio
import pytest

from sandboxkit.errors import PoolTimeout, ProviderUnavailable
from sandboxkit.pool import AsyncSandboxPool
from sandboxkit.template import Template, _registered
from sandboxkit.testing import FakeProvider, Fault

if TYPE_CHECKING:
    from .conftest import VirtualTime


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    """A template of this test's own, with an app."""
    Template("served", file="app.py", port=8000, start="serve", ready="/health").register()
    yield
    del _registered()["served"]


def test_ready_means_that_the_app_answers(virtual_time: VirtualTime) -> None:
    """wait_ready() returns once each app answers below 500, and not before; those that are handed over meanwhile, or
    are gone, are not waited for."""

    async def main() -> None:
        fake = virtual_time.provider(templates=["served"])
        async with AsyncSandboxPool(endpoint=fake, template="served", min_warm=2) as pool:
            await anyio.sleep(10)
            first, second = [await fake.connect(one, lifetime=600) for one in sorted(fake.live)]
            started_at = anyio.current_time()

            async def come_up() -> None:
                await anyio.sleep(3)
                first.answers[8000] = 500
                second.answers[8000] = 404
                await anyio.sleep(3)
                first.answers[8000] = 200

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(come_up)
                await pool.wait_ready()
                assert 6 <= anyio.current_time() - started_at < 7
            await pool.wait_ready(timeout=0.01)
            await first.kill()
            fake.inject("is_running", Fault(error=ProviderUnavailable("503"), times=3))
            await pool.wait_ready(timeout=1)

    virtual_time.run(main)


def test_an_app_that_never_answers_is_named(virtual_time: VirtualTime) -> None:
    """The limit holds, and the error says whose app it was; a caller gets the sandbox all the same."""

    async def main() -> None:
        fake = virtual_time.provider(templates=["served"])
        async with AsyncSandboxPool(endpoint=fake, template="served", min_warm=1) as pool:
            await anyio.sleep(10)
            (only,) = fake.live
            with pytest.raises(PoolTimeout, match=f"timeout=5 s; no answer from the apps of .*{only}"):
                await pool.wait_ready(timeout=5)
            async with pool.session("a") as session:
                assert session.sandbox_id == only

    virtual_time.run(main)


@pytest.mark.anyio
async def test_all_who_wait_until_it_is_ready_are_told() -> None:
    """Several wait at once, and each learns it as soon as it is so."""
    fake = FakeProvider(create_delay=0.01)
    async with AsyncSandboxPool(endpoint=fake, min_warm=2) as pool:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(pool.wait_ready)


def test_each_who_waits_has_an_error_of_its_own(virtual_time: VirtualTime) -> None:
    """Several learn that the pool has given up: their tracebacks do not grow into each other."""
    raised = list[Exception]()

    async def main() -> None:
        fake = virtual_time.provider()
        fake.inject("create", Fault(error=ProviderUnavailable("503"), times=1000))
        async with AsyncSandboxPool(endpoint=fake, min_warm=1, give_up_after=10) as pool:

            async def wait() -> None:
                with pytest.raises(ProviderUnavailable) as caught:
                    await pool.wait_ready()
                raised.append(caught.value)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                tasks.start_soon(wait)

    virtual_time.run(main)
    assert raised[0] is not raised[1]
