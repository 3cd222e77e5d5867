"""The contract between the engine's rooms and whatever isolates: boxes, and the agent in each.

Two transports may stand behind `Agent`: one that passes file descriptors (bubblewrap), one that carries framed bytes
(gVisor). For streams callers see descriptors either way; with the second one these are the near ends of socket pairs.
A file is no stream: it has a size and positions, and so it is a `File`.

Everything that comes out of a box is hostile. Implementations check the type and flags of each descriptor and bound
every reply; what does not fit is `AgentLost`, and the box is then killed by its owner.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import asyncio
    import threading

    from sandboxkit.local.isolation._archive import Packed

OpenHow = Literal["read", "stage", "write"]

USER = "user"
UID = 1000
HOME = "/home/user"
PREFIX = "/opt/sandboxkit"
"""Where everything of ours appears inside: `python/` (the interpreter), `env/` (the template's packages, a venv
shape), `agent/` (agent.py, kernel.py)."""

AGENT_PYTHON = f"{PREFIX}/python/bin/python3"
ENV_PYTHON = f"{PREFIX}/env/bin/python3"
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class AgentLost(Exception):
    """The agent is gone or talked nonsense: the sandbox is lost."""


class AgentError(Exception):
    """An operation failed inside the box with an operating-system error; `path` is the path that was asked for."""

    def __init__(self, errno: int, message: str, path: str = "") -> None:
        super().__init__(f"{message}: {path}" if path else message)
        self.errno = errno
        self.message = message
        self.path = path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a process ended: by a code, or by a signal's number."""

    code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One directory entry, by lstat; `target_*` describe where a link leads, when it leads somewhere."""

    name: str
    path: str
    mode: int
    """st_mode of the entry itself."""
    size: int
    uid: int
    gid: int
    mtime_ns: int
    link_target: str | None = None
    """The fully resolved path for a link (its own path when it cannot be resolved)."""
    target_mode: int | None = None
    """st_mode of what the link leads to; None when dangling."""
    xattrs: Mapping[str, str] = field(default_factory=dict)
    """`user.e2b.*` attributes, without that prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What an open file says of itself."""

    size: int
    mtime_ns: int
    inode: int
    has_metadata: bool
    """Whether it carries `user.e2b.*` attributes."""


class File(Protocol):
    """An open regular file inside. OSError or AgentError, both with errno, where the kernel refuses; AgentLost."""

    async def facts(self) -> FileFacts:
        """Look at it now."""

    async def read(self, size: int, at: int) -> bytes:
        """Read up to `size` bytes from a position; fewer at its end."""

    async def write(self, data: bytes) -> None:
        """Write all of it, after what was written before."""

    async def empty(self) -> None:
        """Cut it to nothing."""

    def close(self) -> None:
        """Let go of it. Idempotent."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that happened in a watched directory; `name` is relative to it. `lost`: more than could be told."""

    kind: Literal["lost", "create", "write", "remove", "rename", "chmod"]
    name: str
    entry: Entry | None = None


class Process(Protocol):
    """A process started by `Agent.spawn`, in a process group of its own."""

    pid: int
    """As seen inside the box."""

    async def wait(self) -> ExitStatus:
        """Wait until it has ended. May be awaited by several tasks and again later. AgentLost if the box goes first."""


