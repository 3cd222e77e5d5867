"""The way out with the real agent: what a program inside says to the proxy, and what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")

LOCAL = "127.0.0.9"
"""Where the servers of these tests are; listed by address, or nothing would lead there."""


class World:
    """An echo server, names that lead to it, and the way out of a program on the real agent."""

    def __init__(self, egress: Any, port: int, answers: dict[str, list[list[str]]]) -> None:
        self.egress = egress
        self.port = port
        self.answers = answers
        self.writers: list[asyncio.StreamWriter] = []
        self.inside = int(egress.variables()["HTTP_PROXY"].rpartition(":")[2])

    async def say(self, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.inside)
        self.writers.append(writer)
        writer.write(data)
        return reader, writer

    async def ask(self, data: bytes, *, until: bytes | None = None) -> bytes:
        """What comes back, to the end, or to some bytes."""
        reader, writer = await self.say(data)
        try:
            async with asyncio.timeout(10):
                return await reader.readuntil(until) if until else await reader.read()
        except asyncio.IncompleteReadError as error:
            return error.partial
        finally:
            writer.close()

    async def tunnel(self, host: str = LOCAL) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self.say(b"CONNECT %s:%d HTTP/1.1\r\n\r\n" % (host.encode(), self.port))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    """Let others work until something holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (nothing tells us)
            await asyncio.sleep(0.001)


def policy(*allow: str, base: Any = "deny", deny: tuple[str, ...] = ()) -> Any:
    from sandboxkit.local.gateway.egress._rules import Policy, read_rules

    return Policy(base=base, allow=read_rules(allow), deny=read_rules(deny))


@contextlib.asynccontextmanager
async def world(link: Any, *, serve: Callable[..., Awaitable[None]] | None = None) -> AsyncIterator[World]:
    """Open it, and leave nothing."""
    from sandboxkit.local.gateway.egress._dialler import Dialler
    from sandboxkit.local.gateway.egress._proxy import Egress

    served: list[asyncio.StreamWriter] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve or echo, LOCAL, 0)
    answers: dict[str, list[list[str]]] = {"echo.example": [[LOCAL]], "other.example": [["8.8.8.8"]]}

    def resolve(host: str) -> list[str]:
        found = answers[host]
        return found.pop(0) if len(found) > 1 else found[0]

    egress = Egress(link, Dialler(closed_ports=frozenset({1}), resolve=resolve, is_own=lambda address: False))
    await egress.set_policy(policy(LOCAL, "echo.example"))
    there = World(egress, server.sockets[0].getsockname()[1], answers)
    try:
        yield there
    finally:
        await egress.aclose()
        assert egress.connections == 0
        server.close()
        for writer in [*there.writers, *served]:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def test_a_tunnel(with_agent: Any) -> None:
    """CONNECT carries bytes both ways, half-closes, and counts; bytes that came with the request are not lost."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            head = b"CONNECT %s:%d HTTP/1.1\r\nHost: x\r\n\r\nearly" % (LOCAL.encode(), there.port)
            reader, writer = await there.say(head)
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(5) == b"early"
            blob = os.urandom(3_000_000)
            writer.write(blob)
            assert await reader.readexactly(len(blob)) == blob
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            await until(lambda: there.egress.connections == 0)
            assert there.egress.traffic.sent == there.egress.traffic.received == len(blob) + 5

    with_agent(scenario)


@pytest.mark.parametrize("kind", ["name", "address"])
def test_socks(with_agent: Any, kind: str) -> None:
    """SOCKS 5 with a name or an address leads to the same place, also when it comes byte by byte."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            port = there.port.to_bytes(2, "big")
            whom = b"\x03\x0cecho.example" if kind == "name" else b"\x01" + socket.inet_aton(LOCAL)
            reader, writer = await there.say(b"")
            for byte in b"\x05\x01\x00" + b"\x05\x01\x00" + whom + port + b"hello":
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            assert await reader.readexactly(2 + 10 + 5) == b"\x05\x00" + b"\x05\x00\x00\x01" + bytes(6) + b"hello"
            writer.close()

    with_agent(scenario)


