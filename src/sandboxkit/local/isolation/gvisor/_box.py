"""One gVisor box: runsc inside a bubblewrap box, so that its life and its end are that box's.

The agent is gVisor's first program, and its standard input, a socket of the engine's, is its stream: nothing else
is passed in, and nothing listens. When bubblewrap's init is gone, the kernel has taken runsc, the sentry and every
program.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import resource
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from sandboxkit.errors import EngineUnavailable
from sandboxkit.local.isolation._archive import Packed, Unkeepable
from sandboxkit.local.isolation._base import HOME, AgentError, AgentLost, BoxSpec, Usage
from sandboxkit.local.isolation.bubblewrap._box import BubblewrapBox
from sandboxkit.local.isolation.bubblewrap._told import memory_file, pipe, said, tell, words_pipe
from sandboxkit.local.isolation.gvisor import _plan
from sandboxkit.local.isolation.gvisor._plan import GvisorPlan
from sandboxkit.local.isolation.gvisor._processes import MemoryMeter, SentryStopper, tree
from sandboxkit.local.isolation.limits._limits import Cgroup, inside_limits
from sandboxkit.local.isolation.link._framed import FramedPort
from sandboxkit.local.isolation.link._link import AgentLink
from sandboxkit.local.isolation.processes._processes import usage_of

START_WITHIN = 20.0
"""Seconds from bubblewrap's start to the agent's first answer."""
MEASURED_WITHIN = 5.0
WRITABLE = (HOME, "/tmp", "/dev/shm")


class GvisorBox(BubblewrapBox):
    """A live box; see `_base.Box`. Made by `GvisorIsolation.create`."""

    def __init__(
        self, spec: BoxSpec, *, directory: Path, cgroup: Cgroup | None, version: int, on_ended: Callable[[str], None]
    ) -> None:
        super().__init__(spec, directory=directory, cgroup=cgroup, version=version, on_ended=on_ended)
        self.limits = _plan.limits_in_force(spec.limits, cgroup, version)
        self.memory_limit = spec.limits.memory + _plan.OVERHEAD
        self._stopper = SentryStopper()  # type: ignore[assignment]
        self._meter = MemoryMeter()
        self._disk = 0

    def prepare(self, *, is_apart: bool = False) -> None:
        """Make the box's directory and cgroup. OSError where the kernel refuses."""
        self.files.path.mkdir()
        limits = self._spec.limits
        if self._cgroup is not None:
            self._cgroup.make(dataclasses.replace(limits, memory=self.memory_limit, processes=_plan.host_tasks(limits)))

    async def save(self, descriptor: int, *, most: int, stop: threading.Event) -> Packed:
        """Refuse: the files lie in gVisor's memory, and nobody else sees them. Unkeepable, always."""
        raise Unkeepable("with isolation 'gvisor' the files of a sandbox cannot be copied")

    async def boot(self, bwrap: str, plan: Callable[[int, int, int], GvisorPlan]) -> None:
        """Start bubblewrap with runsc in it, and wait for the agent's answer.

        Raises:
            EngineUnavailable: bubblewrap or runsc failed; the message has their words.
        """
        with contextlib.ExitStack() as ours:
            with contextlib.ExitStack() as theirs:
                near, far = socket.socketpair()
                theirs.enter_context(far)
                self.agent = AgentLink(FramedPort(near), on_lost=self._agent_lost)
                self._info, info_write = os.pipe()
                theirs.callback(os.close, info_write)
                block_read, block_write = pipe(theirs, ours)
                errors_read, errors_write = pipe(ours, theirs)
                args_read, arguments = words_pipe(theirs, ours)
                config = memory_file(_plan.config(self._spec.limits))
                theirs.callback(os.close, config)
                made = plan(config, info_write, block_read)
                # From this, the loop's thread: bubblewrap dies with the thread that started it.
                self._outer = subprocess.Popen(  # noqa: ASYNC220 (a fork and an exec: a millisecond)
                    ["bwrap", "--args", str(args_read), "--", *_plan.command(made)],
                    executable=bwrap,
                    stdin=far.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=errors_write,
                    env={},
                    pass_fds=(info_write, block_read, config, args_read),
                    start_new_session=True,
                )
            self._outer_fd = os.pidfd_open(self._outer.pid)
            self._watch(self._outer_fd)
            try:
                if self._cgroup is not None:
                    self._cgroup.join(self._outer.pid)
                tell(arguments, _plan.outer_arguments(made))
                async with asyncio.timeout(START_WITHIN):
                    await self._know_init()
                    self._bound_tasks()
                    os.write(block_write, b"1")
                    await self._furnish()
            except (TimeoutError, AgentLost, AgentError, ValueError, OSError) as error:
                raise EngineUnavailable(
                    f"A sandbox did not start ({str(error) or type(error).__name__}). "
                    f"runsc said: {said(errors_read) or 'nothing'}",
                    sandbox_id=self.box_id,
                ) from error
        self._close_info()

    def _bound_tasks(self) -> None:
        """Bound the tasks of the box's own user namespace, whether or not a cgroup counts them. Before runsc runs."""
        most = _plan.host_tasks(self._spec.limits)
        resource.prlimit(self._init, resource.RLIMIT_NPROC, (most, most))

    async def _furnish(self) -> None:
        """Wait for the agent, tell it its limits, and copy the home's first content."""
        inside = inside_limits(self._spec.limits, self._cgroup)
        await self.agent.hello(
            processes=inside.processes, open_files=inside.open_files, data=inside.data, nice=inside.nice
        )
        if self._spec.skeleton is not None:
            copied = await self.agent.spawn(["/bin/cp", "-a", f"{_plan.SKELETON}/.", HOME], envs={}, cwd=HOME, fds={})
            if (await copied.wait()).code != 0:
                raise ValueError("the home could not be filled")

    # -- measuring -----------------------------------------------------------------------------------------------

    def memory_outside(self) -> int | None:
        """See `BubblewrapBox.memory_outside`."""
        return self._meter.measure(self._init)

    def disk_used(self) -> int:
        """Bytes in its files, as the box said when it was last asked."""
        return self._disk

    async def usage(self) -> Usage:
        """Measure; see `_base.Box.usage`. The figure of its files is the box's own word, which harms nobody else: they
        are part of its memory. AgentLost when the box has ended."""
        self._must_live()
        if not self._is_paused:
            with contextlib.suppress(TimeoutError, AgentError):
                async with asyncio.timeout(MEASURED_WITHIN):
                    self._disk = max(0, await self.agent.space(WRITABLE))
        self._must_live()
        group = self._cgroup
        found = usage_of(tree(self._init))
        counted = group is not None and group.has("memory")
        memory = group.memory() if group is not None and counted else self._meter.measure(self._init)
        return Usage(
            cpu_seconds=group.cpu_seconds() if group is not None and group.has("cpuacct") else found.cpu_seconds,
            memory=memory,
            cache=min(self._disk, memory),
            disk=self._disk,
            processes=found.processes,
        )
