"""Frozen values that cross rooms: what is asked of a sandbox, and what comes back.

No behaviour beyond reading a value in a convenient way; no import of the SDK.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from sandboxkit.errors import CodeError, CommandFailed, ConfigurationError

CODE_INTERPRETER = "code-interpreter-v1"
DEFAULT_ROOT = "/home/user"
DEFAULT_MAX_OUTPUT = 10 * 1024 * 1024

EndpointName = Literal["auto", "e2b", "local"]
NetworkMode = Literal["deny", "packages", "internet"]
OnLoss = Literal["fail", "recreate", "replay"]
Source = Literal["reused", "warm", "created", "attached"]
"""Where a session got its sandbox from."""
Level = Literal["lexical", "checked", "enforced"]


# -- what is asked ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where sandboxes come from: one E2B-compatible service and the key for it.

    `domain` is the usual way to name a self-hosted E2B; `api_url` and `sandbox_url` name the two services by URL,
    which plain-HTTP servers such as the local engine need
    (https://e2b.dev/docs, "API key" and "Self-hosting"; the SDK marks the two URLs as internal).
    """

    api_key: str = field(repr=False)
    api_url: str | None = None
    sandbox_url: str | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        if not self.api_key:
            raise ConfigurationError("Endpoint(api_key=...) is empty; pass the service's API key.")
        for name in ("api_url", "sandbox_url"):
            url = getattr(self, name)
            if url is not None and not _is_http_url(url):
                raise ConfigurationError(
                    f"Endpoint({name}={url!r}): a URL is needed, such as 'https://api.example.org' or "
                    "'http://127.0.0.1:8000'."
                )