def test_a_plain_request(with_agent: Any) -> None:
    """A request for a whole address is passed on, with its body, without what is between the program and us."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        heard.append(await reader.readuntil(b"0\r\n\r\n"))
        writer.write(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    async def scenario(link: Any) -> None:
        async with world(link, serve=serve) as there:
            answer = await there.ask(
                b"POST http://echo.example:%d/a?b HTTP/1.1\r\nHost: other.example\r\n"
                b"Proxy-Authorization: Basic eA==\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
                % there.port
            )
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"2\r\nhi\r\n0\r\n\r\n" in answer
            assert heard[0].startswith(b"POST /a?b HTTP/1.1\r\n")
            assert b"host: echo.example:%d\r\n" % there.port in heard[0].lower()
            assert b"other.example" not in heard[0]
            assert b"proxy-authorization" not in heard[0].lower()
            assert heard[1] == b"3\r\nabc\r\n0\r\n\r\n"

    with_agent(scenario)


REFUSED = [
    b"CONNECT other.example:443 HTTP/1.1\r\n\r\n",
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n",
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n",
    b"CONNECT [::ffff:127.0.0.1]:22 HTTP/1.1\r\n\r\n",
    b"GET http://10.0.0.1/ HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://169.254.169.254/latest/meta-data/ HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("request_text", REFUSED)
def test_refusals(with_agent: Any, request_text: bytes) -> None:
    """What the sandbox may not reach is a 403 in our words, and nothing is dialled or even looked up."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            answer = await there.ask(request_text)
            assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
            assert b"sandboxkit: " in answer
            assert there.egress.traffic.refused == 1

    with_agent(scenario)


def test_a_name_that_may_not_be_called_is_not_looked_up(with_agent: Any) -> None:
    """Where names are listed and no networks, other names stay here: a lookup would carry data out, too."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            await there.egress.set_policy(policy("echo.example", "*.echo.example"))
            there.answers.clear()  # a lookup would fail the test
            for host in (b"secret-data.example", b"echo.example.evil.example"):
                answer = await there.ask(b"CONNECT %s:443 HTTP/1.1\r\n\r\n" % host)
                assert answer.startswith(b"HTTP/1.1 403 ")

    with_agent(scenario)


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400 "),
        (b"CONNECT 0x7f.1:80 HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET http://a.example/ HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000, b"HTTP/1.1 400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20, b"HTTP/1.1 400 "),
        (
            b"GET http://a.example/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"HTTP/1.1 400 ",
        ),
        (b"\x05\x01\x02", b"\x05\xff"),
        (b"\x05\x01\x00\x05\x02\x00\x01\x7f\0\0\1\0\x50", b"\x05\x00\x05\x07"),
        (b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\1\0\x50", b"\x05\x00\x05\x02"),
        (b"\x05\x01\x00\x05\x01\x00\x03\x06" + b"0x7f.1" + b"\0\x50", b"\x05\x00\x05\x02"),
        (b"\x04\x01\x00\x50\x7f\0\0\1\0", b"HTTP/1.1 400 "),
    ],
)
def test_garbage(with_agent: Any, data: bytes, answer: bytes) -> None:
    """What is no request gets one short answer, and the next connection works."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            with contextlib.suppress(ConnectionError):
                assert (await there.ask(data)).startswith(answer)
            _, writer = await there.tunnel()
            writer.close()

    with_agent(scenario)


