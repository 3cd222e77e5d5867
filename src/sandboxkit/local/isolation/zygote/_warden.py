"""Holds the namespaces that the boxes of one template are made in, and makes boxes and starts the zygote there.

A program of its own, run by path as `python -I -S _warden.py FD PARENT`: standard library only, no code of a template,
nothing of the engine's memory. The zygote may enter what is made below its user and process namespaces, and nothing
else: so there is one warden for each template, and what a template's modules could do to others of its kind they cannot
do to the engine, to other templates' boxes, or to the host.

    engine ── exec ──> outer half ── fork ──> warden, process 1 of its namespace ── clone ──> boxes (`_maker`)
                                                                                └── fork ───> zygote ──> agents

Requests come as JSON with descriptors over a SEQPACKET socket, one answer each: "pid" with a pidfd, or a text that says
what went wrong. The warden reaps what ends below it. It ends with the engine, by signal and by the end of its socket,
and all that is below it ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

# Last on the path, so that none of our names can hide one of the standard library's.
sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import _maker  # type: ignore[import-not-found]

PR_SET_PDEATHSIG = 1
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x04000000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MAX_REQUEST = 65_536
MAX_FDS = 16
PASSED_BELOW = 24
"""Numbers that a program's descriptors may get: ours lie above."""

_libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    """OSError where a call of the C library has failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Make the namespaces, become their first process, serve."""
    control, parent = int(sys.argv[1]), int(sys.argv[2])
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    must(_libc.unshare(flags), "making namespaces")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    inner = os.fork()
    if inner != 0:
        os.close(control)
        os.waitpid(inner, 0)
        os._exit(0)
    die_with_parent()
    must(_libc.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, None), "mounting /proc")
    # The number that it was given is one that comes through an exec: it would be open in each box's first process.
    keep = fcntl.fcntl(control, fcntl.F_DUPFD_CLOEXEC, PASSED_BELOW)
    os.close(control)
    null = os.open("/dev/null", os.O_RDWR)
    # The numbers that programs find their descriptors under are taken, so that none of ours ever has one of them.
    for number in (0, 1, *range(3, PASSED_BELOW)):
        if number != null:
            os.dup2(null, number, number < 2)
    Warden(socket.socket(fileno=keep)).serve()


def die_with_parent() -> None:
    """Be killed when the parent dies."""
    must(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


class Warden:
    """The loop."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.wakes, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> NoReturn:
        """Answer requests until the engine goes."""
        # In a fork, each page that is written to is copied; a collection would write to all of them.
        gc.freeze()
        gc.disable()
        # The engine has to let go of this process where the outer half has ended before it.
        oneself = os.pidfd_open(os.getpid())
        self.send(b"ready", oneself)
        os.close(oneself)
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        poll.register(self.wakes, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.wakes:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.wakes, 4096)
                    self.reap()
                else:
                    self.answer()

    def reap(self) -> None:
        """Let go of what has ended: the kernel keeps a box's namespace for as long as one of its dead is not."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue

    def send(self, said: bytes, pidfd: int) -> None:
        """Say something, and give a descriptor with it."""
        self.control.sendmsg([said], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", pidfd))])

    def answer(self) -> None:
        """Carry out one request."""
        data, rights, _, _ = self.control.recvmsg(MAX_REQUEST, socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC)
        if not data:
            os._exit(0)
        fds = [fd for _, _, raw in rights for fd in struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4])]
        pid = pidfd = -1
        try:
            request = json.loads(data)
            pid = zygote(request, fds) if request["do"] == "zygote" else box(request, fds)
            pidfd = os.pidfd_open(pid)
            self.send(b"pid", pidfd)
        except OSError as error:
            if pid > 0:  # nobody would know of it
                os.kill(pid, signal.SIGKILL)
            self.control.send(str(error).encode()[:1000])
        finally:
            for fd in (*fds, pidfd):
                if fd >= 0:
                    os.close(fd)


def box(request: dict[str, Any], fds: list[int]) -> int:
    """Make a box; the descriptors are where errors are written, the filter's bytes, its file system where it has one,
    and files that one joins control groups by. None of them stays open over the exec, so that the first one's end tells
    that the box is complete."""
    errors, program, *others = fds
    tree, *groups = others if request["stage"] is not None else (-1, *others)
    made = _maker.Box(
        words=request["words"],
        stage=request["stage"],
        tree=tree,
        hostname=request["hostname"],
        uid=request["uid"],
        argv=request["argv"],
        filter=filter_of(program),
    )
    outside = os.geteuid(), os.getegid()
    pid: int = _maker.clone()
    if pid != 0:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        os.dup2(1, 2)
        _maker.become(made, groups, outside)
    except BaseException as error:
        os.write(errors, str(error).encode()[:1000] or b"it failed")
    finally:
        os._exit(127)


def zygote(request: dict[str, Any], fds: list[int]) -> int:
    """Start a zygote in the view of a box, under a system-call filter; the descriptors are the view's first process,
    the filter's bytes, the control socket, and where errors are written."""
    view, program, control, errors = fds
    filter_bytes = filter_of(program)
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        must(_libc.setns(view, CLONE_NEWNS), "entering the view")
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(errors, 2)
        os.dup2(control, 3)
        os.closerange(4, 1 << 20)
        os.chdir(request["cwd"])
        for limit, most in request["limits"]:
            resource.setrlimit(limit, (most, most))
        # The right to do so without no_new_privs goes with the exec: this user is not root in any namespace.
        _maker.set_filter(filter_bytes)
        os.execve(request["argv"][0], request["argv"], request["environment"])
    except OSError as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(127)


def filter_of(file: int) -> bytes:
    """A system-call filter that the engine has written to a file in memory."""
    return os.pread(file, MAX_REQUEST, 0)


if __name__ == "__main__":
    main()
