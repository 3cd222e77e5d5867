"""Servers that a test puts in the place of what runs in a sandbox, and raw clients of previews."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

PORT = 3000


@dataclass
class Upstream:
    """A server of raw bytes: each connection is given to `serve`, in a thread of its own."""

    serve: Callable[[socket.socket], None]
    port: int = 0
    heads: list[bytes] = field(default_factory=list)
    """What came in, up to the end of each head that `head` read."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set when a connection is over."""

    def head(self, connection: socket.socket) -> tuple[bytes, bytes]:
        """Read the head of a request; also gives what came after it."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65_536)
            if not piece:
                break
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        self.heads.append(head)
        return head, rest

    def header(self, name: str) -> list[str]:
        """The values of a header in the last request."""
        lines = self.heads[-1].decode("latin-1").split("\r\n")[1:]
        found = (line.partition(":") for line in lines)
        return [value.strip() for key, _, value in found if key.lower() == name.lower()]


@contextlib.contextmanager
def upstream(serve: Callable[[Upstream, socket.socket], None]) -> Iterator[Upstream]:
    """Serve until the end of the block; every connection is closed then."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    open_ones: set[socket.socket] = set()
    threads: list[threading.Thread] = []
    server = Upstream(lambda connection: None, listener.getsockname()[1])

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve(server, connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
        server.over.set()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.add(connection)
                threads.append(threading.Thread(target=one, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)
        for connection in open_ones:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def answers(response: bytes) -> Callable[[Upstream, socket.socket], None]:
    """A server that says this to every request, and closes."""

    def serve(server: Upstream, connection: socket.socket) -> None:
        server.head(connection)
        connection.sendall(response)

    return serve


@dataclass
class Preview:
    """One sandbox of a hollow engine, in which `server` listens."""

    hollow: Any
    sandbox: Any
    server: Upstream

    @property
    def host(self) -> str:
        """The sandbox's own name for the port."""
        return f"{PORT}-{self.sandbox['sandboxID']}.{self.sandbox['domain']}"

    @property
    def named(self) -> dict[str, str]:
        """Headers of a browser that shows the preview."""
        return {"Host": self.host}

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        """Ask under the sandbox's own name."""
        options["headers"] = {**self.named, **options.get("headers", {})}
        response: httpx.Response = self.hollow.client.request(options.pop("method", "GET"), path, **options)
        return response

    def loopback(self) -> str:
        """The URL of the loopback form."""
        answer = self.hollow.client.post(f"/sandboxes/{self.sandbox['sandboxID']}/ports/{PORT}")
        assert answer.status_code == 201, answer.text
        url: str = answer.json()["url"]
        return url

    @contextlib.contextmanager
    def raw(self, data: bytes, *, port: int | None = None) -> Iterator[socket.socket]:
        """A connection that has sent this; `{host}` in it is the sandbox's own name."""
        url = httpx.URL(self.hollow.endpoint.api_url)
        with socket.create_connection(("127.0.0.1", port or url.port or 80), timeout=20) as connection:
            connection.sendall(data.replace(b"{host}", self.host.encode()))
            yield connection


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := connection.recv(65_536):
            received += data
    return received


def read_until(connection: socket.socket, text: bytes) -> bytes:
    """Bytes until some text has come."""
    received = b""
    while text not in received:
        data = connection.recv(65_536)
        assert data, received
        received += data
    return received