def _is_http_url(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, a bracket that is not closed
        return False


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Hosts and networks that a sandbox may reach (`allow`), and those among them that it may not (`deny`).

    Entries are names, `*.` names (everything below, not the name itself), addresses and CIDR blocks. Nothing is
    reachable that is not allowed, and what is denied is not, whatever allows it. Private and local addresses must be
    listed by address. E2B denies no names; denied public blocks cannot stand beside allowed names: UnsupportedOption.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


MAX_SECONDS = 1e9
"""The longest time that may be asked for, some 30 years: dates end somewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutPolicy:
    """All time limits, in seconds.

    Attributes:
        lifetime: how long a sandbox lives after it was created or last renewed (E2B's default is 300).
        renew: `"on_use"` makes each use extend the life to `lifetime` again, never shorten it, and to the time limit of
            the work if that is longer; `"heartbeat"` extends it to `lifetime` again and again while work runs, so that
            long work need not ask for a long life at once, and a crash of this process leaves at most `lifetime`;
            `"never"` leaves it alone, so that it ends `lifetime` seconds after its creation.
        floor: the life that is guaranteed to be left before any work starts (except with `renew="never"`).
        max_lifetime: retire a sandbox before it grows older than this (E2B: 3,600 on Hobby, 86,400 on Pro).
            It is the plan's limit on one sandbox, and no request asks for more. From 5 % earlier on, by chance, less
            `floor`, no work is started in it and no session is handed it.
        at_end: what the provider does at the end of the lifetime. A paused sandbox keeps its files, variables and
            processes, has no end, and goes on by itself at the session's next use.
        create, install, ready, command, code: limits of creating a sandbox, installing dependencies, a web app's
            first answer, one command, one piece of code.
    """

    lifetime: float = 600.0
    renew: Literal["on_use", "heartbeat", "never"] = "on_use"
    floor: float = 60.0
    max_lifetime: float | None = None
    at_end: Literal["kill", "pause"] = "kill"
    create: float = 60.0
    install: float = 300.0
    ready: float = 60.0
    command: float = 60.0
    code: float = 300.0

    def __post_init__(self) -> None:
        for name in ("lifetime", "floor", "create", "install", "ready", "command", "code"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ConfigurationError(f"TimeoutPolicy({name}={value!r}): a positive number of seconds is needed.")
            if value > MAX_SECONDS:
                raise ConfigurationError(f"TimeoutPolicy({name}={value!r}): at most {MAX_SECONDS:.0f} are possible.")
        if self.max_lifetime is not None and not (
            isinstance(self.max_lifetime, int | float)
            and not isinstance(self.max_lifetime, bool)
            and 0 < self.max_lifetime < float("inf")
        ):
            raise ConfigurationError(f"TimeoutPolicy(max_lifetime={self.max_lifetime!r}): positive seconds, or None.")
        if self.renew not in ("on_use", "heartbeat", "never"):
            raise ConfigurationError(
                f'TimeoutPolicy(renew={self.renew!r}): one of "on_use", "heartbeat", "never" is needed.'
            )
        if self.at_end not in ("kill", "pause"):
            raise ConfigurationError(f'TimeoutPolicy(at_end={self.at_end!r}): "kill" or "pause" is needed.')
        if self.max_lifetime is not None and self.lifetime > self.max_lifetime:
            raise ConfigurationError(
                f"TimeoutPolicy(lifetime={self.lifetime}) is longer than max_lifetime={self.max_lifetime}."
            )
        if self.max_lifetime is not None and self.floor > self.max_lifetime / 2:
            raise ConfigurationError(
                f"TimeoutPolicy(floor={self.floor}) is more than half of max_lifetime={self.max_lifetime}: sandboxes "
                "would be retired as soon as they are made."
            )
        if self.floor > self.lifetime:
            raise ConfigurationError(f"TimeoutPolicy(floor={self.floor}) is longer than lifetime={self.lifetime}.")


# -- what code gives back -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One displayed value of a cell, in every form that the interpreter offered.

    The fields are E2B's (https://e2b.dev/docs/code-interpreting/analyze-data-with-ai): binary forms are base64 text,
    `chart` is the typed data of a chart, `data` a table as columns, `extra` any other MIME type.
    """

    text: str | None = None
    html: str | None = None
    markdown: str | None = None
    svg: str | None = None
    png: str | None = None
    jpeg: str | None = None
    pdf: str | None = None
    latex: str | None = None
    json: Any = None
    javascript: str | None = None
    data: Any = None
    chart: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    is_main_result: bool = False

    def formats(self) -> tuple[str, ...]:
        """Name the forms that this result has."""
        names = (
            "text",
            "html",
            "markdown",
            "svg",
            "png",
            "jpeg",
            "pdf",
            "latex",
            "json",
            "javascript",
            "data",
            "chart",
        )
        return (*(n for n in names if getattr(self, n) is not None), *self.extra)


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """An exception that user code raised: data, not a failure of ours."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True)
class OutputMessage:
    """A piece of output while code runs."""

    text: str
    stream: Literal["stdout", "stderr"] = "stdout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What one piece of code did: its output, the values that it displayed, and its exception if it raised one."""

    stdout: str = ""
    stderr: str = ""
    results: tuple[Result, ...] = ()
    error: ExecutionError | None = None
    count: int | None = None

    @property
    def text(self) -> str | None:
        """The text of the main result (the value of the last expression), if there is one."""
        return next((r.text for r in self.results if r.is_main_result), None)

    def raise_for_error(self) -> Execution:
        """Return this execution, or raise `CodeError` if the code raised.

        Raises:
            CodeError: with the sandbox's `name`, `value` and `traceback`.
        """
        if self.error is None:
            return self
        raise CodeError(
            f"{self.error.name}: {self.error.value}",
            name=self.error.name,
            value=self.error.value,
            traceback=self.error.traceback,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What a finished command did. A non-zero exit code is data; `raise_for_error()` makes it an exception."""

    exit_code: int
    stdout: str = ""
    stderr: str = ""

    def raise_for_error(self) -> CommandResult:
        """Return this result, or raise `CommandFailed` if the exit code is not zero.

        Raises:
            CommandFailed: with `exit_code` and `stderr`.
        """
        if self.exit_code == 0:
            return self
        last = self.stderr.strip().splitlines()[-1:] or [""]
        raise CommandFailed(
            f"The command exited with code {self.exit_code}. {last[0]}".rstrip(),
            exit_code=self.exit_code,
            stderr=self.stderr,
        )


# -- files and sandboxes ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One directory entry. `path` is absolute inside the sandbox; `link_target` is set for symbolic links."""

    name: str
    path: str
    type: Literal["file", "dir", "other"]
    size: int = 0
    mode: int = 0
    owner: str = ""
    group: str = ""
    modified: datetime | None = None
    link_target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNode:
    """One entry of a tree. A directory's `children` are sorted by name, directories first.

    `complete` is False for a directory whose entries are not all here: it lies below the depth that was asked for, is
    excluded by name, or the cap on entries was reached. Links are leaves and are not followed.
    """

    name: str
    path: str
    type: Literal["file", "dir", "other"]
    size: int = 0
    link_target: str | None = None
    children: tuple[FileNode, ...] = ()
    complete: bool = True

    def to_text(self) -> str:
        """Draw the tree as text, one entry a line, directories with a slash; names in ASCII, since they may carry
        terminal codes. What was left out shows as "..."."""
        return "\n".join([_shown(self), *self._branches("")])

    def _branches(self, indent: str) -> Iterator[str]:
        left = not self.complete
        for at, child in enumerate(self.children):
            last = at == len(self.children) - 1 and not left
            yield f"{indent}{'└── ' if last else '├── '}{_shown(child)}"
            yield from child._branches(indent + ("    " if last else "│   "))
        if left:
            yield f"{indent}└── ..."

    def to_html(self) -> str:
        """Write the tree as nested HTML lists, every name escaped: it may be shown in any page."""
        below = "".join(f"<li>{child.to_html()}</li>" for child in self.children)
        more = "" if self.complete else "<li>...</li>"
        return html.escape(_shown(self)) + (f"<ul>{below}{more}</ul>" if below or more else "")


def _shown(node: FileNode) -> str:
    name = ascii(node.name)[1:-1]
    if node.link_target is not None:
        return f"{name} -> {ascii(node.link_target)[1:-1]}"
    return f"{name}/" if node.type == "dir" else name


@dataclass(frozen=True, slots=True)
class FileEvent:
    """Something that happened to a file or directory that is watched.

    `kind` is `"create"`, `"write"`, `"remove"`, `"rename"` (it is gone from this path; its new one is created) or
    `"chmod"` (mode, owner or attributes). `path` is absolute inside the sandbox.
    """

    kind: Literal["create", "write", "remove", "rename", "chmod"]
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferProgress:
    """How far an upload or download is: the file that has just been carried over, files and bytes done, and in all."""

    path: str
    files: int
    total_files: int
    size: int
    """Bytes done."""
    total_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a session lost when its sandbox vanished, and what came back in the new one.

    Besides the files, all variables, processes and installed packages of the old sandbox are gone, and files that
    its programs wrote by themselves, of which nobody outside knows.
    """

    sandbox_id: str
    """The sandbox that was lost."""
    error: str
    """The code of the error: `sandbox_not_found` or `sandbox_expired`."""
    restored: tuple[str, ...] = ()
    """Files that were written again, by absolute path."""
    lost: tuple[str, ...] = ()
    """Files that had been written through the session and were not written again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRef:
    """A session that `session.detach()` took out of its pool; `pool.attach(ref)` takes it up, in any process.

    It names a sandbox and holds no key, environment or secret. Whoever gets one from outside may trust it: `attach`
    asks the service whose the sandbox is before it connects.
    """

    sandbox_id: str
    template: str
    key: str | None = None

    def to_json(self) -> str:
        """The reference as JSON text."""
        return json.dumps({"sandbox_id": self.sandbox_id, "template": self.template, "key": self.key})

    @classmethod
    def from_json(cls, text: str) -> SessionRef:
        """Read what `to_json` wrote.

        Raises:
            ConfigurationError: it is no such text.
        """
        try:
            fields = json.loads(text)
            ref = cls(sandbox_id=fields["sandbox_id"], template=fields["template"], key=fields["key"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError("The text is no session reference, as SessionRef.to_json() writes it.") from error
        if not all(isinstance(value, str) for value in (ref.sandbox_id, ref.template, ref.key or "")):
            raise ConfigurationError("The text is no session reference: its fields are not texts.")
        return ref


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """A sandbox as its provider lists it."""

    sandbox_id: str
    template: str
    state: Literal["running", "paused"]
    started_at: datetime
    end_at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)


for _public in (
    Endpoint,
    NetworkPolicy,
    TimeoutPolicy,
    Result,
    ExecutionError,
    OutputMessage,
    Execution,
    CommandResult,
    FileInfo,
    FileNode,
    FileEvent,
    TransferProgress,
    SandboxInfo,
    Loss,
    SessionRef,
):
    _public.__module__ = "sandboxkit"
