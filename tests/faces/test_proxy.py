"""Proxy variables: the engine on this machine is never reached through a proxy."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sandboxkit.provider._proxy import EXEMPT, exemptions, is_loopback

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "proxy"),
    [("http_proxy", "http://127.0.0.1:1"), ("all_proxy", "socks5://127.0.0.1:1"), ("ALL_PROXY", "http://127.0.0.1:1")],
)
def test_the_engine_is_reached_directly(name: str, proxy: str) -> None:
    """A proxy that answers nobody is not asked; files, commands and code all go to the engine."""
    program = (
        "from sandboxkit import SandboxPool\n"
        "with SandboxPool(endpoint='local') as pool, pool.session('a') as session:\n"
        "    session.files.write('a', b'42')\n"
        "    print(session.run_command('cat a').stdout, session.run_code('6 * 7').text)\n"
    )
    clean = {key: value for key, value in os.environ.items() if key.lower() not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, name: proxy, "NO_PROXY": "example.org"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("42 42\n", 0), done.stderr


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"NO_PROXY": "a"}, None),
        ({"HTTP_PROXY": ""}, None),
        ({"HTTP_PROXY": "p"}, "localhost,127.0.0.1,::1"),
        ({"https_proxy": "p", "NO_PROXY": "a, b"}, "a,b,localhost,127.0.0.1,::1"),
        ({"all_proxy": "p", "NO_PROXY": "*"}, None),
        ({"all_proxy": "p", "NO_PROXY": ",".join(EXEMPT), "no_proxy": ",".join(EXEMPT)}, None),
        ({"all_proxy": "p", "NO_PROXY": "a", "no_proxy": "b"}, "b,a,localhost,127.0.0.1,::1"),
    ],
)
def test_what_no_proxy_becomes(environment: dict[str, str], wanted: str | None) -> None:
    """What stands there stays; without a proxy, or where all is exempt, nothing is changed."""
    assert exemptions(environment, EXEMPT) == wanted


@pytest.mark.parametrize(
    ("url", "is_ours"),
    [
        ("http://127.0.0.1:80", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:1/x", True),
        ("http://localhost:1", True),
        ("http://1-a.localhost", True),
        ("https://api.e2b.app", False),
        ("http://127.0.0.1.example.org", False),
        ("http://10.0.0.1", False),
        (None, False),
    ],
)
def test_what_is_loopback(url: str | None, is_ours: bool) -> None:
    """By the name alone."""
    assert is_loopback(url) is is_ours
