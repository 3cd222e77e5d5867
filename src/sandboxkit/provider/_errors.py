"""Every exception of the SDK and its transports, as one of ours.

Which of ours it is depends on three things: the exception's type, what its text says (the SDK keeps no more of most
answers), and, where a connection broke, whether the sandbox's health answer says that the sandbox is gone. Whoever
calls has asked for that answer already, or the SDK has.

Two of the SDK's own types do not derive from its base class (AuthenticationException, ServiceBusyException), several
failures come as raw exceptions of httpx or pyqwest, and one as a bare Exception; all of them end here.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import e2b
import httpx
import pyqwest
from e2b.exceptions import (
    SANDBOX_NOT_FOUND_MESSAGE,
    SANDBOX_PORT_NOT_OPEN_MESSAGE,
    ServiceBusyException,
)

from sandboxkit.errors import (
    AccessDenied,
    AuthenticationFailed,
    ConfigurationError,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    SandboxExpired,
    SandboxkitError,
    SandboxLost,
    SandboxNotFound,
    TemplateNotBuilt,
    TemplateNotFound,
    UnsupportedOption,
)

# pyqwest raises the builtin ConnectionError and TimeoutError (both OSError) while connecting, its own types after that.
TRANSPORT_ERRORS = (httpx.TransportError, OSError, pyqwest.ReadError, pyqwest.WriteError, pyqwest.StreamError)

SDK_ERRORS = (
    e2b.SandboxException,
    e2b.AuthenticationException,
    ServiceBusyException,
    json.JSONDecodeError,
    *TRANSPORT_ERRORS,
)
"""What an SDK call raises; besides these only bare Exceptions, which are recognised by their text."""

_BARE_TEXTS = ("Command ended without an end event", "Body of the request is None")

# The SDK's words for a sandbox that its own health probe found gone in the middle of a request.
_KILLED_TEXTS = ("The sandbox was killed", "was killed or reached")

_ERROR_CODE = re.compile(r"\[([a-z_]+)\]")
"""The engine ends some messages with their `error_code`, since the SDK passes nothing but the message on."""


_LANGUAGE = re.compile(r"\blanguage\b.{0,100}\b(not supported|unsupported)|\bunsupported language\b", re.IGNORECASE)


def is_from_the_sdk(error: BaseException) -> bool:
    """Whether an exception is a failure of the SDK, of its transport or of the service, and not one of ours."""
    return isinstance(error, SDK_ERRORS) or (type(error) is Exception and str(error) in _BARE_TEXTS)


def is_connection_lost(error: BaseException) -> bool:
    """Whether a request broke off with the sandbox's fate unknown, so that asking for its health is worth it."""
    return isinstance(error, TRANSPORT_ERRORS) or type(error) is Exception


def is_gone(error: BaseException) -> bool:
    """Whether the SDK's exception says that the sandbox is not there (any more)."""
    if isinstance(error, e2b.SandboxNotFoundException | e2b.SandboxNotRunningException):
        return True
    if isinstance(error, e2b.SandboxUnreachableException):
        return False
    # /execute makes plain timeouts of the gateway's 502 and of a sandbox that went away in the middle.
    text = str(error)
    return isinstance(error, e2b.TimeoutException) and (
        SANDBOX_NOT_FOUND_MESSAGE in text or any(said in text for said in _KILLED_TEXTS)
    )


def gone(sandbox_id: str, end_at: datetime | None, doing: str) -> SandboxLost:
    """The error for a sandbox that is not there any more: expired when its known end has passed."""
    if end_at is not None and end_at <= datetime.now(UTC):
        return SandboxExpired(
            f"Sandbox {sandbox_id} reached the end of its lifetime ({end_at:%H:%M:%S} UTC) while {doing}. "
            "TimeoutPolicy(lifetime=...) makes it longer.",
            sandbox_id=sandbox_id,
            end_at=end_at,
        )
    return SandboxNotFound(
        f"Sandbox {sandbox_id} is gone: it was not found while {doing}. It was killed, paused, or its host ended it.",
        sandbox_id=sandbox_id,
    )


