"""What a dead engine leaves on the host, and its removal.

An engine that was killed leaves little: its processes die with it, its mounts with its namespace. A state directory
and empty cgroups remain. A state directory belongs to a live engine as long as somebody holds its lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path

from sandboxkit.local._env_file import remove_noted
from sandboxkit.local._trees import remove_tree
from sandboxkit.local.isolation.limits import _cgroup1, _cgroup2

LOCK = "lock"
KEPT = "kept-"
"""How the directories beside those of the engines begin that outlive them; the uid follows whose they are."""


def reap_stale(state_root: str | os.PathLike[str]) -> list[str]:
    """Remove what dead engines left in `state_root`; returns their directories' names. Live ones are untouched, and
    so is what is no engine's."""
    reaped: list[str] = []
    try:
        names = sorted(os.listdir(state_root))
    except FileNotFoundError:
        return reaped
    for name in names:
        if name.startswith(KEPT):
            continue  # what outlives engines lies there, and is no engine's
        state = Path(state_root, name)
        try:
            lock = os.open(state / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            # No engine's; or one was killed between the making of its directory and that of its lock.
            with contextlib.suppress(OSError):
                state.rmdir()
            continue
        except OSError:
            continue  # another user's
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            clean_engine(state)
            reaped.append(name)
        finally:
            os.close(lock)
    return reaped


def clean_engine(state: Path) -> None:
    """Remove one engine's cgroups, env-file and state directory. What has gone already is passed over."""
    remove_noted(state)
    _cgroup1.remove_parents(group_name(state))
    _cgroup2.remove_parent(group_name(state))
    # The lock last: a directory without one is nobody's, should we be killed in between.
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(state)):
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            elif entry.name != LOCK:
                os.unlink(entry.path)
    remove_tree(state)


def group_name(state: Path) -> str:
    """What an engine's cgroups are named after: its state directory, told from those of the same name elsewhere."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(state))).hexdigest()[:8]
    return f"{state.name}-{digest}"
