"""Previews: who may ask, by which door, and what is held back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import preview_tools as tools
import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
Open = Callable[..., "contextlib.AbstractContextManager[Any]"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://3000-iother.localhost:{port}"},
        {"Origin": "http://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
    ids=str,
)
def test_pages_of_others_get_nothing(preview: Open, headers: dict[str, str]) -> None:
    """Neither over the name nor over the loopback form, nor by a WebSocket; the server inside does not even see it."""
    with preview(OK) as there:
        port = str(httpx.URL(there.hollow.endpoint.api_url).port)
        headers = {name: value.replace("{port}", port) for name, value in headers.items()}
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", **headers}
        url = there.loopback()
        for answer in (there.get(headers=headers), httpx.get(url, headers=headers), there.get(headers=upgrade)):
            assert (answer.status_code, answer.json()["error_code"]) == (403, "origin_not_allowed")
        assert there.server.heads == []


def test_a_link_may_lead_to_a_preview(preview: Open) -> None:
    """Whoever follows a link gets there; the page's own requests pass, with its own Origin."""
    with preview(OK) as there:
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        own = {"Sec-Fetch-Site": "same-origin", "Origin": f"http://{there.host}"}
        assert there.get(headers=link).text == "hi"
        assert there.get(headers=own, method="POST").text == "hi"
        assert there.server.header("origin") == [f"http://{there.host}"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a=1; Domain=localhost; Path=/", "a=1; Path=/"),
        ("a=1;domain=.localhost", "a=1"),
        ("a=1; DOMAIN = localhost; Secure; domain=x", "a=1; Secure"),
        ("a=domain=1; Path=/; Domain", "a=domain=1; Path=/"),
        ("domain=localhost; Path=/", "domain=localhost; Path=/"),
    ],
)
def test_cookies_of_a_preview_are_its_own(preview: Open, given: str, kept: str) -> None:
    """A cookie goes back to the name that set it, and to no other below localhost, nor to localhost itself."""
    with preview(b"HTTP/1.1 200 OK\r\nSet-Cookie: %s\r\nContent-Length: 2\r\n\r\nhi" % given.encode()) as there:
        assert there.get().headers["set-cookie"] == kept


def test_nothing_under_a_previews_name_reaches_the_api(preview: Open) -> None:
    """The engine's routes and headers mean nothing there, even with the key: all of it goes to the sandbox's server."""
    with preview(OK) as there:
        headers = {"X-API-KEY": there.hollow.endpoint.api_key, "E2b-Sandbox-Id": "iother"}
        for path in ("/v2/sandboxes", "/health", "/files?signature=x", f"/sandboxes/{there.sandbox['sandboxID']}"):
            assert there.get(path, headers=headers).text == "hi"
        assert there.get(f"/sandboxes/{there.sandbox['sandboxID']}", method="DELETE", headers=headers).text == "hi"
        assert there.hollow.client.get(f"/sandboxes/{there.sandbox['sandboxID']}").status_code == 200


def test_engine_ports_keep_their_services_under_a_name(preview: Open) -> None:
    """49983 and 49999 are envd and the interpreter, whatever listens inside."""
    with preview(OK, template="code-interpreter-v1") as there:
        for port, service in ((49983, "envd"), (49999, "interpreter")):
            host = f"{port}-{there.sandbox['sandboxID']}.{there.sandbox['domain']}"
            assert there.hollow.client.get("/x", headers={"Host": host}).json()["service"] == service


# -- tokens and masks ----


