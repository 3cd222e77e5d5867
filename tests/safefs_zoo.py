"""A tree with everything in it that a path may meet, and what the written policy says of each."""

from __future__ import annotations

import os
import socket
from typing import Any

from beneath_tools import World

from sandboxkit.errors import (
    InvalidPath,
    IsADirectory,
    LinkEscape,
    NotADirectory,
    NotFound,
    PathEscape,
    SpecialFile,
)

SHARED = b"two names, one file"
NAMES = (
    *(" ", "  a  ", "\t", "two\nlines", "end\n", "\r", "\x01", "\x7f", "\x1b[2J", "\u202e", "\u200b", "\ufeff"),
    *("-rf", "--", "-", "~", "~root", "$HOME", "`id`", "$(id)", "a'b\"c", "*", "?", "[a]", "{a,b}", "a;b", "a&b", "#"),
    *("...", "..a", "a..", ".hidden", ".sandboxkit-x.part", "\\", "a\\..\\b", "C:", "CON", "nul", "%2e%2e", "%00"),
    *("\u00e9", "e\u0301", "\uff0e\uff0e", "\uff0f", "\u2215", "A", "a", "\U0001f600", "x" * 255, "\u00e9" * 127),
    *("\udcff", "\udcc3", "a\udc80b"),
)
"""Names that are names, and nothing else."""

LINKS: dict[str, Any] = {
    # inside: what is read through them
    "rel": (b"f", b"in"),
    "rel-deep": (b"d/g", b"deep"),
    "rel-dot": (b"./f", b"in"),
    "rel-slashes": (b"d//e/..///g", b"deep"),
    "rel-updown": (b"d/../f", b"in"),
    "rel-through": (b"dirlink/g", b"deep"),
    "abs": (b"ROOT/f", b"in"),
    "abs-slashes": (b"/ROOT//d/./g", b"deep"),
    "abs-updown": (b"ROOT/d/../f", b"in"),
    "chain-40": (b"c1", b"in"),
    # directories
    "dirlink": (b"d", IsADirectory),
    "dir-slash": (b"d/", IsADirectory),
    "dir-dot": (b"d/.", IsADirectory),
    "dir-up": (b"d/..", IsADirectory),
    "here": (b".", IsADirectory),
    "abs-root": (b"ROOT", IsADirectory),
    "abs-root-slash": (b"ROOT/", IsADirectory),
    # out, or out and back
    "out": (b"../outside/secret", LinkEscape),
    "out-abs": (b"OUT/secret", LinkEscape),
    "out-dir": (b"../outside", LinkEscape),
    "out-none": (b"../outside/none", LinkEscape),
    "out-abs-none": (b"OUT/none", LinkEscape),
    "out-up": (b"..", LinkEscape),
    "out-late": (b"d/../../outside/secret", LinkEscape),
    "out-many": (b"../" * 40 + b"etc/passwd", LinkEscape),
    "out-and-back": (b"../root/f", LinkEscape),
    "out-and-back-abs": (b"ROOT/../root/f", LinkEscape),
    "neighbour": (b"ROOTx/secret", LinkEscape),
    "etc": (b"/etc/passwd", LinkEscape),
    "slash": (b"/", LinkEscape),
    "slashes": (b"//", LinkEscape),
    "proc-root": (b"/proc/self/root", LinkEscape),
    "proc-cwd": (b"/proc/self/cwd", LinkEscape),
    "proc-fd": (b"/proc/self/fd/0", LinkEscape),
    "proc-environ": (b"/proc/self/environ", LinkEscape),
    "dev-stdin": (b"/dev/stdin", LinkEscape),
    "over-link": (b"out-dir/secret", LinkEscape),
    "to-link": (b"out", LinkEscape),
    # nowhere
    "dangling": (b"nothing", NotFound),
    "dangling-deep": (b"nothing/at/all", NotFound),
    "dangling-up": (b"nothing/../f", NotFound),
    "dangling-abs": (b"ROOT/nothing", NotFound),
    "dangling-long": (b"x" * 255, NotFound),
    "dangling-longer": (b"a/" * 2040 + b"f", NotFound),
    "loop": (b"loop", NotFound),
    "loop-a": (b"loop-b", NotFound),
    "loop-b": (b"loop-a", NotFound),
    "loop-deep": (b"./loop-deep/x", NotFound),
    "chain-41": (b"chain-40", NotFound),
    # through what is no directory, and what is no name
    "through-file": (b"f/x", NotADirectory),
    "file-slash": (b"f/", NotADirectory),
    "file-dot": (b"f/.", NotADirectory),
    "file-up": (b"f/../f", NotADirectory),
    "too-long": (b"x" * 256, InvalidPath),
    "to-fifo": (b"fifo", SpecialFile),
}
"""What each link says, and what a read of it comes to."""

