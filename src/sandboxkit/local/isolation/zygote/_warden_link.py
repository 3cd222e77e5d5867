"""The engine's end of a warden: start it, have it make boxes and start zygotes, end it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from sandboxkit.local.agent._entry import LIMITS
from sandboxkit.local.isolation import _argv
from sandboxkit.local.isolation._base import UID
from sandboxkit.local.isolation._waiting import until_readable

PROGRAM = Path(__file__).with_name("_warden.py")
READY_WITHIN = 20.0
GONE_WITHIN = 5.0
PID = re.compile(r"^Pid:\s*(\d+)$", re.MULTILINE)


class WardenLost(Exception):
    """The warden is gone, or could not do what was asked of it."""


class Warden:
    """One running warden. `on_lost` is called once, when it has ended without being told to."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes], on_lost: Callable[[], None]) -> None:
        self._control = control
        self._process = process
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._answers: deque[asyncio.Future[int]] = deque()
        self.is_lost = False
        self._loop.add_reader(control, self._readable)

    @classmethod
    async def start(cls, on_lost: Callable[[], None]) -> Warden:
        """Start one. OSError or WardenLost where that fails."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            # From this, the loop's thread: it dies with the thread that started it.
            process = subprocess.Popen(  # noqa: ASYNC220 (a fork and an exec: a millisecond)
                [sys.executable, "-I", "-S", str(PROGRAM), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            async with asyncio.timeout(READY_WITHIN):
                await until_readable(ours.fileno())
            if ours.recv(64) != b"ready":
                raise WardenLost("the warden ended at its start")
        except BaseException as error:
            ours.close()
            process.kill()
            process.wait()
            if isinstance(error, TimeoutError):
                raise WardenLost("the warden did not start in time") from None
            raise
        ours.setblocking(False)
        return cls(ours, process, on_lost)

    @property
    def has_ended(self) -> bool:
        """Whether its process is gone, be that noticed or not."""
        return self.is_lost or self._process.poll() is not None

    async def box(self, words: Sequence[str], fds: Sequence[int], *, has_tree: bool) -> int:
        """Begin to make a box (see `_maker`); returns a pidfd of its first process.

        Args:
            words: what it sees, as `_argv.file_system` says it.
            fds: where to say what goes wrong; its system-call filter; its file system, if it has one of its own; the
                files by which one joins its control groups.
            has_tree: whether it has a file system of its own.
        """
        request: dict[str, object] = {"do": "box", "words": words, "argv": _argv.HOLDER, "uid": UID}
        request |= {"hostname": _argv.HOSTNAME, "stage": _argv.STAGE if has_tree else None}
        return await self._ask(request, fds)

    async def zygote(self, argv: Sequence[str], environment: dict[str, str], cwd: str, fds: Sequence[int]) -> int:
        """Start a zygote; returns a pidfd. `fds`: the view's first process, the filter, the socket, the errors."""
        how = {"argv": argv, "environment": environment, "cwd": cwd, "limits": _limits()}
        return await self._ask({"do": "zygote", **how}, fds)

    async def _ask(self, request: dict[str, object], fds: Sequence[int]) -> int:
        if self.is_lost:
            raise WardenLost("the warden is gone")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self._control.sendmsg([json.dumps(request).encode()], rights)
        except OSError as error:
            raise WardenLost(f"the warden takes no requests: {error.strerror}") from error
        answer: asyncio.Future[int] = self._loop.create_future()
        self._answers.append(answer)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_close_what_came)
            raise

    def _readable(self) -> None:
        try:
            data, rights, _, _ = self._control.recvmsg(4096, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, rights = b"", []
        if not data:
            self._gone()
            return
        fds = array.array("i")
        for _, _, raw in rights:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        answer = self._answers.popleft()
        if fds and not answer.done():
            answer.set_result(fds[0])
        elif not fds and not answer.done():
            said = "there is no descriptor left" if data == b"pid" else data.decode("utf-8", "replace")
            answer.set_exception(WardenLost(said))
            answer.exception()

    def _gone(self) -> None:
        if not self.is_lost:
            self.is_lost = True
            self._loop.remove_reader(self._control)
            for answer in self._answers:
                if not answer.done():
                    answer.set_exception(WardenLost("the warden is gone"))
                    answer.exception()
            self._on_lost()

    async def aclose(self) -> None:
        """End it, and with it all that is below it; returns when it is gone. Idempotent."""
        self.is_lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(self._process.pid)
                try:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(GONE_WITHIN):
                            await until_readable(pidfd)
                    self._process.kill()
                    await until_readable(pidfd)
                finally:
                    os.close(pidfd)
            self._process.wait()


def _limits() -> list[tuple[int, int]]:
    """What a zygote may have: one more than its forks keep, so that one which leaves that step out is still noticed."""
    found = []
    for number, value in LIMITS:
        hard = resource.getrlimit(number)[1]
        wanted = value + 1 if value else 0
        found.append((number, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)))
    return found


def pid_of(pidfd: int) -> int:
    """The number by which this process knows the one that a pidfd means; OSError when it is gone."""
    found = PID.search(Path(f"/proc/self/fdinfo/{pidfd}").read_text())
    if found is None or int(found[1]) <= 0:
        raise ProcessLookupError("it has ended")
    return int(found[1])


def _close_what_came(answer: asyncio.Future[int]) -> None:
    if not answer.cancelled() and answer.exception() is None:
        os.close(answer.result())
