"""Every exception of the SDK and its transports becomes one of ours."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import e2b
import httpx
import pyqwest
import pytest
from e2b.exceptions import ServiceBusyException, format_sandbox_unavailable_exception
from e2b_code_interpreter.exceptions import format_sandbox_killed_error

from sandboxkit import errors
from sandboxkit.provider import _errors

PAST = datetime.now(UTC) - timedelta(seconds=1)
FUTURE = datetime.now(UTC) + timedelta(hours=1)
GONE = format_sandbox_unavailable_exception("The sandbox was not found")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (e2b.AuthenticationException("401: no"), errors.AuthenticationFailed),
        (e2b.RateLimitException("429: slow"), errors.RateLimited),
        (ServiceBusyException("503: busy"), errors.ProviderUnavailable),
        (e2b.SandboxException("502: bad gateway", status_code=502), errors.ProviderUnavailable),
        (e2b.SandboxException("500: oops", status_code=500), errors.ProviderUnavailable),
        (e2b.SandboxException("403: no", status_code=403), errors.ProviderError),
        (e2b.SandboxException("409: conflict", status_code=409), errors.ProviderError),
        (e2b.InvalidArgumentException("no"), errors.ProviderError),
        (e2b.TimeoutException("Request timed out"), errors.ProviderUnavailable),
        (format_sandbox_unavailable_exception("port is not open"), errors.ProviderUnavailable),
        (format_sandbox_unavailable_exception("connection reset"), errors.ProviderUnavailable),
        (httpx.ConnectError("refused"), errors.ProviderUnavailable),
        (httpx.ReadTimeout("slow"), errors.ProviderUnavailable),
        (httpx.RemoteProtocolError("dropped"), errors.ProviderUnavailable),
        (pyqwest.ReadError("dropped"), errors.ProviderUnavailable),
        (ConnectionRefusedError(111, "refused"), errors.ProviderUnavailable),
        (json.JSONDecodeError("no", "<html>", 0), errors.ProviderError),
        (Exception("Command ended without an end event"), errors.ProviderUnavailable),
        (GONE, errors.SandboxNotFound),
        (e2b.SandboxNotFoundException("Sandbox x not found"), errors.SandboxNotFound),
        (format_sandbox_killed_error(), errors.SandboxNotFound),
        (e2b.TimeoutException('{"message":"The sandbox was not found","code":502}: likely'), errors.SandboxNotFound),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_table(theirs: Exception, ours: type[errors.SandboxkitError]) -> None:
    """Each of theirs is exactly one of ours, with the sandbox's id and what was being done."""
    assert _errors.is_from_the_sdk(theirs)
    made = _errors.translated(theirs, doing="running code", sandbox_id="abc", end_at=FUTURE)
    assert type(made) is ours
    assert made.sandbox_id == "abc"
    assert "running code" in str(made)


def test_gone_after_its_end_is_expired() -> None:
    """A sandbox that is gone once its known end has passed has expired; before, it was not found."""
    assert type(_errors.translated(GONE, doing="x", sandbox_id="a", end_at=PAST)) is errors.SandboxExpired
    assert type(_errors.translated(GONE, doing="x", sandbox_id="a", end_at=FUTURE)) is errors.SandboxNotFound
    assert type(_errors.translated(GONE, doing="x", sandbox_id="a", end_at=None)) is errors.SandboxNotFound


@pytest.mark.parametrize(
    ("message", "status", "ours"),
    [
        ("404: template 'x' not found", 404, errors.TemplateNotFound),
        ("404: No template x [template_not_found]", 404, errors.TemplateNotFound),
        ("400: Build it with `y` [template_not_built]", 400, errors.TemplateNotBuilt),
        ("400: iam is not supported by the local engine: no [unsupported_option]", 400, errors.UnsupportedOption),
        ("400: metadata: texts are needed", 400, errors.ConfigurationError),
        ("403: no access", 403, errors.ProviderError),
        ("500: oops", 500, errors.ProviderUnavailable),
    ],
)
def test_creating(message: str, status: int, ours: type[errors.SandboxkitError]) -> None:
    """A refused create tells what of the request was wrong, without the code that the engine ends its message with."""
    made = _errors.create_error(e2b.SandboxException(message, status_code=status), template="x")
    assert type(made) is ours
    if isinstance(made, errors.UnsupportedOption):
        assert made.option == "iam"
    if isinstance(made, errors.TemplateNotBuilt):
        assert str(made) == "Build it with `y`"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (e2b.FileNotFoundException("no such file"), errors.NotFound),
        (e2b.InvalidArgumentException("path is not a directory: /a"), errors.NotADirectory),
        (e2b.InvalidArgumentException("path '/a' is a directory"), errors.IsADirectory),
        (e2b.NotEnoughSpaceException("full"), errors.NoSpace),
        (e2b.SandboxException("mkdir: no space left on device"), errors.NoSpace),
        (e2b.SandboxException("403: error opening file: Permission denied: /a"), errors.AccessDenied),
        (e2b.SandboxException("Code.PERMISSION_DENIED: Read-only file system: /a"), errors.AccessDenied),
        (GONE, errors.SandboxNotFound),
        (e2b.AuthenticationException("no"), errors.AuthenticationFailed),
        (httpx.ReadError("dropped"), errors.ProviderUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
def test_files(theirs: Exception, ours: type[errors.SandboxkitError]) -> None:
    """File errors are those of SafeFS, with the path; a vanished sandbox is SandboxNotFound however it vanished."""
    made = _errors.files_error(theirs, "/a", sandbox_id="abc", end_at=PAST, doing="reading /a")
    assert type(made) is ours
    if isinstance(made, errors.SafeFSError):
        assert made.path == "/a"  # type: ignore[attr-defined]


def test_other_exceptions_are_nobodys() -> None:
    """A mistake in a callback or in our own code is not taken for the SDK's."""
    for mistake in (ValueError("x"), KeyError("x"), RuntimeError("x"), Exception("another"), AssertionError()):
        assert not _errors.is_from_the_sdk(mistake)
