"""How the agent starts a program: fork, become what was asked for, exec, and say what went wrong if it did.

Between fork and exec the child is a copy of the agent: non-dumpable, and its socket closes at exec.

A copy of an agent that a zygote has made costs milliseconds, since it has an interpreter loaded. There the usual
program is started by vfork, which copies nothing, and in which no code of ours can run: so the agent itself has the
limits of its programs, from its first message on.
"""

from __future__ import annotations

import _ctypes
import _signal  # type: ignore[import-not-found]
import errno
import os
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ._codec import number, pack, unpack
from ._files import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

TIOCSCTTY, TIOCSWINSZ = 0x540E, 0x5414
CLONE_VM = 0x100
USE_ERRNO = 8
"""What `ctypes` calls FUNCFLAG_USE_ERRNO."""
LOCKED = 8 * 1024 * 1024
"""Bytes of memory that a program may lock."""
QUEUED = 819_200
"""Bytes in POSIX message queues, and below: signals that wait. Both are the kernel's memory."""
SIGNALS = 4096
ENOUGH_FILES = 2048
"""Descriptors that suffice for an agent: less than half are files that others hold open, and processes' ends."""


KERNEL = [b"/opt/sandboxkit/env/bin/python3", b"/opt/sandboxkit/agent/kernel.py"]
FIXED_AT_START = (b"PYTHON", b"LD_", b"LC_", b"LANG", b"HOME", b"MALLOC_", b"GLIBC_", b"GCONV_", b"IPYTHON")
"""How the names of variables begin that a Python process heeds at its start, and no more later."""
ZYGOTES = {b"LANG": b"C.UTF-8", b"HOME": b"/home/user"}
"""What of these the zygote was started with."""


class BecomeKernel(BaseException):
    """Raised in a fork of the agent that is to be a kernel, to leave the agent's frames behind."""

    def __init__(self, environment: dict[bytes, bytes]) -> None:
        super().__init__()
        self.environment = environment


class Rules:
    """What every program that is started gets: set once, by HELLO."""

    can_fork_kernels = False
    """Whether this process has an interpreter loaded that was never used."""
    fork: Callable[[], int] = staticmethod(os.fork)
    """How to fork: without what Python does at forks, where that takes long."""

    processes = 256
    open_files = 4096
    data = 0
    nice = 0
    are_held = False
    """Whether the agent itself has these limits, so that what it starts by vfork has them."""

    def hold(self) -> None:
        """Take the limits, where an agent can do its work under them and has what starts programs by vfork."""
        if "subprocess" in sys.modules and not self.data and not self.nice and self.open_files >= ENOUGH_FILES:
            limit(self)
            self.are_held = True


def heed_signals() -> None:
    """Let no signal be ignored that whoever started the engine ignored (nohup; a shell's `&`): programs would inherit
    it, and could not be interrupted or hung up. Python's own are the programs' to set."""
    for signum in _signal.valid_signals():
        if _signal.getsignal(signum) == _signal.SIG_IGN and signum not in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(signum, _signal.SIG_DFL)


def lower(kind: int, value: int) -> None:
    """Set both ends of a resource limit, never above what we have."""
    soft, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    if (soft, hard) == (value, value):
        return  # gVisor lets nobody set what it does not know, not even to what it is
    resource.setrlimit(kind, (value, value))


def spawn(
    rules: Rules,
    cwd: bytes,
    argv: list[bytes],
    envs: dict[bytes, bytes],
    fds: dict[int, int],
    *,
    tty: int = -1,
    group: int = 0,
) -> int:
    """Start a program and return its pid once it really runs; OSError with the path that was at fault if not. It is in
    the process group that is given, else it leads one and a session."""
    if rules.are_held and tty < 0 and fds.keys() <= {0, 1, 2}:
        pid = _start_by_vfork(cwd, argv, envs, fds, group=group or None)
        if argv != KERNEL:
            rules.can_fork_kernels = False
        return pid
    return _start(rules, cwd, argv, envs, fds, tty, group)


@contextmanager
def leaderless() -> Iterator[int]:
    """A process group for one program that does not lead it. It can be joined here, where its leader has ended and is
    not taken yet; after that its number stays while somebody is in it."""
    stack = _Stack()
    leader = _end_at_once(stack)
    try:
        os.setpgid(leader, leader)
        yield leader
    finally:
        os.waitpid(leader, 0)


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "P"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Stack(_ctypes.Array):  # type: ignore[type-arg]
    _type_, _length_ = _Pointer, 512


class _Clone(_ctypes.CFuncPtr):
    _flags_, _restype_ = _ctypes.FUNCFLAG_CDECL | USE_ERRNO, _Int
    _argtypes_ = (_Pointer, _Pointer, _Int, _Pointer)


def _end_at_once(stack: _Stack) -> int:
    """Make a child that ends, and is to be taken; until then its stack is needed. It shares our memory for one call of
    `_exit`: so it is made in microseconds, whatever is loaded here, and leaves nothing but its number."""
    libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
    clone, end = (_ctypes.dlsym(libc, name) for name in ("clone", "_exit"))
    top = _ctypes.addressof(stack) + _ctypes.sizeof(stack)
    # A handler of ours is not to run in it: it would do so on our data, and the stack has no room for one.
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        pid: int = _Clone(clone)(end, top - top % 16, CLONE_VM | _signal.SIGCHLD, 0)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    if pid < 0:
        raise fail(_ctypes.get_errno(), b"")
    return pid


