"""The route /files over the wire."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture
def http(envd: Any) -> Iterator[httpx.Client]:
    """A client with the token."""
    with envd.client() as client:
        yield client


def put(http: httpx.Client, path: str, data: Any, **headers: str) -> httpx.Response:
    return http.post("/files", params={"path": path}, content=data, headers={**OCTETS, **headers})


def get(http: httpx.Client, path: str, **headers: str) -> httpx.Response:
    return http.get("/files", params={"path": path}, headers={"Accept-Encoding": "identity", **headers})


# -- up -----------------------------------------------------------------------------------------------------------


def test_octets_are_written_with_parents(envd: Any, http: httpx.Client) -> None:
    """The body is the file; missing directories are made; the answer lists it."""
    answer = put(http, "new/dir/f.bin", b"\0\xff" * 1000)
    assert answer.status_code == 200
    assert answer.json() == [{"name": "f.bin", "type": "file", "path": f"{envd.home}/new/dir/f.bin"}]
    path = envd.home / "new/dir/f.bin"
    assert path.read_bytes() == b"\0\xff" * 1000
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.parent.stat().st_mode & 0o777 == 0o755


def test_overwriting_keeps_the_file(envd: Any, http: httpx.Client) -> None:
    """An existing file is emptied and written in place: its mode, its other names and a link to it stay."""
    path = envd.home / "f"
    path.write_text("old and longer")
    path.chmod(0o600)
    os.link(path, envd.home / "other")
    (envd.home / "link").symlink_to("f")
    assert put(http, "link", b"new").status_code == 200
    assert (envd.home / "other").read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert (envd.home / "link").is_symlink()


def test_a_form_with_one_path_and_with_names(envd: Any, http: httpx.Client) -> None:
    """A file's path is the query's, else its part's file name; other fields are ignored."""
    one = http.post("/files", params={"path": "by-query"}, files=[("file", ("ignored", b"1"))])
    assert one.json()[0]["path"] == f"{envd.home}/by-query"
    several = http.post(
        "/files",
        data={"note": "not a file"},
        files=[("file", ("a/1", b"x" * 300_000)), ("file", ("~/ä", b"")), ("file", (f"{envd.home}/abs", b"3"))],
    )
    assert [entry["name"] for entry in several.json()] == ["1", "ä", "abs"]
    assert (envd.home / "a/1").read_bytes() == b"x" * 300_000
    assert (envd.home / "ä").read_bytes() == b""


def test_the_same_path_twice_is_refused(envd: Any, http: httpx.Client) -> None:
    """Two files of one request may not be the same; the first has been written."""
    answer = http.post("/files", files=[("file", ("same", b"1")), ("file", ("./same", b"2"))])
    assert answer.status_code == 400
    assert answer.json()["message"].startswith(f"you cannot upload multiple files to the same path '{envd.home}/same'")
    assert (envd.home / "same").read_bytes() == b"1"


def test_gzip_bodies_are_unpacked(envd: Any, http: httpx.Client) -> None:
    """Octets and forms may come compressed, octets also in several members."""
    content = os.urandom(1000) + b"x" * 2_000_000
    members = gzip.compress(content[:500]) + gzip.compress(content[500:])
    assert put(http, "octets", members, **{"Content-Encoding": "gzip"}).status_code == 200
    assert (envd.home / "octets").read_bytes() == content
    form = httpx.Request("POST", "http://x", files=[("file", ("form", b"in a form"))])
    headers = {"Content-Type": form.headers["Content-Type"], "Content-Encoding": "gzip"}
    assert http.post("/files", content=gzip.compress(form.read()), headers=headers).status_code == 200
    assert (envd.home / "form").read_bytes() == b"in a form"


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"not gzip", {"Content-Encoding": "gzip"}, "error decompressing request body"),
        (gzip.compress(b"x" * 1000)[:-10], {"Content-Encoding": "gzip"}, "unexpected EOF"),
        (b"", {"Content-Encoding": "gzip"}, "error decompressing request body"),
        (b"x", {"Content-Encoding": "br"}, "unsupported Content-Encoding: br, supported: [gzip]"),
        (b"x", {"Content-Type": "application/json"}, "unsupported content type: application/json"),
        (b"x", {"Content-Type": "multipart/form-data"}, "boundary"),
        (b"x", {"Content-Type": "multipart/form-data; boundary=b"}, "error reading form"),
        (b"--b\r\n\r\nx", {"Content-Type": "multipart/form-data; boundary=b"}, "unexpected EOF"),
        (b"x", {"X-Metadata-" + "k" * 300: "v"}, "longer than"),
        (b"x", {"X-Metadata-k": "ä"}, "not printable US-ASCII"),
    ],
)
def test_malformed_uploads_are_400(http: httpx.Client, body: bytes, headers: dict[str, str], message: str) -> None:
    """Each way of being malformed is a 400 in JSON that says what is wrong."""
    encoded = {key: value.encode("latin-1") for key, value in {**OCTETS, **headers}.items()}
    answer = http.post("/files", params={"path": "f"}, content=body, headers=list(encoded.items()))
    assert answer.status_code == 400
    assert answer.json()["code"] == 400
    assert message in answer.json()["message"]


