"""The fake sandbox's shell: a handful of commands over the tree in memory, for tests only.

Knows `;`, `&&`, `||`, `>&2`, `> file`, single and double quotes, `$NAME` and `$?`, and the commands in `_COMMANDS`;
anything else is "command not found" with exit code 127, as in a real shell.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import anyio
import anyio.lowlevel

from sandboxkit._types import DEFAULT_ROOT
from sandboxkit.errors import SafeFSError
from sandboxkit.testing._files import Tree

Write = Callable[[Literal["stdout", "stderr"], str], Awaitable[None]]
ReadLine = Callable[[], Awaitable[str]]


class _Exit(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class FakeShell:
    """One run of one command line."""

    def __init__(self, tree: Tree, envs: Mapping[str, str], cwd: str | None, write: Write, read_line: ReadLine) -> None:
        self._tree = tree
        self._cwd = cwd or DEFAULT_ROOT
        self._envs = {"HOME": DEFAULT_ROOT, "USER": "user", **envs}
        self._write = write
        self._read_line = read_line
        self._status = 0
        self._steps: list[tuple[str, list[str]]] | None = None
        self._sleeps_for: float | None = None

    async def run(self, line: str) -> int:
        """Carry out the whole line; the exit code. Run again after a cancellation, it goes on where it was."""
        try:
            if self._steps is None:
                self._steps = list(_split(line))
            while self._steps:
                joint, words = self._steps[0]
                if not (joint == "&&" and self._status) and not (joint == "||" and not self._status):
                    await anyio.lowlevel.checkpoint()
                    self._status = await self._simple([self._expand(word) for word in words])
                del self._steps[0]
        except _Exit as leave:
            return leave.code
        except ValueError as error:
            await self._write("stderr", f"bash: {error}\n")
            return 2
        return self._status

    async def _simple(self, words: list[str]) -> int:
        stream: Literal["stdout", "stderr"] = "stdout"
        target: str | None = None
        if words and words[-1] == ">&2":
            words, stream = words[:-1], "stderr"
        if len(words) > 2 and words[-2] == ">":
            words, target = words[:-2], self._path(words[-1])
        name, *args = words or [""]
        command = _COMMANDS.get(name)
        if command is None:
            await self._write("stderr", f"bash: line 1: {name}: command not found\n")
            return 127
        written: list[str] = []

        async def out(text: str) -> None:
            if target is None:
                await self._write(stream, text)
            else:
                written.append(text)

        try:
            status = await command(self, args, out)
            if target is not None:
                self._tree.write(target, "".join(written).encode())
        except SafeFSError as error:
            await self._write("stderr", f"{name}: {error}\n")
            return 1
        return status

    def _path(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self._cwd, path))

    def _expand(self, word: str) -> str:
        if len(word) > 1 and word[0] == word[-1] == "'":
            return word[1:-1]
        if len(word) > 1 and word[0] == word[-1] == '"':
            word = word[1:-1]
        word = word.replace("$?", str(self._status))
        return re.sub(r"\$\{?([A-Za-z_]\w*)\}?", lambda m: self._envs.get(m[1], ""), word)

    async def _cat(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        if not args:
            while line := await self._read_line():
                await out(line)
        for path in args:
            await out(self._tree.read(self._path(path)).decode())
        return 0

    async def _cd(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        self._cwd = self._path(args[0] if args else DEFAULT_ROOT)
        self._tree.list(self._cwd, 1)
        return 0

    async def _echo(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        end = "\n"
        if args[:1] == ["-n"]:
            args, end = args[1:], ""
        await out(" ".join(args) + end)
        return 0

    async def _env(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        await out("".join(f"{name}={value}\n" for name, value in self._envs.items()))
        return 0

    async def _exit(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        raise _Exit(int(args[0]) & 255 if args else self._status)

    async def _false(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        return 1

    async def _true(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        return 0

    async def _ls(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        names = sorted(entry.name for entry in self._tree.list(self._path(args[0] if args else "."), 1))
        await out("".join(name + "\n" for name in names))
        return 0

    async def _pwd(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        await out(self._cwd + "\n")
        return 0

    async def _read(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        line = await self._read_line()
        self._envs[args[-1]] = line.rstrip("\n")
        return 0 if line else 1

    async def _sleep(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        left = float(args[0].replace("infinity", "inf")) if self._sleeps_for is None else self._sleeps_for
        began_at = anyio.current_time()
        try:
            await anyio.sleep(left)
        except anyio.get_cancelled_exc_class():
            self._sleeps_for = left - (anyio.current_time() - began_at)
            raise
        self._sleeps_for = None
        return 0

    async def _yes(self, args: list[str], out: Callable[[str], Awaitable[None]]) -> int:
        while True:
            await out((" ".join(args) or "y") + "\n")
            await anyio.lowlevel.checkpoint()


_COMMANDS: dict[str, Callable[[FakeShell, list[str], Callable[[str], Awaitable[None]]], Awaitable[int]]] = {
    "": FakeShell._true,
    ":": FakeShell._true,
    "cat": FakeShell._cat,
    "cd": FakeShell._cd,
    "echo": FakeShell._echo,
    "env": FakeShell._env,
    "exit": FakeShell._exit,
    "false": FakeShell._false,
    "ls": FakeShell._ls,
    "pwd": FakeShell._pwd,
    "read": FakeShell._read,
    "sleep": FakeShell._sleep,
    "true": FakeShell._true,
    "yes": FakeShell._yes,
}


def _split(line: str) -> list[tuple[str, list[str]]]:
    """Cut a line into simple commands, each with the joint before it."""
    lexer = shlex.shlex(line.replace("\n", " ; "), posix=False, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    parts: list[tuple[str, list[str]]] = [(";", [])]
    words = list(lexer)
    at = 0
    while at < len(words):
        word = words[at]
        if word == ">" and words[at + 1 : at + 3] == ["&", "2"]:
            parts[-1][1].append(">&2")
            at += 3
        elif word in {";", "&&", "||"}:
            parts.append((word, []))
            at += 1
        elif set(word) <= set(";&|"):
            raise ValueError(f"syntax error near {word!r}")
        else:
            parts[-1][1].append(word)
            at += 1
    return [(joint, words) for joint, words in parts if words]
