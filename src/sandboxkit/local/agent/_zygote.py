"""The zygote's loop, and the two moments at which a fork of it becomes something else: an agent, then a kernel."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Collection
from typing import Any, NoReturn

from . import _entry, _verbs  # noqa: F401 (the rarer verbs: here they cost no start anything)
from ._codec import unpack
from ._pages import REPEATS, fill_holes
from ._programs import KERNEL

CONTROL = 3
AGENT_FD = _entry.AGENT_FD
MAX_REQUEST = 65_536
MAX_FDS = 32


_plain = ctypes.PyDLL(None)


class Entered(BaseException):
    """Raised in a fork that has become an agent, to leave the zygote's frames behind."""


def serve(without: Collection[str]) -> NoReturn:
    """Fork for each request until the engine goes. Raises Entered in the forks.

    A request is the box's system-call filter, with descriptors: the agent's socket, a socket for the report, and the
    files of the box's control groups. It has no answer of its own. Over the report's socket comes the box's first
    process, once there is one, and goes one word, or the names of the steps that are to blame.
    """
    if threading.active_count() != 1:
        raise RuntimeError("a module that was loaded has started a thread")
    control = socket.socket(fileno=CONTROL)
    # Forks in between are never waited for, and their number is free again at once.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    state = random.getstate()
    _rehearse(state)
    fill_holes()
    gc.freeze()
    control.send(b"ready")
    while True:
        data, rights, _, _ = control.recvmsg(MAX_REQUEST, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        fds = [fd for _, _, raw in rights for fd in struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4])]
        if fork() == 0:
            control.detach()
            agent, report, *cgroups = fds
            _enter(_entry.Entry(agent, report, tuple(cgroups), unpack(data)[0]), without, state)
        for fd in fds:
            os.close(fd)


def _enter(entry: _entry.Entry, without: Collection[str], state: object) -> NoReturn:
    """Carry out the steps and report. Raises Entered; never returns otherwise."""
    try:
        _entry.run(_entry.OUTSIDE, entry, without)
        if fork() != 0:
            os._exit(0)
        _entry.run(_entry.INSIDE, entry, without)
        wrong = _entry.faults(state)
    except BaseException as error:
        wrong = [f"failed: {error}"]
    try:
        report = entry.report
        os.fstat(report)
    except OSError:
        report = _entry.REPORT_FD  # the step of the descriptors was carried out
    try:
        os.write(report, " ".join(wrong).encode() or b"entered")
    finally:
        if wrong:
            os._exit(1)
    os.close(report)
    raise Entered


def _rehearse(state: object) -> None:
    """Do what forks will do, where that changes nothing here; see `_pages`."""
    environment = dict(os.environb)
    for _ in range(REPEATS):
        _entry.faults(state)
        os.environ.clear()
        os.environb.update(environment)
    os.umask(0o077)


def fork() -> int:
    """fork(2), and nothing else: what Python does at forks makes up for threads and locks, of which there are none
    here, and for randomness, which is a step of its own; it takes a millisecond, most of it copies of pages."""
    pid: int = _plain.fork()
    if pid < 0:
        raise OSError("fork failed")
    return pid


def own_line() -> tuple[int, int]:
    """Where the command line that others see lies in our own memory, and how long it is; the same in all forks."""
    start = ctypes.c_void_p.in_dll(_plain, "program_invocation_name").value or 0
    line = b"\0".join(map(os.fsencode, sys.orig_argv)) + b"\0"
    return (start, len(line)) if start and ctypes.string_at(start, len(line)) == line else (0, 0)


def call_oneself(words: list[bytes], place: tuple[int, int]) -> None:
    """Change the command line that others see, where it fits."""
    start, size = place
    line = b"\0".join(words) + b"\0"
    if start > 0 and len(line) <= size:
        ctypes.memmove(start, line.ljust(size, b"\0"), size)


def start_kernel(shell: Any, environment: dict[bytes, bytes], line: tuple[int, int]) -> None:
    """Serve cells over descriptor 3, as a kernel that was started by exec would."""
    os.closerange(CONTROL + 1, _entry.HIGHEST)
    os.environb.update(environment)
    if b"TZ" in environment:
        time.tzset()
    # As at a fork of Python's own: other kernels of this agent's are to have other numbers.
    random.seed()
    call_oneself(KERNEL, line)
    # What the zygote saw in its working directory was that of another box.
    for path in ("/home/user", "", os.getcwd()):
        sys.path_importer_cache.pop(path, None)
    from . import kernel_loop

    # A user's own module may be called so. By name, for to look at each is to write to each: it is counted who has it.
    # They are kept, for what goes writes to all that it had.
    kept = [sys.modules.pop(name, None) for name in ("agent", "agent._loop", "agent._zygote")]
    kernel_loop.serve(CONTROL, shell)
    del kept
