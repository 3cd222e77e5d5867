"""The small part of the engine that stays root: it waits for the engine proper, and cleans up behind it.

    root: enter() ── fork ──> the engine, which drops to an ordinary uid and never gets back
      └ supervise(): passes SIGTERM, SIGINT and SIGHUP on, waits, calls `clean`, exits with the engine's code

If the supervisor dies the kernel kills the engine (PR_SET_PDEATHSIG, set after the drop, which would clear it), and
with the engine go the boxes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from sandboxkit.local.isolation.host import _kernel

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SI_KERNEL = 0x80
"""Sent by the terminal: the engine, in the same process group, has had its own."""


def fork_under_supervision(clean: Callable[[], None]) -> int:
    """Fork. Returns in the child, with the supervisor's pid; the parent stays in here and exits in the end.

    Args:
        clean: called as root after the child's end, however it ended.
    """
    watched = {*PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    supervisor = os.getpid()
    child = os.fork()
    if child != 0:
        _supervise(child, watched, clean)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return supervisor


def die_with(supervisor: int) -> None:
    """In the child, after its last change of uid: be killed when the supervisor dies."""
    _kernel.prctl(_kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        os._exit(1)


def _supervise(child: int, watched: set[signal.Signals], clean: Callable[[], None]) -> NoReturn:
    status = None
    while status is None:
        got = signal.sigwaitinfo(watched)
        if got.si_signo != signal.SIGCHLD:
            if got.si_code != SI_KERNEL:
                os.kill(child, got.si_signo)
            continue
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == child:
                status = wait_status
    try:
        clean()
    finally:
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
