"""One request by the SDK: where it runs, how long it may take, whom it goes to, what it may raise."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from sandboxkit._types import Endpoint
from sandboxkit.errors import (
    ConfigurationError,
    ForkedProcess,
    ProviderUnavailable,
    SandboxNotFound,
)
from sandboxkit.provider import _errors
from sandboxkit.provider._asyncio import Here, TrioCall, on_asyncio
from sandboxkit.provider._proxy import exempt_loopback

T = TypeVar("T")

REQUEST_LIMIT = 60.0
"""Seconds that a request may take which only asks or tells."""

_first_use_pid: int | None = None


def cross() -> TrioCall | Here:
    """The way onto asyncio for one call.

    Raises:
        ForkedProcess: the SDK was used before a fork. Its transport's threads stayed in the parent, and any request
            made here would hang for ever (measured with e2b 2.63, also with its connection caches emptied).
    """
    global _first_use_pid
    if _first_use_pid is None:
        _first_use_pid = os.getpid()
    if _first_use_pid != os.getpid():
        raise ForkedProcess(
            "The E2B SDK was used before os.fork(), and cannot make a request in the child. Start worker processes by "
            "`spawn` or `forkserver`, or fork before the first pool is used."
        )
    return on_asyncio()


async def one_request(work: Callable[[], Awaitable[T]], doing: str, sandbox_id: str | None = None) -> T:
    """Carry out SDK calls that only ask or tell, within REQUEST_LIMIT, and translate what they raise."""
    try:
        with anyio.move_on_after(REQUEST_LIMIT):
            return await work()
    except Exception as error:
        if not _errors.is_from_the_sdk(error):
            raise
        if sandbox_id is not None and _errors.is_gone(error):
            raise SandboxNotFound(f"Sandbox {sandbox_id} was not found ({doing}).", sandbox_id=sandbox_id) from error
        raise _errors.translated(error, doing=doing, sandbox_id=sandbox_id) from error
    raise ProviderUnavailable(f"No answer within {REQUEST_LIMIT:g} s ({doing}).", sandbox_id=sandbox_id, status=None)


def connection_options(endpoint: Endpoint) -> dict[str, Any]:
    """The SDK's connection parameters. What an endpoint leaves open must not be filled from the environment with a
    part of another one, which would get its key."""
    api_url, sandbox_url = endpoint.api_url, endpoint.sandbox_url
    if endpoint.domain is not None and api_url is None:
        api_url = f"https://api.{endpoint.domain}"
    if sandbox_url is None and api_url is not None and os.environ.get("E2B_SANDBOX_URL"):
        raise ConfigurationError(
            "E2B_SANDBOX_URL is set, but the endpoint in use names no sandbox_url: the SDK would send this endpoint's "
            "requests there. Unset it, or pass Endpoint(sandbox_url=...)."
        )
    exempt_loopback(api_url, sandbox_url)
    return {
        "api_key": endpoint.api_key,
        "api_url": api_url,
        "sandbox_url": sandbox_url,
        "domain": endpoint.domain,
        "debug": False,
        "request_timeout": REQUEST_LIMIT,
    }
