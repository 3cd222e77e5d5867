"""SafeFS on this machine's own kernel: the real helper, run by a real shell, and the agent's operations, all below a
temporary directory. What an engine's boxes add to that is tried by `tests/conformance/test_safefs.py`."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any

import anyio

from sandboxkit._types import CommandResult
from sandboxkit.errors import OutputTooLarge, ProviderError
from sandboxkit.local.agent import _beneath, _confined
from sandboxkit.local.agent import _codec as wire
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.provider._confined import FileAnswer, FileCall, OperationFailed, decoded, encoded
from sandboxkit.safefs import AsyncSafeFS, _helper

MECHANISMS = ("openat2", "walk", "python", "sh")
"""The agent's two ways, and the helper's two."""


class HostSandbox:
    """What SafeFS asks of a sandbox, answered by this machine. Never give it a root that holds anything."""

    sandbox_id = "host"

    def __init__(self, mechanism: str) -> None:
        self.mechanism = mechanism

    async def confined(self, root: str) -> Any:
        return HostConfined(root, self.mechanism) if self.mechanism in ("openat2", "walk") else None

    async def run_command(self, cmd: str, **options: Any) -> CommandResult:
        """Run it as a sandbox does: by a shell, with a limit of its output and its time."""
        done = await anyio.run_process(["/bin/bash", "-c", cmd], check=False, stderr=subprocess.DEVNULL, cwd="/")
        if len(done.stdout) > options["max_output"]:
            raise OutputTooLarge("", head="", tail="")
        return CommandResult(exit_code=done.returncode, stdout=done.stdout.decode("utf-8", "replace"), stderr="")

    async def start_command(self, cmd: str, **options: Any) -> Any:
        process = await anyio.open_process(["/bin/bash", "-c", cmd], stderr=subprocess.DEVNULL, cwd="/")
        return _Running(process)


def _not_here(*args: Any, **options: Any) -> Any:
    raise AssertionError("level enforced needs this of no sandbox")


for _name in dir(ProviderSandbox):
    if not _name.startswith("_") and not hasattr(HostSandbox, _name):
        setattr(HostSandbox, _name, _not_here)


class _Running:
    """A command that takes standard input."""

    def __init__(self, process: Any) -> None:
        self.process = process

    async def send_stdin(self, data: str) -> None:
        try:
            await self.process.stdin.send(data.encode())
        except anyio.BrokenResourceError as error:
            raise ProviderError("it does not listen") from error

    async def wait(self) -> CommandResult:
        pieces: list[bytes] = []
        stream: AsyncIterator[bytes] = self.process.stdout
        async for piece in stream:
            pieces.append(piece)
        code = await self.process.wait()
        return CommandResult(exit_code=code, stdout=b"".join(pieces).decode("utf-8", "replace"), stderr="")

    async def kill(self) -> None:
        self.process.kill()


class HostConfined:
    """The agent's operations, called in this process, with every request and answer in the wire's form."""

    root_adversary = False
    can_watch = False

    def __init__(self, root: str, mechanism: str) -> None:
        self.mechanism = mechanism
        self._root = os.fsencode(root)
        self._kernel = _beneath.Kernel()
        self._kernel.missing = mechanism == "walk"

    async def call(self, call: FileCall) -> FileAnswer:
        operation, terms, *args = wire.unpack(encoded(call)[4:])
        if operation in (b"write", b"append"):
            args.append(call.data)
        before, _beneath.KERNEL = _beneath.KERNEL, self._kernel
        try:
            job = _confined.operate(operation, self._root, terms, args)
            while True:
                next(job)
        except StopIteration as done:
            fields = done.value
        except OSError as error:
            raise OperationFailed(error.errno or errno.EIO) from None
        finally:
            _beneath.KERNEL = before
        data = fields.pop() if operation == b"read" else b""
        packed = wire.pack([b"ok", *fields])
        return decoded(len(packed).to_bytes(4, "big") + packed + data)


@contextmanager
def pythons(mechanism: str) -> Any:
    """Where the helper looks for Python: nowhere, for the shell's."""
    before = _helper.PYTHONS
    if mechanism == "sh":
        _helper.PYTHONS = ("/no/python",)
    try:
        yield
    finally:
        _helper.PYTHONS = before


def files_of(root: bytes | str, mechanism: str, **options: Any) -> AsyncSafeFS:
    """SafeFS over a directory of this machine."""
    return AsyncSafeFS(HostSandbox(mechanism), root=os.fsdecode(root), **options)