def test_a_name_that_changes_its_mind(with_agent: Any) -> None:
    """A name that leads to an allowed address at first and to this machine later gets no further; one lookup a call."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            there.answers["echo.example"] = [
                [LOCAL],
                ["127.0.0.1"],
                ["127.0.0.1", "::1", "10.0.0.1", "::ffff:127.0.0.1"],
            ]
            _, writer = await there.tunnel("echo.example")
            writer.close()
            for _ in range(2):
                answer = await there.ask(b"CONNECT echo.example:%d HTTP/1.1\r\n\r\n" % there.port)
                assert answer.startswith(b"HTTP/1.1 403 ")

    with_agent(scenario)


def test_a_changed_policy_closes_what_it_forbids(with_agent: Any) -> None:
    """Connections that a new policy does not let through are closed at once, others go on; the next call is refused."""

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            by_name, first = await there.tunnel("echo.example")
            by_address, second = await there.tunnel()
            # The address stays allowed, the name is denied.
            await there.egress.set_policy(policy(LOCAL, deny=("echo.example",)))
            assert await by_name.read() == b""
            second.write(b"still")
            assert await by_address.readexactly(5) == b"still"
            await there.egress.set_policy(policy())
            assert await by_address.read() == b""
            assert there.egress.variables() == {}
            answer = await there.ask(b"CONNECT %s:%d HTTP/1.1\r\n\r\n" % (LOCAL.encode(), there.port))
            assert answer.startswith(b"HTTP/1.1 403 ")
            await there.egress.set_policy(policy(LOCAL))
            _, third = await there.tunnel()
            for writer in (first, second, third):
                writer.close()

    with_agent(scenario)


def test_slow_and_silent_clients_are_bounded(with_agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not say in time whom to call is hung up on; at the cap, further ones wait and are then served."""
    from sandboxkit.local.gateway.egress import _connection, _proxy

    monkeypatch.setattr(_connection, "ASK_WITHIN", 1.0)  # the limit's length is not what is tried
    monkeypatch.setattr(_proxy, "CONNECTIONS", 4)

    async def scenario(link: Any) -> None:
        async with world(link) as there:
            slow = [await there.say(b"CONN" if at % 2 else b"\x05") for at in range(4)]
            await until(lambda: there.egress.connections == 4)
            waiting = asyncio.ensure_future(there.tunnel())
            for _ in range(50):
                await asyncio.sleep(0)
            assert there.egress.connections == 4
            assert not waiting.done()
            for reader, writer in slow:
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
                writer.close()
            (await waiting)[1].close()

    with_agent(scenario)


def test_closing_leaves_nothing(with_agent: Any) -> None:
    """At the end of the sandbox every connection, both sides of it, is closed, and no descriptor is left."""

    async def scenario(link: Any) -> None:
        before = len(os.listdir("/proc/self/fd"))
        async with world(link) as there:
            ends = [await there.tunnel() for _ in range(5)]
            await there.egress.aclose()
            for reader, writer in ends:
                assert await reader.read() == b""
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    reader, _ = await there.say(b"CONNECT x:1 HTTP/1.1\r\n\r\n")
                    await reader.read()
        for _ in range(100):
            if len(os.listdir("/proc/self/fd")) <= before + 1:
                break
            await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= before + 1, "one is that of the last connection of the test itself"

    with_agent(scenario)


def test_a_cleared_flag_stops_nobody(with_impostor: Any) -> None:
    """An agent that keeps a copy of a connection and takes O_NONBLOCK away does not make the engine wait."""
    import array

    from sandboxkit.local.agent import _codec as wire
    from sandboxkit.local.gateway.egress._stream import Stream

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = socket.create_connection(server.getsockname())
            kept, _ = server.accept()
        accepting = asyncio.ensure_future(link.accept(3128))
        while True:
            try:
                number, kind, _ = wire.HEADER.unpack_from(theirs.recv(70_000, socket.MSG_DONTWAIT))
                break
            except BlockingIOError:
                await asyncio.sleep(0)
        assert kind == wire.ACCEPT
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [kept.fileno()]))]
        theirs.sendmsg([wire.HEADER.pack(number, wire.OK, 0)], rights)
        stream = Stream(socket.socket(fileno=await accepting))
        os.set_blocking(kept.fileno(), True)  # one flag for both copies
        reading = asyncio.ensure_future(stream.receive(100))
        await asyncio.sleep(0)
        assert not reading.done()
        client.send(b"x")
        assert await asyncio.wait_for(reading, 5) == b"x"
        stream.close()
        client.close()
        kept.close()

    with_impostor(scenario)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.5.5.5", "::1"])
def test_the_kernel_knows_its_own(address: str) -> None:
    """Addresses of this machine are known by the routing table; one that nobody has is none."""
    from sandboxkit.local.gateway.egress._routes import is_own

    assert is_own(ipaddress.ip_address(address))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.250", 9))
        own = probe.getsockname()[0]
        assert is_own(ipaddress.ip_address(own))
    assert not is_own(ipaddress.ip_address("203.0.113.254"))
