"""What `confine` sees at a look, and what it decides rule by rule, are the same for every path; and a look that misses
one of the rules is noticed."""

from __future__ import annotations

import re
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


NAME = r"\.?[^/.\0\ud800-\udfff][^/\0\ud800-\udfff]{0,61}+"
MUTANTS = {
    "dots are names": NAME.replace(r"\.?[^/.", "[^/"),
    "one dot more": NAME.replace(r"\.?", r"\.{0,2}").replace("[^/.", "[^/"),
    "slashes are in names": NAME.replace("[^/.", "[^."),
    "NUL": NAME.replace(r"\0", ""),
    "surrogates": NAME.replace(r"\ud800-\udfff", ""),
    "high surrogates only": NAME.replace(r"\udfff", r"\udbff"),
    "names without end": NAME.replace("{0,61}+", "*+"),
    "names of 255 characters": NAME.replace("{0,61}+", "{0,254}+"),
}


@pytest.mark.parametrize(
    "pattern",
    [
        *(rf"(?:/home/user/)?+{name}(?:/{name}){{0,11}}+" for name in MUTANTS.values()),
        rf"(?:/home/user/)?+{NAME}(?:/{NAME})*+",
        rf"(?:/home/user/?)?+{NAME}(?:/{NAME}){{0,11}}+",
        rf"(?:/home/user/)?+{NAME}(?:/{NAME}){{0,11}}+/?",
        rf"/?{NAME}(?:/{NAME}){{0,11}}+",
        rf"(?:/home/user/)?+{NAME}(?:/+{NAME}){{0,11}}+",
    ],
    ids=[
        *MUTANTS,
        "paths without end",
        "a neighbour of the root",
        "a slash at the end",
        "any absolute path",
        "slashes",
    ],
)
def test_a_look_that_sees_less_is_noticed(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pattern with one mistake disagrees with the rules."""
    monkeypatch.setattr(_confine, "_is_plain", re.compile(pattern).fullmatch)
    quick = settings(
        database=None, derandomize=True, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False
    )
    settings.register_profile("mutants", quick)
    before = settings.get_current_profile_name()
    settings.load_profile("mutants")
    try:
        with pytest.raises((AssertionError, ExceptionGroup)):
            agreement(st.just(DEFAULT_ROOT))
    finally:
        settings.load_profile(before)