def translated(
    error: BaseException, *, doing: str, sandbox_id: str | None = None, end_at: datetime | None = None
) -> SandboxkitError:
    """The error of ours for a failed SDK call; raise it `from` the original. `doing` completes "while ..."."""
    where = f"sandbox {sandbox_id}, {doing}" if sandbox_id else doing
    if sandbox_id is not None and is_gone(error):
        return gone(sandbox_id, end_at, doing)
    if isinstance(error, e2b.AuthenticationException):
        return AuthenticationFailed(
            f"The service refused the API key ({where}): {error}", sandbox_id=sandbox_id, status=401
        )
    if isinstance(error, e2b.RateLimitException):
        return RateLimited(
            f"The service's rate or concurrency limit was reached ({where}): {error} A smaller "
            "max_live stays below it.",
            sandbox_id=sandbox_id,
            status=429,
        )
    if isinstance(error, ServiceBusyException):
        return ProviderUnavailable(f"The service is busy ({where}): {error}", sandbox_id=sandbox_id, status=503)
    if isinstance(error, json.JSONDecodeError):
        return ProviderError(
            f"What answered is no E2B service: its answer is not JSON ({where}). Check the endpoint's URL.",
            sandbox_id=sandbox_id,
            status=None,
        )
    if isinstance(error, e2b.TimeoutException) or is_connection_lost(error):
        return ProviderUnavailable(_unreachable(error, where), sandbox_id=sandbox_id, status=None)
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and status >= 500:
        return ProviderUnavailable(f"The service cannot serve ({where}): {error}", sandbox_id=sandbox_id, status=status)
    return ProviderError(f"The service answered with an error ({where}): {error}", sandbox_id=sandbox_id, status=status)


def _unreachable(error: BaseException, where: str) -> str:
    text = str(error) or type(error).__name__
    if SANDBOX_PORT_NOT_OPEN_MESSAGE in text:
        return f"The sandbox runs, but the service that was asked for does not answer in it ({where})."
    return f"The service could not be reached, or dropped the connection ({where}): {text}"


def create_error(error: BaseException, *, template: str) -> SandboxkitError:
    """The error of ours for a failed create, which also has the template and the options to tell about."""
    text = _plain(error)
    found = _ERROR_CODE.search(str(error))
    code = found[1] if found else ""
    status = getattr(error, "status_code", None)
    if code == "template_not_built":
        return TemplateNotBuilt(text, template=template)
    if code == "template_not_found" or (status == 404 and not code):
        return TemplateNotFound(f"The service knows no template {template!r}: {text}", template=template, known=())
    if code == "unsupported_option":
        option = re.search(r"'?([A-Za-z_]+)'? is not supported", text)
        return UnsupportedOption(text, option=option[1] if option else "create")
    if status == 413:
        return ConfigurationError(
            f"The service refused to create a sandbox of {template!r}: {text} `envs` and `metadata` are too large "
            "together; write what is large into a file of the sandbox."
        )
    if status == 400:
        return ConfigurationError(f"The service refused to create a sandbox of {template!r}: {text}")
    return translated(error, doing=f"creating a sandbox of {template!r}")


def is_about_the_language(error: BaseException) -> bool:
    """Whether the interpreter refused code because of the language that it is in."""
    return isinstance(error, e2b.SandboxException) and _LANGUAGE.search(str(error)) is not None


def unsupported_language(error: BaseException, language: str, *, sandbox_id: str) -> UnsupportedOption:
    """The error of ours for such a refusal."""
    found = re.search(r'"message":\s*"([^"]*)"', str(error))
    said = found[1] if found else _plain(error)
    return UnsupportedOption(
        f"language={language!r} is not supported by the sandbox's interpreter: {said}",
        option="language",
        sandbox_id=sandbox_id,
    )


def files_error(
    error: BaseException, path: str, *, sandbox_id: str, end_at: datetime | None, doing: str
) -> SandboxkitError:
    """The error of ours for a failed file operation."""
    text = str(error).lower()
    if is_gone(error):
        return SandboxNotFound(
            f"Sandbox {sandbox_id} is gone: it was not found while {doing}.", sandbox_id=sandbox_id, path=path
        )
    if isinstance(error, e2b.NotEnoughSpaceException) or "no space left" in text or "disk quota exceeded" in text:
        return NoSpace(f"No space is left for {path}.", sandbox_id=sandbox_id, path=path)
    if isinstance(error, e2b.SandboxException):
        if "not a directory" in text:
            return NotADirectory(f"{path}: not a directory on the way.", sandbox_id=sandbox_id, path=path)
        if "is a directory" in text:
            return IsADirectory(f"{path} is a directory.", sandbox_id=sandbox_id, path=path)
        if "permission denied" in text or "read-only file system" in text:
            return AccessDenied(f"The sandbox's user may not touch {path}.", sandbox_id=sandbox_id, path=path)
    if isinstance(error, e2b.NotFoundException):
        return NotFound(f"{path} was not found.", sandbox_id=sandbox_id, path=path)
    return translated(error, doing=doing, sandbox_id=sandbox_id, end_at=end_at)


def may_be_of_the_wrong_kind(error: BaseException) -> bool:
    """Whether a failed file operation may have met a directory, or a special file, and the entry is worth a look."""
    return type(error) in (e2b.InvalidArgumentException, e2b.SandboxException) or isinstance(
        error, e2b.NotFoundException
    )


def _plain(error: BaseException) -> str:
    """The service's sentence, without the status that the SDK put before it and the code after it."""
    return _ERROR_CODE.sub("", re.sub(r"^\d{3}: ", "", str(error))).strip()
