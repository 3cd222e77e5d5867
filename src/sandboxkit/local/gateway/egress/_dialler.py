"""Calls hosts for all sandboxes of the engine: resolves a name, has its addresses judged, and dials what passed.

The address that is dialled is the one that was judged: a name is resolved once for each call, and never again by
anybody on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable, Sequence, Set
from typing import Protocol

from sandboxkit.local._descriptors import MAX_CALLS_SHARE, limit
from sandboxkit.local.gateway.egress import _routes
from sandboxkit.local.gateway.egress._addresses import Address
from sandboxkit.local.gateway.egress._rules import Policy, Refusal

LOOKUPS = 16
"""Names that are looked up at once, for all sandboxes. A lookup that hangs keeps its place until the resolver gives
up; each sandbox has few places of its own."""
LOOKUP_WITHIN = 10.0
DIAL_WITHIN = 10.0
MOST_ADDRESSES = 8


class Unreachable(Exception):
    """The host could not be called, though it may be. `status` is what HTTP says of it."""

    def __init__(self, message: str, status: int = 502) -> None:
        super().__init__(message)
        self.status = status


class Resolve(Protocol):
    """Looks a name up; blocks. OSError where it has no address."""

    def __call__(self, host: str) -> Sequence[str]: ...


def by_the_system(host: str) -> Sequence[str]:
    """Look a name up as every program on this machine does."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [str(place[4][0]) for place in found]


class Dialler:
    """One per engine.

    Args:
        closed_ports: ports of this machine that nobody may reach from a sandbox: the engine's own. It may change.
        resolve, is_own: how names are looked up and how this machine's own addresses are known.
        connections: connections at once, for all sandboxes; None means what the limit on open files leaves room for.
    """

    def __init__(
        self,
        *,
        closed_ports: Set[int] = frozenset(),
        resolve: Resolve = by_the_system,
        is_own: Callable[[Address], bool] = _routes.is_own,
        connections: int | None = None,
    ) -> None:
        self._closed_ports = closed_ports
        self._resolve = resolve
        self._is_own = is_own
        self._lookups = asyncio.Semaphore(LOOKUPS)
        room = int(limit() * MAX_CALLS_SHARE) // 2
        self.connections = asyncio.Semaphore(max(16, room) if connections is None else connections)

    async def call(
        self, host: Address | str, port: int, *, policy: Callable[[], Policy], lookups: asyncio.Semaphore
    ) -> tuple[socket.socket, Address] | Refusal:
        """Connect to a host, as far as the policy lets; it is asked anew after every wait.

        Raises:
            Unreachable: the host has no address, or none that answers.
        """
        if (refusal := policy().may_ask_for(host, port)) is not None:
            return refusal
        addresses = [host] if not isinstance(host, str) else await self._addresses(host, lookups)
        passed = policy().passing(host, port, addresses, is_ours=self.is_ours, is_closed=self.is_closed)
        if isinstance(passed, Refusal):
            return passed
        failed = "no address"
        for address in passed:
            try:
                return await self._connected(address, port), address
            except TimeoutError:
                failed = f"no answer within {DIAL_WITHIN:g} seconds"
            except OSError as error:
                failed = error.strerror or type(error).__name__
        raise Unreachable(f"{host}:{port}: {failed}", 504 if "within" in failed else 502)

    def is_ours(self, address: Address) -> bool:
        """Whether an address is this machine's; also where that cannot be found out."""
        try:
            return self._is_own(address)
        except OSError:
            return True

    def is_closed(self, address: Address, port: int) -> bool:
        """Whether this is a port of the engine's own, at whatever address of this machine."""
        return port in self._closed_ports and (address.is_loopback or self.is_ours(address))

    async def _connected(self, address: Address, port: int) -> socket.socket:
        family = socket.AF_INET if isinstance(address, ipaddress.IPv4Address) else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(DIAL_WITHIN):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _addresses(self, host: str, lookups: asyncio.Semaphore) -> list[Address]:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[str]] = loop.create_future()

        def look() -> None:
            result: Sequence[str] = ()
            with contextlib.suppress(OSError, UnicodeError):
                result = self._resolve(host)
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who waits
                loop.call_soon_threadsafe(done, result)

        def done(result: Sequence[str]) -> None:
            self._lookups.release()
            lookups.release()
            if not found.done():
                found.set_result(result)

        try:
            async with asyncio.timeout(LOOKUP_WITHIN):
                await lookups.acquire()
                try:
                    await self._lookups.acquire()
                except BaseException:
                    lookups.release()
                    raise
                # A thread that nothing waits for at the engine's end, unlike those of the loop's executor.
                threading.Thread(target=look, name="lookup", daemon=True).start()
                texts = await found
        except TimeoutError:
            raise Unreachable(f"{host}: the name was not resolved within {LOOKUP_WITHIN:g} seconds", 504) from None
        addresses: list[Address] = [ipaddress.ip_address(text.partition("%")[0]) for text in texts[:MOST_ADDRESSES]]
        if not addresses:
            raise Unreachable(f"{host}: the name has no address")
        return addresses
