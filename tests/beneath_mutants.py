"""Guards with one known mistake each: whole ones, as people write them, and ours with one line changed."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import unquote_to_bytes

from beneath_tools import World, errno_of, no_openat2

MODULES = ("_removal", "_beneath", "_described", "_confined")
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Subject:
    """Our own guard, on one world."""

    def __init__(self, made: World, *, way: str = "openat2") -> None:
        self.made = made
        self.kernel = no_openat2() if way == "walk" else None

    def do(self, operation: str, path: bytes, *args: Any) -> Any:
        """An operation's fields, or the name of its errno."""
        return self.made.do(operation, path, *args, kernel=self.kernel)


class Wrong(Subject):
    """Another way to read, and the rest of ours."""

    def do(self, operation: str, path: bytes, *args: Any) -> Any:
        if operation != "read":
            return super().do(operation, path, *args)
        return errno_of(lambda: self.read_from(self.opened(path)))

    def read_from(self, fd: int) -> list[Any]:
        try:
            info = os.fstat(fd)
            return [info.st_size, b"%d:%d:0:0" % (info.st_dev, info.st_ino), os.read(fd, 100)]
        finally:
            os.close(fd)

    def opened(self, path: bytes) -> int:
        raise NotImplementedError

    def full(self, path: bytes) -> bytes:
        return self.made.root + b"/" + path


class PrefixWithoutSeparator(Wrong):
    """The real path has to begin with the root's text."""

    def opened(self, path: bytes) -> int:
        real = os.path.realpath(self.full(path))
        if not real.startswith(self.made.root):
            raise PermissionError
        return os.open(real, FLAGS)


class NormpathOnly(Wrong):
    """The text is normalised, and that is all."""

    def opened(self, path: bytes) -> int:
        return os.open(os.path.normpath(self.full(path)), FLAGS)


class RealpathThenOpen(Wrong):
    """Looks where the path leads, then opens the path."""

    def opened(self, path: bytes) -> int:
        real = os.path.realpath(self.full(path), strict=True)
        if not real.startswith(self.made.root + b"/"):
            raise PermissionError
        return os.open(self.full(path), FLAGS)


class RealpathThatStops(Wrong):
    """realpath(strict=False) says nothing of what comes after a name that it could not look at."""

    def opened(self, path: bytes) -> int:
        real = os.path.realpath(self.full(path))
        if not real.startswith(self.made.root + b"/"):
            raise PermissionError
        return os.open(self.full(path), FLAGS)


class NofollowWithASlash(Wrong):
    """O_NOFOLLOW for directories that are named with a slash at their end, which follows them."""

    def opened(self, path: bytes) -> int:
        fd = os.open(self.made.root, os.O_PATH | os.O_DIRECTORY)
        *directories, name = path.split(b"/")
        for directory in directories:
            below = os.open(directory + b"/", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        try:
            return os.open(name, FLAGS | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)


class NoFstat(Subject):
    """Reads what was opened, be it a pipe: an empty file, it says."""

    def do(self, operation: str, path: bytes, *args: Any) -> Any:
        told = super().do(operation, path, *args)
        if operation == "read" and told == "EMEDIUMTYPE":
            return [0, b"0:0:0:0", b""]
        return told


class InPlace(Subject):
    """Writes into the file that has the name."""

    def do(self, operation: str, path: bytes, *args: Any) -> Any:
        if operation != "write" or super().do("stat", path) in ("ENOENT", "EXDEV"):
            return super().do(operation, path, *args)

        def write() -> list[Any]:
            fd = os.open(self.made.root + b"/" + path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_TRUNC)
            try:
                os.write(fd, args[0])
            finally:
                os.close(fd)
            return []

        return errno_of(write)


class Strip(Subject):
    """Blanks at the ends of a path are taken off."""

    def do(self, operation: str, path: bytes, *args: Any) -> Any:
        return super().do(operation, path.strip(), *args)


class Unquote(Subject):
    """Percent signs are decoded after the check."""

    def do(self, operation: str, path: bytes, *args: Any) -> Any:
        return super().do(operation, unquote_to_bytes(path), *args)


CHANGED = {
    "openat2 without BENEATH": ("_beneath", "RESOLVE = 0x08 | 0x02 | 0x01", "RESOLVE = 0x02 | 0x01", "openat2"),
    "dots above the root": (
        "_beneath",
        "                        raise fail(errno.EXDEV)\n                    os.close(stack.pop())",
        "                        where.append(b'')\n"
        "                        stack.insert(0, os.open(b'..', DIRECTORY, dir_fd=stack[0]))\n"
        "                    os.close(stack.pop())",
        "walk",
    ),
    "any absolute link": (
        "_beneath",
        "if parts[: len(self.parts)] != self.parts:\n                raise fail(errno.EXDEV)\n",
        "pass\n",
        "walk",
    ),
    "steps that follow": ("_beneath", "flags |= os.O_NOFOLLOW | os.O_CLOEXEC\n", "flags |= os.O_CLOEXEC\n", "walk"),
    "no look at the type": ("_confined", "if not stat.S_ISREG(info.st_mode):", "if 0:", "openat2"),
    "a link is taken for its target": (
        "_described",
        "facts(root.step(name, directory, os.O_PATH))",
        "os.stat(name, dir_fd=directory)",
        "openat2",
    ),
}
"""Of our own guard: a module, a piece of its text and what stands there instead, and the way in which it matters."""


def changed(name: str) -> Callable[[World], Subject]:
    """Our guard with one piece of its text exchanged."""
    where, old, new, way = CHANGED[name]
    folder = files("sandboxkit").joinpath("local", "agent")
    package = types.ModuleType("mutated")
    package.__path__ = []
    sys.modules["mutated"] = package
    for module in MODULES:
        text = folder.joinpath(f"{module}.py").read_text("utf-8")
        if module == where:
            assert text.count(old) >= 1, f"{name}: {old!r} is no text of {module} any more"
            text = text.replace(old, new)
        made = types.ModuleType(f"mutated.{module}")
        made.__package__ = "mutated"
        sys.modules[made.__name__] = made
        setattr(package, module, made)
        exec(compile(text, f"mutated/{module}.py", "exec"), made.__dict__)

    class Changed(Subject):
        def __init__(self, world: World) -> None:
            super().__init__(world, way=way)
            self.beneath, self.confined = sys.modules["mutated._beneath"], sys.modules["mutated._confined"]
            self.beneath.KERNEL.missing = way == "walk"  # type: ignore[attr-defined]

        def do(self, operation: str, path: bytes, *args: Any) -> Any:
            return self.made.do(operation, path, *args, confined=self.confined)

    return Changed


MUTANTS: dict[str, Callable[[World], Subject]] = {
    "prefix without separator": PrefixWithoutSeparator,
    "normpath only": NormpathOnly,
    "realpath then open": RealpathThenOpen,
    "O_NOFOLLOW with a slash": NofollowWithASlash,
    "missing fstat": NoFstat,
    "in-place write": InPlace,
    "realpath that is not strict": RealpathThatStops,
    "strip": Strip,
    "unquote": Unquote,
    **{name: (lambda made, name=name: changed(name)(made)) for name in CHANGED},
}
QUICK = frozenset(
    {"prefix without separator", "normpath only", "O_NOFOLLOW with a slash", "missing fstat", "in-place write"}
)
"""Those that are found without a race, within a moment."""
