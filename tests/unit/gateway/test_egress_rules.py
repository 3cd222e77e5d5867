"""Who may be called from a sandbox: the rules, tried with every spelling of an address that we know of."""

from __future__ import annotations

import ipaddress
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the engine needs Linux")

from sandboxkit.local.gateway.egress import _http, _socks  # noqa: E402
from sandboxkit.local.gateway.egress._addresses import BadHost, kind_of, plain, read_host  # noqa: E402
from sandboxkit.local.gateway.egress._rules import Policy, Refusal, read_rules  # noqa: E402

PUBLIC, OTHER = ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("9.9.9.9")
OWN = ipaddress.ip_address("93.184.216.34")


def passing(policy: Policy, host: str, *addresses: str, port: int = 443) -> list[str]:
    """The addresses that may be dialled for a host. This machine has one public address of its own."""
    found = policy.passing(
        read_host(host),
        port,
        [ipaddress.ip_address(text) for text in addresses or (host,)],
        is_ours=lambda address: address == OWN,
    )
    return [] if isinstance(found, Refusal) else [str(address) for address in found]


HOSTS_OWN = [
    "127.0.0.1",
    "127.8.9.1",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "2002:7f00:1::",
    "::127.0.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "169.254.169.254",
    "::ffff:169.254.169.254",
    "fe80::1",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "240.0.0.1",
]
PRIVATE = [
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "198.18.0.1",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.80",
    "fd00::1",
    "fd00:ec2::254",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "2002:a01:203::",
    "::ffff:10.0.0.1",
    "2001:db8::1",
    "2001:0:1::1",
    "192.0.0.8",
    "192.88.99.1",
]


@pytest.mark.parametrize("address", [*HOSTS_OWN, *PRIVATE, str(OWN)])
def test_no_wide_rule_opens_what_is_not_public(address: str) -> None:
    """Neither internet access, nor 0.0.0.0/0, nor a name that leads there, reaches this machine or private networks."""
    for policy in (
        Policy(base="internet"),
        Policy(base="internet", allow=read_rules(["0.0.0.0/0", "::/0"])),
        Policy(allow=read_rules(["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/1"])),
        Policy(base="internet", allow=read_rules(["rebound.example", "*.example"])),
    ):
        assert passing(policy, "rebound.example", address) == []
        assert passing(policy, "rebound.example", "8.8.8.8", address) == ["8.8.8.8"]
        literal = f"[{address}]" if ":" in address else address
        assert passing(policy, literal, address) == []


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.1.2.3", "::ffff:10.1.2.3"),
        ("::ffff:10.0.0.0/104", "10.9.9.9"),
        ("127.0.0.1", "127.0.0.1"),
        ("169.254.169.254/32", "169.254.169.254"),
        ("fd00::/8", "fd12::1"),
        (str(OWN), str(OWN)),
    ],
)
def test_what_is_listed_by_address_is_reached(entry: str, address: str) -> None:
    """An explicit address or network of the right kind opens just that."""
    policy = Policy(allow=read_rules([entry]))
    assert passing(policy, "any.example", address) == [str(plain(ipaddress.ip_address(address)))]
    assert passing(policy, "any.example", "8.8.8.8") == []


@pytest.mark.parametrize("entry", ["0.0.0.0", "0.0.0.0/8", "224.0.0.1", "ff02::1"])
def test_nobody_is_never_called(entry: str) -> None:
    """0.0.0.0, which Linux takes for this machine, and multicast stay closed even if they are listed."""
    policy = Policy(base="internet", allow=read_rules([entry]))
    assert passing(policy, "any.example", entry.partition("/")[0]) == []


def test_a_wide_network_does_not_name_this_machine() -> None:
    """A network that holds one of this machine's own addresses does not open it; the address itself does."""
    assert passing(Policy(allow=read_rules(["93.184.0.0/16"])), "any.example", str(OWN)) == []


@pytest.mark.parametrize(
    ("allow", "host", "reached"),
    [
        ("example.com", "example.com", True),
        ("example.com", "EXAMPLE.com.", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "badexample.com", False),
        ("*.com", "example.com", True),
        ("example.com", "example.com.evil.net", False),
    ],
)
def test_names_and_wildcards(allow: str, host: str, reached: bool) -> None:
    """A name lists itself; `*.` lists what is below, at any depth, and not the name itself."""
    assert bool(passing(Policy(allow=read_rules([allow])), host, "8.8.8.8")) is reached


def test_precedence() -> None:
    """An allowed entry wins over a denied address, as at E2B; a denied name wins over all."""
    policy = Policy(
        base="internet", allow=read_rules(["8.8.8.8", "good.example"]), deny=read_rules(["8.8.0.0/16", "*.bad.example"])
    )
    assert passing(policy, "x.example", "8.8.8.8") == ["8.8.8.8"]
    assert passing(policy, "x.example", "8.8.4.4") == []
    assert passing(policy, "good.example", "8.8.4.4") == ["8.8.4.4"]
    assert passing(policy, "x.bad.example", "8.8.8.8") == []
    assert passing(policy, "x.example", "9.9.9.9") == ["9.9.9.9"]
    assert passing(Policy(base="internet", deny=read_rules(["0.0.0.0/0"])), "x.example", "2606:4700::1") == []


