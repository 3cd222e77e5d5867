"""The fake's files below a root: the operations of level `enforced` over a dictionary, which knows no links."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Sequence

from sandboxkit._types import FileInfo
from sandboxkit.errors import (
    EnforcementUnavailable,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    SafeFSError,
)
from sandboxkit.provider._confined import FileAnswer, FileCall, OperationFailed, to_bytes, to_text
from sandboxkit.testing._files import Tree

_NUMBERS: dict[type[SafeFSError], int] = {NotFound: 2, NotADirectory: 20, IsADirectory: 21, NoSpace: 28}
_TOO_LARGE = 27
_LEAVES = 18


class FakeConfined:
    """A `Confined` over a Tree. `gate` runs before each operation: it checks that the sandbox lives, and faults."""

    root_adversary = False
    mechanism = "fake"
    can_watch = False

    def __init__(self, tree: Tree, gate: Callable[[], Awaitable[None]], root: str) -> None:
        self._tree = tree
        self._gate = gate
        self._root = root

    async def call(self, call: FileCall) -> FileAnswer:
        await self._gate()
        try:
            fields, data = self._carry_out(call)
        except SafeFSError as error:
            number = _NUMBERS.get(type(error))
            if number is None:
                raise
            raise OperationFailed(number) from None
        return FileAnswer(b"1:1", fields, data)

    def _carry_out(self, call: FileCall) -> tuple[Sequence[bytes], bytes]:
        tree, path = self._tree, call.path
        match call.operation, call.args:
            case "read", (int(start), int(length), most, _):
                data = tree.read(path)
                if isinstance(most, int) and len(data) > most:
                    raise OperationFailed(_TOO_LARGE)
                return [b"%d" % len(data), b"1"], data[start : start + length]
            case "write", ():
                tree.write(path, call.data)
            case "append", (int(most),):
                before = tree.read(path) if tree.exists(path) else b""
                if len(before) > most:
                    raise OperationFailed(_TOO_LARGE)
                tree.write(path, before + call.data)
            case "list", (int(depth), int()):
                return [field for info in tree.list(path, depth) for field in _fields(info)], b""
            case "stat", ():
                return _fields(tree.stat(path)), b""
            case "exists", ():
                return [b"%d" % tree.exists(path)], b""
            case "make_dir", ():
                return [b"%d" % tree.make_dir(path)], b""
            case "remove", ():
                self._keep_root(path)
                tree.remove(path)
            case "rename", (str(target),):
                self._keep_root(path)
                tree.rename(path, target)
            case "copy", (str(target), int(most)):
                data = tree.read(path)
                if len(data) > most:
                    raise OperationFailed(_TOO_LARGE)
                tree.write(target, data)
            case _:
                raise EnforcementUnavailable(f"The fake has no {call.operation!r} below a root.")
        return [], b""

    def _keep_root(self, path: str) -> None:
        if path == self._root:
            raise OperationFailed(_LEAVES)


def _fields(info: FileInfo) -> list[bytes]:
    mode = info.mode | (stat.S_IFDIR if info.type == "dir" else stat.S_IFREG)
    name = to_bytes(to_text(to_bytes(info.name)))
    return [name, to_bytes(info.path), b"%d" % mode, b"%d" % info.size, b"1000", b"1000", b"0", b"", b"", b"0"]
