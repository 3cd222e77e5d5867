"""How a directory entry is shown."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.envd._entries import entry_info, go_permissions, timestamp
from sandboxkit.local.isolation._base import Entry


def entry(**facts: Any) -> Entry:
    plain = {"name": "x", "path": "/x", "mode": stat.S_IFREG | 0o644, "size": 4, "uid": 1000, "gid": 1000}
    return Entry(**{**plain, "mtime_ns": 0, **facts})


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFDIR | 0o755, "drwxr-xr-x"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFREG | 0o2755, "grwxr-xr-x"),
        (stat.S_IFIFO | 0o600, "prw-------"),
        (stat.S_IFSOCK | 0o600, "Srw-------"),
        (stat.S_IFBLK | 0o660, "Drw-rw----"),
        (stat.S_IFCHR | 0o666, "Dcrw-rw-rw-"),
        (stat.S_IFREG, "----------"),
    ],
)
def test_permissions_are_printed_as_go_prints_them(mode: int, text: str) -> None:
    """A mode shows in the letters of Go's FileMode."""
    assert go_permissions(mode) == text


def test_a_file_shows_as_entry_info() -> None:
    """Size is a string, the owner a name, the mode the nine bits alone."""
    assert entry_info(entry(mode=stat.S_IFREG | 0o4644, xattrs={"author": "me"})) == {
        "name": "x",
        "path": "/x",
        "type": "FILE_TYPE_FILE",
        "size": "4",
        "mode": 0o644,
        "permissions": "urw-r--r--",
        "owner": "user",
        "group": "user",
        "modifiedTime": "1970-01-01T00:00:00Z",
        "metadata": {"author": "me"},
    }


def test_a_link_shows_the_type_of_its_target() -> None:
    """Type and mode are the target's, size and permissions the link's own; symlinkTarget says where it leads."""
    link = entry(mode=stat.S_IFLNK | 0o777, size=7, link_target="/home/user/d", target_mode=stat.S_IFDIR | 0o750)
    info = entry_info(link)
    assert (info["type"], info["mode"]) == ("FILE_TYPE_DIRECTORY", 0o750)
    assert (info["permissions"], info["size"]) == ("Lrwxrwxrwx", "7")
    assert info["symlinkTarget"] == "/home/user/d"


def test_a_dangling_link_has_no_type() -> None:
    """What leads nowhere names itself as its target and has no type, as in envd."""
    info = entry_info(entry(mode=stat.S_IFLNK | 0o777, link_target="/x"))
    assert "type" not in info
    assert info["symlinkTarget"] == "/x"


def test_zero_values_are_left_out() -> None:
    """proto3 JSON omits what has its default."""
    info = entry_info(entry(mode=stat.S_IFIFO, size=0))
    assert not {"type", "size", "mode", "symlinkTarget", "metadata"} & info.keys()


def test_unknown_owners_show_as_numbers() -> None:
    """An owner without a name shows as its number, like a lookup that fails."""
    assert (entry_info(entry(uid=4242))["owner"], entry_info(entry(gid=7))["group"]) == ("4242", "7")
    assert entry_info(entry(uid=65534, gid=65534))["owner"] == "nobody"


def test_a_name_that_is_not_utf8_does_not_break_the_answer() -> None:
    """Undecodable bytes become U+FFFD, so that one name cannot fail a whole listing."""
    info = entry_info(entry(name="a\udcff", path="/a\udcff"))
    assert (info["name"], info["path"]) == ("a�", "/a�")


@given(st.integers(-(2**63), 2**63 - 1))
def test_every_time_is_one_that_clients_can_read(ns: int) -> None:
    """A modification time from anywhere in the kernel's range is an RFC 3339 time within protobuf's."""
    text = timestamp(ns)
    assert text.endswith("Z")
    whole, _, fraction = text[:-1].partition(".")
    seconds = (datetime.fromisoformat(whole).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    assert seconds == ns // 10**9
    assert int(fraction or 0) == ns % 10**9