def test_a_part_without_a_name_is_refused(http: httpx.Client) -> None:
    """Without a path and without a file name there is nowhere to write."""
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
    answer = http.post("/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, "filename" in answer.json()["message"]) == (400, True)
    answer = http.post("/files", content=b"x", headers=OCTETS)
    assert answer.json()["message"] == "path query parameter is required for raw body upload"


def test_a_name_that_is_not_utf8_is_used_and_told(envd: Any, http: httpx.Client) -> None:
    """A part's file name is bytes: the file lies under just these, and an error that names it is still JSON."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\xff"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    written = http.post("/files", content=head + b"x\r\n--b--\r\n", headers=headers)
    assert written.json()[0]["name"] == "a\ufffd"
    path = os.fsencode(envd.home) + b"/a\xff"
    with open(path, "rb") as file:
        assert file.read() == b"x"
    os.unlink(path)
    os.mkdir(path)
    refusal = http.post("/files", content=head + b"x\r\n--b--\r\n", headers=headers)
    assert refusal.status_code == 400
    assert refusal.json()["message"].startswith("path is a directory")


def test_what_is_no_file_is_refused_without_blocking(envd: Any, http: httpx.Client) -> None:
    """Directories, FIFOs, sockets and devices are 400 both ways, at once; a file in the way is told."""
    os.mkfifo(envd.home / "fifo")
    (envd.home / "dir").mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(envd.home / "socket"))
    (envd.home / "file").write_text("x")
    for path in ("fifo", "dir", "socket", "/dev/null", "/dev/zero"):
        assert get(http, path).status_code == 400, path
        assert put(http, path, b"x").status_code in (400, 403), path
    assert put(http, "file/below", b"x").json()["message"].startswith("error ensuring directories")
    assert get(http, "dir").json()["message"] == f"path '{envd.home}/dir' is a directory"
    assert put(http, "dir", b"x").json()["message"] == f"path is a directory: {envd.home}/dir"


@pytest.mark.slow
def test_an_upload_that_breaks_off_leaves_what_came(envd: Any) -> None:
    """A client that dies in the middle leaves a partial file, as in envd, and no descriptor."""
    host, _, port = envd.base.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as raw:
        head = f"POST /files?path=part HTTP/1.1\r\nHost: x\r\nX-Access-Token: {envd.token}\r\n"
        raw.sendall(head.encode() + b"Content-Type: application/octet-stream\r\nContent-Length: 2000000\r\n\r\n")
        raw.sendall(b"x" * 600_000)
    path: Path = envd.home / "part"
    deadline = time.monotonic() + 10
    while not path.exists() or path.stat().st_size == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert 0 < path.stat().st_size <= 600_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(envd: Any, http: httpx.Client) -> None:
    """100 MiB up and down, and a gzip bomb, pass through a few megabytes of the engine's memory."""
    size = 100 * 1024 * 1024
    piece = os.urandom(1024 * 1024)

    def content() -> Iterator[bytes]:
        for _ in range(100):
            yield piece

    tracemalloc.start()
    try:
        assert put(http, "big", content()).status_code == 200
        seen = hashlib.sha256()
        with http.stream("GET", "/files", params={"path": "big"}, headers={"Accept-Encoding": "identity"}) as answer:
            for chunk in answer.iter_raw():
                seen.update(chunk)
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        bomb = b"".join(packer.compress(bytes(1024 * 1024)) for _ in range(100)) + packer.flush()
        assert put(http, "bomb", bomb, **{"Content-Encoding": "gzip"}).status_code == 200
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (envd.home / "big").stat().st_size == (envd.home / "bomb").stat().st_size == size
    assert seen.hexdigest() == hashlib.sha256(piece * 100).hexdigest()
    assert peak < 16 * 1024 * 1024


# -- metadata -----------------------------------------------------------------------------------------------------


def test_metadata_is_kept_and_replaced(envd: Any, http: httpx.Client) -> None:
    """X-Metadata-* headers become attributes under lower-case names; each upload replaces them all."""
    answer = put(http, "f", b"x", **{"X-Metadata-Author": "me", "X-Metadata-Two": "2"})
    assert answer.json()[0]["metadata"] == {"author": "me", "two": "2"}
    entry = envd.call("Filesystem/Stat", {"path": "f"}).json()["entry"]
    assert entry["metadata"] == {"author": "me", "two": "2"}
    put(http, "f", b"x", **{"X-Metadata-Three": "3"})
    assert envd.call("Filesystem/Stat", {"path": "f"}).json()["entry"]["metadata"] == {"three": "3"}
    assert "metadata" not in put(http, "f", b"x").json()[0]
    assert "metadata" not in envd.call("Filesystem/Stat", {"path": "f"}).json()["entry"]


# -- down ---------------------------------------------------------------------------------------------------------


def test_a_file_comes_with_its_headers(envd: Any, http: httpx.Client) -> None:
    """Length, type, name, time and tag; a page from the sandbox may not run in the engine's origin."""
    (envd.home / "a page.html").write_text("<script>")
    answer = get(http, "a page.html")
    assert (answer.status_code, answer.text) == (200, "<script>")
    assert answer.headers["content-length"] == "8"
    assert answer.headers["content-disposition"] == 'inline; filename="a page.html"'
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["vary"] == "Accept-Encoding"
    head = http.head("/files", params={"path": "a page.html"}, headers={"Accept-Encoding": "identity"})
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "8", b"")


