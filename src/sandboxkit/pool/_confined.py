"""The files below a root as a session has them: each operation a use of the lease, and what was written remembered."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from sandboxkit.provider._base import Confined, ProviderSandbox
from sandboxkit.provider._confined import FileAnswer, FileCall, OperationFailed
from sandboxkit.safefs import HelperConfined

if TYPE_CHECKING:
    from sandboxkit.pool._lease import Lease

_WITHOUT_IDENTITY = ("events", "unwatch", "watch")
"""Operations whose answers do not say which directory the root is."""


class LeasedConfined:
    """`Confined` over whichever sandbox the session has now: its own way, or the helper where it has none."""

    def __init__(self, lease: Lease, root: str, first: Confined) -> None:
        self._lease = lease
        self._root = root
        self._own = first
        self._sandbox_id = lease.core.sandbox.sandbox_id
        self._shown = self._here = b""
        """Which directory the root is: as SafeFS was told first, and in the sandbox of now."""
        self.can_watch = first.can_watch

    @property
    def root_adversary(self) -> bool:
        return self._own.root_adversary

    @property
    def mechanism(self) -> str:
        return self._own.mechanism

    @classmethod
    async def of(cls, lease: Lease, root: str) -> LeasedConfined:
        """Look for the way that the session's sandbox has."""
        return cls(lease, root, await lease.carry_out(0.0, lambda sandbox: way_of(sandbox, root)))

    async def call(self, call: FileCall) -> FileAnswer:
        async def operate(sandbox: ProviderSandbox) -> FileAnswer:
            if sandbox.sandbox_id != self._sandbox_id:
                # Another sandbox after a loss: its root is another directory, which nobody has seen yet.
                self._own, self._here = await way_of(sandbox, self._root), b""
                self._sandbox_id = sandbox.sandbox_id
            answer = await self._own.call(dataclasses.replace(call, identity=self._here))
            if call.operation in _WITHOUT_IDENTITY:
                return answer
            self._shown = self._shown or answer.identity
            if sandbox.sandbox_id == self._sandbox_id:  # else it was lost right after it had answered
                self._here = self._here or answer.identity
                if answer.identity != self._here:
                    return answer  # another root in the same sandbox: SafeFS sees that
            return dataclasses.replace(answer, identity=self._shown)

        answer = await self._lease.carry_out(0.0, operate)
        await self._remember(call)
        return answer

    async def _remember(self, call: FileCall) -> None:
        journal, path = self._lease.core.journal, call.path
        match call.operation:
            case "write":
                journal.wrote(path, call.data)
            case "append" | "copy":
                target = path if call.operation == "append" else str(call.args[0])
                journal.wrote(target, await self._content(target) if journal.keeps_content else b"")
            case "make_dir":
                journal.made(path)
            case "remove":
                journal.removed(path)
            case "rename":
                journal.renamed(path, str(call.args[0]))

    async def _content(self, path: str) -> bytes:
        """What a file holds now: appending and copying are done in the sandbox, and show nothing of it here."""
        most = self._lease.core.journal.most_bytes
        args = (0, most, most, b"")
        try:
            answer = await self._lease.carry_out(
                0.0, lambda _: self._own.call(FileCall(operation="read", path=path, args=args, max_answer=most))
            )
        except OperationFailed:
            return b""  # it is gone again, or has grown too large to be kept
        return answer.data


async def way_of(sandbox: ProviderSandbox, root: str) -> Confined:
    """The sandbox's own way to files below a root, or the helper."""
    own = await sandbox.confined(root)
    return HelperConfined(sandbox, root) if own is None else own
