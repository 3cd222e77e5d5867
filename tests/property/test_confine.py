"""Laws of the lexical guard, and mutants of the guard that the laws have to catch."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from sandboxkit import _confine
from sandboxkit.errors import InvalidPath, PathEscape

ROOT = "/home/user"
Guard = Callable[..., str]

# -- what paths are made of ---------------------------------------------------------------------------------------

NAMES = (
    *("a", "b", "...", "..a", "a..", ".hidden", "user", "home", "user2", "etc", "-rf", "~", "~root", "$HOME", "A"),
    *(" ", " a", "a ", "\n", "\t", "\x1b[2J", "%2e%2e", "%2f", "a\\..\\b", "\\", "C:", "*", "\u202e", "\u200b"),
    *("\u00e9", "e\u0301", "\uff0e\uff0e", "\uff0f", "\udcff", "\udcc3", "\udca9", "x" * 255, "\u00e9" * 127),
)
TOO_LONG = ("x" * 256, "\u00e9" * 128)

plain_names = st.one_of(
    st.sampled_from(NAMES),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name not in (".", "..")
    ),
)
names = st.one_of(plain_names, st.sampled_from([".", "..", "..", ""]), st.sampled_from(TOO_LONG))
prefixes = st.sampled_from(
    ["", "", "/", "//", ROOT, ROOT + "/", "/home/./user/", "//home//user/", "/home/user2/", "/home"]
)


@st.composite
def paths(draw: st.DrawFn) -> str:
    """Raw path texts, most of them near the root's edge."""
    parts = draw(st.lists(names, max_size=7))
    slashes = [draw(st.sampled_from(["/", "/", "//", "///"])) for _ in parts]
    text = "".join(part + slash for part, slash in zip(parts, slashes, strict=True))
    return draw(prefixes) + (text if draw(st.booleans()) else text.rstrip("/"))


class Raises:
    """A path-like whose `__fspath__` fails with what no path function expects."""

    __hash__ = None  # type: ignore[assignment]

    def __fspath__(self) -> str:
        raise ZeroDivisionError


