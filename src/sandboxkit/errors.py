"""Every error that sandboxkit raises, in one tree.

    SandboxkitError
    ├── ConfigurationError (ValueError)
    │   ├── MissingApiKey
    │   └── EngineUnavailable
    │       └── IsolationUnavailable
    ├── PoolError
    │   ├── PoolClosed
    │   ├── PoolFull
    │   ├── PoolTimeout (TimeoutError)
    │   ├── SessionConflict
    │   └── SessionBusy
    ├── SandboxLost
    │   ├── SandboxNotFound
    │   └── SandboxExpired
    ├── ProviderError
    │   ├── AuthenticationFailed
    │   ├── RateLimited
    │   └── ProviderUnavailable (ConnectionError)
    ├── TemplateNotFound (LookupError)
    ├── TemplateNotBuilt
    ├── TemplateBuildFailed
    ├── FragmentError (ValueError)
    │   ├── DependencyError
    │   ├── AppStartFailed
    │   └── AppNotReady (TimeoutError)
    ├── CodeError
    ├── CommandFailed
    ├── CodeTimeout (TimeoutError)
    ├── CommandTimeout (TimeoutError)
    ├── KernelDied
    ├── OutputTooLarge
    ├── ForkedProcess (RuntimeError)
    ├── UnsupportedOption (ValueError)
    └── SafeFSError
        ├── PathError (ValueError)
        │   ├── InvalidPath
        │   └── PathEscape
        ├── LinkEscape (PermissionError)
        ├── SpecialFile (OSError)
        ├── NotFound (FileNotFoundError)
        ├── IsADirectory (IsADirectoryError)
        ├── NotADirectory (NotADirectoryError)
        ├── Changed
        ├── TooLarge
        ├── NoSpace (OSError)
        ├── AccessDenied (PermissionError)
        └── EnforcementUnavailable

A message says what happened, to which sandbox or path, and what to change. The facts are attributes too:
whatever keyword a raise passes is set on the exception. `code` is short, stable, and safe to log or to send.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SandboxkitError(Exception):
    """Base of all errors of this library.

    Keywords become attributes (`sandbox_id=`, `path=`, ...), so that a handler need not parse the message.
    """

    code: ClassVar[str] = "sandboxkit_error"
    sandbox_id: str | None
    """The sandbox that it happened to, where there was one."""

    def __init__(self, message: str, *, sandbox_id: str | None = None, **facts: Any) -> None:
        super().__init__(message)
        self.sandbox_id = sandbox_id
        self._facts = tuple(facts)
        for name, value in facts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        # OSError and its kin format themselves from errno; ours always say the sentence they were given.
        return str(self.args[0]) if self.args else self.code

    def __reduce__(self) -> Any:
        # Keyword-only facts would be lost by BaseException's own pickling.
        facts = {name: getattr(self, name) for name in self._facts}
        return (_rebuild, (type(self), str(self), self.sandbox_id, facts))


def _rebuild(
    cls: type[SandboxkitError], message: str, sandbox_id: str | None, facts: dict[str, Any]
) -> SandboxkitError:
    return cls(message, sandbox_id=sandbox_id, **facts)


# -- configuration ------------------------------------------------------------------------------------------------


class ConfigurationError(SandboxkitError, ValueError):
    """Something was set up in a way that cannot work."""

    code = "configuration_error"


class MissingApiKey(ConfigurationError):
    """E2B was asked for by name, but no API key is set. Raised before any request."""

    code = "missing_api_key"


class UnsupportedOption(SandboxkitError, ValueError):
    """An option or a value that is not supported here (yet). `option` names it."""

    code = "unsupported_option"
    option: str

    def __init__(self, message: str, *, option: str, sandbox_id: str | None = None, **facts: Any) -> None:
        super().__init__(message, sandbox_id=sandbox_id, option=option, **facts)


class EngineUnavailable(ConfigurationError):
    """The local engine cannot run or did not start. The message says what to install or to change."""

    code = "engine_unavailable"


class IsolationUnavailable(EngineUnavailable):
    """This machine forbids what isolation needs. `remedy` is the one thing to do; `sandboxkit doctor` shows all."""

    code = "isolation_unavailable"
    remedy: str

    def __init__(self, message: str, *, remedy: str = "", sandbox_id: str | None = None, **facts: Any) -> None:
        super().__init__(message, sandbox_id=sandbox_id, remedy=remedy, **facts)


# -- pool ---------------------------------------------------------------------------------------------------------


class PoolError(SandboxkitError):
    """The pool could not do what was asked."""

    code = "pool_error"


class PoolClosed(PoolError):
    """The pool was closed, or is closing."""

    code = "pool_closed"


class PoolFull(PoolError):
    """All sandboxes are in use and `max_waiting` callers wait already. `waiting` counts them."""

    code = "pool_full"


class PoolTimeout(PoolError, TimeoutError):
    """No sandbox became free within `acquire_timeout` seconds."""

    code = "pool_timeout"


class SessionConflict(PoolError):
    """The session lives in a sandbox of another template or specification; `replace=True` replaces it."""

    code = "session_conflict"


class SessionBusy(PoolError):
    """Somebody else holds this session or works in its sandbox: another process, or another task of this one."""

    code = "session_busy"


# -- the sandbox and its provider ---------------------------------------------------------------------------------


class SandboxLost(SandboxkitError):
    """The sandbox is gone; what ran and lay in it is lost."""

    code = "sandbox_lost"


class SandboxNotFound(SandboxLost):
    """The provider does not know the sandbox (any more)."""

    code = "sandbox_not_found"


class SandboxExpired(SandboxLost):
    """The sandbox reached the end of its lifetime."""

    code = "sandbox_expired"


class ProviderError(SandboxkitError):
    """The provider answered with an error of its own. `status` is the HTTP status where one is known."""

    code = "provider_error"


class AuthenticationFailed(ProviderError):
    """The provider refused the API key or token."""

    code = "authentication_failed"


class RateLimited(ProviderError):
    """The provider's rate or concurrency limit was reached (429), after retries."""

    code = "rate_limited"