READS: dict[str, Any] = {
    "f": b"in",
    "d/g": b"deep",
    "./f": b"in",
    "//f": PathEscape,
    "d//g": b"deep",
    "d/./g": b"deep",
    "f/": b"in",
    "f/.": b"in",
    "d/../f": b"in",
    "nothing/../f": b"in",
    "out-dir/../f": b"in",
    "f/../d/g": b"deep",
    "": IsADirectory,
    ".": IsADirectory,
    "d": IsADirectory,
    "d/e/..": IsADirectory,
    "dirlink/g": b"deep",
    "dirlink/../f": b"in",
    "abs-root/d/g": b"deep",
    "here/here/here/f": b"in",
    "dir-up/f": b"in",
    "nothing": NotFound,
    "nothing/x": NotFound,
    "f/x": NotADirectory,
    "f/x/..": b"in",
    "fifo": SpecialFile,
    "fifo/x": NotADirectory,
    "sock": SpecialFile,
    "hard": SHARED,
    "out-dir/secret": LinkEscape,
    "out-dir/none": LinkEscape,
    "out-up/root/f": LinkEscape,
    "out-none/x": LinkEscape,
    "slash/etc/passwd": LinkEscape,
    "proc-root/etc/passwd": LinkEscape,
    "loop/x": NotFound,
    "dangling/x": NotFound,
    "too-long/x": InvalidPath,
    "..": PathEscape,
    "../root/f": PathEscape,
    "d/../../root/f": PathEscape,
    "../../../../etc/passwd": PathEscape,
    "/etc/passwd": PathEscape,
    "/": PathEscape,
    "/proc/self/root": PathEscape,
    "ROOT": IsADirectory,
    "ROOT/f": b"in",
    "/ROOT//d/../f": b"in",
    "ROOT/../root/f": PathEscape,
    "ROOTx/secret": PathEscape,
    "~/f": NotFound,
    "F": NotFound,
    "f ": NotFound,
    " f": NotFound,
    "f\\": NotFound,
    "d\\g": NotFound,
    "%66": NotFound,
    "\uff46": NotFound,
    "x" * 255: NotFound,
    "x" * 256: InvalidPath,
    "x" * 256 + "/../f": InvalidPath,
    "\u00e9" * 128: InvalidPath,
    "a/" * 2100: InvalidPath,
    "f\0": InvalidPath,
    "\0": InvalidPath,
    "f\0/../x": InvalidPath,
    "\ud800": InvalidPath,
    **{name: outcome for name, (_, outcome) in LINKS.items()},
}
"""What a read of each path comes to."""


def written(path: str) -> Any:
    """What a write to the path comes to; None where it is done."""
    outcome = READS[path]
    if path in ("x" * 255, "nothing", "nothing/x", "~/f", "F", "f ", " f", "f\\", "d\\g", "%66", "\uff46"):
        return None
    if outcome is NotFound:
        return NotADirectory if path == "loop/x" or path == "dangling/x" else SpecialFile
    return None if isinstance(outcome, bytes) else outcome


def there(path: str) -> Any:
    """What `exists` says of it."""
    outcome = READS[path]
    if isinstance(outcome, bytes) or outcome in (IsADirectory, SpecialFile):
        return True
    return False if outcome in (NotFound, NotADirectory) else outcome


def plant(made: World) -> None:
    """The tree."""
    root = made.root
    os.makedirs(root + b"/d/e")
    for name, data in ((b"f", b"in"), (b"d/g", b"deep")):
        with open(root + b"/" + name, "wb") as file:
            file.write(data)
    with open(made.out + b"/shared", "wb") as file:
        file.write(SHARED)
    os.link(made.out + b"/shared", root + b"/hard")
    os.mkfifo(root + b"/fifo")
    with socket.socket(socket.AF_UNIX) as bound:  # a path of a socket is short, wherever the tests' directory lies
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        os.chdir(root)
        try:
            bound.bind("sock")
        finally:
            os.fchdir(before)
            os.close(before)
    for number in range(1, 40):
        os.symlink(b"c%d" % (number + 1) if number < 39 else b"f", root + b"/c%d" % number)
    for name, (text, _) in LINKS.items():
        os.symlink(made.meant(text), root + b"/" + os.fsencode(name))