class Agent(Protocol):
    """What runs inside a box on our behalf, as the box's user. Paths are absolute, as seen inside.

    Errors: AgentError (with errno) for what the kernel refused inside, AgentLost when there is no agent any more.
    Descriptors returned are non-blocking, close-on-exec, of the promised type, and belong to the caller.
    """

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        envs: Mapping[str, str],
        cwd: str,
        fds: Mapping[int, int],
        leads: bool = True,
    ) -> Process:
        """Run a program. `envs` is its whole environment. `fds` maps descriptor numbers in the child (0, 1, 2, 3...)
        to descriptors of the caller, which stay the caller's; 0-2 that are not named are /dev/null. They are pipes,
        sockets or terminals: what else there is, such as files, is AgentError EOPNOTSUPP over frames, which also make
        them non-blocking. It leads its process group and a session of its own; without `leads` nobody leads its group.
        `argv[0]` is looked up on `envs["PATH"]`. AgentError ENOENT with path=cwd when the directory is missing."""

    async def spawn_pty(
        self,
        argv: Sequence[str],
        *,
        envs: Mapping[str, str],
        cwd: str,
        cols: int,
        rows: int,
    ) -> tuple[Process, int]:
        """Run a program on a new pseudo-terminal made inside; the second value is its master descriptor, or a socket
        that stands for it."""

    async def resize(self, pid: int, terminal: int, *, cols: int, rows: int) -> None:
        """Set the size of the terminal that `spawn_pty` returned with this pid; its programs get SIGWINCH. `terminal`
        is the descriptor or a duplicate of it. AgentError where the terminal is gone."""

    async def signal(self, pid: int, signum: int, *, group: bool = True) -> bool:
        """Signal a process that `spawn` started, with its whole process group by default. False if there is none.
        Processes that daemonized out of the group stay until the box ends."""

    async def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        """Open a file inside (O_NONBLOCK, O_NOCTTY and O_CLOEXEC are added; the type is checked with fstat there
        and here): a regular file's descriptor. AgentError EISDIR for a directory, EINVAL for any other type,
        EOPNOTSUPP where descriptors cannot be passed: `open_file` works everywhere."""

    async def open_file(self, path: str, flags: int, mode: int = 0o644) -> File:
        """Open a file inside as `open` does, for use by way of the agent. A box has at most 256 such files open
        (AgentError EMFILE past that)."""

    async def stat(self, path: str) -> Entry:
        """lstat."""

    async def list(self, path: str, *, depth: int = 1) -> list[Entry]:
        """Entries below a directory (a final link is followed, links below are not), paths keeping the prefix asked
        for, at most 100,000 of them (AgentError E2BIG past that). ENOTDIR for a file."""

    async def make_dir(self, path: str) -> bool:
        """mkdir -p. False when the directory was there. EEXIST when a file is there, ENOTDIR when one is on the way."""

    async def rename(self, source: str, target: str) -> None:
        """Rename, making the target's missing parents; to another mount by a copy that appears whole. EXDEV for what
        cannot be taken from where it is."""

    async def remove(self, path: str) -> bool:
        """rm -rf of one path, never through links. False when there was nothing."""

    async def set_xattrs(self, path: str, values: Mapping[str, str]) -> None:
        """Replace the set of `user.e2b.*` attributes."""

    async def dial(self, port: int, *, host: str = "127.0.0.1") -> int:
        """Connect to a TCP port inside: a connected stream socket. AgentError ECONNREFUSED when nobody listens."""

    async def listen(self, port: int) -> int:
        """Listen on 127.0.0.1 inside until the box ends, on this port or, where it is taken, on any other. Returns
        the port."""

    async def accept(self, port: int) -> int:
        """Wait, for as long as it takes, for the next connection to a port that `listen` returned: a connected stream
        socket. AgentError EINVAL for another port, or while another call waits for it. The agent may keep a copy of
        the descriptor: use no call that blocks when O_NONBLOCK is taken away."""

    async def beneath(
        self, operation: str, root: str, identity: bytes, args: Sequence[bytes | int]
    ) -> builtins.list[bytes]:
        """Carry out one operation of level `enforced` below a root directory (`agent/_confined.py` has them): the
        fields of its answer, of which the first is the root's identity. AgentError EXDEV where a link leads out."""

    async def open_beneath(
        self,
        how: Literal["read", "stage", "write"],
        root: str,
        identity: bytes,
        path: str,
        flags: int = 0,
        mode: int = 0,
    ) -> tuple[File, builtins.list[bytes]]:
        """Open a regular file below a root: to `read`; a new one beside it, to be put in place by the operation
        `commit` (`stage`); or to `write` in place, with the flags given. The file, and the fields of its answer:
        the root's identity, then size and version (read) or the name for `commit` (stage)."""

    async def watch(
        self, path: str, *, root: str = "", identity: bytes = b"", recursive: bool = False, entries: bool = False
    ) -> int:
        """Begin to watch a directory, below `root` where one is given; with `entries`, events describe what they are
        about. AgentError EMFILE where there are too many watchers. The number is for the two calls below."""

    async def watch_next(self, number: int, *, waits: bool) -> builtins.list[WatchEvent]:
        """What has happened since the last call; `waits` for something to happen, as long as it takes. An event of
        kind `lost` is the last one. AgentError ENOENT for a watcher that is none, or that somebody else waits for."""

    async def unwatch(self, number: int) -> None:
        """End a watcher; who waits for it gets AgentError ECANCELED. Idempotent."""

    async def ping(self) -> None:
        """Return once the agent has answered."""


