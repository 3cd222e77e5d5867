"""Previews of the real engine: programs that listen inside real boxes, and clients that find them by URL."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from sandboxkit import Endpoint, NetworkPolicy, SandboxPool, Session

pytestmark = [pytest.mark.slow, pytest.mark.engine]

SERVER = """
import hashlib, base64, json, socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            while data := self.connection.recv(65536):
                self.connection.sendall(data)
            self.close_connection = True
        elif self.path == "/stream":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"data: 1\\n\\n")
            self.wfile.flush()
            self.rfile.read()
        else:
            body = json.dumps({"path": self.path} | {k.lower(): v for k, v in self.headers.items()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    def do_POST(self):
        size = int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        while size:
            piece = self.rfile.read(min(size, 1 << 16))
            digest.update(piece)
            size -= len(piece)
        body = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    request_queue_size = 128

Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


def direct(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Ask without any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=data, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def serve(session: Session, address: str = "127.0.0.1", port: int = 8000) -> str:
    """Start the server inside, and return its URL once it answers."""
    session.files.write("server.py", SERVER)
    session.run_command(["python3", "server.py", address, str(port)], background=True)
    url = session.url(port)
    deadline = time.monotonic() + 30
    while direct(url)[0] == 502:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return url


@pytest.fixture(scope="module")
def pool(engine: Endpoint) -> Iterator[SandboxPool]:
    with SandboxPool(endpoint=engine, template="base") as pool:
        yield pool


@pytest.fixture(scope="module")
def session(pool: SandboxPool) -> Iterator[Session]:
    """A sandbox in which the server listens on port 8000."""
    with pool.session("previews") as session:
        serve(session)
        yield session


def test_a_url_answers_a_plain_client(session: Session) -> None:
    """What session.url() gives answers urllib, which resolves no name below localhost."""
    url = session.url(8000)
    assert url == session.url(8000)
    assert url.startswith("http://127.0.0.1:")
    status, body = direct(f"{url}/a?b=c", Cookie="x=1")
    told = json.loads(body)
    assert (status, told["path"], told["host"]) == (200, "/a?b=c", "localhost:8000")
    assert "cookie" not in told


def test_the_browsers_url_answers_under_its_name(session: Session, engine: Endpoint) -> None:
    """What get_host() and browser_url() name is reached at the engine's address."""
    named = urlsplit(session.browser_url(8000))
    assert named.netloc == session.sandbox.get_host(8000)
    status, body = direct(f"{engine.api_url}/x", Host=named.netloc, Cookie="x=1")
    told = json.loads(body)
    assert (status, told["host"], told["cookie"]) == (200, named.netloc, "x=1")


def test_uploads_and_many_at_once(session: Session) -> None:
    """A large body arrives whole, and fifty requests at once are all answered."""
    import hashlib
    from concurrent.futures import ThreadPoolExecutor

    url = session.url(8000)
    data = bytes(range(256)) * 40_000
    assert direct(url, data)[1].decode() == hashlib.sha256(data).hexdigest()
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda number: direct(f"{url}/{number}"), range(50)))
    assert [json.loads(body)["path"] for _, body in answers] == [f"/{number}" for number in range(50)]


def _websocket(url: str, host: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 80), 30)
    connection.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    return connection


def test_websockets_pass(session: Session, engine: Endpoint) -> None:
    """The handshake and the bytes behind it, over the loopback form and under the name."""
    url = session.url(8000)
    named = urlsplit(session.browser_url(8000)).netloc
    for where, host in ((url, urlsplit(url).netloc), (engine.api_url or "", named)):
        with _websocket(where, host) as connection:
            for piece in (b"\x81\x05hello", b"x" * 100_000):
                connection.sendall(piece)
                received = b""
                while len(received) < len(piece):
                    received += connection.recv(65_536)
                assert received == piece


def test_a_server_on_ipv6_is_found(session: Session) -> None:
    """A server that asked for localhost, and got ::1, is found as well."""
    try:
        url = serve(session, "::1", 8001)
    except AssertionError:
        pytest.skip("no IPv6 loopback in boxes here")
    assert json.loads(direct(url)[1])["host"] == "localhost:8001"


def test_a_kill_ends_streams_and_ports(pool: SandboxPool) -> None:
    """In the middle of a stream and of a WebSocket: both end, and the loopback port is closed."""
    with pool.session(None) as session:
        url = serve(session)
        port = urlsplit(url).port or 0
        with (
            _websocket(url, urlsplit(url).netloc) as one,
            socket.create_connection(("127.0.0.1", port), 30) as two,
        ):
            two.sendall(f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            received = b""
            while b"data: 1" not in received:
                received += two.recv(1000)
            session.kill()
            for connection in (one, two):
                received = b""
                with contextlib.suppress(ConnectionError):
                    while data := connection.recv(1000):
                        received += data
                assert not received.endswith(b"0\r\n\r\n")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


INSIDE = """
import os, urllib.request, urllib.error
proxy = os.environ["HTTP_PROXY"]
os.environ.clear()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
for url in %r:
    try:
        print(opener.open(url, timeout=20).status)
    except urllib.error.HTTPError as error:
        print(error.code, error.read().decode()[:60].strip())
"""


def test_no_sandbox_reaches_a_preview_by_its_way_out(pool: SandboxPool, engine: Endpoint) -> None:
    """Not even where 127.0.0.1 is listed: neither another sandbox's loopback port nor the engine's own."""
    with (
        pool.session("shown") as shown,
        SandboxPool(endpoint=engine, network=NetworkPolicy(allow=("127.0.0.1",))) as open_pool,
        open_pool.session("asks") as asks,
    ):
        url = serve(shown)
        targets: Any = [url, engine.api_url]
        done = asks.run_command(["python3", "-c", INSIDE % (targets,)])
        assert done.stdout.count("403 ") == 2, done
