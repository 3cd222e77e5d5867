"""The guard of SafeFS: which path is sent, what is refused, and what a caller is told of a failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeAlias

from sandboxkit._confine import confine, require_plain_names, shown
from sandboxkit._types import FileInfo
from sandboxkit.errors import (
    AccessDenied,
    Changed,
    EnforcementUnavailable,
    InvalidPath,
    IsADirectory,
    LinkEscape,
    NoSpace,
    NotADirectory,
    NotFound,
    PathError,
    PathEscape,
    SafeFSError,
    SpecialFile,
    TooLarge,
)
from sandboxkit.provider._base import ProviderSandbox
from sandboxkit.safefs._levels import LevelFiles

AnyPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SAYS: dict[type[SafeFSError], str] = {
    NotFound: "No such file or directory",
    IsADirectory: "A directory, where a file is needed",
    NotADirectory: "Not a directory, where one is needed",
    SpecialFile: "Not a regular file or a directory",
    NoSpace: "No space or no inode is left",
    TooLarge: "Larger than max_bytes, or more entries than fit into an answer",
    LinkEscape: "A link or a mount leads out of the root there, or is refused",
    Changed: "The tree changed meanwhile, try again",
    AccessDenied: "The sandbox's user may not do that",
    InvalidPath: "Not a path here",
}
_AUDITED = (PathError, LinkEscape, SpecialFile, EnforcementUnavailable)
"""Refusals that a listener is told of, besides those of the path's text."""


class Guard:
    """What every operation of SafeFS goes through."""

    def __init__(
        self,
        files: LevelFiles,
        sandbox_id: str,
        root: str,
        *,
        strict_names: bool,
        on_refused: Callable[[SafeFSError], object] | None,
    ) -> None:
        self._files = files
        self._sandbox_id = sandbox_id
        self._root = root
        self._strict_names = strict_names
        self._on_refused = on_refused

    def _confined(self, path: AnyPath) -> str:
        """The path to send, or a refusal that listeners are told of."""
        try:
            confined = confine(path, self._root)
            if self._strict_names:
                require_plain_names(confined, path)
        except PathError as error:
            self._refuse(error)
        takes_any = self._files.takes_any_name
        if not takes_any and not confined.isascii() and any("\udc80" <= char <= "\udcff" for char in confined):
            # The service's messages are UTF-8, so no request can name it.
            self._refuse(InvalidPath(f"The name {shown(path)} is not UTF-8, which the file API needs.", path=path))
        return confined

    def _file(self, path: AnyPath) -> str:
        """The confined path of a file; the root is none."""
        confined = self._confined(path)
        if confined == self._root:
            raise IsADirectory(f"{shown(path)} is the root, a directory.", sandbox_id=self._sandbox_id, path=path)
        return confined

    def _entry(self, path: AnyPath) -> str:
        """The confined path of an entry that may go; the root's own entry lies outside of the root."""
        confined = self._confined(path)
        if confined == self._root:
            self._refuse(PathEscape(f"{shown(path)} is the root, which cannot be removed or renamed.", path=path))
        return confined

    def _refuse(self, error: SafeFSError) -> NoReturn:
        error.sandbox_id = self._sandbox_id
        if self._on_refused is not None:
            self._on_refused(error)
        raise error

    @contextmanager
    def _telling(self, path: AnyPath) -> Iterator[None]:
        """Say the caller's path, in ASCII, instead of what the service said: its text may be the sandbox's own."""
        try:
            yield
        except EnforcementUnavailable as error:
            error.path = path
            self._refuse(error)
        except SafeFSError as error:
            says = _SAYS.get(type(error)) or getattr(error, "reason", "The file operation failed")
            ours = type(error)(
                f"{says}: {shown(path)} in sandbox {self._sandbox_id}.", sandbox_id=self._sandbox_id, path=path
            )
            if self._on_refused is not None and isinstance(ours, _AUDITED):
                self._on_refused(ours)
            raise ours from error


def taken_up(sandbox: object) -> ProviderSandbox:
    """The sandbox as the provider's contract wants it."""
    if isinstance(sandbox, ProviderSandbox):
        return sandbox
    from sandboxkit.provider import _e2b  # late: it imports the SDK, which only its own objects need

    return _e2b.taken_up(sandbox)


def believed(entry: FileInfo, directory: str) -> FileInfo:
    """Return an entry of a listing if it can lie where it says; a sandbox may answer anything."""
    try:
        path = confine(entry.path, directory)
    except PathError:
        path = directory
    if path == directory or path != entry.path or path.rpartition("/")[2] != entry.name:
        raise SafeFSError(
            f"The sandbox listed {shown(entry.path)}, which cannot lie in {shown(directory)}.", path=directory
        )
    return entry
