"""The engine's API against a page in the user's browser, and against whoever does not have the key."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from sandboxkit._types import Endpoint

pytestmark = [pytest.mark.slow, pytest.mark.engine]


def ask(
    endpoint: Endpoint, method: str, path: str, headers: dict[str, str], body: bytes | None = None
) -> tuple[int, str]:
    """One request with exactly these headers."""
    url = urlsplit(endpoint.api_url or "")
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


PAGES: dict[str, dict[str, str]] = {
    "rebound name": {"Host": "evil.example:{port}", "X-API-KEY": "{key}"},
    "rebound name that looks like ours": {"Host": "localhost.evil.example:{port}", "X-API-KEY": "{key}"},
    "rebound name, another one": {"Host": "127.0.0.1.evil.example:{port}", "X-API-KEY": "{key}"},
    "another origin": {"Host": "127.0.0.1:{port}", "Origin": "http://evil.example", "X-API-KEY": "{key}"},
    "no origin to tell": {"Host": "127.0.0.1:{port}", "Origin": "null", "X-API-KEY": "{key}"},
    "another port": {"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:1", "X-API-KEY": "{key}"},
    "a preview's origin": {
        "Host": "127.0.0.1:{port}",
        "Origin": "http://3000-iabcdefghijklmnopqrs.localhost:{port}",
        "X-API-KEY": "{key}",
    },
    "a script without an origin header": {
        "Host": "127.0.0.1:{port}",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "no-cors",
        "X-API-KEY": "{key}",
    },
    "a form": {
        "Host": "127.0.0.1:{port}",
        "Origin": "http://evil.example",
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Content-Type": "text/plain",
        "X-API-KEY": "{key}",
    },
}
"""What a page can send, even one that somehow has the key."""

STRANGERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "a key of another engine": {"X-API-KEY": "e2b_" + "0" * 40},
    "an empty key": {"X-API-KEY": ""},
    "a prefix of the key": {"X-API-KEY": "e2b_"},
    "the key as a cookie": {"Cookie": "X-API-KEY={key}; e2b_api_key={key}"},
    "the key as a bearer": {"Authorization": "Bearer {key}"},
    "a navigation": {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "cross-site"},
}

ROUTES = [("GET", "/v2/sandboxes"), ("POST", "/v2/sandboxes"), ("DELETE", "/sandboxes/i1"), ("GET", "/sandboxes/i1")]


def filled(endpoint: Endpoint, headers: dict[str, str]) -> dict[str, str]:
    """The headers with the engine's port and key in their places."""
    port = str(urlsplit(endpoint.api_url or "").port)
    return {name: value.replace("{port}", port).replace("{key}", endpoint.api_key) for name, value in headers.items()}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_page_gets_nothing(engine: Endpoint, page: str) -> None:
    """A page of another origin or under a rebound name is refused on every route, even with the key."""
    for method, path in ROUTES:
        body = json.dumps({"templateID": "base"}).encode() if method == "POST" else None
        status, text = ask(engine, method, path, filled(engine, PAGES[page]), body)
        assert status == 403, (method, path, text)
        assert "sandboxID" not in text


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_page_is_told_that_it_may_ask(engine: Endpoint, page: str) -> None:
    """A preflight is answered without permission, so that a browser does not send what comes after it."""
    headers = filled(engine, PAGES[page]) | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key",
    }
    status, text = ask(engine, "OPTIONS", "/v2/sandboxes", headers)
    assert status in (400, 403, 405), text


@pytest.mark.parametrize("stranger", sorted(STRANGERS))
def test_who_has_no_key_gets_nothing(engine: Endpoint, stranger: str) -> None:
    """Without the key in its own header every route of the API is a 401: not by cookie, bearer or navigation."""
    host = {"Host": "127.0.0.1:{port}"}
    for method, path in ROUTES:
        body = json.dumps({"templateID": "base"}).encode() if method == "POST" else None
        status, text = ask(engine, method, path, filled(engine, host | STRANGERS[stranger]), body)
        assert status in (401, 403), (method, path, text)
        assert "sandboxID" not in text


INSIDE = """
import socket
ports = [{port}, 80, 443, 22, 2375, 3128, 8080, 49983, 49999]
hosts = ['127.0.0.1', '127.0.0.2', '0.0.0.0', '10.0.2.2', '172.17.0.1', '169.254.169.254', '192.168.122.1', '192.0.2.1']
reached = []
for host in hosts:
    for port in ports:
        with socket.socket() as one:
            one.settimeout(2)
            if one.connect_ex((host, port)) == 0:
                reached.append((host, port))
print(reached)
"""


def test_the_api_cannot_be_reached_from_a_sandbox(engine: Endpoint, sdk: dict[str, Any]) -> None:
    """A program in a sandbox finds neither the engine's port nor another door of the host, and its environment does not
    hold the key."""
    from e2b_code_interpreter import Sandbox

    sandbox = Sandbox.create(**sdk)
    try:
        code = INSIDE.format(port=urlsplit(engine.api_url or "").port)
        assert sandbox.run_code(code).logs.stdout == ["[]\n"]
        dump = sandbox.commands.run(
            "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; true"
        ).stdout
        assert engine.api_key not in dump
    finally:
        sandbox.kill()


def test_info_and_metrics_are_true(sdk: dict[str, Any]) -> None:
    """Info through the SDK has the template's true figures, and metrics say what is used."""
    from e2b_code_interpreter import Sandbox

    sandbox = Sandbox.create(**sdk)
    try:
        sandbox.files.write("/home/user/big", "x" * (8 << 20))
        info = sandbox.get_info()
        assert (info.cpu_count, info.memory_mb) == (2, 2048)
        (metric,) = sandbox.get_metrics()
        assert metric.disk_used >= 8 << 20
        assert metric.mem_used >= 8 << 20
        assert metric.mem_total == 2048 << 20
    finally:
        sandbox.kill()