def test_package_indexes() -> None:
    """An index is reached at its port alone, may lie in a private network, and nowhere on this machine."""
    policy = Policy(packages=frozenset({("index.corp", 8443), ("10.1.1.1", 80)}))
    assert passing(policy, "index.corp", "10.2.3.4", port=8443) == ["10.2.3.4"]
    assert passing(policy, "index.corp", "10.2.3.4", port=443) == []
    assert passing(policy, "10.1.1.1", port=80) == ["10.1.1.1"]
    assert passing(policy, "other.corp", "10.2.3.4", port=8443) == []
    for address in (*HOSTS_OWN, str(OWN)):
        assert passing(policy, "index.corp", address, port=8443) == []


@pytest.mark.parametrize(
    "text",
    [
        "0x7f.1",
        "0x7f000001",
        "2130706433",
        "017700000001",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "1.2.3.4.5",
        "256.1.1.1",
        "foo.0x1",
        "a..b",
        ".a",
        "a/b",
        "a@b",
        "a%b",
        "[127.0.0.1]",
        "[::1",
        "::g",
        "1:2",
        "ex%20ample",
        "bücher.example",
        "-a.b",
        "",
        ".",
        "a b",
        "a\x00b",
        "x" * 64,
        "a." * 130 + "b",
    ],
)
def test_odd_spellings_are_no_hosts(text: str) -> None:
    """What a resolver might take for an address, and what is no host at all, is refused before it gets there."""
    with pytest.raises(BadHost):
        read_host(text)


@given(st.text() | st.ip_addresses().map(str))
@example("127.0.0.1.")
def test_any_text_is_a_host_or_refused(text: str) -> None:
    """Reading a host gives an address, or a name that no resolver takes for one."""
    try:
        host = read_host(text)
    except BadHost:
        return
    if isinstance(host, str):
        import socket

        with pytest.raises(OSError, match="illegal"):
            socket.inet_aton(host)


@given(st.ip_addresses(v=4))
def test_every_form_of_an_address_is_of_its_kind(address: ipaddress.IPv4Address) -> None:
    """An IPv4 address inside an IPv6 one is judged as what it is."""
    number = int(address)
    forms = [0xFFFF << 32 | number, 0xFFFF << 48 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80]
    for form in forms:
        assert kind_of(ipaddress.IPv6Address(form)) == kind_of(address)


@given(st.binary(max_size=400))
def test_any_bytes_of_socks(data: bytes) -> None:
    """Reading SOCKS asks for more, understands, or refuses; and never asks for more than there can be."""
    try:
        length = _socks.read_greeting(data)
        assert length is None or length <= 257
        found = _socks.read_request(data[length or 0 :])
        assert found is not None or len(data) - (length or 0) < _socks.LARGEST
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "http://a.example/x?y", ("a.example", 80, b"/x?y")),
        ("GET", "HTTP://a.example:81", ("a.example", 81, b"/")),
        ("GET", "http://a.example?q=1#f", ("a.example", 80, b"/?q=1")),
        ("CONNECT", "a.example:443", ("a.example", 443, b"")),
        ("CONNECT", "[2606:4700::1]:443", ("2606:4700::1", 443, b"")),
    ],
)
def test_targets(method: str, target: str, expected: tuple[str, int, bytes]) -> None:
    """A whole address, or host and port for a tunnel."""
    found = _http.read_target(method.encode(), target.encode())
    assert (str(found.host), found.port, found.path) == expected


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/x"),
        ("GET", "https://a.example/"),
        ("GET", "http://u:p@a.example/"),
        ("GET", "http://127.1/"),
        ("GET", "http:///x"),
        ("CONNECT", "a.example"),
        ("CONNECT", "a.example:0"),
        ("CONNECT", "a.example:99999"),
        ("CONNECT", "a.example:+80"),
        ("CONNECT", "0x7f.1:80"),
        ("CONNECT", "::1:80"),
        ("CONNECT", "a@b:80"),
        ("OPTIONS", "*"),
        ("GET", "http://a\x80b/"),
    ],
)
def test_bad_targets(method: str, target: str) -> None:
    """Anything else is refused."""
    with pytest.raises((_http.BadTarget, BadHost)):
        _http.read_target(method.encode(), target.encode("latin-1"))


def test_headers_between_us_and_the_program_stay() -> None:
    """Credentials for the proxy and all that Connection names end here; framing cannot be taken away that way."""
    given_headers = [
        (b"Host", b"a"),
        (b"Connection", b"x-own, content-length"),
        (b"X-Own", b"1"),
        (b"Content-Length", b"3"),
        (b"Proxy-Authorization", b"Basic eA=="),
        (b"Upgrade", b"websocket"),
        (b"Accept", b"*/*"),
    ]
    kept = dict(_http.passed_on(given_headers))
    assert kept == {b"host": b"a", b"content-length": b"3", b"accept": b"*/*", b"connection": b"close"}
