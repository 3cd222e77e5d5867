"""Loopback ports for previews: a request of the engine's own, beyond what E2B's API has.

Names below `localhost` resolve in browsers, and in Python and Node they do not. The engine therefore opens a port of
127.0.0.1 for a port of a sandbox, on request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from sandboxkit.errors import ProviderError, SandboxNotFound

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox


def is_on_the_engine(raw: AsyncSandbox) -> bool:
    """Whether the names of a sandbox's ports resolve in browsers alone."""
    return str(raw.sandbox_domain or "").partition(":")[0] == "localhost"


async def loopback_url(raw: AsyncSandbox, port: int) -> str | None:
    """Ask the engine for the URL; on asyncio. None where the service is another one, which has no such request.

    Raises:
        SandboxNotFound: the sandbox is gone.
        ProviderError: the engine refused.
    """
    config = raw.connection_config
    url = f"{config.api_url}/sandboxes/{raw.sandbox_id}/ports/{port}"
    # It is on this machine, whatever proxies the environment names.
    async with httpx.AsyncClient(trust_env=False, verify=urlsplit(url).scheme == "https", timeout=60.0) as client:
        answer = await client.post(url, headers={"X-API-KEY": config.api_key or ""})
    told = answer.json() if answer.headers.get("content-type", "").startswith("application/json") else {}
    if answer.status_code == 201:
        return str(told["url"])
    if told.get("error_code") == "sandbox_not_found":
        raise SandboxNotFound(
            f"Sandbox {raw.sandbox_id} was not found (opening port {port}).", sandbox_id=raw.sandbox_id
        )
    if answer.status_code in (404, 405):
        return None
    message = told.get("message", f"HTTP {answer.status_code}")
    raise ProviderError(
        f"No loopback port for port {port}: {message}", sandbox_id=raw.sandbox_id, status=answer.status_code
    )
