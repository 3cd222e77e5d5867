"""The way out of a sandbox, in a world of its own: two hosts that are network namespaces, with real addresses.

The engine's host has a private, a documentation and a public address, and routes to another host that has the same
kinds. Nothing of it touches the machine's own network. Network namespaces are made by root; the engine runs as root
and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.engine,
    pytest.mark.timeout(180),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces are made by root"),
    pytest.mark.skipif(not shutil.which("ip") or not shutil.which("curl"), reason="needs iproute2 and curl"),
]


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def world() -> Iterator[str]:
    """The name of the engine's network namespace. The other one, with its servers, is beside it."""
    here, there = f"skh{os.getpid()}", f"skt{os.getpid()}"
    etc = Path("/etc/netns", here)
    server: subprocess.Popen[str] | None = None
    made_parent = not etc.parent.exists()
    try:
        for name in (here, there):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", here, "link", "add", "wire0", "type", "veth", "peer", "name", "wire0", "netns", there)
        for name, last, public in ((here, "1", "8.8.4.4/32"), (there, "2", "93.184.216.34/32")):
            for address in (f"198.51.100.{last}/24", f"10.9.0.{last}/24"):
                ip("-n", name, "address", "add", address, "dev", "wire0")
            ip("-n", name, "address", "add", public, "dev", "lo")
            ip("-n", name, "link", "set", "wire0", "up")
        ip("-n", here, "route", "add", "default", "via", "198.51.100.2")
        ip("-n", there, "route", "add", "default", "via", "198.51.100.1")
        # `ip netns exec` shows these in place of the machine's own.
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text("nameserver 198.51.100.2\noptions timeout:2 attempts:1\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")
        (etc / "nsswitch.conf").write_text("hosts: files dns\n")
        server = subprocess.Popen(
            ["ip", "netns", "exec", there, sys.executable, str(HERE / "network_world.py"),
             "198.51.100.2", "93.184.216.34", "10.9.0.2"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield here
    finally:
        if server is not None:
            server.kill()
            server.communicate()
        for name in (here, there):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        shutil.rmtree(etc, ignore_errors=True)
        if made_parent and etc.parent.is_dir():
            etc.parent.rmdir()


@pytest.fixture(scope="module", params=["root", "ordinary user"])
def told(request: pytest.FixtureRequest, world: str, ordinary_user: Any) -> dict[str, Any]:
    """What the sandboxes said, of an engine that root or an ordinary user started."""
    python, env, switch = ordinary_user
    command = [python if request.param != "root" else sys.executable, str(HERE / "network_client.py")]
    home = tempfile.mkdtemp(prefix="sandboxkit-network-", dir="/tmp")
    os.chmod(home, 0o755)
    env = {**(env if request.param != "root" else os.environ), "SANDBOXKIT_HOME": home, "HOME": home}
    if request.param != "root":
        uid = str(switch["user"])
        os.chown(home, int(uid), int(uid))
        command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *command]
    done = subprocess.run(
        ["ip", "netns", "exec", world, *command],
        env=env, cwd="/", capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    shutil.rmtree(home, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_the_internet_is_reached(told: dict[str, Any]) -> None:
    """With internet access, a public host is reached by name and address, as plain HTTP, CONNECT and SOCKS."""
    for way in ("public", "public address", "tunnel", "socks"):
        assert told[way] == "here is 93.184.216.34\n 200", way
    assert told["info"] == [True, None]


def test_private_networks_are_not(told: dict[str, Any]) -> None:
    """A private host, the metadata address and a redirect to one are refused, by name and by address."""
    for way in ("private", "documentation", "redirect", "redirect to a name", "metadata"):
        assert told[way].endswith(" 403"), (way, told[way])
    assert "403" in told["private address"]


def test_the_host_is_not_reached(told: dict[str, Any]) -> None:
    """No address of the engine's machine is reached in any form, nor its API, not even where the address is listed."""
    for answer in (*told["own"], *told["engine"], *told["engine, listed"]):
        assert "403" in answer, answer
        assert "200" not in answer, answer
    for answer in told["spellings"]:
        assert answer.startswith("HTTP/1.1 400 "), answer
    assert "reached the host" not in told


def test_rebinding_fails(told: dict[str, Any]) -> None:
    """A name that is public at the first lookup, and this machine at the second, is reached once."""
    first, second = told["rebound"]
    assert first == "here is 93.184.216.34\n 200"
    assert second.endswith(" 403")


def test_there_is_no_other_way(told: dict[str, Any]) -> None:
    """Direct sockets, UDP and DNS lead nowhere, with the error of a machine that has no network."""
    assert "Couldn't connect" in told["direct"] or "unreachable" in told["direct"].lower(), told["direct"]
    # The latter is gVisor's word for it.
    assert "Network is unreachable" in told["udp"] or "No route to host" in told["udp"]
    assert "gaierror" in told["dns"]


def test_rules_change_at_run_time(told: dict[str, Any]) -> None:
    """Each update replaces all that was said, and info tells it."""
    assert told["listed"] == "here is 93.184.216.34\n 200"
    assert told["not listed"].endswith(" 403")
    assert told["listed private"] == "here is 10.9.0.2\n 200"
    assert told["listed no more"].endswith(" 403")
    assert told["info of rules"] == [
        False,
        {"allow_out": ["*.10-9-0-2.test", "10.9.0.0/24"], "deny_out": ["0.0.0.0/0"]},
    ]
    assert told["denied block"].endswith(" 403")
    assert told["closed"].endswith(" 403")
    assert told["info when closed"] == [False, None]


def test_nothing_means_no_proxy(told: dict[str, Any]) -> None:
    """A sandbox that may reach nothing has no proxy at all, and gets one once it may."""
    assert told["no proxy"].startswith("0\n")
    assert told["no proxy"].count("curl: (7)") == 2
    assert told["later"] == "here is 93.184.216.34\n 200"
