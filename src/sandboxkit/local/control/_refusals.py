"""What the control plane refuses, as one exception that says the status, the sentence and a stable code."""

from __future__ import annotations

from sandboxkit.errors import SandboxkitError, UnsupportedOption
from sandboxkit.local._descriptors import means_exhausted
from sandboxkit.local.isolation._archive import ArchiveError, Unkeepable


class Refused(Exception):
    """A request that is not carried out. `error_code` is for programs, `retry` says whether asking again may help."""

    def __init__(self, status: int, message: str, *, error_code: str, retry: bool | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.error_code = error_code
        self.retry = retry


def bad_request(message: str) -> Refused:
    """A malformed or impossible value."""
    return Refused(400, message, error_code="bad_request")


def unsupported(option: str, message: str) -> Refused:
    """A thing of E2B's that this engine does not do; the message names it."""
    return Refused(400, f"{option} is not supported by the local engine: {message}", error_code="unsupported_option")


def no_such_sandbox(sandbox_id: str) -> Refused:
    """There is no such sandbox (any more)."""
    return Refused(404, f"Sandbox {sandbox_id[:64]!r} was not found", error_code="sandbox_not_found")


def could_not_be_made(error: BaseException, limit: float) -> Refused:
    """What is said of a create that failed so; `limit` is its time limit in seconds."""
    if isinstance(error, Unkeepable):
        return unsupported("starting with kept files", str(error))
    if isinstance(error, ArchiveError):
        return Refused(500, f"The sandbox could not be made: {error}", error_code="kept_files_damaged", retry=False)
    if isinstance(error, TimeoutError):
        return Refused(
            503,
            f"The sandbox could not be made within {limit:g} seconds: the machine is too busy",
            error_code="create_timeout",
            retry=False,
        )
    if means_exhausted(error):
        return Refused(
            503,
            "The sandbox could not be made: the engine has no descriptors left; kill some sandboxes or close "
            "connections, or raise the engine's limit of open files",
            error_code="no_descriptors",
            retry=False,
        )
    if isinstance(error, UnsupportedOption):
        return Refused(400, f"{error.option} is not supported by the local engine: {error}", error_code=error.code)
    if isinstance(error, SandboxkitError):
        return Refused(500, f"The sandbox could not be made: {error}", error_code=error.code, retry=False)
    return Refused(
        500, "The sandbox could not be made; the engine's log says why", error_code="create_failed", retry=False
    )


def cannot_be_kept(sandbox_id: str, error: BaseException) -> Refused:
    """Its files could not be written to the engine's store."""
    if isinstance(error, Unkeepable):
        return unsupported("keeping files (memory=false, snapshots, forks)", str(error))
    return Refused(
        507,
        f"The files of sandbox {sandbox_id[:64]!r} could not be kept: {str(error) or type(error).__name__}",
        error_code="cannot_be_kept",
        retry=False,
    )
