"""Processes that modules which a zygote has loaded have started, by the way: they would run outside every box."""

from __future__ import annotations

import contextlib
import os
import signal

from sandboxkit.local.isolation.processes._processes import all_pids, place_of
from sandboxkit.local.isolation.zygote._warden_link import pid_of


def end_strays(view: int, *, zygote: int) -> int:
    """Kill all processes that see the files of a view and are in no box, but for the zygote; returns how many. OSError
    where the view has ended.

    Args:
        view: a pidfd of the first process of the box that the zygote's view was taken from.
        zygote: its number, 0 where it has ended.
    """
    files, inside = _files_of(pid_of(view)), place_of(view)
    if not files or not inside:
        raise ProcessLookupError("the view has ended")
    ended = 0
    for pid in all_pids():
        if pid == zygote or _files_of(pid) != files:
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if _files_of(pid) == files and os.readlink(f"/proc/{pid}/ns/pid") != inside:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    ended += 1
            except FileNotFoundError:
                continue  # it has ended
            finally:
                os.close(pidfd)
    return ended


def _files_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return ""
