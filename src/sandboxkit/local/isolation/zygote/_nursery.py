"""One nursery for the boxes of one template: a warden, and a zygote that forks their agents.

    made ── start ──> ready ── the zygote ends ──> made again at the next use, at most so often
                        │ └─ unused for a while ──> only the warden is kept, while there are boxes
                        └ an agent that is not as it must be, or a start that fails (not by the warden's end, but for
                          so many in a row) ──> given up: agents are exec'd

The zygote sees what a box of its template sees, read-only: a box is made as any other, without an agent, the zygote is
started in its mount namespace, and the box is ended again.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

from sandboxkit.errors import EngineUnavailable
from sandboxkit.local._log import log
from sandboxkit.local.agent._codec import pack
from sandboxkit.local.isolation._base import AGENT_PYTHON, BASE_PATH, ENV_PYTHON, HOME, PREFIX
from sandboxkit.local.isolation._waiting import until_readable
from sandboxkit.local.isolation.zygote import _entered
from sandboxkit.local.isolation.zygote._strays import end_strays
from sandboxkit.local.isolation.zygote._warden_link import Warden, WardenHindered, WardenLost, pid_of

LOADED_WITHIN = 30.0
ENTERED_WITHIN = 10.0
STARTS = 5
"""How often a zygote may be started, one after another, without having served a box, before the nursery is given up."""
ENTRIES = 20
"""Forks, one after another, that may fail to enter a box that is there, before it is given up."""
SAID = 2000
WORDS = 300
EXCEPTION = re.compile(r"^([A-Za-z_][A-Za-z0-9_.]{0,60})(?=: |$)", re.MULTILINE)
ENVIRONMENT = {
    "PATH": f"{PREFIX}/env/bin:{BASE_PATH}",
    "HOME": HOME,
    "LANG": "C.UTF-8",
    # A zygote has no /proc/self in its view, by which the loader learns what $ORIGIN is: without it a Python that looks
    # for its library beside itself would take one of the same name from /usr/lib.
    "LD_ORIGIN_PATH": f"{PREFIX}/python/bin",
}
"""What the zygote is started with: nothing that is not the same for everybody."""
CREDENTIALS = struct.Struct("3i")


class EntryFailed(Exception):
    """No agent entered the box; the zygote may be gone. The message says why."""


class Refused(EntryFailed):
    """What entered is not as it must be: `faults` names the steps that are to blame."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(f"the agent that entered is not as it must be: {', '.join(faults)}")
        self.faults = tuple(faults)


View = Callable[[Warden], Awaitable[tuple[int, Callable[[], Awaitable[None]]]]]
"""Makes a box to look into; returns a pidfd of its first process, and how to end it."""


