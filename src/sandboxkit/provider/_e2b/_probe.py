"""Whether something answers at the URL of a port: one HTTP GET, of which nothing but the status is believed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import anyio
import httpx

from sandboxkit.errors import SandboxNotFound

REDIRECTS = 5
READ = 4096
"""Bytes of a refusal that are read."""


async def status_of(url: str, headers: Mapping[str, str], timeout: float, sandbox_id: str) -> int | None:
    """Ask; on asyncio. None where there is no answer.

    Raises:
        ConnectionRefusedError: nobody is at the address, not even the service.
        SandboxNotFound: the service says that the sandbox is gone.
    """
    here = httpx.URL(url)
    # A loopback port is on this machine, whatever proxies the environment names. What the app says is hostile: a
    # redirect of its is followed to itself alone, and its body is not read.
    is_local = here.host == "127.0.0.1"
    with anyio.move_on_after(timeout):
        async with httpx.AsyncClient(trust_env=not is_local, verify=not is_local, timeout=None) as client:
            try:
                for _ in range(REDIRECTS):
                    async with client.stream("GET", here, headers=dict(headers)) as answer:
                        if answer.status_code == 502 and (said := await _refusal(answer)) is not None:
                            if "was not found" in said:
                                raise SandboxNotFound(f"Sandbox {sandbox_id} was not found.", sandbox_id=sandbox_id)
                            return None
                        there = _redirect(here, answer)
                        if there is None:
                            return answer.status_code
                    here = there
                return 310  # it sends in circles: it answers, and that is all that was asked
            except httpx.ConnectError as error:
                raise ConnectionRefusedError(url) from error
            except (httpx.TransportError, httpx.InvalidURL):
                return None
    return None


def _redirect(here: httpx.URL, answer: httpx.Response) -> httpx.URL | None:
    location = answer.headers.get("location")
    if location is None or not 300 <= answer.status_code < 400:
        return None
    there = here.join(location)
    return there if (there.scheme, there.netloc) == (here.scheme, here.netloc) else None


async def _refusal(answer: httpx.Response) -> str | None:
    """What the service itself says, in the place of an app; None for an app's own 502."""
    body = b""
    async for piece in answer.aiter_bytes(READ):
        body += piece
        if len(body) > READ:
            return None
    try:
        told = json.loads(body)
    except ValueError:
        return None
    return str(told.get("message", "")) if isinstance(told, dict) and "sandboxId" in told else None
