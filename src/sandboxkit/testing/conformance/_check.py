"""What a check of the contract is, and what all of them use."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio

from sandboxkit._types import CODE_INTERPRETER
from sandboxkit.provider._base import CreateRequest, Provider, ProviderSandbox

CHECK_TAG = "sandboxkit-conformance"
LIFETIME = 120.0


class Check(Protocol):
    """One check. It raises AssertionError where the provider does not do what its docstring says."""

    __name__: str

    async def __call__(self, provider: Provider, *, template: str = CODE_INTERPRETER) -> None: ...


CHECKS: list[Check] = []
"""All checks, room by room."""


def name_of(check: Check) -> str:
    """The name of a check, for pytest's `ids=`."""
    return check.__name__


def check(func: Check) -> Check:
    """Add a function to the checks."""
    CHECKS.append(func)
    return func


def must(condition: object, sentence: str) -> None:
    """Fail with the sentence of the contract that does not hold."""
    if not condition:
        raise AssertionError(sentence)


async def raises(kind: type[BaseException], work: Callable[[], Awaitable[object]], sentence: str) -> Any:
    """The exception that `work` must raise."""
    try:
        value = await work()
    except kind as error:
        return error
    raise AssertionError(f"{sentence} It returned {value!r} instead of raising {kind.__name__}.")


def make_request(template: str, **changes: Any) -> CreateRequest:
    """A request like no other, so that its metadata find its sandbox alone."""
    values: dict[str, Any] = {
        "template": template,
        "lifetime": LIFETIME,
        "idempotency_key": uuid.uuid4().hex,
        "metadata": {CHECK_TAG: uuid.uuid4().hex},
    }
    return CreateRequest(**(values | changes))


@asynccontextmanager
async def running(provider: Provider, template: str, **changes: Any) -> AsyncIterator[ProviderSandbox]:
    """A sandbox that is killed when the block is left."""
    sandbox = await provider.create(make_request(template, **changes))
    try:
        yield sandbox
    finally:
        with anyio.move_on_after(30, shield=True):
            await provider.kill(sandbox.sandbox_id)


async def listed(provider: Provider, metadata: dict[str, str]) -> set[str]:
    """The ids of the sandboxes that have these metadata."""
    return {info.sandbox_id async for info in provider.list(metadata=metadata)}
