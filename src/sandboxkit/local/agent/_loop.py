"""The agent's loop: requests in, answers and ends of programs out.

One thread, one epoll. It trusts the engine (a malformed request is a bug, and ends it) and is not trusted by it. What
may take long is a generator that is advanced a few milliseconds at a time, so that starting programs and reporting
their ends never wait for it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import os
import select
import struct
import time
from contextlib import nullcontext, suppress

from . import _files, _handles, _programs
from ._codec import (
    ACCEPT,
    BENEATH,
    CANCEL,
    DIAL,
    EXIT,
    FAIL,
    HEADER,
    HELLO,
    LIST,
    LISTEN,
    MAKE_DIR,
    MAX_FDS,
    MAX_PACKET,
    MORE,
    OK,
    OPEN,
    PING,
    REMOVE,
    RENAME,
    RESIZE,
    SET_XATTRS,
    SIGNAL,
    SPACE,
    SPAWN,
    STAT,
    WATCH_END,
    number,
    pack,
    packets,
    unpack,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ._verbs import Verbs

SLICE = 0.003
"""Seconds that one long operation may hold the loop."""


class Agent:
    """The loop and what it waits for."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.rules = _programs.Rules()
        self.poll = select.epoll()
        self.poll.register(sock.fileno(), select.EPOLLIN)
        self.children: dict[int, tuple[int, int]] = {}
        """pidfd -> (pid, request that started it)"""
        self.pids: dict[int, int] = {}
        """pid -> the process group that it was started in"""
        self.unwatched: dict[int, int] = {}
        """pid -> request, where this is the first process, which has to take all that end"""
        self.signalled = -1
        self.files = _handles.Handles()
        self.dials: dict[int, tuple[_socket.socket, int]] = {}
        """descriptor -> (socket that connects, request)"""
        self.listeners: dict[int, _socket.socket] = {}
        """port -> listening socket"""
        self.accepts: dict[int, tuple[_socket.socket, int]] = {}
        """descriptor -> (listening socket, request that waits for a connection)"""
        self.jobs: dict[int, _files.Steps] = {}
        """request -> generator"""
        self.partial: dict[int, bytearray] = {}
        self.verbs: Verbs | None = None
        """The rarer verbs; made when the first one is asked for, since each start would pay for their import."""

    # replies

    def send(self, request: int, kind: int, fields: _files.Fields, fds: tuple[int, ...] = ()) -> None:
        """Send one message. Blocks while the engine does not read: nothing here could go on without it."""
        cut = packets(request, kind, pack(fields))
        for at, packet in enumerate(cut):
            rights = []
            if fds and at == len(cut) - 1:
                rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
            self.sock.sendmsg([packet], rights)

    def refuse(self, request: int, error: OSError, path: bytes = b"") -> None:
        """Tell that an operation failed."""
        name = error.filename
        told = path or (name if isinstance(name, bytes) else b"")
        code = error.errno or errno.EIO
        self.send(request, FAIL, [code, os.strerror(code).encode(), told])

    # the loop

    def run(self) -> None:
        """Serve until the engine closes its end."""
        sock = self.sock.fileno()
        while True:
            for fd, events in self.poll.poll(0 if self.jobs else -1):
                if fd == sock:
                    if not self.receive():
                        return
                elif fd in self.children:
                    self.reap(fd)
                elif fd in self.dials:
                    self.dialled(fd)
                elif fd in self.accepts:
                    self.accepted(fd)
                elif fd == self.signalled:
                    self.reap_unwatched()
                elif self.verbs is not None and fd == self.verbs.watches.fd:
                    self.verbs.watches.readable()
                else:
                    self.other(fd, events)
            for request in tuple(self.jobs):
                self.advance(request)

    def receive(self) -> bool:
        """Read one packet. False at the end."""
        data, rights, _flags, _address = self.sock.recvmsg(
            MAX_PACKET + HEADER.size, _socket.CMSG_SPACE(4 * MAX_FDS), _socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            return False
        fds: list[int] = []
        for _level, _kind, raw in rights:
            fds += struct.unpack(f"{len(raw) // 4}i", raw[: len(raw) // 4 * 4])
        self.packet(data, fds)
        return True

    def packet(self, data: bytes, fds: list[int]) -> None:
        """Take one packet, and carry out the request that it completes. Closes the descriptors."""
        request, kind, flags = HEADER.unpack_from(data)
        body = self.partial.pop(request, bytearray())
        body += data[HEADER.size :]
        if flags & MORE:
            self.partial[request] = body
            return
        try:
            self.handle(request, kind, unpack(bytes(body)), fds)
        except OSError as error:
            self.refuse(request, error)
        finally:
            for fd in fds:
                os.close(fd)

    def other(self, fd: int, events: int) -> None:
        """A descriptor of a transport's own is ready."""

    def handle(self, request: int, kind: int, args: list[bytes], fds: list[int]) -> None:
        """Carry out one request."""
        if kind == SPAWN:
            self.spawn(request, args, fds)
        elif kind == SIGNAL:
            self.send(request, OK, [self.signal(number(args[0]), number(args[1]), args[2] == b"1")])
        elif kind == OPEN:
            fd = _files.open_file(args[0], number(args[1]), number(args[2]))
            try:
                self.send(request, OK, [], (fd,))
            finally:
                os.close(fd)
        elif kind == STAT:
            path = args[0]
            self.send(request, OK, _files.entry(os.path.basename(path.rstrip(b"/")) or b"/", path))
        elif kind == LIST:
            self.jobs[request] = _files.list_tree(args[0], number(args[1]))
        elif kind == REMOVE:
            self.jobs[request] = _files.remove_tree(args[0])
        elif kind == MAKE_DIR:
            self.send(request, OK, [_files.make_dir(args[0])])
        elif kind == RENAME:
            self.jobs[request] = _files.rename(args[0], args[1])
        elif kind == SET_XATTRS:
            _files.set_xattrs(args[0], args[1:])
            self.send(request, OK, [])
        elif kind == DIAL:
            self.dial(request, args[0], number(args[1]))
        elif kind == LISTEN:
            self.send(request, OK, [self.listen(number(args[0]))])
        elif kind == ACCEPT:
            self.accept(request, number(args[0]))
        elif kind == PING:
            self.send(request, OK, [])
        elif kind == CANCEL:
            self.cancel(number(args[0]))
        elif kind in _handles.VERBS:
            self.send(request, OK, self.files.do(kind, args))
        elif kind == RESIZE:
            self.resize(number(args[0]), number(args[1]), number(args[2]))
            self.send(request, OK, [])
        elif kind == SPACE:
            self.send(request, OK, [_files.space(args)])
        elif BENEATH <= kind <= WATCH_END:
            self.rarely().handle(request, kind, args)
        elif kind == HELLO:
            self.rules.processes, self.rules.open_files, self.rules.data, self.rules.nice = map(number, args)
            self.rules.hold()
            self.send(request, OK, [os.getpid()])
        else:
            raise ValueError(f"unknown request {kind}")

    def advance(self, request: int) -> None:
        """Let one long operation go on for a slice."""
        job = self.jobs[request]
        until = time.monotonic() + SLICE
        try:
            while time.monotonic() < until:
                next(job)
        except StopIteration as done:
            del self.jobs[request]
            self.send(request, OK, done.value)
        except OSError as error:
            del self.jobs[request]
            self.refuse(request, error)

    def cancel(self, request: int) -> None:
        """Give up what takes long. Each request has exactly one answer: one that is over had it."""
        job = self.jobs.pop(request, None)
        if job is not None:
            job.close()
            self.refuse(request, _files.fail(errno.ECANCELED, b""))
        for waiting, drop in ((self.dials, self.drop_dial), (self.accepts, self.drop_accept)):
            for fd, (_sock, owner) in tuple(waiting.items()):
                if owner == request:
                    drop(fd)
                    self.refuse(request, _files.fail(errno.ECANCELED, b""))
        if self.verbs is not None:
            self.verbs.watches.cancel(request)

    def rarely(self) -> Verbs:
        """The verbs of level `enforced` and of watching."""
        if self.verbs is None:
            from ._verbs import Verbs

            self.verbs = Verbs(self)
        return self.verbs

    # programs

    def spawn(self, request: int, args: list[bytes], fds: list[int]) -> None:
        """cwd, columns, rows (0 when no terminal), whether it leads its group, number of arguments, arguments, number
        of variables, NAME=value, the descriptor numbers that the attached descriptors get."""
        cwd, (cols, rows, leads, count) = args[0], map(number, args[1:5])
        argv = args[5 : 5 + count]
        rest = args[5 + count :]
        count = number(rest[0])
        envs = dict(pair.split(b"=", 1) for pair in rest[1 : 1 + count])
        targets = [number(field) for field in rest[1 + count :]]
        master = slave = -1
        try:
            if cols:
                master, slave = _programs.terminal(cols, rows)
            given = dict(zip(targets, fds, strict=True))
            with nullcontext(0) if leads else _programs.leaderless() as group:
                pid = _programs.spawn(self.rules, cwd, argv, envs, given, tty=slave, group=group)
                self.pids[pid] = group or pid
                try:
                    self.watch_child(pid, request)
                    self.send(request, OK, [pid], (master,) if cols else ())
                except OSError:
                    self.give_up(pid)
                    raise
        finally:
            for fd in (master, slave):
                if fd >= 0:
                    os.close(fd)

    def watch_child(self, pid: int, request: int) -> None:
        """Have the end of a child reported, by a pidfd, or by SIGCHLD where orphans are ours, too."""
        if os.getpid() == 1:
            self.unwatched[pid] = request
            if self.signalled < 0:
                self.signalled, told = os.pipe()
                os.set_blocking(self.signalled, False)
                os.set_blocking(told, False)
                _signal.set_wakeup_fd(told, warn_on_full_buffer=False)
                _signal.signal(_signal.SIGCHLD, lambda signum, frame: None)
                self.poll.register(self.signalled, select.EPOLLIN)
                os.write(told, b"0")  # it may have ended before
            return
        watch = os.pidfd_open(pid)
        try:
            self.poll.register(watch, select.EPOLLIN)
        except OSError:
            os.close(watch)
            raise
        self.children[watch] = (pid, request)

    def give_up(self, pid: int) -> None:
        """End a child that the engine cannot be told of."""
        _programs.end(pid, started_in=self.pids.pop(pid))
        self.unwatched.pop(pid, None)
        for watch in [one for one, (child, _) in self.children.items() if child == pid]:
            del self.children[watch]
            self.poll.unregister(watch)
            os.close(watch)

    def reap(self, watch: int) -> None:
        """Take the end of a child and report it."""
        pid, request = self.children[watch]
        got, status = os.waitpid(pid, os.WNOHANG)
        if not got:
            return  # the number of its pidfd was another's a moment ago
        del self.children[watch]
        self.poll.unregister(watch)
        os.close(watch)
        self.ended(pid, request, status)

    def reap_unwatched(self) -> None:
        """Take all that have ended: children without a pidfd, and orphans of theirs where we are the first process."""
        with suppress(BlockingIOError):
            os.read(self.signalled, 4096)
        with suppress(ChildProcessError):
            while (taken := os.waitpid(-1, os.WNOHANG))[0]:
                if taken[0] in self.unwatched:
                    self.ended(taken[0], self.unwatched.pop(taken[0]), taken[1])

    def ended(self, pid: int, request: int, status: int) -> None:
        """Report the end of a child that was taken."""
        self.pids.pop(pid, None)
        code = os.waitstatus_to_exitcode(status)
        self.send(request, EXIT, [b"code" if code >= 0 else b"signal", abs(code)])

    def resize(self, pid: int, cols: int, rows: int) -> None:
        """Set the size of a program's terminal, where that is kept here."""
        raise _files.fail(errno.ENOTTY, b"%d" % pid)

    def signal(self, pid: int, signum: int, group: bool) -> bool:
        """Signal a child that has not been reaped (so its number cannot mean another), or its group."""
        if pid not in self.pids:
            return False
        try:
            if group:
                _programs.signal_group(pid, signum, started_in=self.pids[pid])
            else:
                os.kill(pid, signum)
        except ProcessLookupError:
            return False
        return True

    # sockets

    def dial(self, request: int, host: bytes, port: int) -> None:
        """Begin to connect to a TCP port."""
        family = _socket.AF_INET6 if b":" in host else _socket.AF_INET
        sock = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
        code = sock.connect_ex((host.decode(), port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            raise _files.fail(code, b"%s:%d" % (host, port))
        self.poll.register(sock.fileno(), select.EPOLLOUT)
        self.dials[sock.fileno()] = (sock, request)

    def dialled(self, fd: int) -> None:
        """Report how a connection attempt went."""
        sock, request = self.dials[fd]
        try:
            if code := sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
                raise _files.fail(code, b"")
            self.send(request, OK, [], (fd,))
        except OSError as error:
            self.refuse(request, error)
        self.drop_dial(fd)

    def drop_dial(self, fd: int) -> None:
        """Forget a connecting socket."""
        sock, _request = self.dials.pop(fd)
        self.poll.unregister(fd)
        sock.close()

    def listen(self, port: int) -> int:
        """Listen on a loopback port for good, or on any where this one is taken. Returns the port."""
        sock = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            sock.bind(("127.0.0.1", 0))
        sock.listen(64)
        taken: int = sock.getsockname()[1]
        self.listeners[taken] = sock
        return taken

    def accept(self, request: int, port: int) -> None:
        """Wait for the next connection to a port. The socket is watched only while somebody waits for it."""
        sock = self.listeners.get(port)
        if sock is None or sock.fileno() in self.accepts:
            raise _files.fail(errno.EINVAL, b"%d" % port)
        self.poll.register(sock.fileno(), select.EPOLLIN)
        self.accepts[sock.fileno()] = (sock, request)

    def accepted(self, fd: int) -> None:
        """Pass the connection on."""
        sock, request = self.accepts[fd]
        got = -1
        try:
            got, _address = sock._accept()  # type: ignore[attr-defined]
            self.send(request, OK, [], (got,))
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # what is on its way between programs is counted for all boxes together
            self.refuse(request, error)
        finally:
            if got >= 0:
                os.close(got)
        self.drop_accept(fd)

    def drop_accept(self, fd: int) -> None:
        """Watch a listening socket no more."""
        del self.accepts[fd]
        self.poll.unregister(fd)


def serve(fd: int, *, can_fork_kernels: bool = False, fork: Callable[[], int] = os.fork) -> None:
    """Serve the socket with this number until the engine closes its end.

    Args:
        can_fork_kernels: raise `_programs.BecomeKernel` in a fork that is to be a kernel, instead of starting one.
        fork: how to fork for programs.
    """
    _handles.raise_limit()
    _programs.heed_signals()
    agent = Agent(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fd))
    agent.rules.can_fork_kernels, agent.rules.fork = can_fork_kernels, fork
    try:
        agent.run()
    except _programs.BecomeKernel:
        # Their numbers mean the kernel's descriptors by now, or will.
        agent.poll.close()
        for sock in (agent.sock, *agent.listeners.values(), *(one for one, _ in agent.dials.values())):
            sock.detach()
        raise
