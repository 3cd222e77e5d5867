"""Whom a request means, and whether it may pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.gateway._routes import Denied, ToControl, ToHolder, ToSandbox, ToSignature, route


def decide(host: str = "localhost:1234", path: str = "/v2/sandboxes", method: str = "GET", **headers: str) -> object:
    """Route a request of these headers; `e2b_sandbox_id=` is `E2b-Sandbox-Id`."""
    values = {name.replace("_", "-"): value for name, value in headers.items()} | {"host": host}
    return route(method=method, path=path, headers=values, signed=False, hosts=1)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:80",
        "LOCALHOST:80",
        "127.0.0.1:9",
        "127.8.8.8",
        "[::1]:80",
        "api.localhost",
        "localhost.:1",
    ],
)
def test_loopback_hosts_reach_control(host: str) -> None:
    """Every way to name loopback means the control plane when nothing else is said."""
    assert decide(host) == ToControl()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil-localhost",
        "10.0.0.1",
        "[fe80::1]",
        "0.0.0.0",
        "xlocalhost",
        "e2b.app",
    ],
)
def test_other_hosts_do_not_pass(host: str) -> None:
    """A name that somebody may have bound to 127.0.0.1 is refused, and so is any address but loopback."""
    decision = decide(host)
    assert isinstance(decision, Denied)
    assert decision.status == 403


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost:x", "localhost:123456", "user@localhost", "[::1", "localhost/x", "é"]
)
def test_malformed_hosts_are_400(host: str) -> None:
    """What is no host is refused as malformed."""
    decision = decide(host)
    assert isinstance(decision, Denied)
    assert decision.status == 400


@pytest.mark.parametrize("hosts", [0, 2])
def test_exactly_one_host(hosts: int) -> None:
    """No Host, or two that may differ, is refused."""
    decision = route(method="GET", path="/", headers={"host": "localhost"}, signed=False, hosts=hosts)
    assert isinstance(decision, Denied)


def test_any_literal_address_will_do_where_the_engine_listens_on_more() -> None:
    """Beyond loopback, addresses pass (no page can rebind one) and names still do not."""

    def there(host: str) -> object:
        return route(method="GET", path="/", headers={"host": host}, signed=False, hosts=1, any_address=True)

    assert there("192.168.1.5:80") == ToControl()
    assert isinstance(there("engine.lan"), Denied)


def test_headers_name_a_sandbox() -> None:
    """The SDK's two headers say which sandbox and which port; the port is envd's where it is missing."""
    assert decide(e2b_sandbox_id="iabc", e2b_sandbox_port="49999") == ToSandbox("iabc", 49999)
    assert decide(e2b_sandbox_id="iabc") == ToSandbox("iabc", 49983)
    for port in ("x", "0", "65536", "", "-1", "٣"):
        assert isinstance(decide(e2b_sandbox_id="iabc", e2b_sandbox_port=port), Denied)


def test_the_headers_of_an_old_connect_name_nobody() -> None:
    """SDKs until 2.25 send the two headers along with `connect`: that alone is the control plane's, and only there."""
    old = {"path": "/sandboxes/abc/connect", "method": "POST", "e2b_sandbox_id": "abc"}
    assert decide(**old, e2b_sandbox_port="49983") == ToControl()
    assert decide(**old) == ToControl()
    assert decide(**old, e2b_sandbox_port="8000") == ToSandbox("abc", 8000)
    assert decide(**old | {"method": "GET"}) == ToSandbox("abc", 49983)
    assert decide(**old | {"path": "/sandboxes/abc/connect/x"}) == ToSandbox("abc", 49983)
    assert decide("49983-abc.localhost:1234", **old) == ToSandbox("abc", 49983, "named")


def test_a_token_alone_means_its_holder() -> None:
    """After `connect`, SDKs until 2.25 send the access token and no id; with an id or a name, that is meant."""
    assert decide(path="/files", x_access_token="t") == ToHolder("t")
    assert decide(x_access_token="t", e2b_sandbox_id="abc") == ToSandbox("abc", 49983)
    assert decide("3000-abc.localhost:1234", x_access_token="t") == ToSandbox("abc", 3000, "named")
    assert "secret" not in repr(decide(x_access_token="secret"))


def test_a_sandbox_host_wins_over_headers() -> None:
    """A page served by a sandbox runs under that sandbox's name: it cannot name another one, or another port."""
    host = "3000-iabc.localhost:1234"
    assert decide(host) == ToSandbox("iabc", 3000, "named")
    assert decide(host, e2b_sandbox_id="iother", e2b_sandbox_port="49983") == ToSandbox("iabc", 3000, "named")
    assert decide("api.localhost", e2b_sandbox_id="iother") == ToSandbox("iother", 49983)


def test_signed_files_go_to_the_signer() -> None:
    """Only /files with a signature, without an id, is found by its signature."""

    def signed(path: str, **headers: str) -> object:
        return route(method="GET", path=path, headers={"host": "localhost", **headers}, signed=True, hosts=1)

    assert signed("/files") == ToSignature()
    assert signed("/v2/sandboxes") == ToControl()
    assert isinstance(signed("/files", **{"e2b-sandbox-id": "ix"}), ToSandbox)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"origin": "http://localhost:1234"}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://localhost:9999"}, False),
        ({"origin": "https://localhost:1234"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://3000-iabc.localhost:1234"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "same-site"}, False),
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_mode": "cors"}, True),  # Node's fetch sends this, and no site
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}, True),
        ({"origin": "http://evil.example", "sec_fetch_mode": "no-cors"}, False),
    ],
)
def test_pages_of_other_origins_do_not_pass(headers: dict[str, str], passes: bool) -> None:
    """A request made by another page is refused; following a link is not such a request."""
    assert isinstance(decide(**headers), Denied) is not passes


def test_a_form_of_another_page_does_not_pass() -> None:
    """A cross-site navigation that posts (a form) is refused: it is no mere link."""
    headers = {"origin": "http://evil.example", "sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert isinstance(decide(method="POST", **headers), Denied)


@given(
    host=st.text() | st.from_regex(r"[0-9]{1,6}-[a-z0-9]{1,20}\.localhost(:[0-9]{1,6})?", fullmatch=True),
    headers=st.dictionaries(
        st.sampled_from(["e2b-sandbox-id", "e2b-sandbox-port", "origin", "sec-fetch-site", "sec-fetch-mode"]), st.text()
    ),
    method=st.text(),
    path=st.text(),
    signed=st.booleans(),
)
def test_any_headers_lead_to_a_decision(
    host: str, headers: dict[str, str], method: str, path: str, signed: bool
) -> None:
    """Whatever the headers hold, there is a decision, and a sandbox's port is a port."""
    decision = route(method=method, path=path, headers={**headers, "host": host}, signed=signed, hosts=1)
    if isinstance(decision, ToSandbox):
        assert 0 < decision.port < 65_536
    if isinstance(decision, Denied):
        assert decision.status in (400, 403)
