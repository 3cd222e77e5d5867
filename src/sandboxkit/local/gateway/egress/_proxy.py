"""The way out of one sandbox: takes the connections that its programs make to the proxy, and keeps to its policy.

    no listener ── open() ──> listening ── close() or the sandbox's end ──> closed, with every connection

A sandbox that may reach nothing has no listener at all. One that loses all its rights later keeps the listener, which
then says so to whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from sandboxkit.local.gateway.egress._addresses import Address
from sandboxkit.local.gateway.egress._connection import Connection
from sandboxkit.local.gateway.egress._dialler import Dialler
from sandboxkit.local.gateway.egress._rules import Policy, Refusal
from sandboxkit.local.gateway.egress._stream import Stream
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost

PORT = 3128
"""Where the proxy listens inside; another port where this one is taken."""
CONNECTIONS = 64
"""Connections that one sandbox may have at once; further ones wait to be taken."""
LOOKUPS = 4
AFTER_A_FAILURE = 0.2


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one sandbox has sent out and got in, in bytes, and how many calls were made and refused."""

    sent: int = 0
    received: int = 0
    calls: int = 0
    refused: int = 0


@dataclass(slots=True, eq=False)
class _Open:
    """A connection of a program, and the call that was made for it."""

    inside: Stream
    called: tuple[Address | str, int, Address] | None = None
    outside: Stream | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Egress:
    """One per sandbox. `set_policy` says what may be reached; nothing may at first."""

    def __init__(self, agent: Agent, dialler: Dialler) -> None:
        self._agent = agent
        self._dialler = dialler
        self._policy = Policy()
        self._port = 0
        self._open: set[_Open] = set()
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._lookups = asyncio.Semaphore(LOOKUPS)
        self._accepting: asyncio.Task[None] | None = None
        self._closed = False
        self._opening = asyncio.Lock()
        self._sent = self._received = self._calls = self._refused = 0

    @property
    def policy(self) -> Policy:
        """What may be reached now."""
        return self._policy

    @property
    def traffic(self) -> Traffic:
        """What went over it so far."""
        live = [connection.outside for connection in self._open if connection.outside is not None]
        return Traffic(
            sent=self._sent + sum(stream.bytes_out for stream in live),
            received=self._received + sum(stream.bytes_in for stream in live),
            calls=self._calls,
            refused=self._refused,
        )

    @property
    def connections(self) -> int:
        """How many connections of its programs are open."""
        return len(self._open)

    def variables(self) -> Mapping[str, str]:
        """What sends programs inside to the proxy; nothing while there is none, or while it would refuse all."""
        if not self._port or self._policy.is_closed():
            return {}
        # Not socks5h:// for ALL_PROXY: several libraries fail at import time without a package for it.
        url, own = f"http://127.0.0.1:{self._port}", "localhost,127.0.0.1,::1"
        named = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": url, "NO_PROXY": own}
        return named | {name.lower(): value for name, value in named.items()}

    async def set_policy(self, policy: Policy) -> None:
        """Let this be reached from now on. Connections that it does not let through are closed before this returns.

        Raises:
            AgentLost: the sandbox is gone.
        """
        self._policy = policy
        over = [connection for connection in self._open if self._is_over(connection)]
        await _ended([connection.task for connection in over])
        if not policy.is_closed():
            await self._listen()

    async def aclose(self) -> None:
        """Close every connection, and take no more. Idempotent."""
        self._closed = True
        await _ended([self._accepting, *(connection.task for connection in self._open)])

    async def _listen(self) -> None:
        async with self._opening:
            if self._accepting is None and not self._closed:
                self._port = await self._agent.listen(PORT)
                self._accepting = asyncio.create_task(self._accept(), name="egress")

    async def _accept(self) -> None:
        """Take connections, one after the other, while there is room for them."""
        with contextlib.suppress(AgentLost):
            while True:
                await self._room.acquire()
                await self._dialler.connections.acquire()
                taken = False
                try:
                    descriptor = await self._agent.accept(self._port)
                    taken = True
                    self._serve(descriptor)
                except AgentError:
                    await asyncio.sleep(AFTER_A_FAILURE)  # it has no descriptors left, for one
                finally:
                    if not taken:
                        self._give_back()

    def _give_back(self) -> None:
        self._room.release()
        self._dialler.connections.release()

    def _serve(self, descriptor: int) -> None:
        connection = _Open(Stream(socket.socket(fileno=descriptor)))
        self._open.add(connection)
        connection.task = asyncio.create_task(self._serve_one(connection), name="egress connection")
        connection.task.add_done_callback(lambda _: self._over(connection))

    async def _serve_one(self, connection: _Open) -> None:
        await Connection(connection.inside, lambda host, port: self._call(connection, host, port)).serve()

    def _over(self, connection: _Open) -> None:
        """Here, and not in the task: one that is cancelled before its first step never gets to its clean-up."""
        connection.inside.close()
        if connection.outside is not None:
            connection.outside.close()
            self._sent += connection.outside.bytes_out
            self._received += connection.outside.bytes_in
        self._open.discard(connection)
        self._give_back()

    async def _call(self, connection: _Open, host: Address | str, port: int) -> Stream | Refusal:
        self._calls += 1
        found = await self._dialler.call(host, port, policy=lambda: self._policy, lookups=self._lookups)
        if isinstance(found, Refusal):
            self._refused += 1
            return found
        sock, address = found
        connection.outside = Stream(sock)
        connection.called = host, port, address
        if self._is_over(connection):  # the policy changed while it was dialled
            self._refused += 1
            return Refusal(f"{host}:{port} is not among what this sandbox may reach any more")
        return connection.outside

    def _is_over(self, connection: _Open) -> bool:
        """Whether the policy does not let a call through any more."""
        if connection.called is None:
            return False  # it has yet to be judged
        host, port, address = connection.called
        judged = self._policy.passing(
            host, port, [address], is_ours=self._dialler.is_ours, is_closed=self._dialler.is_closed
        )
        return isinstance(judged, Refusal)


async def _ended(tasks: list[asyncio.Task[None] | None]) -> None:
    """Cancel tasks and wait for their ends."""
    live = [task for task in tasks if task is not None and not task.done()]
    for task in live:
        task.cancel()
    if live:
        await asyncio.wait(live)
