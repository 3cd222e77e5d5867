"""The synchronous face. GENERATED from the asynchronous one by .ci/generate_sync.py: do not edit.

Every call is carried out by the portal's event loop while the calling thread waits. Callbacks run in that thread.
"""

# ruff: noqa: B008

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import IO, Any, ClassVar, Literal, Self, TypeVar, overload

from sandboxkit import _portal
from sandboxkit._types import (
    CODE_INTERPRETER,
    DEFAULT_ROOT,
    CommandResult,
    Endpoint,
    EndpointName,
    Execution,
    FileEvent,
    FileInfo,
    FileNode,
    Level,
    Loss,
    NetworkMode,
    NetworkPolicy,
    OnLoss,
    SessionRef,
    Source,
    TimeoutPolicy,
)
from sandboxkit.errors import SafeFSError
from sandboxkit.events import Event, EventHandler
from sandboxkit.fragment import Fragment, FragmentResult
from sandboxkit.pool._command import AsyncCommandHandle
from sandboxkit.pool._options import GiveUpHandler
from sandboxkit.pool._pool import AsyncNullSandboxPool, AsyncSandboxPool
from sandboxkit.pool._session import AsyncSession
from sandboxkit.pool._stats import PoolStats
from sandboxkit.provider._base import OnOutput, OnResult, Provider
from sandboxkit.runner import with_app, with_apps
from sandboxkit.runner._app import AsyncApp
from sandboxkit.safefs._asked import HardLinks, Links
from sandboxkit.safefs._fileobj import Mode, opened
from sandboxkit.safefs._guard import AnyPath
from sandboxkit.safefs._safefs import DEFAULT_CHUNK, AsyncSafeFS, Entries, LocalPath, OnProgress
from sandboxkit.safefs._transfer import DEFAULT_MAX_BYTES
from sandboxkit.safefs._tree import DEFAULT_EXCLUDES

T = TypeVar("T")