def test_private_traffic_needs_its_token(preview: Open) -> None:
    """403 in E2B's words without it, on every way in; with it the request passes, and the server does not see it."""
    with preview(OK, network={"allowPublicTraffic": False}, template="code-interpreter-v1") as there:
        token = there.sandbox["trafficAccessToken"]
        said = "Sandbox is secured with traffic access token. "
        header = "'e2b-traffic-access-token'"
        url = there.loopback()
        interpreter = {"E2b-Sandbox-Id": there.sandbox["sandboxID"], "E2b-Sandbox-Port": "49999"}
        for ask in (there.get, lambda **o: httpx.get(url, **o), lambda **o: there.hollow.client.get("/x", **o)):
            more = interpreter if ask not in (there.get,) else {}
            missing = ask(headers=more)
            assert missing.status_code == 403
            assert missing.json() == {
                "sandboxId": there.sandbox["sandboxID"],
                "message": f"{said}Token header {header} is missing",
                "code": 403,
            }
            wrong = ask(headers={**more, "e2b-traffic-access-token": token[:-1]})
            assert wrong.json()["message"] == f"{said}Provided token in header {header} is invalid"
            assert ask(headers={**more, "E2B-Traffic-Access-Token": token}).status_code == 200
        assert there.server.header("e2b-traffic-access-token") == []
        envd = there.hollow.client.get("/x", headers={"E2b-Sandbox-Id": there.sandbox["sandboxID"]})
        assert envd.json()["service"] == "envd"
        sandbox = f"/sandboxes/{there.sandbox['sandboxID']}"
        assert there.hollow.client.get(sandbox).json()["network"] == {"allowPublicTraffic": False}
        again = there.hollow.client.post(f"/v2{sandbox}/connect", json={}).json()
        assert again["trafficAccessToken"] == token


def test_public_traffic_has_no_token(preview: Open) -> None:
    """The usual sandbox has none, and says so by leaving it out."""
    with preview(OK, network={"allowPublicTraffic": True}) as there:
        assert "trafficAccessToken" not in there.sandbox
        assert there.get().text == "hi"


@pytest.mark.parametrize(("mask", "seen"), [("localhost:${PORT}", "localhost:3000"), ("app.example", "app.example")])
def test_a_masked_host(preview: Open, mask: str, seen: str) -> None:
    """The server sees the Host that the sandbox was created with."""
    with preview(OK, network={"maskRequestHost": mask}) as there:
        there.get()
        assert there.server.header("host") == [seen]


@pytest.mark.parametrize("mask", ["", "a b", "a\r\nX: y", "http://a", "${port}", 3, "x" * 300])
def test_a_mask_that_is_no_host_is_refused(shared_hollow: Any, mask: object) -> None:
    """400 by name, before anything is made."""
    answer = shared_hollow.client.post(
        "/v2/sandboxes", json={"templateID": "base", "network": {"maskRequestHost": mask}}
    )
    assert answer.status_code == 400
    assert "network.maskRequestHost" in answer.json()["message"]


# -- the loopback form ----


def test_the_loopback_form_answers_where_names_do_not_resolve(preview: Open) -> None:
    """A plain client gets an answer at 127.0.0.1; the server sees a Host that it accepts, and the truth beside it."""
    with preview(OK) as there:
        url = there.loopback()
        assert httpx.get(f"{url}/a?b=%20c").text == "hi"
        server = there.server
        assert server.heads[-1].startswith(b"GET /a?b=%20c HTTP/1.1\r\n")
        assert server.header("host") == [f"localhost:{tools.PORT}"]
        assert server.header("x-forwarded-host") == [url.removeprefix("http://")]
        assert server.header("x-forwarded-proto") == ["http"]
        assert server.header("x-forwarded-for") == ["127.0.0.1"]
        httpx.get(url, headers={"Origin": url, "X-Forwarded-Host": "evil.example"})
        assert server.header("origin") == [f"http://localhost:{tools.PORT}"]
        assert server.header("x-forwarded-host") == [url.removeprefix("http://")]


