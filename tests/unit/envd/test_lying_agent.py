"""A hostile agent below a confined root: what it says in another shape than was asked for costs it its sandbox."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sandboxkit.local.agent import _codec as wire

LIAR = """
import os, socket, struct, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while data := sock.recv(70000):
    number, kind, _ = struct.unpack_from("!IBB", data)
    sock.send(struct.pack("!IBB", number, 64, 0) + (b"\\0\\0\\0\\0011" if kind == 1 else bytes.fromhex("%s")))
"""
ROOT = b"7:7"


def base(root: str) -> str:
    return "/confined/" + base64.urlsafe_b64encode(root.encode()).rstrip(b"=").decode()


def is_lost(answer: httpx.Response) -> bool:
    """Whether the answer is the one of a sandbox that is gone."""
    return answer.status_code == 502 and "not found" in answer.json()["message"]


@pytest.mark.parametrize(
    ("operation", "args"), [("read", [b"/x/f", 0, 10, b"", b""]), ("stat", [b"/x/f"]), ("exists", [b"/x/f"])]
)
def test_a_call(lying_envd: Callable[[str], Any], operation: str, args: list[bytes | int]) -> None:
    """Operations of SafeFS's: the sandbox is lost, by name, and no request fails in the engine."""
    packed = wire.pack([operation.encode(), b"", *args])
    with lying_envd(LIAR % wire.pack([ROOT]).hex()) as envd, envd.client() as client:
        answer = client.post(f"{base('/x')}/call", content=struct.pack("!I", len(packed)) + packed)
        assert is_lost(answer), (answer.status_code, answer.text)


@pytest.mark.parametrize("lie", [[], [ROOT], [ROOT, b"f"]])
def test_an_entry(lying_envd: Callable[[str], Any], lie: list[bytes | int]) -> None:
    """E2B's own file API below a root: the same."""
    with lying_envd(LIAR % wire.pack(lie).hex()) as envd, envd.client() as client:
        answer = client.post(f"{base('/x')}/filesystem.Filesystem/Stat", json={"path": "/x/f"})
        assert is_lost(answer), (answer.status_code, answer.text)


def test_what_nobody_waits_for_any_more_fails_in_silence(
    lying_envd: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves before its program was started: that the sandbox is lost then is no error of the engine."""
    mute = LIAR.replace("sock.send", "kind == 1 and sock.send") % ""
    message = json.dumps({"process": {"cmd": "true"}}).encode()
    start = b"\0" + struct.pack("!I", len(message)) + message
    with lying_envd(mute) as envd:
        with envd.client(**{"Content-Type": "application/connect+json"}) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/process.Process/Start", content=start, timeout=0.3)
        envd.kill_agent()
        envd.run(asyncio.sleep(0.1))
    gc.collect()
    assert "never retrieved" not in caplog.text
