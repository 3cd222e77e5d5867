"""Let an unprivileged uid reach some directories below closed ones, such as /root, and nothing else there.

Called by root in a mount namespace of its own. Over each ancestor that others may not search goes an empty tmpfs; in
it the way to the needed directories is built again, and they are bound at the paths that they have always had. What
else the closed ancestor holds is then hidden from the engine too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from sandboxkit.errors import IsolationUnavailable
from sandboxkit.local.isolation.host import _kernel

MAX_LINKS = 40


def expose(paths: Iterable[str], uid: int) -> None:
    """Make every existing path of `paths` reachable for `uid`. Relative and missing ones are passed over.

    Raises:
        IsolationUnavailable: a path that is itself closed to others.
    """
    directories: set[str] = set()
    links: dict[str, str] = {}
    for path in paths:
        if os.path.isabs(path) and os.path.exists(path):
            real, crossed = trace(path)
            directories.add(real)
            links |= crossed
    # Before anything is covered: the cover of a needed directory would hide what is wrong with it.
    for path in sorted(directories):
        info = os.stat(path)
        wanted = 0o005 if stat.S_ISDIR(info.st_mode) else 0o004
        if info.st_uid != uid and info.st_mode & wanted != wanted:
            raise IsolationUnavailable(
                f"{path} is closed to other users (mode {stat.S_IMODE(info.st_mode):04o}), and the engine that root "
                f"starts runs as uid {uid}. Run `chmod -R o+rX {path}`, or install it elsewhere."
            )
    for path in sorted(directories):
        while (closed := _closed_ancestor(path, uid)) is not None:
            _open_up(closed, directories, links)
    for link in sorted(links):
        while (closed := _closed_ancestor(link, uid)) is not None:
            _open_up(closed, directories, links)


def trace(path: str) -> tuple[str, dict[str, str]]:
    """Resolve a path, and tell the links crossed on the way: their own resolved places, and their texts."""
    links: dict[str, str] = {}
    rest = [part for part in path.split("/") if part][::-1]
    at = "/"
    while rest:
        part = rest.pop()
        if part == ".":
            continue
        if part == "..":
            at = os.path.dirname(at)
            continue
        here = os.path.join(at, part)
        if os.path.islink(here):
            text = os.readlink(here)
            links[here] = text
            if len(links) > MAX_LINKS:
                raise OSError(f"too many links on the way to {path}")
            if text.startswith("/"):
                at = "/"
            rest += [piece for piece in text.split("/") if piece][::-1]
        else:
            at = here
    return at, links


def _closed_ancestor(path: str, uid: int) -> str | None:
    """The uppermost proper ancestor that `uid` cannot search."""
    at = "/"
    for part in path.strip("/").split("/"):
        info = os.stat(at)
        open_to_uid = info.st_mode & 0o001 or (info.st_uid == uid and info.st_mode & 0o100)
        if not open_to_uid:
            return at
        at = os.path.join(at, part)
    return None


def _open_up(closed: str, directories: set[str], links: dict[str, str]) -> None:
    """Cover one closed directory, and build the way to what is needed below it again."""
    below = [path for path in sorted(directories) if path.startswith(closed + "/")]
    outer = [path for path in below if not any(path.startswith(other + "/") for other in below)]
    # Opened before the cover goes on; a bind mount takes them by descriptor.
    handles = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in outer}
    try:
        _kernel.mount("tmpfs", closed, "tmpfs", _kernel.MS_NOSUID | _kernel.MS_NODEV, "size=1m,mode=755")
        for path, handle in handles.items():
            is_directory = stat.S_ISDIR(os.fstat(handle).st_mode)
            os.makedirs(path if is_directory else os.path.dirname(path), mode=0o755, exist_ok=True)
            if not is_directory:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            _kernel.mount(f"/proc/self/fd/{handle}", path, None, _kernel.MS_BIND | _kernel.MS_REC)
        for link, text in links.items():
            if link.startswith(closed + "/") and not os.path.lexists(link):
                os.makedirs(os.path.dirname(link), mode=0o755, exist_ok=True)
                os.symlink(text, link)
    finally:
        for handle in handles.values():
            os.close(handle)
