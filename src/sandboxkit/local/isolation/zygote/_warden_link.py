"""The engine's end of a warden: start it, have it make boxes and start zygotes, end it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from sandboxkit.local.agent._entry import LIMITS
from sandboxkit.local.isolation import _argv
from sandboxkit.local.isolation._base import UID
from sandboxkit.local.isolation._waiting import uncancelled, until_readable
from sandboxkit.local.isolation.link._port import close_all

PROGRAM = Path(__file__).with_name("_warden.py")
READY_WITHIN = 20.0
GONE_WITHIN = 5.0
PID = re.compile(r"^Pid:\s*(\d+)$", re.MULTILINE)


class WardenLost(Exception):
    """The warden is gone, or could not do what was asked of it."""


class WardenHindered(WardenLost):
    """The kernel passes it no descriptors: those that programs have on their way are counted for all boxes together,
    and one box has too many. That says nothing about the warden."""


class Warden:
    """One running warden. `on_lost` is called once, when it has ended without being told to."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes], on_lost: Callable[[], None]) -> None:
        self._control = control
        self._process = process
        """Its outer half."""
        self._inner = -1
        """A pidfd of the warden proper: ours to let go of, where the outer half has ended before it."""
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._answers: deque[asyncio.Future[int]] = deque()
        self._places: deque[int] = deque()
        """A descriptor for each answer, whose number it can have: what was made, and nobody could be told of, would
        stay for ever."""
        self.is_lost = False
        self._ending: asyncio.Task[None] | None = None

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
        warden = cls(ours, process, on_lost)
        try:
            async with asyncio.timeout(READY_WITHIN):
                await until_readable(ours.fileno())
            said, fds = warden._receive()
            if said != b"ready" or not fds:
                raise WardenLost("the warden ended at its start, or there is no descriptor left for it")
            warden._inner = fds[0]
        except BaseException as error:
            await warden.aclose()
            if isinstance(error, TimeoutError):
                raise WardenLost("the warden did not start in time") from None
            raise
        ours.setblocking(False)
        warden._loop.add_reader(ours, warden._readable)
        return warden

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
        place = os.dup(self._control.fileno())
        try:
            self._control.sendmsg([json.dumps(request).encode()], rights)
        except OSError as error:
            os.close(place)
            kind = WardenHindered if error.errno == errno.ETOOMANYREFS else WardenLost
            raise kind(f"the warden takes no requests: {error.strerror}") from error
        answer: asyncio.Future[int] = self._loop.create_future()
        self._answers.append(answer)
        self._places.append(place)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(_close_what_came)
            raise

    def _receive(self) -> tuple[bytes, array.array[int]]:
        """What it says, and the descriptors that came with it. Nothing where it has ended."""
        fds = array.array("i")
        data, rights, _, _ = self._control.recvmsg(4096, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        for _, _, raw in rights:
            fds.frombytes(raw)
        return data, fds

    def _readable(self) -> None:
        if self._places:
            os.close(self._places.popleft())
        try:
            data, fds = self._receive()
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", array.array("i")
        if not data:
            self._gone()
            return
        answer = self._answers.popleft()
        if fds:
            answer.set_result(fds[0])
        else:
            said = "there is no descriptor left" if data == b"pid" else data.decode("utf-8", "replace")
            answer.set_exception(WardenLost(said))
            answer.exception()

    def _gone(self) -> None:
        self._begin_end()
        self._on_lost()

    def _begin_end(self) -> None:
        """Expect nothing of it any more, and have all of it end."""
        self.is_lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        for answer in self._answers:
            answer.set_exception(WardenLost("the warden is gone"))
            answer.exception()
        self._answers.clear()
        close_all(self._places)
        self._places.clear()
        self._ending = self._loop.create_task(self._finish(), name="end of a warden")

    async def _finish(self) -> None:
        """Wait until both halves are gone, and nothing is left of them. The outer half ends after the inner one, but
        where somebody has killed it."""
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
        if self._inner >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._inner, signal.SIGKILL)
            await until_readable(self._inner)
            # Ours since its parent is gone (the engine is a subreaper), unless that took it first.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._inner, os.WEXITED)  # noqa: ASYNC222 (its pidfd has said that it ended)
            os.close(self._inner)
            self._inner = -1

    async def aclose(self) -> None:
        """End it, and with it all that is below it; returns when it is gone. Idempotent."""
        if self._ending is None:
            self._begin_end()
        assert self._ending is not None
        await uncancelled(self._ending)


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