class ProviderUnavailable(ProviderError, ConnectionError):
    """The provider could not be reached, or said that it cannot serve now (5xx), after retries."""

    code = "provider_unavailable"


# -- templates and fragments --------------------------------------------------------------------------------------


class TemplateNotFound(SandboxkitError, LookupError):
    """No template of this id is known. `template` is the id, `known` the ids that are."""

    code = "template_not_found"


class TemplateNotBuilt(SandboxkitError):
    """The template is known but not built on this machine, or damaged (`is_damaged`). The message names the command
    that builds it."""

    code = "template_not_built"
    is_damaged: bool = False


class TemplateBuildFailed(SandboxkitError):
    """Building a template failed. `log_tail` holds the last lines of the build's log."""

    code = "template_build_failed"


class FragmentError(SandboxkitError, ValueError):
    """The fragment cannot be carried out."""

    code = "fragment_error"


class DependencyError(FragmentError):
    """The fragment's dependencies are not there, or could not be installed. `dependencies` lists them, `log_tail` holds
    the last lines of what the installer said."""

    code = "dependency_error"
    dependencies: tuple[str, ...] = ()
    log_tail: str = ""


class AppStartFailed(FragmentError):
    """The app's process ended before it answered, or its code cannot be loaded. `log_tail` holds the last lines of its
    log."""

    code = "app_start_failed"
    log_tail: str = ""


class AppNotReady(FragmentError, TimeoutError):
    """The app did not answer in time, or only with errors (`status`). `log_tail` holds the last lines of its log, and
    what the error's page says; `listening` what its sandbox listens on."""

    code = "app_not_ready"
    log_tail: str = ""
    status: int | None = None
    listening: tuple[str, ...] = ()


# -- running ------------------------------------------------------------------------------------------------------


class CodeError(SandboxkitError):
    """User code raised; only `.raise_for_error()` raises this. `name`, `value`, `traceback` are the sandbox's own."""

    code = "code_error"


class CommandFailed(SandboxkitError):
    """A command exited non-zero; only `.raise_for_error()` raises this. `exit_code`, `stderr` are the command's own."""

    code = "command_failed"


class CodeTimeout(SandboxkitError, TimeoutError):
    """The code ran longer than its `timeout` and was interrupted."""

    code = "code_timeout"


class CommandTimeout(SandboxkitError, TimeoutError):
    """The command ran longer than its `timeout` and was killed, its process group with it."""

    code = "command_timeout"


class KernelDied(SandboxkitError):
    """The interpreter ended while it ran the code (it was killed, ran out of memory, or left by itself)."""

    code = "kernel_died"


class OutputTooLarge(SandboxkitError):
    """More than `max_output` bytes came out; the run was stopped. `head` and `tail` are what was kept."""

    code = "output_too_large"


class ForkedProcess(SandboxkitError, RuntimeError):
    """What was made before `os.fork()` was used in the child, or the child's own pool after the parent used the SDK.

    The SDK's threads stay in the parent, so that a request of the child's would never be answered. Start worker
    processes by `spawn` or `forkserver`; or fork before anything of sandboxkit is used, and open the pools after it.
    """

    code = "forked_process"


# -- files --------------------------------------------------------------------------------------------------------


class SafeFSError(SandboxkitError):
    """A file operation was refused or failed. `path` is the path as the caller gave it, of whatever type that is."""

    code = "safefs_error"
    path: Any = None


class PathError(SafeFSError, ValueError):
    """The path itself is not acceptable; no request was made."""

    code = "path_error"


class InvalidPath(PathError):
    """Not a path: a NUL, text that has no bytes, a name or a path too long, or another type altogether."""

    code = "invalid_path"


class PathEscape(PathError):
    """The path leads out of the root."""

    code = "path_escape"


class LinkEscape(SafeFSError, PermissionError):
    """A symbolic link on the way leads out of the root."""

    code = "link_escape"


class SpecialFile(SafeFSError, OSError):
    """Not a regular file or a directory (a FIFO, a socket, a device)."""

    code = "special_file"


class NotFound(SafeFSError, FileNotFoundError):
    """No such file or directory."""

    code = "not_found"


class IsADirectory(SafeFSError, IsADirectoryError):
    """A directory, where a file was expected."""

    code = "is_a_directory"


class NotADirectory(SafeFSError, NotADirectoryError):
    """Not a directory, where one was expected."""

    code = "not_a_directory"


class Changed(SafeFSError):
    """The tree changed under the operation; trying again is safe."""

    code = "changed"


class TooLarge(SafeFSError):
    """Larger than the limit that was given."""

    code = "too_large"


class NoSpace(SafeFSError, OSError):
    """The sandbox's disk is full, or has no inode left."""

    code = "no_space"


class AccessDenied(SafeFSError, PermissionError):
    """The sandbox's user may not do that: its own rights forbid it."""

    code = "access_denied"


class EnforcementUnavailable(SafeFSError):
    """The level `enforced` cannot be had on this sandbox, or not for this operation. The message says which can."""

    code = "enforcement_unavailable"


__all__ = [
    name for name, value in list(globals().items()) if isinstance(value, type) and issubclass(value, SandboxkitError)
]

for _name in __all__:
    globals()[_name].__module__ = "sandboxkit.errors"
