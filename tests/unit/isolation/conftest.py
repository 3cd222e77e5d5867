"""A real agent without a box, and the engine's end of a socket whose other end a test plays."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(params=["descriptors", "frames"])
def with_agent(request: pytest.FixtureRequest) -> Callable[[Callable[[Any], Awaitable[None]]], None]:
    """Run `scenario(link)` against the real agent, started as in a box but without one, over either transport."""
    from sandboxkit.local.isolation.link._framed import FramedPort
    from sandboxkit.local.isolation.link._link import AgentLink

    framed = request.param == "frames"

    spec = importlib.util.find_spec("sandboxkit.local.agent")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "agent.py"

    def run(scenario: Callable[[Any], Awaitable[None]]) -> None:
        async def main() -> None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM if framed else socket.SOCK_SEQPACKET)
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", str(program), str(theirs.fileno()), *(["framed"] if framed else [])],
                pass_fds=[theirs.fileno()],
                env={},
            )
            theirs.close()
            link = AgentLink(FramedPort(ours) if framed else ours, on_lost=lambda reason: None)
            try:
                await link.hello(processes=4000, open_files=1024)
                await scenario(link)
            finally:
                link.close()
                child.wait(10)

        asyncio.run(main())

    return run


@pytest.fixture
def with_impostor() -> Callable[[Callable[[Any, socket.socket, list[str]], Awaitable[None]]], None]:
    """Run `scenario(link, agent's end, reasons of loss)`, where the test plays the agent."""
    from sandboxkit.local.isolation.link._link import AgentLink

    def run(scenario: Callable[[Any, socket.socket, list[str]], Awaitable[None]]) -> None:
        async def main() -> None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            lost: list[str] = []
            with theirs:
                link = AgentLink(ours, on_lost=lost.append)
                try:
                    await scenario(link, theirs, lost)
                finally:
                    link.close()

        asyncio.run(main())

    return run
