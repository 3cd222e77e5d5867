"""The kernel as the judge of the lexical guard: it accepts what stays below the root, and says the same place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandboxkit._confine import confine
from sandboxkit.errors import InvalidPath, PathEscape

ROOT = "/home/user"

names = st.one_of(
    st.sampled_from(
        ["a", "b", "..", "..", ".", "", "...", "..a", "user", "home", "user2", "~", "%2e%2e", "\\", "-rf", "\n"]
    ),
    st.sampled_from(
        [" ", "\u00e9", "e\u0301", "\uff0e\uff0e", "\udcff", "x" * 255, "x" * 256, "\u00e9" * 127, "\u00e9" * 128]
    ),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8),
)
prefixes = st.sampled_from(
    ["", "", "", "/", "//", ROOT, ROOT + "/", "/home/./user/", "//home//user/", "/home/user2/", "/home"]
)
paths = st.builds(
    lambda prefix, parts: prefix + "".join(part + slash for part, slash in parts),
    prefixes,
    st.lists(st.tuples(names, st.sampled_from(["/", "/", "//", "///"])), max_size=7),
)

JUDGE = r"""
import ctypes, json, os, sys
if os.getuid() != 0 and ctypes.CDLL(None, use_errno=True).unshare(0x10000000) != 0:
    sys.exit("no user namespace here")
top = sys.argv[1]
os.makedirs(top + "/home/user")
fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
os.chroot(top)
os.chdir("/home/user")
print("ready", flush=True)
for line in sys.stdin:
    raw, end, places = bytes.fromhex(line), 0, []
    for name in raw.split(b"/"):
        end += len(name) + 1
        so_far = raw[: end - 1] or (b"/" if raw.startswith(b"/") else b".")
        try:
            if name not in (b"", b".", b".."):
                os.makedirs(so_far, exist_ok=True)
            fd = os.open(so_far, os.O_PATH)
        except OSError as error:
            places = error.errno
            break
        places.append(os.readlink(str(fd).encode(), dir_fd=fds).hex())
        os.close(fd)
    print(json.dumps(places), flush=True)
"""


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], list[str] | int]]:
    """A process in a chroot: makes what a path's text needs and says where the kernel goes, part by part."""
    if not sys.platform.startswith("linux"):
        pytest.skip("chroot and O_PATH are Linux's")
    top = tmp_path_factory.mktemp("judge")
    with subprocess.Popen(
        [sys.executable, "-I", "-c", JUDGE, str(top)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip("no chroot without a user namespace, which this machine forbids")

        def ask(path: str) -> list[str] | int:
            print(os.fsencode(path).hex(), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())  # type: ignore[union-attr]
            return (
                answer
                if isinstance(answer, int)
                else [bytes.fromhex(place).decode("utf-8", "surrogateescape") for place in answer]
            )

        yield ask
        process.stdin.close()
        process.wait(timeout=10)


def allowed_by(path: str, places: list[str]) -> str | None:
    """Where a path may lead, judged by where the kernel went after each part: never out of the root again."""
    reached = not path.startswith("/")
    for name, place in zip(path.split("/"), places, strict=True):
        if not reached:
            # The kernel takes "/.." as "/"; above the root we accept no ".." at all.
            if name == ".." or place not in ("/", "/home", ROOT):
                return None
            reached = place == ROOT
        elif place != ROOT and not place.startswith(ROOT + "/"):
            return None
    return places[-1] if reached else None


@pytest.mark.slow
@given(path=paths)
@example(path="a/../../user/b")
@example(path="/home/user/../user2")
@example(path=ROOT + "/x/./..//")
def test_the_guard_goes_where_the_kernel_goes(judge: Callable[[str], list[str] | int], path: str) -> None:
    """In a tree without links, the guard accepts what stays below the root for the kernel, and says the same place."""
    places = judge(path)
    try:
        result: str | type[Exception] = confine(path)
    except (InvalidPath, PathEscape) as error:
        result = type(error)
    if isinstance(places, int):
        assert result is InvalidPath, os.strerror(places)
    else:
        assert result == (allowed_by(path, places) or PathEscape)