def test_the_loopback_form_has_no_cookies(preview: Open) -> None:
    """Cookies know no ports: those of this machine's other servers do not reach a sandbox, and it sets none."""
    with preview(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=evil\r\nContent-Length: 2\r\n\r\nhi") as there:
        answer = httpx.get(there.loopback(), headers={"Cookie": "jupyter=secret", "Authorization": "Bearer secret"})
        assert answer.text == "hi"
        assert "set-cookie" not in answer.headers
        assert b"secret" not in there.server.heads[-1]


def test_the_loopback_form_sends_browsers_to_the_name(preview: Open) -> None:
    """A navigation is redirected to the sandbox's own name, and the server does not see it."""
    with preview(OK) as there:
        url = there.loopback()
        for site in ("none", "cross-site", "same-origin"):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
            answer = httpx.get(f"{url}/a?b=1", headers=headers)
            assert (answer.status_code, answer.headers["location"]) == (307, f"http://{there.host}/a?b=1")
        old = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"}  # of a browser without Sec-Fetch
        assert httpx.get(url, headers=old).headers["location"] == f"http://{there.host}/"
        assert there.server.heads == []


def test_redirects_of_the_server_stay_in_the_loopback_form(preview: Open) -> None:
    """A redirect to the Host that the server was told leads to the same place for the client; another is left."""
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://localhost:3000/x\r\nContent-Length: 0\r\n\r\n"
    with preview(moved) as there:
        url = there.loopback()
        assert httpx.get(url).headers["location"] == f"{url}/x"
        assert there.get().headers["location"] == "http://localhost:3000/x"
    with preview(moved.replace(b":3000/x", b":30001/x")) as there:
        assert httpx.get(there.loopback()).headers["location"] == "http://localhost:30001/x"


def test_a_loopback_port_answers_for_itself_alone(preview: Open) -> None:
    """Under a rebound name, another sandbox's, or without its port, it says nothing; E2B's headers mean nothing."""
    with preview(OK) as there:
        url = httpx.URL(there.loopback())
        for host in (
            "evil.example",
            f"evil.example:{url.port}",
            "127.0.0.1",
            f"{there.host}",
            f"x.localhost:{url.port}",
        ):
            answer = httpx.get(url, headers={"Host": host})
            assert (answer.status_code, answer.json()["error_code"]) == (403, "host_not_allowed"), host
        assert there.server.heads == []
        other = {"E2b-Sandbox-Id": "iother", "E2b-Sandbox-Port": "49983", "X-API-KEY": there.hollow.endpoint.api_key}
        assert httpx.get(url.join("/v2/sandboxes"), headers=other).text == "hi"
        assert there.server.header("e2b-sandbox-id") == []


def test_a_loopback_port_is_one_and_ends_with_its_sandbox(preview: Open) -> None:
    """Asking again gives the same; it is refused without the key; after the kill nothing listens there."""
    with preview(OK) as there:
        url = httpx.URL(there.loopback())
        assert there.loopback() == str(url)
        path = f"{there.hollow.endpoint.api_url}/sandboxes/{there.sandbox['sandboxID']}/ports/{tools.PORT}"
        assert httpx.post(path).status_code == 401
        body = there.hollow.client.post(path).json()
        assert body == {"port": tools.PORT, "url": str(url), "browserUrl": f"http://{there.host}"}
        there.hollow.client.delete(f"/sandboxes/{there.sandbox['sandboxID']}")
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
        assert there.hollow.client.post(path).status_code == 404


@pytest.mark.parametrize("port", ["0", "65536", "x", "49983", "49999", "-1", "3000x"])
def test_ports_that_have_no_loopback_form(preview: Open, port: str) -> None:
    """400 by name, for what is no port and for the engine's own."""
    with preview(OK) as there:
        answer = there.hollow.client.post(f"/sandboxes/{there.sandbox['sandboxID']}/ports/{port}")
        assert (answer.status_code, answer.json()["message"][:4]) == (400, "port")


def test_loopback_ports_are_bounded(preview: Open) -> None:
    """A sandbox may have 64; the next is a 429, and the others stay."""
    with preview(OK) as there:
        path = f"/sandboxes/{there.sandbox['sandboxID']}/ports/"
        urls = {there.hollow.client.post(path + str(port)).json()["url"] for port in range(3000, 3064)}
        assert len(urls) == 64
        answer = there.hollow.client.post(path + "4000")
        assert (answer.status_code, answer.json()["error_code"]) == (429, "too_many_ports")
        assert httpx.get(there.loopback()).text == "hi"