# -- boxes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one box may use. CPUs are a share of the host's; sizes are bytes."""

    cpus: float = 2.0
    memory: int = 2048 * 1024 * 1024
    disk: int = 1024 * 1024 * 1024
    inodes: int = 200_000
    processes: int = 256
    open_files: int = 4096
    shared_memory: bool = False
    """Allow System V segments and memfd_create also where nothing counts them: their memory is then unbounded."""


@dataclass(frozen=True, slots=True)
class LimitInForce:
    """How one limit is held here: `by` is cgroup2, cgroup1, rlimit, watchdog, tmpfs, seccomp (what would pass it is
    refused), or none (and `note` says what remains)."""

    resource: str
    value: float
    by: Literal["cgroup2", "cgroup1", "rlimit", "watchdog", "tmpfs", "seccomp", "autogroup", "none"]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A read-only directory of the host, and where it appears inside."""

    source: str
    target: str
    below: tuple[str, ...] = ()
    """Further directories that show through it, the topmost first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A directory that a box may write to, over directories of the host that it shares with others and that stay as
    they are."""

    target: str
    """Where it appears inside; the home has its own in the box's tmpfs unless one is named for it."""
    lowers: tuple[str, ...] = ()
    """The topmost first."""
    upper: str | None = None
    """A name: what the box writes stays in `BoxSpec.kept`, below `up/` and this name. None: in the box's own sized
    tmpfs, and is gone with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxSpec:
    """One box to be made."""

    box_id: str
    layers: tuple[Layer, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    kept: str | None = None
    """A host directory, empty, for what overlays with an `upper` keep. No limit but its file system's bounds it."""
    volumes: tuple[Layer, ...] = ()
    """Directories of the host that the box may write to as they are. No limit but their file system's bounds them."""
    skeleton: str | None = None
    """A host directory copied into the home at the start."""
    limits: Limits = Limits()
    files: int | None = None
    """A descriptor of what `Box.save` wrote, which the box starts with. It stays the caller's."""


@dataclass(frozen=True, slots=True)
class BoxEnd:
    """Why a box ended. `killed` is ours, `memory` its memory limit, `agent` its agent's death or nonsense."""

    reason: Literal["killed", "memory", "agent", "engine"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a box uses now; sizes in bytes, CPU time in seconds since its start."""

    cpu_seconds: float
    memory: int
    """All of it: what its processes hold, and its files, which lie in memory."""
    cache: int = 0
    """The part of `memory` that is files."""
    disk: int
    processes: int


class Box(Protocol):
    """One live box."""

    @property
    def box_id(self) -> str: ...

    @property
    def agent(self) -> Agent: ...

    @property
    def limits(self) -> tuple[LimitInForce, ...]: ...

    @property
    def init_pid(self) -> int:
        """Its first process as the engine sees it; 0 before it is known, and once it has ended."""

    @property
    def ended(self) -> asyncio.Future[BoxEnd]:
        """Done once the box's last process is gone, whoever ended it."""

    async def kill(self) -> None:
        """End it, and return when no process, mount, cgroup, directory or descriptor of it is left. Idempotent, and
        finishes even if the caller is cancelled."""

    async def pause(self) -> None:
        """Stop every process in it, the agent too, and return when none runs. Idempotent. Its memory stays where it is;
        what is asked of the agent meanwhile waits. AgentLost if it has ended, TimeoutError if a process cannot be
        stopped: all go on then."""

    async def resume(self) -> None:
        """Let everything go on. Idempotent. AgentLost if it has ended."""

    async def save(self, descriptor: int, *, most: int, stop: threading.Event) -> Packed:
        """Write its home and its /tmp to an open, empty file, at most `most` bytes; for a box that is paused, or else
        files may be caught half written. Other boxes can start with it (`BoxSpec.files`). AgentLost if the box has
        ended, ArchiveError where it cannot be kept (Stopped once `stop` is set), OSError where the disk is full."""

    async def usage(self) -> Usage:
        """Measure."""


class Isolation(Protocol):
    """Makes boxes."""

    name: str

    async def start(self) -> None:
        """Probe what is needed and reap what a crashed engine left. IsolationUnavailable with the remedy."""

    async def create(self, spec: BoxSpec) -> Box:
        """Make a box whose agent answers, with the files of `spec.files` where there are any (ArchiveError where they
        are damaged). If cancelled or failed, nothing is left."""

    async def aclose(self) -> None:
        """Kill every box. Idempotent."""
