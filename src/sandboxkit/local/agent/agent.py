"""The engine's hands inside a box: harden this process, then serve the one socket that it inherited.

Runs as `python3 -I -S /opt/sandboxkit/agent/agent.py FD [framed]` with the standard library alone, and imports little
of that: its start is part of every sandbox's start. It listens on nothing. The work is in the modules beside it, which
Python finds compiled; this file it must compile each time, and so it is short.
"""

import os
import sys

PR_SET_DUMPABLE = 4


def prctl(option: int, value: int) -> int:
    """Call `prctl` by the bare `_ctypes`, which costs 2 ms less than `ctypes` at each start."""
    import _ctypes

    class Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
        _type_ = "i"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL
        _restype_ = Int

    class Library:
        _handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]

    return int(Function(("prctl", Library()))(option, value, 0, 0, 0))  # type: ignore[arg-type]


def aside(fd: int) -> int:
    """Move the socket away from the standard streams, where gVisor passes it, and put /dev/null there."""
    if fd > 2:
        return fd
    kept = os.dup(fd)
    while kept <= 2:
        kept = os.dup(kept)
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    if null > 2:
        os.close(null)
    return kept


def harden(keep: int) -> None:
    """Close what we need not, put ourselves before others for the out-of-memory killer, and hide our memory."""
    os.closerange(3, keep)
    os.closerange(keep + 1, 1024)
    os.set_inheritable(keep, False)
    # Children inherit it; once non-dumpable, /proc/self no longer belongs to us and it could not be written.
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if prctl(PR_SET_DUMPABLE, 0) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")


def main() -> None:
    """Take the socket's number from the command line, harden, serve."""
    fd = aside(int(sys.argv[1]))
    harden(fd)
    # Last on the path, so that none of our names can hide one of the standard library's.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if sys.argv[2:] == ["framed"]:
        from agent._framed import serve  # type: ignore[import-not-found]
    else:
        from agent._loop import serve  # type: ignore[import-not-found]

    serve(fd)


if __name__ == "__main__":
    main()
