"""Nonsense on the doors to files: E2B's file API with forms and signatures, and the confined path with its calls."""

from __future__ import annotations

import base64
import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz_tools import ANSWER_WITHIN, again, bounded, mutated

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

PATHS = st.text(max_size=12) | st.sampled_from(
    [
        "f",
        "d/f",
        "/home/user/f",
        "~/f",
        "..",
        "/",
        "/etc/passwd",
        "/dev/zero",
        "/proc/1/mem",
        "a\0b",
        "é" * 300,
        "x/" * 300,
    ]
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\nContent-Type: text/plain\r\n\r\none\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="d/g"\r\n\r\ntwo\r\n--b--\r\n'
)


@pytest.fixture(scope="module")
def box(steady: Any) -> dict[str, Any]:
    """A sandbox to shoot at."""
    with steady.client() as client:
        return {"now": steady.create(client, timeout=3000)}


@given(
    method=st.sampled_from(["GET", "POST", "POST", "HEAD", "DELETE", "PUT"]),
    query=st.fixed_dictionaries(
        {},
        optional={
            "path": PATHS,
            "username": st.sampled_from(["user", "root", "nobody", "", "\0"]),
            "signature": st.text(max_size=6) | st.just("v1_" + "A" * 44),
            "signature_expiration": st.sampled_from(["", "0", "-1", "99999999999999999999", "x"]),
        },
    ),
    headers=st.dictionaries(
        st.sampled_from(
            ["Range", "If-None-Match", "If-Range", "Accept-Encoding", "Content-Encoding", "X-Metadata-a", "Expect"]
        ),
        st.sampled_from(
            [
                "bytes=0-1",
                "bytes=-5",
                "bytes=5-1",
                "bytes=0-0,2-3",
                "gzip",
                "identity;q=0",
                "*",
                "x" * 500,
                "100-continue",
            ]
        ),
        max_size=3,
    ),
    kind=st.sampled_from(
        [
            "multipart/form-data; boundary=b",
            "multipart/form-data",
            "multipart/form-data; boundary=" + "x" * 100,
            "application/octet-stream",
            "application/json",
            "",
        ]
    ),
    body=st.just(FORM) | mutated(FORM) | st.binary(max_size=60),
    signed=st.booleans(),
)
@example(
    method="POST", query={}, headers={}, kind="multipart/form-data; boundary=b", body=b"--b\r\n" * 2000, signed=True
)
@bounded(12)
def test_files(
    steady: Any,
    box: dict[str, Any],
    method: str,
    query: dict[str, str],
    headers: dict[str, str],
    kind: str,
    body: bytes,
    signed: bool,
) -> None:
    """Whatever is asked of the file API, the answer comes in time, and none is a failure of the engine's. A file that
    has no end, such as a device, is refused or read in bounds."""
    with steady.client(timeout=ANSWER_WITHIN) as client:
        to = steady.to(again(steady, box, client))
        if not signed:
            del to["X-Access-Token"]
        content = body if method in ("POST", "PUT") else b""
        with client.stream(
            method, "/files", params=query, headers={**headers, **to, "Content-Type": kind}, content=content
        ) as answer:
            received = 0
            for piece in answer.iter_raw():
                received += len(piece)
                if received > 1 << 20:
                    break
            assert answer.status_code not in (500, 501, 502, 504), answer.status_code
            assert signed or answer.status_code in (400, 401, 403, 404, 405), answer.status_code


def call(*fields: bytes, content: bytes = b"") -> bytes:
    """A request of `/call`: fields behind their lengths, then the content."""
    whole = b"".join(struct.pack("!I", len(one)) + one for one in fields)
    return struct.pack("!I", len(whole)) + whole + content


OPERATIONS = ["stat", "exists", "make_dir", "remove", "list", "rename", "copy", "read", "write", "append", "nosuch"]
OPERATIONS += ["watch", "events", "unwatch"]
WORDS = st.binary(max_size=8) | st.sampled_from(
    [b"f", b"d/g", b"..", b"../../etc/passwd", b"/", b"", b"0", b"-1", b"1", b"9" * 30, b"x" * 5000, b"\xff", b"0.01"]
)


@given(
    root=st.sampled_from(["/home/user", "/home/user", "/tmp", "/", "/etc", "/home/user/nosuch", "..", ""])
    | st.text(max_size=6),
    place=st.sampled_from(["call", "call", "call", "health", "files?path=f", "files", "nosuch", ""]),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT"]),
    content=st.builds(
        lambda operation, words, content: call(operation.encode(), *words, content=content),
        st.sampled_from(OPERATIONS),
        st.lists(WORDS, max_size=5),
        st.binary(max_size=20),
    ).flatmap(lambda whole: st.just(whole) | mutated(whole)),
)
@example(root="/home/user", place="call", method="POST", content=b"\xff\xff\xff\xff")
@example(root="/home/user", place="call", method="POST", content=call(b"events", b"", b"x", b"nan"))
@bounded(12)
def test_confined(steady: Any, box: dict[str, Any], root: str, place: str, method: str, content: bytes) -> None:
    """Whatever is sent below the confined path, the answer comes in time: a refusal, or one in the calls' own form."""
    name = base64.urlsafe_b64encode(root.encode("utf-8", "surrogatepass")).decode().rstrip("=")
    with steady.client(timeout=60) as client:
        to = steady.to(again(steady, box, client))
        answer = client.request(method, f"/confined/{name}/{place}", headers=to, content=content)
        assert answer.status_code not in (500, 501, 502, 504), answer.text
        if place == "call" and answer.status_code == 200:
            (length,) = struct.unpack_from("!I", answer.content)
            assert 4 + length <= len(answer.content)
        elif answer.status_code >= 400 and answer.content:
            assert json.loads(answer.text)["message"]


def test_a_body_that_never_ends_is_given_up(steady: Any, box: dict[str, Any]) -> None:
    """A client that says less than it announced, and goes, leaves nothing waiting: others are answered meanwhile."""
    url = httpx.URL(steady.url)
    with steady.client(timeout=ANSWER_WITHIN) as client:
        to = steady.to(again(steady, box, client))
        lines = "".join(f"{name}: {value}\r\n" for name, value in to.items())
        held = []
        for _ in range(20):
            one = socket.create_connection((url.host, url.port), timeout=ANSWER_WITHIN)
            one.sendall(
                f"POST /files?path=half HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Type: multipart/form-data; "
                "boundary=b\r\nContent-Length: 999\r\n\r\n--b\r\n".encode()
            )
            held.append(one)
        assert client.get("/files", params={"path": "nosuch"}, headers=to).status_code == 404
        for one in held:
            one.close()
        assert client.get("/files", params={"path": "nosuch"}, headers=to).status_code == 404
