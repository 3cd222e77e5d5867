"""Output without end to readers that have stopped reading: the engine's memory is bounded, and others go on working."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

A_READER = 4 * 2**20
"""Bytes of the engine's memory that one reader who does not read may cost: its queue, and the HTTP server's."""


def post(run: Any, sandbox: dict[str, Any], *, port: int, path: str, kind: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = "".join(f"{name}: {value}\r\n" for name, value in run.to(sandbox, port).items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{head}\r\n"
    )
    return head.encode() + body


def command(run: Any, sandbox: dict[str, Any], script: str) -> bytes:
    """A request that runs a shell command."""
    message = json.dumps({"process": {"cmd": "/bin/sh", "args": ["-c", script]}}).encode()
    framed = b"\0" + len(message).to_bytes(4, "big") + message
    kind = "application/connect+json"
    return post(run, sandbox, port=49983, path="/process.Process/Start", kind=kind, body=framed)


def cell(run: Any, sandbox: dict[str, Any], code: str) -> bytes:
    """A request that runs a cell."""
    body = json.dumps({"code": code}).encode()
    return post(run, sandbox, port=49999, path="/execute", kind="application/json", body=body)


@contextlib.contextmanager
def stopped_reader(run: Any, request: bytes) -> Iterator[socket.socket]:
    """Send a request, read a little of the answer, and then nothing more, with the smallest buffer that there is."""
    url = httpx.URL(run.url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect((url.host, url.port))
        connection.sendall(request)
        assert connection.recv(200).startswith(b"HTTP/1.1 200 ")
        yield connection


PRINTS = "import sys\nwhile True: sys.stdout.write('y' * 65536)"
SHOWS = "from IPython.display import display, HTML\nwhile True: display(HTML('y' * 1000000))"


def flood(run: Any, tools: Any, *, commands: int, cells: int) -> None:
    """Let so many print to nobody, and look at memory and at another sandbox's latency."""
    with run.client() as client, contextlib.ExitStack() as stack:
        # A context runs one cell at a time, so each cell floods from a sandbox of its own.
        calm, wild = run.create(client), [run.create(client) for _ in range(1 + cells)]
        run.run(client, calm, "true")
        before = run.size()
        everything = [command(run, wild[0], "exec yes") for _ in range(commands)]
        everything += [cell(run, wild[1 + n], (PRINTS, SHOWS)[n % 2]) for n in range(cells)]
        readers = [stack.enter_context(stopped_reader(run, request)) for request in everything]
        peak, latencies = 0, []
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            started = time.monotonic()
            assert "data" in run.run(client, calm, "echo calm")
            latencies.append(time.monotonic() - started)
            peak = max(peak, run.size().memory)
        allowed = before.memory + len(readers) * A_READER
        middle = statistics.median(latencies)
        print(
            f"\n{len(readers)} readers: {before.memory >> 20} MiB before, {peak >> 20} at most; a command elsewhere: "
        )
        print(f"{middle * 1000:.1f} ms (median of {len(latencies)}), {max(latencies):.2f} s at most")
        assert peak < allowed
        assert max(latencies) < 5
        for reader in readers:
            reader.close()
        for sandbox in wild:
            assert client.delete(f"/sandboxes/{sandbox['sandboxID']}").status_code == 204
        assert "data" in run.run(client, calm, "echo after")
        tools.wait_until(lambda: run.size().descriptors <= before.descriptors, what=f"{run.size()} after {before}")
    tools.no_tracebacks(run)


def test_a_few_floods(start: Any, tools: Any) -> None:
    """Six commands and two cells print as fast as they can to nobody."""
    flood(start(), tools, commands=6, cells=2)


@pytest.mark.full
@pytest.mark.timeout(180)
def test_fifty_floods(start: Any, tools: Any) -> None:
    """Fifty commands and ten cells."""
    flood(start(), tools, commands=50, cells=10)


def test_floods_that_are_read(start: Any, tools: Any) -> None:
    """Four commands print to readers who keep up, as fast as the engine can: another sandbox's command waits little."""
    run = start()
    with run.client() as client, ThreadPoolExecutor(4) as readers:
        calm, wild = run.create(client), [run.create(client) for _ in range(4)]
        script = "head -c 40000000 /dev/zero | tr '\\\\0' y"

        def read(sandbox: dict[str, Any]) -> int:
            with run.client(timeout=60) as own:
                return len(run.run(own, sandbox, script))

        sizes = [readers.submit(read, sandbox) for sandbox in wild]
        latencies = []
        while not all(size.done() for size in sizes):
            started = time.monotonic()
            assert "data" in run.run(client, calm, "echo calm")
            latencies.append(time.monotonic() - started)
        assert all(size.result() > 40_000_000 for size in sizes)
        middle = statistics.median(latencies)
        print(f"\n{middle * 1000:.1f} ms (median of {len(latencies)}), {max(latencies):.2f} s at most")
    tools.no_tracebacks(run)