def test_ranges_and_conditions(envd: Any, http: httpx.Client) -> None:
    """Part of a file is a 206, an unchanged one a 304, a range outside a 416."""
    (envd.home / "f").write_bytes(bytes(range(100)))
    whole = get(http, "f")
    part = get(http, "f", Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    assert part.headers["content-range"] == "bytes 10-19/100"
    same = get(http, "f", **{"If-None-Match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert get(http, "f", **{"If-Modified-Since": whole.headers["last-modified"]}).status_code == 304
    outside = get(http, "f", Range="bytes=100-")
    assert (outside.status_code, outside.headers["content-range"]) == (416, "bytes */100")
    (envd.home / "f").write_bytes(b"changed")
    assert get(http, "f", **{"If-None-Match": whole.headers["etag"]}).status_code == 200


def test_gzip_when_asked_for(envd: Any, http: httpx.Client) -> None:
    """A client that names gzip gets it; one that can accept nothing of ours gets a 406."""
    (envd.home / "f.txt").write_text("word " * 100_000)
    with http.stream("GET", "/files", params={"path": "f.txt"}, headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == b"word " * 100_000
    assert len(raw) < 50_000
    refusal = get(http, "f.txt", **{"Accept-Encoding": "br, identity;q=0"})
    assert refusal.status_code == 406
    assert refusal.json()["code"] == 406


def test_files_that_say_to_be_empty_are_read_to_their_end(envd: Any, http: httpx.Client) -> None:
    """Pseudo-files have a size of 0 and content; an empty file has neither."""
    assert get(http, "/proc/version").text.startswith("Linux")
    (envd.home / "empty").touch()
    empty = get(http, "empty")
    assert (empty.status_code, empty.content, empty.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("missing", 404, "path '{home}/missing' does not exist"),
        ("~bob", 400, "error expanding and resolving path '~bob'"),
        ("a\0b", 400, "NUL"),
        ("x" * 300, 400, "name too long"),
    ],
)
def test_what_cannot_be_read_is_told(envd: Any, http: httpx.Client, path: str, status: int, message: str) -> None:
    """Each refusal has envd's status and sentence, in JSON."""
    answer = get(http, path)
    assert (answer.status_code, answer.json()["code"]) == (status, status)
    assert message.format(home=envd.home).lower() in answer.json()["message"].lower()


def test_an_empty_path_is_the_working_directory(http: httpx.Client) -> None:
    """Without a path, the working directory is meant, which is no file."""
    assert http.get("/files").status_code == 400


@pytest.mark.slow
def test_a_download_that_nobody_reads_ends_with_the_sandbox(envd: Any, http: httpx.Client) -> None:
    """A transfer under way holds no descriptor of a sandbox that was closed."""
    with open(envd.home / "big", "wb") as file:
        file.truncate(500_000_000)
    with http.stream("GET", "/files", params={"path": "big"}, headers={"Accept-Encoding": "identity"}) as answer:
        assert answer.status_code == 200
        assert envd.framed or _open_here(envd.home / "big")
        envd.run(envd.service.aclose())
        assert not _open_here(envd.home / "big")
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()


def _open_here(path: Path) -> bool:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return str(path) in found


# -- who may ------------------------------------------------------------------------------------------------------


def test_a_request_without_proof_is_401(envd: Any) -> None:
    """Neither token nor signature, or a wrong one of either: 401 in envd's words, and nothing is written."""
    big = b"x" * 300_000
    with httpx.Client(base_url=envd.base) as http:
        cases = [
            ({}, {}, "missing signature query parameter"),
            ({"signature": "v1_x"}, {}, "invalid signature"),
            ({}, {"X-Access-Token": "wrong"}, "access token present in header but does not match"),
        ]
        for query, headers, message in cases:
            for answer in (
                http.get("/files", params={"path": "f", **query}, headers=headers),
                http.post("/files", params={"path": "f", **query}, headers={**OCTETS, **headers}, content=big),
            ):
                assert answer.status_code == 401
                assert answer.json() == {"code": 401, "message": message}
    assert not (envd.home / "f").exists()


def test_other_users_are_401(http: httpx.Client) -> None:
    """`user` may be named; root and unknown users are refused by name."""
    put(http, "f", b"x")
    assert http.get("/files", params={"path": "f", "username": "user"}).status_code == 200
    for user in ("root", "bob"):
        answer = http.get("/files", params={"path": "f", "username": user})
        assert answer.status_code == 401
        assert f"error looking up user '{user}'" in answer.json()["message"]


def test_a_signature_opens_one_file(envd: Any) -> None:
    """A signed request needs no token, and its owner recognizes it, even when it has expired."""
    from e2b.sandbox.signature import get_signature

    (envd.home / "f").write_text("signed")

    def query(operation: Any, expires_in: int | None = None) -> dict[str, str]:
        signed = get_signature("f", operation, None, envd.token, expires_in)
        more = {} if signed["expiration"] is None else {"signature_expiration": str(signed["expiration"])}
        return {"path": "f", "signature": signed["signature"], **more}

    with httpx.Client(base_url=envd.base) as http:
        assert http.get("/files", params=query("read")).text == "signed"
        assert http.get("/files", params=query("read", 60)).text == "signed"
        assert http.post("/files", params=query("write", 60), headers=OCTETS, content=b"new").status_code == 200
        expired = http.get("/files", params=query("read", -60))
        assert expired.status_code == 401
        assert json.loads(expired.text) == {"code": 401, "message": "signature is already expired"}
    assert (envd.home / "f").read_text() == "new"
    assert envd.service.owns(query("read"))
    assert envd.service.owns(query("write", -60))
    assert not envd.service.owns({"path": "f"})
    assert not envd.service.owns({**query("read"), "path": "g"})


def test_other_verbs_are_405(http: httpx.Client) -> None:
    """/files knows GET, HEAD and POST."""
    assert http.put("/files").status_code == 405
