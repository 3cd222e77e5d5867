"""How envd reads a path: which absolute path inside the sandbox is meant; pure.

    ""            the sandbox's working directory
    /x            as it is, not cleaned: `..` and links are the kernel's business
    ~  ~/x  ~\\x   beneath the user's home
    ~bob          refused
    x  ../x       joined to the user's home and cleaned

There is no confinement here, as there is none in envd: what a path may reach is decided by the sandbox's isolation,
and by SafeFS on the client's side.
"""

from __future__ import annotations

import posixpath


class BadPath(ValueError):
    """The text names no path. The message is envd's."""


def resolve(path: str, *, home: str, workdir: str, user: str) -> str:
    """The absolute path that a client means by `path`. Raises BadPath."""
    if "\0" in path:
        raise BadPath("path contains a NUL byte")
    path = path or workdir
    if path.startswith("~"):
        if len(path) > 1 and path[1] not in "/\\":
            raise BadPath(f"failed to expand path '{path}' for user '{user}': cannot expand user-specific home dir")
        return _join(home, path[1:])
    if path.startswith("/"):
        return path
    return _join(home, path)


def _join(home: str, rest: str) -> str:
    # normpath keeps exactly two leading slashes, which POSIX allows to mean something else; on Linux it does not.
    return "/" + posixpath.normpath(f"{home}/{rest}").lstrip("/")
