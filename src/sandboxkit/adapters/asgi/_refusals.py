"""What an error is over HTTP: one table from the errors of `sandboxkit.errors` to status and sentence.

The sentences are ours. What a provider said, and what this machine's paths are, goes to no caller; the one exception
are errors of a fragment, whose message speaks of what the caller sent.
"""

from __future__ import annotations

from typing import Any

from sandboxkit import errors
from sandboxkit.errors import SandboxkitError

SENTENCES: dict[type[SandboxkitError], tuple[int, str | None]] = {
    # The fragment: the sentence is the error's own.
    errors.FragmentError: (422, None),
    errors.AppNotReady: (504, None),
    errors.TemplateNotFound: (404, "No template of this id is known."),
    errors.CodeTimeout: (504, "The code ran too long and was interrupted."),
    errors.CommandTimeout: (504, "A command ran too long and was killed."),
    errors.KernelDied: (422, "The interpreter ended while it ran the code."),
    errors.OutputTooLarge: (422, "The code put out too much and was stopped."),
    errors.UnsupportedOption: (400, "This is not supported here."),
    # The sandbox: what is gone, what is another's and what never was are one answer.
    errors.SandboxLost: (404, "There is no sandbox of this id."),
    errors.SessionConflict: (409, "The session lives in another sandbox."),
    errors.SessionBusy: (409, "Somebody else works in this sandbox."),
    errors.PoolError: (503, "No sandbox is free now; try again."),
    # Files.
    errors.PathError: (403, "The path leads out of the sandbox's files, or is none."),
    errors.LinkEscape: (403, "A link on the way leads out of the sandbox's files."),
    errors.AccessDenied: (403, "The sandbox does not permit that."),
    errors.NotFound: (404, "There is no such file or directory."),
    errors.IsADirectory: (409, "This is a directory, not a file."),
    errors.NotADirectory: (409, "A part of the path is no directory."),
    errors.SpecialFile: (409, "This is neither a file nor a directory."),
    errors.Changed: (409, "The files changed meanwhile; try again."),
    errors.TooLarge: (413, "The file is too large."),
    errors.NoSpace: (507, "The sandbox's disk is full."),
    errors.SafeFSError: (502, "The sandbox's files cannot be reached."),
    # Ours, or the provider's: a caller can change nothing about them.
    errors.ConfigurationError: (503, "The server is not set up for that."),
    errors.TemplateNotBuilt: (503, "The template is not built on the server."),
    errors.TemplateBuildFailed: (503, "The template is not built on the server."),
    errors.ProviderError: (502, "The service that runs the sandboxes failed."),
    errors.AuthenticationFailed: (503, "The server is not set up for that."),
    errors.RateLimited: (503, "The service that runs the sandboxes is busy; try again."),
    errors.ProviderUnavailable: (503, "The service that runs the sandboxes cannot be reached."),
    SandboxkitError: (500, "Something went wrong."),
}
"""By class; an error that is not here is answered as the nearest class above it."""

MAY_TRY_AGAIN = frozenset({503})
"""The statuses that carry `Retry-After`."""


class Refusal(Exception):
    """An answer that is an error. `more` holds the fields of the error beyond `code` and `message`."""

    def __init__(self, status: int, code: str, message: str, more: tuple[tuple[str, Any], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more

    @property
    def body(self) -> dict[str, Any]:
        """What the answer says."""
        return {"error": {"code": self.code, "message": self.message, **dict(self.more)}}

    @property
    def headers(self) -> dict[str, str]:
        """What the answer carries besides."""
        headers = {"cache-control": "no-store"}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in MAY_TRY_AGAIN:
            headers["retry-after"] = "1"
        return headers


def refusal(error: Exception) -> Refusal:
    """What a caller is told of an error."""
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, SandboxkitError):
        return Refusal(500, "internal_error", "Something went wrong.")
    status, sentence = next(SENTENCES[kind] for kind in type(error).__mro__ if kind in SENTENCES)
    if isinstance(error, errors.SandboxLost):
        return Refusal(status, errors.SandboxNotFound.code, sentence or "")
    more: list[tuple[str, Any]] = []
    if isinstance(error, errors.FragmentError):
        if log := getattr(error, "log_tail", ""):
            more.append(("log_tail", log))
        if names := getattr(error, "dependencies", ()):
            more.append(("dependencies", list(names)))
    return Refusal(status, error.code, str(error) if sentence is None else sentence, tuple(more))


def unauthorized() -> Refusal:
    """Nobody said who asks."""
    return Refusal(401, "unauthorized", "Who is asking could not be told.")


def unknown_sandbox() -> Refusal:
    """The id is unknown, or another's; the answer is the one of a sandbox that is gone."""
    return refusal(errors.SandboxNotFound(""))


def malformed() -> Refusal:
    """The body is no JSON."""
    return Refusal(400, "malformed_json", "The body is no JSON.")


def not_json() -> Refusal:
    """The body does not say that it is JSON; a form of another site cannot say so."""
    return Refusal(415, "unsupported_media_type", "The body has to be application/json.")


def too_large(limit: int) -> Refusal:
    """The body has more bytes than are read."""
    return Refusal(413, "body_too_large", f"The body has more than {limit} bytes.")
