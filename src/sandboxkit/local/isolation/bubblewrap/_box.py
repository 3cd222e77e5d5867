"""One box: how it is made from a bubblewrap process, how its end is noticed, and that nothing of it is left.

    making ── the agent answered ──> live ── kill(), the agent lost, memory, the engine's death ──> ending ──> ended

bubblewrap is three processes: the one that we start (outer), its child that is pid 1 inside (init), and the first
program, which is the agent (`start`). Init is held by `--block-fd` until we have a pidfd on it and it is in its cgroup;
nothing of ours runs before that. Where there is a zygote, a warden makes the box, without bubblewrap (`hold`): init is
then a program that does nothing but keep the box open, and a fork of the zygote enters (`start_in`) before anything
else can run there. When init is gone, the kernel has already taken every other process of its pid namespace: `ended`
means that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from sandboxkit.errors import EngineUnavailable
from sandboxkit.local.isolation import _argv
from sandboxkit.local.isolation._archive import Packed
from sandboxkit.local.isolation._base import AgentError, AgentLost, BoxEnd, BoxSpec, Usage
from sandboxkit.local.isolation._copying import fill_trees, save_trees
from sandboxkit.local.isolation._waiting import uncancelled, until_readable, until_reaped
from sandboxkit.local.isolation.bubblewrap._files import BoxFiles
from sandboxkit.local.isolation.bubblewrap._told import ERRORS_KEPT, memory_file, pipe, said, tell, words_pipe
from sandboxkit.local.isolation.limits._limits import Cgroup, inside_limits, report
from sandboxkit.local.isolation.limits._usage import measure
from sandboxkit.local.isolation.link._link import AgentLink
from sandboxkit.local.isolation.link._port import close_all
from sandboxkit.local.isolation.processes._processes import is_ending
from sandboxkit.local.isolation.processes._stopping import Stopper
from sandboxkit.local.isolation.zygote._nursery import EntryFailed, Nursery
from sandboxkit.local.isolation.zygote._warden_link import Warden, WardenLost, pid_of

START_WITHIN = 20.0
"""Seconds from bubblewrap's start to the agent's first answer."""
KNOWN_WITHIN = 2.0
PAUSED_WITHIN = 5.0
PAUSE_POLL = 0.0003
CHILD_PID = re.compile(rb'"child-pid": ?([1-9][0-9]{0,9})[,\s}]')


class BubblewrapBox:
    """A live box; see `_base.Box`. Made by `BubblewrapIsolation.create`."""

    agent: AgentLink

    def __init__(
        self, spec: BoxSpec, *, directory: Path, cgroup: Cgroup | None, version: int, on_ended: Callable[[str], None]
    ) -> None:
        self.box_id = spec.box_id
        self.limits = report(spec.limits, cgroup, version)
        self.ended: asyncio.Future[BoxEnd] = asyncio.get_running_loop().create_future()
        self.memory_limit = spec.limits.memory
        self.files = BoxFiles(spec, directory)
        self.watched = cgroup is None or not cgroup.has("memory")
        self._spec = spec
        self._cgroup = cgroup
        self._on_ended = on_ended
        self._end: BoxEnd | None = None
        self._outer: subprocess.Popen[bytes] | None = None
        self._outer_fd = -1
        self._init = 0
        self._init_fd = -1
        self._entered = 0
        """Pid of an agent that entered: it is below no process of the box."""
        self._info = -1
        """Where bubblewrap tells init's pid. Open until the agent has answered: bubblewrap goes on writing to it."""
        self._told = b""
        self._ending: asyncio.Task[None] | None = None
        self._stopper = Stopper()
        self._is_paused = False

    @property
    def init_pid(self) -> int:
        """Pid of the box's init as the engine sees it; 0 before it is known."""
        return self._init

    # -- making --------------------------------------------------------------------------------------------------

    def prepare(self, *, is_apart: bool = False) -> None:
        """Make the box's file system and its cgroup. OSError where the kernel refuses. `is_apart`: see `BoxFiles`."""
        self.files.make(is_apart=is_apart)
        if self._cgroup is not None:
            self._cgroup.make(self._spec.limits)

    async def start(self, bwrap: str, plan: _argv.Plan, seccomp: bytes) -> None:
        """Start bubblewrap and wait for the agent's answer.

        Raises:
            EngineUnavailable: bubblewrap failed; the message has its words.
        """
        with contextlib.ExitStack() as ours:
            with contextlib.ExitStack() as theirs:
                near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                theirs.enter_context(far)
                self.agent = AgentLink(near, on_lost=self._agent_lost)
                self._info, info_write = os.pipe()
                theirs.callback(os.close, info_write)
                block_read, block_write = pipe(theirs, ours)
                errors_read, errors_write = pipe(ours, theirs)
                args_read, arguments = words_pipe(theirs, ours)
                seccomp_fd = memory_file(seccomp)
                theirs.callback(os.close, seccomp_fd)
                # From this, the loop's thread: bubblewrap dies with the thread that started it.
                self._outer = subprocess.Popen(  # noqa: ASYNC220 (a fork and an exec: a millisecond)
                    ["bwrap", "--args", str(args_read), "--", *_argv.command(far.fileno())],
                    executable=bwrap,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors_write,
                    env={},
                    pass_fds=(far.fileno(), info_write, block_read, seccomp_fd, args_read),
                    start_new_session=True,
                )
            self._outer_fd = os.pidfd_open(self._outer.pid)
            self._watch(self._outer_fd)
            try:
                if self._cgroup is not None:
                    # Before it goes on: this is then the root of its cgroup namespace, and /proc/self/cgroup inside
                    # names nothing above it.
                    self._cgroup.join(self._outer.pid)
                tell(arguments, _argv.arguments(plan, seccomp_fd=seccomp_fd, info_fd=info_write, block_fd=block_read))
                async with asyncio.timeout(START_WITHIN):
                    await self._know_init()
                    os.write(block_write, b"1")
                    await self._greet()
            except (TimeoutError, AgentLost, AgentError, ValueError, OSError) as error:
                raise EngineUnavailable(
                    f"A sandbox did not start ({str(error) or type(error).__name__}). "
                    f"bubblewrap said: {said(errors_read) or 'nothing'}",
                    sandbox_id=self.box_id,
                ) from error
        self._close_info()

    async def start_in(self, nursery: Nursery, plan: _argv.Plan, seccomp: bytes) -> None:
        """Make the box by the nursery's warden, have a fork of its zygote enter, and wait for the agent's answer.

        Raises:
            EntryFailed, WardenLost: the zygote or the warden failed; another attempt may go well.
            EngineUnavailable: the box could not be made; the message says why.
        """
        warden = await nursery.ready()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        groups: list[int] = []
        try:
            if self._cgroup is not None:
                groups = self._cgroup.open_to_join()
            begun = nursery.begin(theirs.fileno(), groups, seccomp)
            with begun:
                await self.hold(warden, plan, seccomp)
                self._entered = await nursery.enter(begun, self._init_fd)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in groups:
                os.close(fd)
        # Not before: an agent that is lost ends the box, and that is in the making until here.
        self.agent = AgentLink(ours, on_lost=self._agent_lost)
        try:
            async with asyncio.timeout(START_WITHIN):
                await self._greet()
        except (TimeoutError, AgentLost, AgentError) as error:
            raise EntryFailed(f"the agent that entered did not answer: {error}") from error

    async def hold(self, warden: Warden, plan: _argv.Plan, seccomp: bytes) -> None:
        """Make the box by a warden, and return once it is complete, with nothing in it but what holds it.

        Raises:
            WardenLost: the warden failed.
            EngineUnavailable: the box could not be made; the message says why.
        """
        errors, errors_write = os.pipe2(os.O_CLOEXEC)
        try:
            # To its end, whoever waits: of a box whose first process is not known, nobody could see that it ends.
            making = self._have_made(warden, plan, seccomp, errors_write)
            await uncancelled(asyncio.get_running_loop().create_task(making, name=f"make {self.box_id}"))
            async with asyncio.timeout(START_WITHIN):
                await until_readable(errors)
            if why := os.read(errors, ERRORS_KEPT):
                raise OSError(why.decode("utf-8", "replace"))
            try:
                self._init = pid_of(self._init_fd)
            except OSError as error:
                raise WardenLost("what it made was killed") from error
        except (TimeoutError, OSError) as error:
            said = str(error) or type(error).__name__
            raise EngineUnavailable(f"A sandbox did not start: {said}.", sandbox_id=self.box_id) from error
        finally:
            os.close(errors)

    async def _have_made(self, warden: Warden, plan: _argv.Plan, seccomp: bytes, errors: int) -> None:
        """Ask a warden for the box. The other end of `errors`, which is the callee's, is at its end once the box is
        complete, or says why not."""
        given = [errors]
        try:
            given.append(memory_file(seccomp))
            if has_tree := self.files.descriptor >= 0:
                given.append(os.dup(self.files.descriptor))
            if self._cgroup is not None:
                given += self._cgroup.open_to_join()
            self._init_fd = await warden.box(_argv.file_system(plan), given, has_tree=has_tree)
            self._watch(self._init_fd)
        finally:
            for fd in given:
                os.close(fd)

    @property
    def init_fd(self) -> int:
        """A pidfd of the box's init; it stays the box's."""
        return self._init_fd

    async def _greet(self) -> None:
        inside = inside_limits(self._spec.limits, self._cgroup)
        await self.agent.hello(
            processes=inside.processes, open_files=inside.open_files, data=inside.data, nice=inside.nice
        )

    async def _know_init(self) -> None:
        """Wait until bubblewrap has told init's pid, and take a pidfd on it. ValueError when it ends before.

        May be cancelled and called again: what was read so far is kept.
        """
        while (found := CHILD_PID.search(self._told)) is None:
            await until_readable(self._info)
            piece = os.read(self._info, 4096)
            self._told += piece
            if not piece or len(self._told) > ERRORS_KEPT:
                raise ValueError("bubblewrap ended before it made the sandbox")
        init = int(found[1])
        self._init_fd = os.pidfd_open(init)
        self._init = init
        self._watch(self._init_fd)

    async def _know_init_after_all(self) -> None:
        """Find init where making the box was broken off: without bubblewrap, which must not die before it has told,
        init would wait for ever, and nobody would know of it."""
        if self._outer_fd >= 0 and self._info >= 0 and self._init_fd < 0:
            with contextlib.suppress(TimeoutError, ValueError, OSError):
                async with asyncio.timeout(KNOWN_WITHIN):
                    await self._know_init()
        self._close_info()

    def _close_info(self) -> None:
        if self._info >= 0:
            os.close(self._info)
            self._info = -1

    # -- the end -------------------------------------------------------------------------------------------------

    async def kill(self) -> None:
        """End it; see `_base.Box.kill`."""
        await self.end(BoxEnd("killed"))

    async def end(self, why: BoxEnd) -> None:
        """End it for a reason, and wait until nothing is left, even if cancelled meanwhile."""
        self.begin_end(why)
        assert self._ending is not None
        await uncancelled(self._ending)

    def begin_end(self, why: BoxEnd) -> None:
        """Start ending it; the first reason counts."""
        if self._end is None:
            self._end = why
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._finish(), name=f"end of {self.box_id}")

    def _agent_lost(self, reason: str) -> None:
        if self._init and is_ending(self._init):
            self._process_gone(self._init_fd)
            return
        # The kernel takes the agent first when memory runs out only if nothing else was larger; ask who was at it.
        killed = self._cgroup is not None and self._cgroup.memory_kills() > 0
        self.begin_end(BoxEnd("memory" if killed else "agent", reason))

    def _watch(self, pidfd: int) -> None:
        asyncio.get_running_loop().add_reader(pidfd, self._process_gone, pidfd)

    def _process_gone(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        killed = self._cgroup is not None and self._cgroup.memory_kills() > 0
        self.begin_end(BoxEnd("memory" if killed else "engine", "its first process is gone"))

    async def _finish(self) -> None:
        """Kill what lives, wait for it, and take everything away."""
        loop = asyncio.get_running_loop()
        await self._know_init_after_all()
        for pidfd in (self._init_fd, self._outer_fd):
            if pidfd >= 0:
                loop.remove_reader(pidfd)
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if hasattr(self, "agent"):
            self.agent.close()
        for pidfd in (self._init_fd, self._outer_fd):
            if pidfd >= 0:
                await until_readable(pidfd)
        # Its pidfd has said that it ended, unless there was no descriptor left for one.
        if self._outer is not None and self._outer.poll() is None:
            self._outer.kill()
            self._outer.wait()
        if self._init_fd >= 0:
            # Ours since its parent is gone (the engine is a subreaper), unless that reaped it first.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._init_fd, os.WEXITED)  # noqa: ASYNC222 (its pidfd has said that it ended)
        held = [pidfd for pidfd in (self._init_fd, self._outer_fd) if pidfd >= 0]
        for pidfd in held:
            await until_reaped(pidfd)
        self._init_fd = self._outer_fd = -1
        self._init = 0
        close_all(held)
        self.files.remove()
        if self._cgroup is not None:
            self._cgroup.remove()
        self._on_ended(self.box_id)
        assert self._end is not None
        self.ended.set_result(self._end)

    # -- pausing -------------------------------------------------------------------------------------------------

    async def pause(self) -> None:
        """Stop every process; see `_base.Box.pause`."""
        self._must_live()
        if self._is_paused:
            return
        self.agent.hold()
        try:
            async with asyncio.timeout(PAUSED_WITHIN):
                while not self._stopper.stop(self._init_fd, *self.roots()):
                    await asyncio.sleep(PAUSE_POLL)
                    self._must_live()
        except BaseException:
            self._go_on()
            raise
        self._is_paused = True

    async def resume(self) -> None:
        """Let everything go on; see `_base.Box.resume`."""
        self._must_live()
        self._go_on()

    def roots(self) -> tuple[int, ...]:
        """The processes that all others of the box are below of, and that it ends with, as the engine sees them."""
        return (self._init, self._entered) if self._entered else (self._init,)

    def _must_live(self) -> None:
        if self._ending is not None or not self._init:
            raise AgentLost("the sandbox has ended")

    def _go_on(self) -> None:
        """Let everything go on, also in the middle of stopping or of ending."""
        self._is_paused = False
        self._stopper.go_on(self._init_fd)
        self.agent.release()

    # -- keeping -------------------------------------------------------------------------------------------------

    async def fill(self) -> None:
        """Unpack what it starts with. ArchiveError where that is damaged."""
        if self._spec.files is not None:
            await fill_trees(self.files.trees(), self._spec.files)

    async def save(self, descriptor: int, *, most: int, stop: threading.Event) -> Packed:
        """Write its files to a file; see `_base.Box.save`."""
        self._must_live()
        return await save_trees(self.files.trees(), descriptor, most=most, stop=stop)

    # -- measuring -----------------------------------------------------------------------------------------------

    def memory_outside(self) -> int | None:
        """Bytes that the box uses, where its programs are no processes that the watchdog could weigh one by one: what
        is over its limit then goes as a whole. None where they are."""
        return None

    def disk_used(self) -> int:
        """Bytes in its files, which lie in memory. OSError once it is gone."""
        return self.files.used()

    async def usage(self) -> Usage:
        """Measure; see `_base.Box.usage`. AgentLost when the box has ended."""
        if not self._init:
            raise AgentLost("the sandbox has ended")
        return measure(self._init, self.disk_used(), self._cgroup)
