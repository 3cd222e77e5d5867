"""HTTP's rules for serving a file."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit.local.envd._http_rules import (
    FileFacts,
    NotAcceptable,
    NotSatisfiable,
    byte_range,
    content_disposition,
    content_type,
    unchanged,
    use_gzip,
)

FILE = FileFacts(size=100, mtime_ns=1_700_000_000_500_000_000, inode=7)


@pytest.mark.parametrize(
    ("header", "gzip"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("GZIP;q=0.5", True),
        ("gzip, deflate", False),
        ("gzip, deflate, br, zstd", False),
        ("gzip, identity;q=0", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("*", False),
        ("*, identity;q=0", True),
        ("gzip;q=1, *;q=0", True),
        ("br", False),
    ],
)
def test_gzip_is_used_where_it_was_asked_for(header: str | None, gzip: bool) -> None:
    """Only a client that names gzip alone, or refuses identity, gets gzip."""
    assert use_gzip({} if header is None else {"accept-encoding": header}) is gzip


@pytest.mark.parametrize(
    "headers",
    [
        {"accept-encoding": "br, identity;q=0"},
        {"accept-encoding": "*;q=0"},
        {"accept-encoding": "identity;q=0, gzip;q=0"},
        {"accept-encoding": "gzip; q=1,*; q=0", "range": "bytes=0-4"},
    ],
)
def test_refusing_all_that_we_have_is_not_acceptable(headers: dict[str, str]) -> None:
    """Where neither gzip nor identity is acceptable, or a range is asked for without identity, it is a 406."""
    with pytest.raises(NotAcceptable):
        use_gzip(headers)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-4", (0, 5)),
        ("bytes=95-", (95, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=0-0", (0, 1)),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=1-2", None),
        ("bytes=x", None),
    ],
)
def test_a_range_is_read_as_the_rfc_says(header: str, wanted: tuple[int, int] | None) -> None:
    """One range is served; a malformed one, and several at once, get the whole file."""
    assert byte_range({"range": header}, FILE) == wanted


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_a_range_outside_is_not_satisfiable(header: str) -> None:
    """A range without a byte of the file is a 416."""
    with pytest.raises(NotSatisfiable):
        byte_range({"range": header}, FILE)


@given(st.text(max_size=20), st.integers(0, 1000))
def test_any_range_lies_inside_the_file(header: str, size: int) -> None:
    """Whatever the header says, what is served lies within the file and is not empty."""
    try:
        wanted = byte_range({"range": f"bytes={header}"}, FileFacts(size=size, mtime_ns=0, inode=1))
    except NotSatisfiable:
        return
    if wanted is not None and size:
        assert 0 <= wanted[0] < wanted[1] <= size


def test_if_range_binds_a_range_to_a_version() -> None:
    """A range for another version of the file gets the whole file."""
    assert byte_range({"range": "bytes=0-4", "if-range": FILE.etag}, FILE) == (0, 5)
    assert byte_range({"range": "bytes=0-4", "if-range": '"other"'}, FILE) is None


def test_a_client_that_has_the_file_is_told_so() -> None:
    """If-None-Match decides by the tag, and without it If-Modified-Since by the second."""
    assert unchanged({"if-none-match": FILE.etag}, FILE)
    assert unchanged({"if-none-match": f'"a", W/{FILE.etag}'}, FILE)
    assert unchanged({"if-none-match": "*"}, FILE)
    assert not unchanged({"if-none-match": '"a"', "if-modified-since": FILE.last_modified}, FILE)
    assert unchanged({"if-modified-since": FILE.last_modified}, FILE)
    assert not unchanged({"if-modified-since": "Tue, 14 Nov 2000 22:13:20 GMT"}, FILE)
    assert not unchanged({"if-modified-since": "yesterday"}, FILE)
    assert not unchanged({}, FILE)


@pytest.mark.parametrize("mtime_ns", [-(2**63), -1, 0, 2**63 - 1, 10**21])
def test_any_time_is_a_date(mtime_ns: int) -> None:
    """A file may claim any time; its date stays one that HTTP can say."""
    assert FileFacts(size=0, mtime_ns=mtime_ns, inode=1).last_modified.endswith(" GMT")


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("/a/test.txt", "inline; filename=test.txt"),
        ("/a/.env", "inline; filename=.env"),
        ("/a/my document.pdf", 'inline; filename="my document.pdf"'),
        ('/a/file"name.txt', 'inline; filename="file\\"name.txt"'),
        ("/a/file\\name.txt", 'inline; filename="file\\\\name.txt"'),
        ("/a/文档.pdf", "inline; filename*=utf-8''%E6%96%87%E6%A1%A3.pdf"),
        ("/a/two\nlines", "inline; filename*=utf-8''two%0Alines"),
    ],
)
def test_the_name_is_written_as_go_writes_it(path: str, header: str) -> None:
    """Content-Disposition is inline with the file's own name, in Go's quoting."""
    assert content_disposition(path) == header


@example("a\tb")
@given(st.text(st.characters(codec=None), max_size=40).filter(lambda name: "/" not in name))
def test_no_name_can_break_the_header(name: str) -> None:
    """Whatever a file is called, the header is one line of ASCII; a tab may stand in quotes (RFC 9110, 5.6.4)."""
    header = content_disposition(f"/{name}")
    assert header.isascii()
    assert header.replace("\t", " ").isprintable()


def test_types_come_from_names() -> None:
    """Known endings give their type, text with its charset; the rest is octets."""
    assert content_type("/a.txt") == "text/plain; charset=utf-8"
    assert content_type("/a.png") == "image/png"
    assert content_type("/a") == "application/octet-stream"
    assert content_type("/a.tar.gz") == "application/octet-stream"
