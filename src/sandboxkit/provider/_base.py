"""The contract between the pool and whoever makes sandboxes: E2B, the local engine, or the fake of the tests.

The docstrings are the contract; `sandboxkit.testing.conformance` checks each sentence of them on every provider.
All methods are `async` and run on any anyio backend. Errors are those of `sandboxkit.errors` and no others. Every
method may be cancelled; what must not be lost then is said at the method.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, runtime_checkable

from sandboxkit._types import (
    CommandResult,
    Execution,
    FileInfo,
    NetworkMode,
    NetworkPolicy,
    OutputMessage,
    Result,
    SandboxInfo,
)
from sandboxkit.provider._confined import FileAnswer, FileCall

OnOutput = Callable[[OutputMessage], object]
OnResult = Callable[[Result], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """One sandbox to be made.

    `idempotency_key` makes a repeated request return the same sandbox instead of a second one, also when the first
    answer was lost (E2B SDK 2.61, header `Idempotency-Key`, 1-255 of a-z, 0-9 and "-").
    """

    template: str
    lifetime: float
    idempotency_key: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    network: NetworkMode | NetworkPolicy = "deny"
    timeout: float = 60.0
    at_end: Literal["kill", "pause"] = "kill"
    """What becomes of it at the end of its lifetime."""


class Files(Protocol):
    """File operations of one sandbox, by absolute normalised path, with no guard of their own.

    Only `SafeFS` calls this. A missing path raises NotFound, a directory where a file is needed IsADirectory, a file
    where a directory is needed NotADirectory, what is neither of the two SpecialFile, a full disk NoSpace, a vanished
    sandbox SandboxNotFound.
    """

    async def read(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Read a whole file. TooLarge as soon as more than `max_bytes` came, before the rest is held in memory (some
        files, such as those of /proc, have no size that could be asked for first); None: no bound."""

    async def write(self, path: str, data: bytes) -> None:
        """Write a whole file, replacing what was there; missing parents are made."""

    async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
        """List entries below a directory, down to `depth` levels, in no promised order."""

    async def stat(self, path: str) -> FileInfo:
        """Describe one entry."""

    async def exists(self, path: str) -> bool:
        """Say whether there is an entry."""

    async def make_dir(self, path: str) -> bool:
        """Make a directory and its missing parents. False if it was there already."""

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory with all that is in it. NotFound if there is nothing."""

    async def rename(self, source: str, target: str) -> None:
        """Rename an entry, replacing a file at the target."""


class Confined(Protocol):
    """The files below one root, resolved where they lie: what level `enforced` is made of. Only `SafeFS` calls this.

    What was reached was reached from the root itself, through no link that leads out of it, with the rights of the
    sandbox's user. `provider/_confined.py` has the operations' form, `local/agent/_confined.py` their meaning.
    """

    @property
    def root_adversary(self) -> bool:
        """Whether somebody in the sandbox may be root there, above the user whose rights are what protects."""

    @property
    def mechanism(self) -> str:
        """`"engine"`, `"helper"` or `"fake"`."""

    @property
    def can_watch(self) -> bool:
        """Whether it has the operations `watch`, `events` and `unwatch`."""

    async def call(self, call: FileCall) -> FileAnswer:
        """Carry one operation out. OperationFailed with the errno of inside; BrokenAnswer for what is no answer;
        EnforcementUnavailable where the sandbox has not what it takes."""


class RunningCommand(Protocol):
    """A command in the background."""

    pid: int

    async def wait(self) -> CommandResult:
        """Wait for its end. SandboxLost if the sandbox goes first; OutputTooLarge past the bound of the start.

        SandboxLost also where a pause of the sandbox has cut this off. The command goes on with the sandbox, and who
        waits again then is told of its end, and hears what it writes from there on.
        """

    async def kill(self) -> bool:
        """Kill its process group. False if it had ended already."""

    async def send_stdin(self, data: str) -> None:
        """Write to its standard input (only where it was started with `stdin=True`)."""


@runtime_checkable
class ProviderSandbox(Protocol):
    """One live sandbox."""

    @property
    def sandbox_id(self) -> str: ...

    @property
    def template(self) -> str: ...

    @property
    def end_at(self) -> datetime | None:
        """When it ends as far as is known here (UTC): by what create, connect and extend were answered."""

    @property
    def raw(self) -> object:
        """The SDK's own asynchronous object, for all that we do not wrap; the fake's own object on the fake."""

    @property
    def files(self) -> Files: ...

    async def confined(self, root: str) -> Confined | None:
        """The provider's own way to files below a root, an absolute normalised path. None where it has none: SafeFS
        then sends a helper. Makes at most one request."""

    async def run_code(
        self,
        code: str,
        *,
        language: str | None = None,
        context: str | None = None,
        timeout: float = 300.0,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        on_result: OnResult | None = None,
        max_output: int = 10 * 1024 * 1024,
    ) -> Execution:
        """Run code in a context (the language's default one when `context` is None) and return what it did.

        An exception in the code is data in the result. The time limit is held here by our own clock, whatever the
        service does: past it the run is abandoned, which interrupts it, and CodeTimeout is raised. More than
        `max_output` bytes of output and results together: the run is abandoned likewise, and OutputTooLarge carries
        `head` and `tail`. A kernel that dies raises KernelDied; a sandbox that goes away SandboxLost. Callbacks are
        called in order; what one returns is awaited if it can be; one that raises ends the run with its exception.
        """

    async def run_command(
        self,
        cmd: str,
        *,
        timeout: float = 60.0,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        max_output: int = 10 * 1024 * 1024,
    ) -> CommandResult:
        """Run a shell command to its end. Non-zero exit is data. On CommandTimeout, OutputTooLarge or cancellation
        the command has been killed."""

    async def start_command(
        self,
        cmd: str,
        *,
        cwd: str | None = None,
        envs: Mapping[str, str] | None = None,
        on_stdout: OnOutput | None = None,
        on_stderr: OnOutput | None = None,
        max_output: int = 10 * 1024 * 1024,
        stdin: bool = False,
    ) -> RunningCommand:
        """Start a shell command in the background, with no time limit."""

    async def restart(self, context: str | None = None) -> None:
        """Restart a context's interpreter (the default Python one when None): its variables are gone, files stay."""

    async def extend(self, lifetime: float) -> datetime:
        """Make it live at least `lifetime` seconds from now; never shortens. Returns the new end. SandboxNotFound if
        it is gone."""

    async def is_running(self) -> bool:
        """Ask the service whether it runs, without extending its life. False of a paused one."""

    async def pause(self) -> None:
        """Stop it and keep it: it has no end then, and every use but `extend`, `is_running` and `kill` raises
        SandboxNotFound. `extend` and the provider's `connect` let it go on. No error if it is paused already;
        SandboxNotFound if it is gone."""

    def host(self, port: int) -> str:
        """The public host name of a port; no request."""

    def browser_url(self, port: int) -> str:
        """Where a browser finds a port: `host(port)` with the scheme by which the endpoint serves it; no request."""

    async def url(self, port: int) -> str:
        """A URL by which a program on this machine finds a port. It is `browser_url(port)`, but where that name does
        not resolve for programs: the engine then opens a loopback port. No promise that something answers.
        SandboxNotFound if the sandbox is gone and that had to be asked."""

    async def http_status(self, port: int, path: str = "/", *, timeout: float = 10.0) -> int | None:
        """Ask what listens on a port, by HTTP GET: the status of its answer, after redirects to itself (others are not
        followed: they are its own business). None where nobody listens, or no answer came within `timeout` seconds, or
        none that can be understood. SandboxNotFound if the sandbox is gone."""

    async def kill(self) -> bool:
        """Kill it. False if it was gone already, which is no error."""


class Provider(Protocol):
    """A source of sandboxes."""

    @property
    def name(self) -> str:
        """`"e2b"`, `"local"`, `"given"` or `"fake"`."""

    async def create(self, request: CreateRequest) -> ProviderSandbox:
        """Make a sandbox. TemplateNotFound, TemplateNotBuilt, RateLimited, AuthenticationFailed,
        ProviderUnavailable, UnsupportedOption. If cancelled, a sandbox that was made meanwhile is killed."""

    async def connect(self, sandbox_id: str, *, lifetime: float) -> ProviderSandbox:
        """Take up a sandbox, extending its life to at least `lifetime` seconds from now; a paused one runs again."""

    def list(self, *, metadata: Mapping[str, str] | None = None) -> AsyncIterator[SandboxInfo]:
        """All running and paused sandboxes whose metadata contain the given pairs, over all pages."""

    async def info(self, sandbox_id: str) -> SandboxInfo:
        """Describe a sandbox by id, running or paused, without connecting to it: neither its life nor its state
        changes. SandboxNotFound if there is none."""

    async def kill(self, sandbox_id: str) -> bool:
        """Kill a sandbox by id, also a paused one. False if it was gone already."""

    async def aclose(self) -> None:
        """Let go of what this provider holds (connections, its share of the engine). Kills no sandbox. Idempotent."""
