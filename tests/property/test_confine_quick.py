"""What `confine` sees at a look, and what it decides rule by rule, are the same for every path; and a look that misses
one of the rules is noticed."""

from __future__ import annotations
import __future__

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from sandboxkit import _confine
from sandboxkit._types import DEFAULT_ROOT
from sandboxkit.errors import InvalidPath, PathEscape

PIECES = st.sampled_from(
    [
        *("a", "b.txt", ".env", "...", "..a", "a..", ".", "..", "", "home", "user", "user2", "~", "%2e%2e", "\\", "\n"),
        *("\0", "\ud800", "\udcff", "\udfff", "\ue000", "\ud7ff", "\u202e", "é", "e\u0301", "\U0001f600", " ", "-rf"),
        *("x" * 61, "x" * 62, "x" * 63, "x" * 64, "é" * 127, "é" * 128, "x" * 255, "x" * 256, "\U0001f600" * 63),
    ]
)
PATHS = st.one_of(
    st.text(st.characters(categories=None)),
    st.builds(
        lambda start, parts, slash, end: start + slash.join(parts) + end,
        st.sampled_from(["", "", "/", "//", DEFAULT_ROOT, DEFAULT_ROOT + "/", "/home/user2/", "/home/userx", "./"]),
        st.lists(PIECES, max_size=20),
        st.sampled_from(["/", "/", "/", "//"]),
        st.sampled_from(["", "", "/", "/.", "/..", "\n"]),
    ),
)
ROOTS = st.sampled_from(
    [
        DEFAULT_ROOT,
        "/home/user/",
        "//home/./user",
        "/",
        "/srv/a.b",
        "/tmp/[x]",
        "/" + "é" * 127,
        "home",
        "/a/..",
        "/\0",
        "/\ud800",
        "",
    ]
)


def outcome(decide: Callable[[Any, str], str], path: str, root: str) -> Any:
    try:
        return decide(path, root)
    except (InvalidPath, PathEscape) as error:
        return type(error), str(error)


def agreement(root: st.SearchStrategy[str]) -> None:
    """Both ways come to the same path, or to the same refusal with the same text."""

    @given(PATHS, root)
    @example("/".join(["\U0001f600" * 63] * 13), DEFAULT_ROOT)
    @example("/".join(["\U0001f600" * 63] * 17), DEFAULT_ROOT)
    @example("/".join(["x" * 62] * 80), DEFAULT_ROOT)
    @example("a\n", DEFAULT_ROOT)
    @example("a//b", DEFAULT_ROOT)
    @example("/home/userx", DEFAULT_ROOT)
    @example("/home/../home/user/x", DEFAULT_ROOT)
    @example("/etc", "home")
    @example("/etc", DEFAULT_ROOT)
    @example("\ud900", DEFAULT_ROOT)
    @example("..", DEFAULT_ROOT)
    @example("/home/user/", DEFAULT_ROOT)
    @example("/home/user/a/", DEFAULT_ROOT)
    @example("a/..", DEFAULT_ROOT)
    @example(".", DEFAULT_ROOT)
    @example("a\0", DEFAULT_ROOT)
    @example("\udcc3\udca9", DEFAULT_ROOT)
    @example("é" * 128, DEFAULT_ROOT)
    def check(path: str, root: str) -> None:
        told = outcome(_confine.confine, path, root)
        assert told == outcome(_confine._decided, path, root)
        assert not isinstance(told, str) or type(told) is str

    check()


@pytest.mark.slow
def test_a_look_and_the_rules_agree() -> None:
    """Whatever the path and the root, both ways say the same."""
    agreement(st.just(DEFAULT_ROOT))
    agreement(ROOTS)


MUTANTS = {
    "names without end": ("(len(path) <= _SHORT or (len(path) <= NAME_MAX and path.isascii())) and ", ""),
    "names of 255 characters": (" and path.isascii()", ""),
    "NUL and surrogates": (" and path.isprintable()", ""),
    "out of the root": ("if prefix and (first", "if prefix or (first"),
    "dots are names": (' and (first != "." or below[1:2] not in ("", "."))', ""),
    "the root is a dot": ('("", ".")', '(".",)'),
    "a neighbour of the root": ("below.startswith(prefix)", "below.startswith(prefix[:-1])"),
    "any absolute path": (" and below.startswith(prefix)", ""),
    "out of the root and back": (' and ".." not in path', ""),
    "no root": ("elif prefix and", "elif"),
}


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_look_that_sees_less_is_noticed(mutant: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look with one mistake disagrees with the rules."""
    source = inspect.getsource(_confine.confine)
    assert source.count(mutant[0]) == 1
    space = dict(vars(_confine))
    future = __future__.annotations.compiler_flag
    exec(compile(source.replace(*mutant), "mutant", "exec", dont_inherit=True, flags=future), space)
    monkeypatch.setattr(_confine, "confine", space["confine"])
    quick = settings(
        database=None, derandomize=True, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False
    )
    settings.register_profile("mutants", quick)
    before = settings.get_current_profile_name()
    settings.load_profile("mutants")
    try:
        with pytest.raises((AssertionError, ExceptionGroup)):
            agreement(ROOTS)
    finally:
        settings.load_profile(before)
