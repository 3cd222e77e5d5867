"""The guard's table: one line per decision that a reader may want to look up."""

from __future__ import annotations

import pickle
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest

from sandboxkit._confine import confine, require_plain_names
from sandboxkit.errors import InvalidPath, PathEscape, SafeFSError

ROOT = "/home/user"


@pytest.mark.parametrize(
    ("path", "result"),
    [
        ("a", "/home/user/a"),
        ("a/b.txt", "/home/user/a/b.txt"),
        ("", ROOT),
        (".", ROOT),
        ("./", ROOT),
        ("/home/user", ROOT),
        ("/home/user/", ROOT),
        ("/home/user/a", "/home/user/a"),
        ("//home/user/a", "/home/user/a"),
        ("///home//./user/a//b/", "/home/user/a/b"),
        ("a/../b", "/home/user/b"),
        ("a/b/../..", ROOT),
        ("/home/user/a/..", ROOT),
        ("...", "/home/user/..."),
        ("..a", "/home/user/..a"),
        ("~/x", "/home/user/~/x"),
        ("$HOME", "/home/user/$HOME"),
        ("%2e%2e/x", "/home/user/%2e%2e/x"),
        ("a\\..\\b", "/home/user/a\\..\\b"),
        (" a ", "/home/user/ a "),
        ("a\nb", "/home/user/a\nb"),
        ("home/user", "/home/user/home/user"),
        ("\uff0e\uff0e/x", "/home/user/\uff0e\uff0e/x"),
        (b"a\xff", "/home/user/a\udcff"),
        ("a\udcff", "/home/user/a\udcff"),
        (PurePosixPath("a/b"), "/home/user/a/b"),
        (PurePosixPath("//home/user/a"), "/home/user/a"),
    ],
)
def test_accepts(path: Any, result: str) -> None:
    """The path is accepted, and this is what is sent."""
    assert confine(path) == result


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../",
        "../x",
        "../../etc/passwd",
        "../user/x",
        "a/../../user/x",
        "/",
        "//",
        "/home",
        "/etc/passwd",
        "/proc/self/environ",
        "/home/user2/x",
        "/home/userX/../user/a",
        "/home/user/../../etc/passwd",
        "/home/user/../user/x",
        "/../home/user/x",
        "/home/../home/user",
        b"../x",
        PurePosixPath("../x"),
    ],
)
def test_refuses_what_leads_out(path: Any) -> None:
    """The path leads out of the root, be it only on the way: PathEscape, which is a ValueError and names the path."""
    with pytest.raises(PathEscape) as caught:
        confine(path)
    assert caught.value.path is path
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SafeFSError)


@pytest.mark.parametrize(
    "path",
    [
        "a\0",
        "\0",
        "\ud800",
        "a/\udfff",
        b"a\0b",
        None,
        3,
        1.5,
        True,
        [],
        {},
        (),
        {"a"},
        object(),
        bytearray(b"a"),
        str,
        PureWindowsPath("a"),
        PureWindowsPath("C:/x"),
        "x" * 256,
        "x" * 256 + "/..",
        "a/" * 2100,
        memoryview(b"a"),
    ],
    ids=lambda path: ascii(path)[:20],
)
def test_refuses_what_is_no_path(path: Any) -> None:
    """What cannot name a file is an InvalidPath, of whatever type it is."""
    with pytest.raises(InvalidPath):
        confine(path)


@pytest.mark.parametrize("root", ["", "home", "home/user", "/a/../b", "/a\0", None, 3, [], "/\ud800"])
def test_refuses_a_root_that_is_none(root: Any) -> None:
    """A root that is no absolute path is an InvalidPath too, never another exception."""
    with pytest.raises(InvalidPath):
        confine("a", root)


@pytest.mark.parametrize(
    ("path", "root", "result"),
    [
        ("x", "/", "/x"),
        ("/x/y", "/", "/x/y"),
        ("/", "/", "/"),
        ("x", "/srv//data/", "/srv/data/x"),
        ("/srv/data/x", "/srv/./data", "/srv/data/x"),
    ],
)
def test_other_roots(path: str, root: str, result: str) -> None:
    """Any absolute directory can be the root, "/" included; it is normalised like a path."""
    assert confine(path, root) == result


def test_nothing_lies_above_the_root_of_all() -> None:
    """At the root "/" too, ".." is refused instead of clamped."""
    with pytest.raises(PathEscape):
        confine("..", "/")


@pytest.mark.parametrize("path", ["\x1b[2Jevil/../..", "\u202egpj.exe/../..", "\ud800", "a\nb\0"])
def test_messages_are_ascii(path: str) -> None:
    """A message shows the path escaped: no terminal code, bidirectional mark or line break of its own."""
    with pytest.raises(SafeFSError) as caught:
        confine(path)
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_messages_are_short() -> None:
    """A path of a megabyte does not become a message of a megabyte."""
    with pytest.raises(SafeFSError) as caught:
        confine("../" * 1_000_000)
    assert len(str(caught.value)) < 500


def test_errors_can_be_pickled() -> None:
    """A refusal crosses process boundaries with its path."""
    with pytest.raises(PathEscape) as caught:
        confine("../x")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is PathEscape
    assert again.path == "../x"
    assert str(again) == str(caught.value)


class _Metaclass(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ZeroDivisionError


class _Nameless(metaclass=_Metaclass):
    pass


def test_a_type_without_a_name_is_refused_like_any_other() -> None:
    """Even a class that raises when asked for its name gives an InvalidPath."""
    with pytest.raises(InvalidPath, match="_Nameless"):
        confine(_Nameless())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\x7f", "\x85", "\u202eb", "\u200f", "\u2066", "\u061c", "a\\b"])
def test_strict_names_refuse(name: str) -> None:
    """Strict names have no control, no bidirectional mark, no backslash; the message says which character it was."""
    assert confine(name) == f"{ROOT}/{name}"
    with pytest.raises(InvalidPath, match=r"U\+[0-9A-F]{4}") as caught:
        require_plain_names(confine(name), name)
    assert caught.value.path == name
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    "name", ["a b", "\u00e9", "e\u0301", "\u65e5\u672c", "-rf", "~", "%0a", "\U0001f600", "\u0645"]
)
def test_strict_names_accept(name: str) -> None:
    """Strict names may be of any script, with blanks and signs."""
    require_plain_names(confine(name), name)