class SafeFS:
    """Files of one sandbox, confined to a root. Relative paths count from the root; all others have to lie below it.

    Every method refuses a path that leads out (`PathEscape`) or is none (`InvalidPath`) before any request is made.
    Errors carry the path as it was given, as `.path`, and show it in ASCII. Any operation at any level may raise
    AccessDenied, at `"checked"` and `"enforced"` also LinkEscape and SpecialFile, at `"enforced"` also Changed and
    EnforcementUnavailable, besides what is said at the method.

    Args:
        sandbox: the SDK's own `Sandbox`, such as a session's `.sandbox`; no pool is needed.
        root: an absolute path in the sandbox.
        level: what is promised. `"lexical"` judges the path's text alone; `"checked"` also looks for links that
            lead out, just before; `"enforced"` resolves the path in the sandbox, so that it holds against a process
            that exchanges files for links meanwhile. `None` is `"enforced"`, or EnforcementUnavailable where that
            cannot be had: no level is ever less than it says.
        strict_names: also refuse control and bidirectional characters and backslashes in names.
        links: `"refuse"` follows none, wherever it leads; not at `"lexical"`.
        hard_links: `"refuse"` reads and replaces no file that has a second name, which may lie outside; at
            `"enforced"` only.
        mounts: mount points below the root that may be entered, such as E2B's volumes; at `"enforced"` only. All
            others are refused there, and looked at by the other levels like any directory.
        on_refused: is told each refusal; what it returns is ignored.

    Raises:
        ConfigurationError: `sandbox` is of the wrong kind (an asynchronous one belongs to `AsyncSafeFS`), or an
            option has no value that there is.
        UnsupportedOption: the level cannot keep what an option asks.
        InvalidPath, PathEscape: the root is no absolute path, or a mount does not lie below it.
    """

    def __init__(
        self,
        sandbox: object,
        *,
        root: str = DEFAULT_ROOT,
        level: Level | None = None,
        strict_names: bool = False,
        links: Links = "follow",
        hard_links: HardLinks = "allow",
        mounts: Collection[AnyPath] = (),
        on_refused: Callable[[SafeFSError], object] | None = None,
    ) -> None:
        self._portal = _portal.current()
        self._async = AsyncSafeFS(
            _async_twin(sandbox),
            root=root,
            level=level,
            strict_names=strict_names,
            links=links,
            hard_links=hard_links,
            mounts=mounts,
            on_refused=on_refused,
        )

    @property
    def level(self) -> Level:
        """What is promised: the level in force."""
        return self._async.level

    @property
    def root_adversary(self) -> bool:
        """Whether somebody in the sandbox may be root there, which no level holds against inside it. False only where
        this is known: at `"enforced"`, after the first operation, on the local engine, whose sandboxes have no root.
        """
        return self._async.root_adversary

    @property
    def root(self) -> str:
        """The directory that nothing leaves, absolute and normalised."""
        return self._async.root

    def read_text(self, path: AnyPath, *, max_bytes: int = DEFAULT_MAX_BYTES) -> str:
        """Read a file as UTF-8 text; line ends are left as they are.

        Raises:
            UnicodeDecodeError: it is not UTF-8; `read_bytes` reads anything.
            NotFound, IsADirectory, SpecialFile, TooLarge, PathError: as in `read_bytes`.
        """
        value: str = self._portal.call(self._async.read_text, path, max_bytes=max_bytes)
        return value

    def read_bytes(self, path: AnyPath, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
        """Read a file of at most `max_bytes` bytes (64 MiB by default).

        Raises:
            NotFound, IsADirectory, SpecialFile: there is no such file.
            TooLarge: it has more; no more was kept.
            PathError: the path was refused.
        """
        value: bytes = self._portal.call(self._async.read_bytes, path, max_bytes=max_bytes)
        return value

    def read_range(self, path: AnyPath, start: int, length: int) -> bytes:
        """Read up to `length` bytes of a file from the offset `start` on; fewer at its end, none behind it. At
        `"enforced"` no more than that is transferred; the other levels read the file up to 64 MiB.

        Raises:
            NotFound, IsADirectory, SpecialFile, TooLarge, PathError: as in `read_bytes`.
        """
        value: bytes = self._portal.call(self._async.read_range, path, start, length)
        return value

    def stream(self, path: AnyPath, *, chunk: int = DEFAULT_CHUNK) -> Generator[bytes, None, None]:
        """Yield a file's content in pieces of `chunk` bytes. At `"enforced"` one request for each, of a file of any
        size; the other levels read it up to 64 MiB.

        Raises:
            Changed: another content came in its place meanwhile.
            NotFound, IsADirectory, SpecialFile, TooLarge, PathError: as in `read_bytes`.
        """
        return _portal.Call[Any](self._portal).iterate(lambda: self._async.stream(path, chunk=chunk))

    def write(self, path: AnyPath, data: str | bytes) -> None:
        """Write text (as UTF-8) or bytes, replacing the file that was there; missing parents are made.

        At `"enforced"` the content takes the file's place at once: whoever reads sees the old one or the new one.

        Raises:
            IsADirectory, NotADirectory, NoSpace, PathError: nothing was written.
        """
        self._portal.call(self._async.write, path, data)

    def write_text(self, path: AnyPath, text: str) -> None:
        """Write text as UTF-8; line ends are left as they are. Else as `write`."""
        self._portal.call(self._async.write_text, path, text)

    def write_bytes(self, path: AnyPath, data: bytes) -> None:
        """Write bytes; else as `write`."""
        self._portal.call(self._async.write_bytes, path, data)

    def append(self, path: AnyPath, data: str | bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Add text or bytes to the end of a file, or make it.

        The file is written anew, at `"enforced"` in the sandbox and at once; what somebody else writes to it at the
        same time may be lost.

        Raises:
            TooLarge: the file is larger than `max_bytes` already.
            IsADirectory, NotADirectory, SpecialFile, NoSpace, PathError: nothing was written.
        """
        self._portal.call(self._async.append, path, data, max_bytes=max_bytes)

    def list(self, path: AnyPath = ".", *, depth: int = 1) -> list[FileInfo]:
        """List the entries below a directory, `depth` levels deep, sorted by path.

        Links are not followed below it. At `"lexical"` and `"checked"` the service leaves out what is neither file nor
        directory, dangling links among it; at `"enforced"` all is there, a link with the type of what it leads to, or
        `"other"` where that lies outside or nowhere.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
            TooLarge: it has more than 100,000 entries.
        """
        value: list[FileInfo] = self._portal.call(self._async.list, path, depth=depth)
        return value

    def walk(self, path: AnyPath = ".") -> Generator[FileInfo, None, None]:
        """Yield every entry below a directory, each directory before what is in it; links are not followed.

        One request per directory, made when it is reached. A directory that is gone by then yields nothing.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory to begin with.
        """
        return _portal.Call[Any](self._portal).iterate(lambda: self._async.walk(path))

    def tree(
        self,
        path: AnyPath = ".",
        *,
        depth: int = 8,
        max_entries: int = 10000,
        exclude: Collection[str] = DEFAULT_EXCLUDES,
    ) -> FileNode:
        """Gather a directory and what is below it.

        Args:
            path: the directory.
            depth: how many levels below it.
            max_entries: how many entries altogether; what is deepest is left out first.
            exclude: names of directories that are shown but not opened (caches, installed packages).

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
        """
        value: FileNode = self._portal.call(
            self._async.tree, path, depth=depth, max_entries=max_entries, exclude=exclude
        )
        return value

    def glob(self, pattern: AnyPath) -> Entries:
        """List the entries that a pattern matches, sorted by path: `*`, `?` and `[...]` within one name, `**` for any
        number of directories. Names that begin with a dot match like others; links are not entered by `**`.

        Raises:
            PathError: the pattern leads out of the root.
        """
        value: Entries = self._portal.call(self._async.glob, pattern)
        return value

    def watch(
        self, path: AnyPath = ".", *, recursive: bool = False, interval: float = 1.0
    ) -> Generator[FileEvent, None, None]:
        """Yield what happens in a directory, from the first step of the iteration on, until it is closed.

        At `"enforced"` on the local engine every event comes, from inotify. Elsewhere the directory is listed every
        `interval` seconds, and what differs is told: a file that comes and goes in between is not seen, and a rename
        is a removal and a creation.

        Args:
            path: the directory.
            recursive: watch what is below its directories, too, links not followed.
            interval: seconds between two looks, where one has to look.

        Raises:
            NotFound, NotADirectory, PathError: there is no such directory.
            Changed: more happened than could be kept; begin again.
        """
        return _portal.Call[Any](self._portal).iterate(
            lambda: self._async.watch(path, recursive=recursive, interval=interval)
        )

    def upload(self, source: LocalPath, target: AnyPath, *, on_progress: OnProgress | None = None) -> int:
        """Copy a local file or folder into the sandbox, file by file, and return how many files it were.

        Links in the folder are neither followed nor sent; empty directories are made. Files that are there are
        replaced, others stay.

        Args:
            source: on this machine.
            target: where it lies afterwards, not the directory above.
            on_progress: called after each file.

        Raises:
            FileNotFoundError, OSError: it cannot be read.
            TooLarge: a file has more than 64 MiB.
            SafeFSError: a file could not be written; those before it are.
        """
        call: _portal.Call[Any] = _portal.Call(self._portal)
        value: int = call(self._async.upload, source, target, on_progress=call.back(on_progress))
        return value

    def download(
        self,
        source: AnyPath,
        target: LocalPath,
        *,
        overwrite: bool = False,
        max_bytes: int = 1024 * 1024 * 1024,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Copy a file or directory of the sandbox to this machine, and return how many files it were.

        Names are the sandbox's, so each is guarded again here: nothing is written outside of `target`, and never
        through a local link. Links, pipes and the like are left out. Modes and times are not taken over.

        Args:
            source: in the sandbox.
            target: where it lies afterwards, not the directory above.
            overwrite: replace local files that are there; else they are a FileExistsError.
            max_bytes: of all files together.
            on_progress: called after each file.

        Raises:
            FileExistsError, OSError: it cannot be written here.
            TooLarge: it is more than `max_bytes`; what came before is there.
            SafeFSError: it cannot be read, or a name has no place on this machine.
        """
        call: _portal.Call[Any] = _portal.Call(self._portal)
        value: int = call(
            self._async.download,
            source,
            target,
            overwrite=overwrite,
            max_bytes=max_bytes,
            on_progress=call.back(on_progress),
        )
        return value

    def stat(self, path: AnyPath) -> FileInfo:
        """Describe one entry. Of a link, the type and mode are those of what it leads to; at `"enforced"` the rest is
        the link's own, and one that leads out or nowhere is `"other"`.

        Raises:
            NotFound, NotADirectory, PathError: there is no such entry.
        """
        value: FileInfo = self._portal.call(self._async.stat, path)
        return value

    def exists(self, path: AnyPath) -> bool:
        """Say whether there is an entry. A link that leads nowhere inside is none at `"enforced"`; one that leads out
        is a LinkEscape, whether its target exists or not.

        Raises:
            PathError: the path was refused; that is not answered with False.
        """
        value: bool = self._portal.call(self._async.exists, path)
        return value

    def make_dir(self, path: AnyPath) -> bool:
        """Make a directory and its missing parents. False if it was there already.

        Raises:
            NotADirectory: a file is in the way.
            NoSpace, PathError: nothing was made.
        """
        value: bool = self._portal.call(self._async.make_dir, path)
        return value

    def remove(self, path: AnyPath) -> None:
        """Remove a file or a link, or a directory with all that is in it; never the root.

        Raises:
            NotFound: there is nothing.
            PathError: the path was refused.
        """
        self._portal.call(self._async.remove, path)

    def rename(self, source: AnyPath, target: AnyPath) -> None:
        """Rename or move an entry, replacing a file at the target; neither is the root.

        Raises:
            NotFound: there is no such source.
            IsADirectory, NotADirectory, NoSpace: the target is in the way, or has no place.
            PathError: a path was refused, or the target lies inside the source.
        """
        self._portal.call(self._async.rename, source, target)

    def copy(self, source: AnyPath, target: AnyPath, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Copy the content of one file (not a directory); mode and times are not copied. At `"enforced"` in the
        sandbox, else through this process.

        Raises:
            NotFound, IsADirectory, SpecialFile, TooLarge, NoSpace: it could not be read or written.
            PathError: a path was refused; nothing was read.
        """
        self._portal.call(self._async.copy, source, target, max_bytes=max_bytes)

    def __repr__(self) -> str:
        return repr(self._async).replace("<AsyncSafeFS", "<SafeFS", 1)

    @classmethod
    def _of(cls, portal: _portal.Portal, files: AsyncSafeFS) -> SafeFS:
        """The synchronous form of a session's own files."""
        self = cls.__new__(cls)
        self._portal = portal
        self._async = files
        return self

    def open(self, path: AnyPath, mode: Mode = "rb", *, max_bytes: int = DEFAULT_MAX_BYTES) -> IO[Any]:
        """Open a file as Python's `open` does (modes `r`, `w`, `a`, with `b` for bytes; text is UTF-8).

        What is written, up to `max_bytes`, takes the file's place when it is closed; an exception that leaves
        the `with` block leaves the file as it was. Raises as `read_bytes` and `write`.
        """
        return opened(self, path, mode, max_bytes=max_bytes)


class CommandHandle:
    """A command that `run_command(background=True)` started. It runs until it ends, is killed, or its sandbox ends.

    It does not prolong the sandbox's life; uses of the session do, and so does waiting for it
    (`renew="heartbeat"`). A pause of the sandbox stops it; who waits for it lets both go on. What it writes between
    then and its being listened to again, some milliseconds, is not heard.
    """

    def __init__(self, portal: _portal.Portal, wrapped: AsyncCommandHandle) -> None:
        self._portal = portal
        self._async = wrapped

    @property
    def pid(self) -> int:
        """Its process id inside the sandbox."""
        return self._async.pid

    def wait(self, *, timeout: float | None = None) -> CommandResult:
        """Wait for its end and return what it did.

        Args:
            timeout: how many seconds to wait; None waits as long as the sandbox lives. The command goes on after it.

        Raises:
            CommandTimeout: it has not ended within `timeout`; wait again, or `kill()` it.
            OutputTooLarge: it wrote more than the `max_output` that it was started with.
            SandboxLost, PoolError: the sandbox went first, or the session was closed.
            ProviderError: the service did not answer, or knows the command no more after a pause.
        """
        value: CommandResult = self._portal.call(self._async.wait, timeout=timeout)
        return value

    def kill(self) -> bool:
        """Kill it and what it started. False if it had ended already.

        Raises:
            SandboxLost, PoolError: the sandbox went first, or the session was closed.
        """
        value: bool = self._portal.call(self._async.kill)
        return value

    def __repr__(self) -> str:
        return repr(self._async).replace("<AsyncCommandHandle", "<CommandHandle", 1)


class App:
    """An app that answers, made by `session.run()` of a fragment whose template serves one.

    It runs until it is stopped, or its sandbox ends; it does not prolong the sandbox's life, uses of the session
    do.
    """

    def __init__(self, portal: _portal.Portal, wrapped: AsyncApp) -> None:
        self._portal = portal
        self._async = wrapped

    @property
    def url(self) -> str:
        """Where programs on this machine find it; on E2B also everybody else."""
        return self._async.url

    @property
    def browser_url(self) -> str:
        """Where a browser finds it: under a name of the sandbox's own."""
        return self._async.browser_url

    @property
    def port(self) -> int:
        """Its port inside the sandbox."""
        return self._async.port

    def log(self, *, max_bytes: int = 65536) -> str:
        """Return the end of what it has written to its output, as text; empty where there is no log.

        Args:
            max_bytes: how much of it, at most 128 KiB.

        Raises:
            ConfigurationError: `max_bytes` is not positive.
            SandboxLost, PoolError: the sandbox is gone, or the session was closed.
        """
        value: str = self._portal.call(self._async.log, max_bytes=max_bytes)
        return value

    def stop(self) -> None:
        """End it. The sandbox stays; a second time does nothing.

        Raises:
            SandboxLost, PoolError: the sandbox is gone, or the session was closed.
        """
        self._portal.call(self._async.stop)

    def restart(self) -> None:
        """End it, start it anew with the template's command, and wait until it answers.

        Raises:
            AppStartFailed, AppNotReady: it did not come up again.
            SandboxLost, PoolError: the sandbox is gone, or the session was closed.
        """
        self._portal.call(self._async.restart)

    def __repr__(self) -> str:
        return repr(self._async).replace("<AsyncApp", "<App", 1)


class Session:
    """A hold on the sandbox of one session. Made by `pool.session()`, never directly.

    Everyone in this process who opens the same key shares one sandbox: its files, its interpreter's variables. The
    sandbox is given back when the last of them has closed; each closes its own hold, and closing twice counts once.
    Every use renews the sandbox's life as the pool's `TimeoutPolicy` says.

    Any use may raise, besides what is said at the method: PoolError after `close()`, PoolClosed after the pool's
    end, SandboxNotFound or SandboxExpired when the sandbox is gone, ForkedProcess in a forked child, and
    ProviderError when the service fails. After SandboxNotFound or SandboxExpired, open the session again for a new
    sandbox.
    """

    def __init__(self, portal: _portal.Portal, wrapped: AsyncSession) -> None:
        self._portal = portal
        self._async = wrapped
        self._files: SafeFS | None = None
        self._twin: Any = None

    @property
    def key(self) -> str | None:
        """The session's key; None for an anonymous one."""
        return self._async.key

    @property
    def sandbox_id(self) -> str:
        """The id of its sandbox."""
        return self._async.sandbox_id

    @property
    def template(self) -> str:
        """The id of the template that its sandbox was made from."""
        return self._async.template

    @property
    def sandbox(self) -> Any:
        """The SDK's own sandbox object, for all that is not wrapped here. Its uses renew nothing."""
        raw = self._async.sandbox
        if self._twin is None or self._twin[0] is not raw:  # another one, after a loss
            self._twin = raw, _sync_twin(raw)
        return self._twin[1]

    @property
    def source(self) -> Source:
        """Where this hold got its sandbox: `"reused"`, the session's own from before; `"warm"`, from the stock;
        `"created"`, made for it; `"attached"`. As in the event `session.opened`; after a loss, the new one's.
        """
        return self._async.source

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What this hold lost when sandboxes vanished under it, oldest first; empty with `on_loss="fail"`."""
        return self._async.losses

    @property
    def files(self) -> SafeFS:
        """The files beneath `/home/user`, at the level `enforced`."""
        if self._files is None:
            self._files = SafeFS._of(self._portal, self._async.files)
        return self._files

    def url(self, port: int) -> str:
        """The URL of a port of the sandbox, for programs on this machine; no promise that something answers.

        On E2B it is public. On the engine it is a port of 127.0.0.1, opened for this and closed with the sandbox: the
        name that `browser_url` gives does not resolve in Python.

        Raises:
            ConfigurationError: `port` is not between 1 and 65535.
            ProviderError: the engine refused: the port is one of its own services', or the sandbox has too many open.
        """
        value: str = self._portal.call(self._async.url, port)
        return value

    def browser_url(self, port: int) -> str:
        """The URL of a port of the sandbox, for a browser; no request, and no promise that something answers.

        On the engine it has a name of the sandbox's own, so that its pages share cookies with nobody.

        Raises:
            ConfigurationError: `port` is not between 1 and 65535.
        """
        value: str = self._portal.call(_asked, self._async.browser_url, port)
        return value

    def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        context: str | None = None,
        timeout: float | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        on_result: OnResult | None = None,
        max_output: int = 10 * 1024 * 1024,
    ) -> Execution:
        """Run code in the sandbox's interpreter. An exception that the code raises is data in the result.

        Args:
            code: what to run; variables stay for the next call.
            language: of the code, `"python"` by default. The engine on this machine has JavaScript, TypeScript, bash,
                and whatever else the sandbox has a Jupyter kernel for.
            context: the id of an interpreter context; the language's default one when None.
            timeout: seconds that it may take; `TimeoutPolicy.code` when None.
            envs: environment variables for this call alone.
            on_stdout, on_stderr, on_result: called with each piece of output and each result as it comes.
            max_output: bytes that output and results may have together.

        Raises:
            CodeTimeout: it took longer, and was interrupted; its variables stay.
            OutputTooLarge: more came out; the run was stopped.
            KernelDied: the interpreter ended, or could not be started.
            UnsupportedOption: the sandbox's interpreter does not have the language.
            SandboxLost: the sandbox is gone.
        """
        call: _portal.Call[Any] = _portal.Call(self._portal)
        value: Execution = call(
            self._async.run_code,
            code,
            language=language,
            context=context,
            timeout=timeout,
            envs=envs,
            on_stdout=call.back(on_stdout),
            on_stderr=call.back(on_stderr),
            on_result=call.back(on_result),
            max_output=max_output,
        )
        return value

    @overload
    def run_command(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: Literal[False] = False,
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandResult: ...

    @overload
    def run_command(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: Literal[True],
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandHandle: ...

    def run_command(
        self,
        cmd: str | Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        background: bool = False,
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandResult | CommandHandle:
        """Run a command in the sandbox. A non-zero exit code is data in the result.

        Args:
            cmd: a line for the sandbox's shell, or a sequence of arguments, which no shell interprets.
            timeout: seconds that it may take; `TimeoutPolicy.command` when None. Not with `background=True`.
            cwd: the directory to run it in; the home directory when None.
            envs: environment variables for this command.
            on_stdout, on_stderr: called with each piece of output as it comes. With `background=True` also before
                anybody waits.
            background: return as soon as it has started, with a handle; it then has no time limit.
            max_output: bytes that its output may have.

        Raises:
            CommandTimeout: it took longer, and was killed.
            OutputTooLarge: more came out; the command was killed.
            UnsupportedOption: `timeout` together with `background=True`.
            SandboxLost: the sandbox is gone.
        """
        call: _portal.Call[Any] = _portal.Call(self._portal)
        value = call(
            self._async.run_command,
            cmd,
            timeout=timeout,
            cwd=cwd,
            envs=envs,
            on_stdout=call.back(on_stdout),
            on_stderr=call.back(on_stderr),
            background=background,
            max_output=max_output,
        )
        return CommandHandle(self._portal, value) if isinstance(value, AsyncCommandHandle) else value

    def run(
        self, fragment: Fragment, *, on_event: EventHandler | None = None, allow_install_command: bool = False
    ) -> FragmentResult[App]:
        """Carry a fragment out: write its files, install what it needs, then run it, or see its app answer.

        An app that runs already, also by the template's own start command, is not started again: its server loads what
        changed. Files that are as they are to be are not written again, and nothing is installed twice. If the run
        fails, an app that it has started is stopped.

        Args:
            fragment: what to carry out; its template has to be the session's.
            on_event: is told the fragment's events, besides the pool's own listener; a plain function, as the pool's.
            allow_install_command: run the fragment's `install_command`, a shell line that its author chose.

        Raises:
            ConfigurationError: `on_event` is an async function, or none at all.
            SessionConflict: the fragment is for another template than the session's.
            TemplateNotFound: its template is not registered.
            FragmentError: it does not fit its template, and nothing was written; or an edit cannot be made.
            DependencyError: what it needs could not be installed within `TimeoutPolicy.install`, or is missing.
            AppStartFailed: its app ended before it answered, or its code cannot be read.
            AppNotReady: its app did not answer within `TimeoutPolicy.ready`, or with errors only.
            SafeFSError: a file could not be written.
            CodeTimeout, OutputTooLarge, KernelDied, SandboxLost: as in `run_code`.
        """
        call: _portal.Call[Any] = _portal.Call(self._portal)
        return with_app(
            call(self._async.run, fragment, on_event=call.tell(on_event), allow_install_command=allow_install_command),
            partial(App, self._portal),
        )

    def stream(self, fragment: Fragment, *, allow_install_command: bool = False) -> Generator[Event, None, None]:
        """Carry a fragment out, yielding its events; the last one has the `FragmentResult` as `data["result"]`.

        Besides, an installation's output comes as it is written: `fragment.log` with `text`. Leaving the loop early
        ends the run between two steps, and an installation at once.

        Raises:
            The same as `run`.
        """
        events = _portal.Call[Any](self._portal).iterate(
            lambda: self._async.stream(fragment, allow_install_command=allow_install_command)
        )
        return with_apps(events, partial(App, self._portal))

    def tree(self) -> FileNode:
        """The files beneath `/home/user`, as `files.tree()` gives them.

        Raises:
            SafeFSError: they cannot be listed.
        """
        value: FileNode = self._portal.call(self._async.tree)
        return value

    def interrupt(self) -> bool:
        """Interrupt the code that runs in this process's sessions of the sandbox; variables and files stay.

        Each `run_code` under way returns an `Execution` whose error is a KeyboardInterrupt; its output went to the
        callbacks, and is not in there. What other processes run is left alone, and so are commands. Returns whether
        anything was running.
        """
        value: bool = self._portal.call(self._async.interrupt)
        return value

    def restart(self, *, context: str | None = None) -> None:
        """Start the interpreter anew: its variables are gone, files and commands stay.

        Args:
            context: which context's; the default Python one's when None.
        """
        self._portal.call(self._async.restart, context=context)

    def pause(self) -> None:
        """Pause the sandbox: files, variables and processes stay, and it has no end. The next use lets it go on.

        It goes on counting towards `max_live`. A session that is closed while it is paused stays so.

        Raises:
            SessionBusy: work runs in it.
            SandboxLost: the sandbox is gone.
            ProviderError: the service did not answer, or cannot pause.
        """
        self._portal.call(self._async.pause)

    def close(self) -> None:
        """Give this hold back; a second time does nothing. Raises nothing.

        The sandbox of a keyed session stays until its lifetime ends, for whoever opens the key again, or until its
        place is needed. An anonymous one is killed; this waits for it, and may be cancelled while the pool goes on.
        """
        try:
            self._portal.call(self._async.close)
        except BaseException:  # Ctrl-C, perhaps before the call had begun: the hold is given back all the same
            self._portal.start(self._async.close, lambda _: None)
            raise

    def detach(self) -> SessionRef:
        """Take the sandbox out of the pool and leave it alive, for `pool.attach()` in this or another process.

        This hold is closed by it. From here on the sandbox is nobody's: its lifetime, prolonged once more, ends it, if
        nobody attaches. Variables that it was given late (`secrets`; `envs` where it was a warm one) do not go with it:
        pass them to `attach` again. Another process may attach only where both pools have the same `owner`.

        Raises:
            SessionBusy: others hold the session too, or work runs in it.
            SandboxLost: the sandbox is gone.
            ProviderError: the service did not answer; nothing has changed.
        """
        value: SessionRef = self._portal.call(self._async.detach)
        return value

    def kill(self) -> None:
        """Kill the sandbox, for everyone who holds the session. A second time does nothing.

        Raises:
            ProviderError: the service did not confirm it. The pool goes on trying, and the sandbox counts until then.
        """
        self._portal.call(self._async.kill)

    def __repr__(self) -> str:
        return repr(self._async).replace("<AsyncSession", "<Session", 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SandboxPool:
    """Sandboxes by session key: at most `max_live` of them, some of them warm, shared fairly, and none left behind.

    It is open once it is made. Use it with `with`: when the block is left, every sandbox is killed. Where there is
    no block, `close()` does that, and the end of the interpreter at the latest. It may be used from any thread, and
    where an event loop runs already (a notebook).

    Args:
        endpoint: where sandboxes come from. `"auto"` is E2B where E2B_API_KEY is set, else the engine on this
            machine; `"e2b"` and `"local"` say which; an `Endpoint` names any E2B-compatible service. An object with
            the methods of the provider contract, such as `sandboxkit.testing.FakeProvider`, is used as it is, and
            not closed.
        template: what sessions get that name none.
        min_warm: blank sandboxes to keep ready, of the pool's template, or a number for each template. They take
            the places that nobody needs, and are handed over at once, made the session's own first.
        max_live: how many sandboxes may exist at once, those included that are being created or killed.
        max_per_template: how many of them may be of one template, for the templates that it names.
        max_waiting: how many callers may wait for one of those; no bound when None.
        max_creating: how many may be created at the same time; no bound but `max_live` when None.
        create_rate: how many may be created in one second, after a burst of one second's worth; no bound when None.
        max_uses: how often one may be opened; after that it is killed when its last holder closes. No bound when
            None.
        idle_timeout: seconds after which what lies unused is killed: a released session, and as many warm ones
            beyond `min_warm` as stayed unused for a whole such time. None keeps them until their lifetime ends.
        acquire_timeout: seconds that `session()` may take altogether.
        timeouts: all other time limits, and how long sandboxes live.
        network: what sandboxes may reach: "deny" (nothing, the default), "packages" (the package indexes that pip,
            uv and npm are set up for here), "internet" (every public address), or a NetworkPolicy.
        on_loss: what happens when a sandbox vanishes under its session. `"fail"` raises a typed error. `"recreate"`
            gives the session a new one, with the `files` that it was opened with; `"replay"` also writes again what
            was written through the session, up to 64 MiB. The use that met the loss is done again there, unless it
                had
            shown output. `session.losses` and the event `session.recovered` tell what was lost.
        on_event: is told every event, in a thread of sandboxkit's own: a plain function that neither blocks nor
            uses the pool. What it raises is logged.
        on_give_up: is told the error when the pool gives up making warm sandboxes, since it failed for
            `give_up_after` seconds; a plain function. Callers are served all the same; the first create of theirs
                that
            succeeds, `resize(min_warm=...)` and `drain()` let it try again.
        give_up_after: see there.
        reap: clean up before the pool opens, as `reap()` does.
        owner: whose its sandboxes are, for `attach()` by other pools of the same owner; this pool's alone when
            None.
        name: of the pool, in logs, events and the sandboxes' metadata.

    Raises:
        ConfigurationError: an argument cannot work; the message names it and its value.
        MissingApiKey: `endpoint="e2b"`, and no key is set.
    """

    def __init__(
        self,
        *,
        endpoint: EndpointName | Endpoint | Provider = "auto",
        template: str = CODE_INTERPRETER,
        min_warm: int | Mapping[str, int] = 0,
        max_live: int = 10,
        max_per_template: Mapping[str, int] | None = None,
        max_waiting: int | None = None,
        max_creating: int | None = None,
        create_rate: float | None = None,
        max_uses: int | None = None,
        idle_timeout: float | None = None,
        acquire_timeout: float = 30.0,
        timeouts: TimeoutPolicy = TimeoutPolicy(),
        network: NetworkMode | NetworkPolicy = "deny",
        on_loss: OnLoss = "fail",
        on_event: EventHandler | None = None,
        on_give_up: GiveUpHandler | None = None,
        give_up_after: float = 300.0,
        reap: bool = False,
        owner: str | None = None,
        name: str | None = None,
    ) -> None:
        self._portal = _portal.current()
        on_event = _portal.contained(on_event, "on_event")
        on_give_up = _portal.contained(on_give_up, "on_give_up")

        async def make() -> AsyncSandboxPool:
            return self._kind(
                endpoint=endpoint,
                template=template,
                min_warm=min_warm,
                max_live=max_live,
                max_per_template=max_per_template,
                max_waiting=max_waiting,
                max_creating=max_creating,
                create_rate=create_rate,
                max_uses=max_uses,
                idle_timeout=idle_timeout,
                acquire_timeout=acquire_timeout,
                timeouts=timeouts,
                network=network,
                on_loss=on_loss,
                on_event=on_event,
                on_give_up=on_give_up,
                give_up_after=give_up_after,
                reap=reap,
                owner=owner,
                name=name,
            )

        self._async = self._portal.call(make)
        self._held = _portal.Held(self._portal, self._async)
        self._held.enter()
        self._portal.close_at_exit(self, self._async.close)

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._async.name

    def session(
        self,
        key: str | None,
        *,
        template: str | None = None,
        replace: bool = False,
        metadata: Mapping[str, str] | None = None,
        envs: Mapping[str, str] | None = None,
        files: Mapping[str, str | bytes] | None = None,
        secrets: Mapping[str, str] | None = None,
        acquire_timeout: float | None = None,
    ) -> Session:
        """Open a session: the sandbox that it lives in, or a new one. Close it, or enter it with `with`.

        Everyone in this process who asks for the same key gets the same sandbox; asking while it is being created
        creates no second one. A session that was closed keeps its sandbox until the sandbox's lifetime ends or its
        place is needed; what is opened after that is a new one.

        Args:
            key: the session's name, 1 to 256 characters. None is anonymous: a sandbox of one's own, killed at the end.
            template: what the sandbox is made from; the pool's own template when None.
            replace: if the session lives in a sandbox of another template, `metadata` or `envs`, kill that one, with
                all that is in it, and make a new one. A sandbox that fits is kept, unless it cannot be
                reached.
            metadata: tags of the sandbox; keys that begin with "sandboxkit." are the pool's own. None means any. A
                warm sandbox cannot be tagged, so with tags one is created.
            envs: environment variables for all that this session runs. None means any. A sandbox created for the
                session has them itself; a warm one is given them with each run, so that what `.sandbox` runs does not.
            files: files that a new sandbox starts with, by path; one that the session has already is left alone. If
                one cannot be written, the sandbox is killed, and the error raised.
            secrets: environment variables for what runs through this hold, and nothing else: they are given with each
                run, and are in no metadata, log, event or `repr`. Another hold may have others. A program that runs
                can read them, and code that the program runs, too.
            acquire_timeout: seconds that this may take altogether; the pool's own when None.

        Raises:
            ConfigurationError: an argument cannot work.
            PoolTimeout: no sandbox in time: all are in use, or creating it takes longer.
            PoolFull: all are in use, and `max_waiting` callers wait already.
            PoolClosed: the pool was closed, or is being closed.

            SessionConflict: the session lives in a sandbox of another template, `metadata` or `envs`.
            TemplateNotFound, TemplateNotBuilt, ProviderError, EngineUnavailable: the sandbox could not be made.
            SafeFSError: one of `files` could not be written; PathError: its path leads out of /home/user.
            ForkedProcess: the pool was made before a fork.
        """
        call: _portal.Call[AsyncSession] = _portal.Call(self._portal, discard=AsyncSession.close)
        opened = call(
            _opened,
            self._async,
            key,
            template=template,
            replace=replace,
            metadata=metadata,
            envs=envs,
            files=files,
            secrets=secrets,
            acquire_timeout=acquire_timeout,
        )
        return Session(self._portal, opened)

    def attach(
        self,
        sandbox: str | SessionRef,
        *,
        envs: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        acquire_timeout: float | None = None,
    ) -> Session:
        """Take up a sandbox that is there already: one that `session.detach()` let go of, or one of a dead process.

        From then on it is this pool's as if it had been made here: it counts towards `max_live` and is killed at the
        end. Whose it is, the service is asked before anything connects to it, so that nothing of others is woken or
        prolonged. Its session is that of its tags, or of the reference; where neither names one it is anonymous.
        A sandbox that this very pool has is opened as its session. Whether another process uses it, nothing tells: take
        up what was let go of.

        Args:
            sandbox: its id, or what `detach()` returned.
            envs: environment variables, as in `session()`; it is given them with each run.
            secrets: as in `session()`.
            acquire_timeout: seconds that this may take altogether; the pool's own when None.

        Raises:
            SandboxNotFound: there is none of that id, or it is not this pool's owner's.
            SessionConflict: its session lives in another sandbox of this pool.
            SessionBusy: it is an anonymous one that this pool has lent already, or another pool of this process has it.
            PoolTimeout, PoolFull, PoolClosed, PoolError, ForkedProcess: as in `session()`.
            ProviderError: the service did not answer.
        """
        call: _portal.Call[AsyncSession] = _portal.Call(self._portal, discard=AsyncSession.close)
        return Session(
            self._portal, call(self._async.attach, sandbox, envs=envs, secrets=secrets, acquire_timeout=acquire_timeout)
        )

    def wait_ready(self, *, timeout: float = 60.0) -> None:
        """Wait until all of `min_warm` are there, and what their templates' start commands serve answers.

        Raises:
            PoolTimeout: they are not within `timeout` seconds; its cause is the last failed create's error.
            PoolClosed: the pool was closed.
            ProviderError, TemplateNotFound, TemplateNotBuilt, EngineUnavailable: the pool has given up making them.
        """
        self._portal.call(self._async.wait_ready, timeout=timeout)

    def reap(self, *, older_than: float | None = None) -> tuple[str, ...]:
        """Kill what a process left when it died: sandboxes of a pool with this name, and this `owner` if one is set.

        A process on the same host (or in the same container) that runs no more is known to be dead; so are pools of
        this process that are gone. Nothing is known of other hosts: sandboxes from there are left to their lifetime,
        unless `older_than` says from which age on, in seconds, nobody can need them. What a pool of this process has,
        attached ones too, is never killed. Of what another process has attached nothing is known: its tags name who
        made it.

        Returns:
            The ids of those that were killed.

        Raises:
            ProviderError: the service did not answer, or did not kill one of them; the others are killed all the same.
        """
        value: tuple[str, ...] = self._portal.call(self._async.reap, older_than=older_than)
        return value

    def stats(self) -> PoolStats:
        """Count what the pool has and did; `PoolStats` says what each name means."""
        value: PoolStats = self._portal.call(_asked, self._async.stats)
        return value

    def pop_stats(self) -> PoolStats:
        """Return `stats()` and let the counters begin at zero again."""
        value: PoolStats = self._portal.call(_asked, self._async.pop_stats)
        return value

    def resize(
        self,
        *,
        max_live: int | None = None,
        min_warm: int | Mapping[str, int] | None = None,
        max_per_template: Mapping[str, int] | None = None,
    ) -> None:
        """Change how many sandboxes there may be, and how many warm ones there should be; None leaves a number alone.

        Callers that wait get what became possible. With less than now, warm ones and then idle sessions are killed,
        least recently used first; those in use stay, and no new one is made until enough of them are gone. Warm ones
        beyond a lower `min_warm` stay until somebody uses them, their place is needed, `idle_timeout` says so, or their
        lifetime ends.

        Raises:
            ConfigurationError: not a whole number of at least 1 (0 for `min_warm`), or more warm than live ones.
        """
        self._portal.call(self._async.resize, max_live=max_live, min_warm=min_warm, max_per_template=max_per_template)

    def drain(self, *, template: str | None = None) -> None:
        """Let no sandbox of now be used again: kill the idle and the warm ones, and those in use when their last holder
        closes.

        For a new version of a template, for instance: what is opened afterwards is made anew, and so are warm ones.

        Args:
            template: only those of this template; all when None.
        """
        self._portal.call(self._async.drain, template=template)

    def close(self) -> tuple[str, ...]:
        """Close the pool: callers that wait get PoolClosed at once, and every sandbox is killed.

        Takes 30 seconds for killing at most. May be called again, from any thread; every call waits until all is done.

        Returns:
            The ids of sandboxes whose kill was not confirmed; they end with their lifetime. Empty if all went well.

        Raises:
            ForkedProcess: the pool was made before a fork.
        """
        left = self._portal.call(self._async.close)
        self._held.exit(None, None, None)
        self._portal.forget(self)
        return left

    def __repr__(self) -> str:
        return repr(self._async).replace("<AsyncSandboxPool", "<SandboxPool", 1)

    _kind: ClassVar[type[AsyncSandboxPool]] = AsyncSandboxPool

    def __enter__(self) -> Self:
        self._portal.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _async_twin(sandbox: object) -> object:
    """The asynchronous object for a synchronous one of the SDK's. ConfigurationError for any other."""
    from sandboxkit.provider import _e2b  # late: it imports the SDK

    return _e2b.async_twin(sandbox)


def _sync_twin(sandbox: object) -> Any:
    """The synchronous object for an asynchronous one of the SDK's; what is not the SDK's stays as it is."""
    from sandboxkit.provider import _e2b  # late: it imports the SDK

    return _e2b.sync_twin(sandbox)


async def _opened(pool: AsyncSandboxPool, *args: Any, **kwargs: Any) -> AsyncSession:
    return await pool.session(*args, **kwargs)


async def _asked(func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Read something in the loop's thread, where it does not change meanwhile."""
    return func(*args, **kwargs)


class NullSandboxPool(SandboxPool):
    """A pool that keeps nothing, as `AsyncNullSandboxPool` says: each session's sandbox dies with its last holder."""

    _kind = AsyncNullSandboxPool


for _public in (SafeFS, CommandHandle, App, Session, SandboxPool, NullSandboxPool):
    _public.__module__ = "sandboxkit"