class Nursery:
    """See above. Lives on the event loop.

    Args:
        view: makes a box of the template, without an agent.
        has_kernel: the template has an interpreter, which is loaded, too.
        filter_bytes: the zygote's system-call filter.
        without: steps that its forks leave out; for the tests that show that this is noticed.
    """

    def __init__(self, *, view: View, has_kernel: bool, filter_bytes: bytes, without: Sequence[str] = ()) -> None:
        self._view = view
        self._has_kernel = has_kernel
        self._filter = filter_bytes
        self._without = tuple(without)
        self._starting = asyncio.Lock()
        self._zygote: _Zygote | None = None
        self._vain_starts = 0
        self._vain_entries = 0
        self.warden: Warden | None = None
        self.given_up = ""
        """Why it is not used any more; empty while it is."""

    @property
    def zygote_pid(self) -> int | None:
        """The zygote's process, where one is running."""
        return self._zygote.pid if self._zygote is not None and not self._zygote.is_lost else None

    async def ready(self) -> Warden:
        """Return the warden, once there is a zygote below it. EntryFailed where there can be none."""
        async with self._starting:
            if self.given_up:
                raise EntryFailed(self.given_up)
            try:
                if self.warden is None or self.warden.is_lost or self._zygote is None or self._zygote.is_lost:
                    if self._vain_starts >= STARTS:
                        raise WardenLost(f"{STARTS} starts, one after another, have served nobody")
                    self._vain_starts += 1
                if self.warden is None or self.warden.is_lost:
                    if self.warden is not None:
                        await self.warden.aclose()
                    self.warden, self._zygote = await Warden.start(self._warden_lost), None
                if self._zygote is None or self._zygote.is_lost:
                    await self._start_zygote(self.warden)
            except WardenHindered as error:
                self._vain_starts -= 1
                raise EntryFailed(str(error)) from error
            except (WardenLost, EngineUnavailable, OSError, TimeoutError) as error:
                why = f"it could not be started: {str(error) or type(error).__name__}"
                # A warden that was killed meanwhile says nothing about the next one.
                if self._vain_starts >= STARTS or self.warden is None or not self.warden.has_ended:
                    self.give_up(why)
                raise EntryFailed(why) from error
            return self.warden

    def begin(self, agent: int, cgroups: Sequence[int], box_filter: bytes) -> socket.socket:
        """Have the zygote fork for a box that is being made meanwhile; `enter` goes on with what this returns. It is
        the caller's: without `enter`, the fork ends when that is closed.

        Args:
            agent: the agent's end of its socket.
            cgroups: files that a process joins the box's control groups by.
            box_filter: the box's system-call filter.

        Raises:
            EntryFailed: it takes no requests.
        """
        zygote = self._zygote
        if zygote is None or zygote.is_lost:
            raise EntryFailed("there is no zygote")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                zygote.ask(pack([box_filter]), (agent, theirs.fileno(), *cgroups))
        except OSError as error:
            ours.close()
            if error.errno != errno.ETOOMANYREFS:  # see WardenHindered
                self._lose(zygote)
            raise EntryFailed(f"the zygote takes no requests: {error.strerror}") from error
        return ours

    async def enter(self, begun: socket.socket, init: int) -> int:
        """Have the fork enter the box and become its agent; returns its pid. `init` is a pidfd of the box's first
        process.

        Raises:
            Refused: it entered, and is not as it must be. The caller must end the box.
            EntryFailed: it did not enter.
        """
        zygote = self._zygote
        try:
            begun.sendmsg([b"enter"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [init]))])
        except OSError as error:
            raise EntryFailed(f"the zygote's fork has ended: {error.strerror}") from error
        try:
            async with asyncio.timeout(ENTERED_WITHIN):
                await until_readable(begun.fileno())
        except TimeoutError:
            self._lose(zygote)
            raise EntryFailed("the zygote did not answer in time") from None
        said, pid = _report(begun)
        if said != b"entered":
            words = ascii(said.decode("utf-8", "replace"))[1:-1]
            if words.startswith("failed") or not words:
                self._entered_not(init)
                raise EntryFailed(words[:WORDS] or "the zygote, or its fork, ended")
            raise Refused(words[:WORDS].split(" "))
        try:
            wrong = _entered.faults(pid, _entered.look_at(pid), _entered.look_at(pid_of(init)))
        except OSError as error:
            raise EntryFailed(f"what entered has ended: {error.strerror}") from error
        if wrong:
            raise Refused(wrong)
        self._vain_starts = self._vain_entries = 0
        return pid

    def _lose(self, zygote: _Zygote | None) -> None:
        """Let one go that serves nobody. Another one may do better; after some that did not, there is no other."""
        if self._zygote is zygote:
            self.rest()

    def _entered_not(self, init: int) -> None:
        """Count forks that did not enter a box which is there; after so many in a row there is no more hope."""
        with contextlib.suppress(ProcessLookupError):
            pid_of(init)
            self._vain_entries += 1
            if self._vain_entries >= ENTRIES:
                self.give_up(f"{ENTRIES} forks, one after another, did not enter their boxes")

    def give_up(self, why: str) -> None:
        """Use it no more: agents are started by exec from now on."""
        if not self.given_up:
            self.given_up = why
            self.rest()
            log(logging.WARNING, "zygote.given_up", reason=why)

    def rest(self) -> None:
        """Let the zygote go, until it is needed again: it takes memory, and nobody has used it for a while."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    async def aclose(self) -> None:
        """End the zygote and the warden, and all boxes below it. Idempotent."""
        self.rest()
        if self.warden is not None:
            await self.warden.aclose()

    def _warden_lost(self) -> None:
        self.rest()
        log(logging.ERROR, "warden.lost")

    async def _start_zygote(self, warden: Warden) -> None:
        init, end_view = await self._view(warden)
        try:
            try:
                self._zygote = await _Zygote.start(warden, init, self._filter, self._has_kernel, self._without)
            except WardenLost as error:
                if not self._has_kernel or isinstance(error, WardenHindered):
                    raise
                # Its interpreter cannot be loaded so; that it works by exec is none of our business here.
                log(logging.WARNING, "zygote.without_kernel", reason=str(error))
                self._has_kernel = False
                self._zygote = await _Zygote.start(warden, init, self._filter, False, self._without)
        finally:
            os.close(init)
            await end_view()


class _Zygote:
    """One zygote process."""

    def __init__(self, control: socket.socket, pidfd: int) -> None:
        self._control = control
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self.pid = pid_of(pidfd)
        self.is_lost = False
        self._loop.add_reader(pidfd, self._ended)

    @classmethod
    async def start(
        cls, warden: Warden, view: int, filter_bytes: bytes, has_kernel: bool, without: Sequence[str]
    ) -> _Zygote:
        """Start one and wait until it serves. WardenLost, with what it said."""
        program = f"{PREFIX}/agent/zygote.py"
        argv = [ENV_PYTHON, program, "kernel"] if has_kernel else [AGENT_PYTHON, "-I", "-S", program, "plain"]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors, errors_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        filter_fd = os.memfd_create("sandboxkit", os.MFD_CLOEXEC)
        os.write(filter_fd, filter_bytes)
        pidfd = -1
        try:
            try:
                given = (view, filter_fd, theirs.fileno(), errors_write)
                pidfd = await warden.zygote([*argv, *without], ENVIRONMENT, HOME, given)
            finally:
                theirs.close()
                os.close(filter_fd)
                os.close(errors_write)
            async with asyncio.timeout(LOADED_WITHIN):
                await until_readable(ours.fileno())
                is_ready = ours.recv(64) == b"ready"
                if not is_ready:
                    await until_readable(errors)
            if not is_ready:
                raise WardenLost(f"the zygote ended at its start ({_exception(errors)})")
            tasks = os.listdir(f"/proc/{pid_of(pidfd)}/task")
            if len(tasks) != 1:
                raise WardenLost(f"the zygote has {len(tasks)} tasks; a module has started a thread")
            if end_strays(view, zygote=pid_of(pidfd)):
                raise WardenLost("a module that the zygote has loaded has started a process")
            ours.setblocking(False)
            return cls(ours, pidfd)
        except BaseException as error:
            ours.close()
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                os.close(pidfd)
            with contextlib.suppress(OSError):
                end_strays(view, zygote=0)
            if isinstance(error, TimeoutError):
                raise WardenLost("the zygote was not ready in time") from None
            raise
        finally:
            os.close(errors)

    def ask(self, payload: bytes, fds: Sequence[int]) -> None:
        """Send a request. OSError where it takes none."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        # Its buffer holds more requests than boxes are made at a time; a zygote that is so far behind is of no use.
        self._control.sendmsg([payload], rights)

    def _ended(self) -> None:
        log(logging.WARNING, "zygote.ended", pid=self.pid)
        self.close()

    def close(self) -> None:
        """Kill it. What it has forked goes on. Idempotent."""
        if not self.is_lost:
            self.is_lost = True
            self._loop.remove_reader(self._pidfd)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            os.close(self._pidfd)
            self._control.close()


def _exception(errors: int) -> str:
    """The name of the exception that a zygote ended with. No more of what it has written: that is its modules', and
    would go into a log."""
    found = EXCEPTION.findall(os.read(errors, SAID).decode("utf-8", "replace"))
    return found[-1] if found else "it says no exception"


def _report(sock: socket.socket) -> tuple[bytes, int]:
    """What a fork of the zygote said of itself, and its pid, which the kernel tells."""
    try:
        said, told, _, _ = sock.recvmsg(SAID, socket.CMSG_SPACE(CREDENTIALS.size), socket.MSG_DONTWAIT)
    except OSError:
        return b"", 0
    for level, kind, raw in told:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(raw) >= CREDENTIALS.size:
            return said, CREDENTIALS.unpack_from(raw)[0]
    return said, 0