class Returns:
    """A path-like that gives what it was made with, and counts how often it was asked."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.asked = 0

    def __fspath__(self) -> Any:
        self.asked += 1
        return self.value


class Liar(str):
    """A string whose methods say something else than what it is."""

    __slots__ = ()

    def encode(self, *args: object, **kwargs: object) -> bytes:
        return b"safe"

    def split(self, *args: object, **kwargs: object) -> list[str]:  # type: ignore[override]
        return ["safe"]

    def startswith(self, *args: object, **kwargs: object) -> bool:
        return False

    def __str__(self) -> str:
        return "safe"

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class ByteLiar(bytes):
    """The same for bytes."""

    def decode(self, *args: object, **kwargs: object) -> str:
        return "safe"


anything = st.one_of(
    paths(),
    st.text(),
    st.text(st.characters(categories=["Cs", "Cc"])),
    st.binary(),
    st.builds(lambda text: os.fsencode(text), paths()),
    st.builds(PurePosixPath, paths()),
    st.builds(PureWindowsPath, st.text(max_size=5)),
    st.builds(Liar, paths()),
    st.builds(Returns, st.one_of(paths(), st.binary(), st.integers(), st.none())),
    st.sampled_from([None, 0, 1.5, [], {}, (), bytearray(b"a"), memoryview(b"a"), object(), Raises(), str, Raises]),
)


def outcome(guard: Guard, path: Any) -> str | type[Exception]:
    """What the guard says: a path, or which refusal. Anything else is a failure of the law that asked."""
    try:
        result = guard(path)
    except (InvalidPath, PathEscape) as error:
        return type(error)
    except Exception as error:
        raise AssertionError(f"{path!r}: {error!r}") from error
    assert type(result) is str, repr(result)
    return result


def in_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


# -- the laws -----------------------------------------------------------------------------------------------------


def totality(guard: Guard) -> None:
    """Whatever is given, there is a path or a refusal, and never another exception."""

    @given(anything)
    @example("a\0b")
    @example("\ud800")
    @example("")
    def check(path: Any) -> None:
        result = outcome(guard, path)
        if isinstance(path, str) and "\0" in path:
            assert result is InvalidPath

    check()


def confinement(guard: Guard) -> None:
    """An accepted path is the root or below it, absolute, and has no empty, "." or ".." part and no NUL."""

    @given(anything)
    @example("../user2/x")
    @example("/home/userx")
    @example("../../etc/passwd")
    @example("//home/user/x")
    @example(ROOT + "/../../etc/passwd")
    def check(path: Any) -> None:
        result = outcome(guard, path)
        if isinstance(result, str):
            assert result == ROOT or result.startswith(ROOT + "/")
            assert not {"", ".", ".."} & set(result.split("/")[1:])
            assert "\0" not in result
            assert max(len(in_bytes(part)) for part in result.split("/")) <= 255
            assert len(in_bytes(result)) <= 4095

    check()


def idempotence(guard: Guard) -> None:
    """What was accepted is accepted again, unchanged."""

    @given(paths())
    @example("a%252fb")
    def check(path: str) -> None:
        result = outcome(guard, path)
        if isinstance(result, str):
            assert outcome(guard, result) == result

    check()


def two_steps(guard: Guard) -> None:
    """`p/q` is accepted exactly when p is and q then is below it: no prefix rises above the root."""

    @given(st.lists(names, max_size=4), st.lists(names, max_size=4))
    @example([".."], ["user", "x"])
    @example(["a", "..", ".."], ["user"])
    def check(first: list[str], second: list[str]) -> None:
        p, q = "/".join(first).lstrip("/"), "/".join(second).lstrip("/")
        head = outcome(guard, p)
        if not isinstance(head, str):
            assert not isinstance(outcome(guard, p + "/" + q if p else q), str)
        elif p and isinstance(whole := outcome(guard, p + "/" + q), str):
            assert outcome(guard, head + "/" + q) == whole

    check()


def preservation(guard: Guard) -> None:
    """Names come out byte for byte as they went in, all of them and in order; so different names stay different."""

    @given(st.lists(plain_names, min_size=1, max_size=5))
    @example([" a "])
    @example(["%2e%2e"])
    @example(["e\u0301"])
    @example(["~"])
    @example(["a\\..\\b"])
    @example(["\udcff"])
    @example(["A"])
    @example(["$HOME"])
    def check(parts: list[str]) -> None:
        result = outcome(guard, "/".join(parts))
        assert isinstance(result, str)
        assert in_bytes(result) == in_bytes(ROOT + "/" + "/".join(parts))

    check()


def types_agree(guard: Guard) -> None:
    """Text, bytes, subclasses of both and PurePosixPath of one path agree; path-likes are asked once."""

    @given(paths())
    @example("\udcc3\udca9")
    @example("../x")
    def check(path: str) -> None:
        expected = outcome(guard, path)
        assert outcome(guard, os.fsencode(path)) == expected
        assert outcome(guard, PurePosixPath(path)) == expected
        assert outcome(guard, Liar(path)) == expected
        assert outcome(guard, ByteLiar(os.fsencode(path))) == expected
        asked = Returns(path)
        assert outcome(guard, asked) == expected
        assert asked.asked == 1
        assert outcome(guard, PureWindowsPath("a")) is InvalidPath

    check()


def insertions(guard: Guard) -> None:
    """More slashes, "./" and "x/../" change nothing; the root in front changes nothing; enough ".." is refused."""

    @given(st.lists(names, min_size=1, max_size=6), st.data())
    @example([".."], None)
    def check(parts: list[str], data: Any) -> None:
        text = "/".join(parts).lstrip("/") or "."
        expected = outcome(guard, text)
        assert outcome(guard, ROOT + "/" + text) == expected
        assert outcome(guard, "/" + ROOT + "//" + text) == expected
        assert not isinstance(outcome(guard, text + "/.." * (len(parts) + 1)), str)
        if data is not None:
            at = data.draw(st.integers(0, len(text.split("/"))))
            extra = data.draw(st.sampled_from([["."], ["fresh", ".."], [".", "fresh", ".", "..", ""]]))
            split = text.split("/")
            inserted = "/".join([*split[:at], *extra, *split[at:]])
            assert outcome(guard, inserted) == expected

    check()


def absolute(guard: Guard) -> None:
    """An absolute path that does not begin with the root's own parts is refused, never taken as a relative one."""

    @given(paths())
    @example("/etc/passwd")
    @example("/home/userX/../user/a")
    @example("/../home/user/a")
    @example("/home")
    @example("/")
    def check(path: str) -> None:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") and parts[:2] != ["home", "user"]:
            assert not isinstance(outcome(guard, path), str)

    check()