def signal_group(pid: int, signum: int, *, started_in: int) -> None:
    """Signal a child's group: the one that it was started in or leads by now; where it has joined another one, only
    itself. The number of a group that it has left may be another's."""
    group = os.getpgid(pid)
    if group in (started_in, pid):
        os.killpg(group, signum)
    else:
        os.kill(pid, signum)


def end(pid: int, *, started_in: int) -> None:
    """Kill a child with its group, and take it."""
    with suppress(ProcessLookupError):
        signal_group(pid, _signal.SIGKILL, started_in=started_in)
    os.waitpid(pid, 0)


def terminal(columns: int, rows: int) -> tuple[int, int]:
    """Make a terminal of this size: its master and its slave."""
    import fcntl

    master, slave = os.openpty()
    fcntl.ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return master, slave


def _start(
    rules: Rules, cwd: bytes, argv: list[bytes], envs: dict[bytes, bytes], fds: dict[int, int], tty: int, group: int
) -> int:
    verdict, report = os.pipe()
    forks_kernel = rules.can_fork_kernels and argv == KERNEL and 3 in fds and not _differs_at_start(envs)
    pid = rules.fork()
    if pid == 0:
        path = cwd
        try:
            become(rules, fds, tty, group)
            os.chdir(cwd)
            path = argv[0]
            if forks_kernel:
                os.close(report)
                raise BecomeKernel(envs)
            execute(argv, envs)
        except OSError as error:
            os.write(report, pack([error.errno or errno.EIO, path]))
            os._exit(127)
        except BecomeKernel:
            raise
        except BaseException:
            os._exit(127)
    os.close(report)
    try:
        told = os.read(verdict, 65536)
    finally:
        os.close(verdict)
    if told:
        os.waitpid(pid, 0)
        code, path = unpack(told)
        raise fail(number(code), path)
    if argv != KERNEL:
        # Its environment has been in our memory, of which a kernel that we fork would have a copy.
        rules.can_fork_kernels = False
    return pid


def _start_by_vfork(
    cwd: bytes, argv: list[bytes], envs: dict[bytes, bytes], fds: dict[int, int], *, group: int | None
) -> int:
    """`group`: None for a session of its own."""
    import subprocess

    stdin, stdout, stderr = (fds.get(number, subprocess.DEVNULL) for number in range(3))
    try:
        started = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=envs,
            umask=0o022,
            start_new_session=group is None,
            process_group=group,
        )
    except OSError as error:
        path = error.filename
        raise fail(error.errno or errno.EIO, path if isinstance(path, bytes) else b"") from error
    started.returncode = 0  # else it would be waited for; we do that, by its pid
    return started.pid


def _differs_at_start(envs: dict[bytes, bytes]) -> bool:
    """Whether an interpreter would have to be started anew to heed this environment."""
    fixed = {name: value for name, value in envs.items() if name.startswith(FIXED_AT_START)}
    return fixed != ZYGOTES


def become(rules: Rules, fds: dict[int, int], tty: int, group: int) -> None:
    """In the child: a session of its own or the group that it is to be in, its descriptors, limits, default signals."""
    if group:
        os.setpgid(0, group)
    else:
        os.setsid()
    if tty >= 0:
        import fcntl

        fcntl.ioctl(tty, TIOCSCTTY, 0)
        fds = {0: tty, 1: tty, 2: tty}
    elif not {0, 1, 2} <= fds.keys():
        null = os.open("/dev/null", os.O_RDWR)
        fds = {0: null, 1: null, 2: null, **fds}
    # Out of the way of the numbers that are to be filled first. Originals close at exec: all of ours do.
    top = max(fds) + 1
    high = {}
    for target, source in fds.items():
        while source < top:
            source = os.dup(source)
        high[target] = source
    for target, source in high.items():
        os.dup2(source, target, True)
    for signum in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores these, and exec would pass that on
        _signal.signal(signum, _signal.SIG_DFL)
    os.umask(0o022)
    if rules.nice:
        with suppress(OSError):
            os.nice(rules.nice)
    limit(rules)


def limit(rules: Rules) -> None:
    """Set the limits of every program on this process."""
    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_NOFILE, rules.open_files)
    lower(resource.RLIMIT_MEMLOCK, LOCKED)
    lower(resource.RLIMIT_SIGPENDING, SIGNALS)
    lower(resource.RLIMIT_MSGQUEUE, QUEUED)
    if rules.data:
        lower(resource.RLIMIT_DATA, rules.data)
    lower(resource.RLIMIT_NPROC, rules.processes)


def execute(argv: list[bytes], envs: dict[bytes, bytes]) -> None:
    """execve, with argv[0] looked up on the PATH of the environment that is given."""
    program = argv[0]
    if b"/" in program:
        os.execve(program, argv, envs)
    denied = None
    for directory in envs.get(b"PATH", b"/usr/bin:/bin").split(b":"):
        try:
            os.execve(os.path.join(directory or b".", program), argv, envs)
        except PermissionError as error:
            denied = error
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise denied or fail(errno.ENOENT, program)
