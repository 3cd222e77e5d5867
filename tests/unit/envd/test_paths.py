"""envd's reading of paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxkit.local.envd._paths import BadPath, resolve


def at(path: str, workdir: str = "/work") -> str:
    return resolve(path, home="/home/user", workdir=workdir, user="user")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("", "/work"),
        ("/etc/../x", "/etc/../x"),
        ("//x", "//x"),
        ("/", "/"),
        ("~", "/home/user"),
        ("~/", "/home/user"),
        ("~/a/../b", "/home/user/b"),
        ("~\\a", "/home/user/\\a"),
        ("a", "/home/user/a"),
        ("a//b/./c", "/home/user/a/b/c"),
        ("../../etc/passwd", "/etc/passwd"),
        ("../../../../..", "/"),
        (".", "/home/user"),
        (" a ", "/home/user/ a "),
        ("a~", "/home/user/a~"),
    ],
)
def test_a_path_is_read_as_envd_reads_it(path: str, meant: str) -> None:
    """Empty is the working directory, absolute is left alone, the rest lies beneath the home and is cleaned."""
    assert at(path) == meant


@pytest.mark.parametrize("path", ["~bob", "~bob/x", "~~"])
def test_another_users_home_is_refused(path: str) -> None:
    """`~name` is an error that says so."""
    with pytest.raises(BadPath, match="cannot expand user-specific home dir"):
        at(path)


def test_a_working_directory_may_be_relative_to_the_home() -> None:
    """The default working directory passes the same rules as a client's path."""
    assert at("", workdir="~/project") == "/home/user/project"


@given(st.text())
def test_every_text_is_an_absolute_path_or_refused(path: str) -> None:
    """No text makes another exception, and whatever comes out is absolute and free of NUL."""
    try:
        meant = at(path)
    except BadPath:
        assert "\0" in path or path.startswith("~")
    else:
        assert meant.startswith("/")
        assert "\0" not in meant
        if not path.startswith("/"):
            assert ".." not in meant.split("/")