def limits(guard: Guard) -> None:
    """A name may have 255 bytes and a path 4,095; one more is an InvalidPath."""
    assert isinstance(outcome(guard, "x" * 255), str)
    assert isinstance(outcome(guard, "\u00e9" * 127), str)
    assert outcome(guard, "x" * 256) is InvalidPath
    assert outcome(guard, "\u00e9" * 128) is InvalidPath
    assert outcome(guard, "x" * 256 + "/..") is InvalidPath
    room = 4095 - len(ROOT)
    longest = "/a" * (room // 2)
    assert outcome(guard, "." + longest) == ROOT + longest
    assert outcome(guard, "." + longest + "/a") is InvalidPath


LAWS = (totality, confinement, idempotence, two_steps, preservation, types_agree, insertions, absolute, limits)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_guard_keeps_the_law(law: Callable[[Guard], None]) -> None:
    """The guard keeps each law above (their docstrings say which)."""
    law(_confine.confine)


# -- the laws have teeth ------------------------------------------------------------------------------------------


def _collapsed(path: Any) -> str:
    return posixpath.normpath(posixpath.join(ROOT, _confine._text(path)))


def prefix_without_separator(path: Any) -> str:
    if not _collapsed(path).startswith(ROOT):
        raise PathEscape("", path=path)
    return _collapsed(path)


def normpath_only(path: Any) -> str:
    collapsed = _collapsed(path)
    if ".." in collapsed.split("/"):
        raise PathEscape("", path=path)
    return collapsed


def may_come_back(path: Any) -> str:
    """The separator is minded, but "../user/x" is collapsed before it is looked at."""
    _confine.confine(_collapsed(path))
    return _confine.confine(_collapsed(path))


def on_text(change: Callable[[str], str]) -> Guard:
    """The guard over changed text; where that is not text, as it is."""

    def mutant(path: Any) -> str:
        return _confine.confine(change(path) if type(path) is str else path)

    return mutant


def asks_twice(path: Any) -> str:
    if hasattr(type(path), "__fspath__"):
        _confine.confine(path)
    return _confine.confine(path)


def takes_windows_paths(path: Any) -> str:
    return _confine.confine(path.as_posix() if isinstance(path, PureWindowsPath) else path)


def believes_subclasses(path: Any) -> str:
    return _confine.confine(str(path) if isinstance(path, str) else path)


def reroots_absolute(path: Any) -> str:
    try:
        return _confine.confine(path)
    except PathEscape:
        if isinstance(path, str) and path.startswith("/"):
            return _confine.confine(path.lstrip("/"))
        raise


def counts_characters(path: Any) -> str:
    text = _confine._text(path)
    if any(len(part) > 255 for part in text.split("/")):
        raise InvalidPath("", path=path)
    saved, _confine.NAME_MAX = _confine.NAME_MAX, 1 << 30
    try:
        return _confine._decided(text, ROOT)  # `confine` would remember it, for the laws of others
    finally:
        _confine.NAME_MAX = saved


def no_path_limit(path: Any) -> str:
    saved, _confine.PATH_MAX = _confine.PATH_MAX, 1 << 30
    try:
        return _confine._decided(path, ROOT)
    finally:
        _confine.PATH_MAX = saved


def stops_at_nul(path: Any) -> str:
    return _confine.confine(path.split("\0")[0] if type(path) is str else path)


def lets_type_errors_out(path: Any) -> str:
    return _confine.confine(os.fspath(path))


MUTANTS: dict[str, Guard] = {
    "prefix_without_separator": prefix_without_separator,
    "normpath_only": normpath_only,
    "may_come_back": may_come_back,
    "strip": on_text(str.strip),
    "unquote": on_text(unquote),
    "unquote_bytes": on_text(lambda text: unquote(text, errors="surrogateescape")),
    "lower": on_text(str.lower),
    "nfc": on_text(lambda text: unicodedata.normalize("NFC", text)),
    "nfkc": on_text(lambda text: unicodedata.normalize("NFKC", text)),
    "expands_tilde": on_text(lambda text: ROOT + text[1:] if text.startswith("~") else text),
    "expands_variables": on_text(lambda text: text.replace("$HOME", ROOT)),
    "backslash_is_slash": on_text(lambda text: text.replace("\\", "/")),
    "clamps_dots": on_text(lambda text: "/".join(part for part in text.split("/") if part != "..")),
    "asks_twice": asks_twice,
    "takes_windows_paths": takes_windows_paths,
    "believes_subclasses": believes_subclasses,
    "reroots_absolute": reroots_absolute,
    "counts_characters": counts_characters,
    "no_path_limit": no_path_limit,
    "stops_at_nul": stops_at_nul,
    "lets_type_errors_out": lets_type_errors_out,
}


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_the_laws_catch(mutant: Guard) -> None:
    """Each guard with one known mistake breaks at least one law."""
    quick = settings(
        database=None, derandomize=True, phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False
    )
    settings.register_profile("mutants", quick)
    before = settings.get_current_profile_name()
    settings.load_profile("mutants")
    try:
        assert any(_breaks(law, mutant) for law in LAWS)
    finally:
        settings.load_profile(before)


def _breaks(law: Callable[[Guard], None], mutant: Guard) -> bool:
    try:
        law(mutant)
    except (AssertionError, ExceptionGroup):
        return True
    return False
