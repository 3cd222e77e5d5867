"""Enter the engine's own namespaces: an unprivileged process that may mount, in a mount table that only it sees.

The order of steps
------------------
As an ordinary user:
    1. the state directory: made, its lock held (what dead engines left beside it is reaped first)
    2. a user and a mount namespace, our uid mapped to itself
    3. a tmpfs over a directory that the engine does not need (/mnt), seen by it alone, filled by `_runtime`

As root (bubblewrap is never run as real uid 0: host sysctls would stay writable from inside):
    1. as above, and: cgroups that only root can make, given to the engine's uid
    2. fork; the parent stays behind as the supervisor
    3. a mount namespace, in which `_expose` lets the engine's uid reach this Python, its packages, the cache and the
       state directory even below closed directories such as /root
    4. no groups, one reserved uid; dumpable again, or the uid map could not be written; the kernel is told to kill us
       when the supervisor dies
    5. then as above from 2.

The uid is 90217: above Debian's and systemd's static and dynamic ranges (to 65535), below shadow's first subordinate
uid (100000). SANDBOXKIT_UID overrides it, for hosts whose own user namespace maps fewer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandboxkit.errors import ConfigurationError, IsolationUnavailable
from sandboxkit.local._config import engine_uid
from sandboxkit.local.isolation.host import _kernel, _runtime
from sandboxkit.local.isolation.host._expose import expose
from sandboxkit.local.isolation.host._remedies import host_facts, remedy
from sandboxkit.local.isolation.host._stale import KEPT, LOCK, clean_engine, group_name, reap_stale
from sandboxkit.local.isolation.host._supervisor import die_with, fork_under_supervision
from sandboxkit.local.isolation.limits import _cgroup1, _cgroup2


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineNamespace:
    """Where this engine lives. Made by `enter`, once per process."""

    state_dir: Path
    runtime: Path
    """The engine's tmpfs; see `_runtime`."""
    uid: int
    started_as_root: bool
    cgroups: tuple[_cgroup1.Parent, ...]
    """cgroup v1 directories that root has given to this engine; empty for an ordinary user."""
    cgroup2: Path | None
    """The cgroup v2 directory that boxes are made in, where there is one; it goes before version 1."""
    kept: Path
    """A directory of the engine's uid alone: beside `state_dir` where what is kept is to outlive the engine, else in
    it."""


def enter(state_dir: str | os.PathLike[str], *, readable: Sequence[str] = (), keeps: bool = False) -> EngineNamespace:
    """Move this process into namespaces of its own. Call it before any thread and before any event loop.

    As root it forks: the caller goes on in the child, unprivileged, and the parent exits with the child's code.
    Afterwards the working directory is the engine's tmpfs, and root's engine can reach nothing below closed
    directories but this Python, `sys.path`, `state_dir` and `readable`.

    Args:
        state_dir: this engine's own directory, made if missing; its parent holds those of other engines only, and
            what dead ones left there is removed.
        readable: further directories that the engine must reach, such as the cache of templates.
        keeps: what is kept outlives this engine; engines of the same uid share the directory.

    Raises:
        IsolationUnavailable: the machine forbids what is needed; `remedy` says what to change.
        ConfigurationError: SANDBOXKIT_UID is not a uid, or another engine has this state directory.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("enter() must be called before any thread is started")
    uid = engine_uid()
    started_as_root = os.geteuid() == 0
    state = Path(os.path.abspath(state_dir))
    state.parent.mkdir(parents=True, exist_ok=True)
    reap_stale(state.parent)
    if keeps:
        _make_kept(state.parent / f"{KEPT}{uid}", uid)
    lock = _take(state, uid)
    kept = state.parent / f"{KEPT}{uid}" if keeps else _make_kept(state / "kept", uid)
    readable = [*readable, str(kept)]
    parents: tuple[_cgroup1.Parent, ...] = ()
    if started_as_root:
        parents = _cgroup1.make_parents(group_name(state), uid)
        cgroup2 = _become_unprivileged(state, uid, readable)
    else:
        cgroup2 = _cgroup2.take_delegated(_cgroup2.own_group())
    try:
        _unshare(uid)
        runtime = _neutral_place([sys.prefix, sys.base_prefix, *sys.path, str(state), *readable])
        flags = _kernel.MS_NOSUID | _kernel.MS_NODEV
        _kernel.mount("tmpfs", str(runtime), "tmpfs", flags, "size=256m,nr_inodes=100000,mode=700")
        # What is mounted in it later is seen by the wardens, too: their mount tables are copies of ours.
        _kernel.mount(None, str(runtime), None, _kernel.MS_SHARED)
        _runtime.build(runtime)
    except OSError as error:
        raise IsolationUnavailable(
            f"The engine could not make namespaces of its own: {error}. {remedy(host_facts())}",
            remedy=remedy(host_facts()),
        ) from error
    # Boxes whose bubblewrap died are then our children, and can be waited for exactly.
    _kernel.prctl(_kernel.PR_SET_CHILD_SUBREAPER, 1)
    _held.append(lock)
    return EngineNamespace(
        state_dir=state,
        runtime=runtime,
        uid=uid,
        started_as_root=started_as_root,
        cgroups=parents,
        cgroup2=cgroup2,
        kept=kept,
    )


def _neutral_place(needed: Sequence[str]) -> Path:
    """A directory that every Linux has and this engine does not need, to be covered by its tmpfs. Not one of our own:
    a box's /proc/1/exe and /proc/1/maps show where in the engine's mount table bubblewrap was started from."""
    for place in ("/mnt", "/srv", "/media", "/boot", "/opt"):
        below = any(f"{os.path.realpath(path)}/".startswith(f"{place}/") for path in needed if os.path.isabs(path))
        if os.path.isdir(place) and not os.path.islink(place) and not below:
            return Path(place)
    raise IsolationUnavailable(
        "The engine finds no directory to mount its own files at.", remedy="Make an empty directory /mnt."
    )


_held: list[int] = []
"""The lock's descriptor, open for as long as the process lives."""


def _take(state: Path, uid: int) -> int:
    """Make the state directory and hold its lock: the sign that its engine lives.

    Another engine that starts at the same moment may take a directory whose lock is not held yet for a dead one's, and
    remove it under our hands: so we look whether what we hold is still what lies there, and make it again if not.
    """
    for _attempt in range(50):
        try:
            state.mkdir(mode=0o700, exist_ok=True)
            lock = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(state / LOCK).st_ino == os.fstat(lock).st_ino:
                break
        except BlockingIOError:
            time.sleep(0.02)
        except FileNotFoundError:
            pass
        os.close(lock)
    else:
        raise ConfigurationError(f"{state} belongs to another running engine; give this one its own.")
    if os.geteuid() == 0:
        try:
            os.chown(state, uid, uid)
        except OSError as error:
            os.close(lock)
            shutil.rmtree(state, ignore_errors=True)
            raise IsolationUnavailable(
                f"The engine was started by root, and there is no uid {uid} to give it: {error.strerror}.",
                remedy="This root is one of a user namespace that maps few uids (unshare -r, some containers): start "
                "the engine as an ordinary user, or set SANDBOXKIT_UID to an unused uid that is mapped.",
            ) from error
    return lock


def _make_kept(path: Path, uid: int) -> Path:
    """Make the directory of what is kept, for one uid alone. ConfigurationError where something else lies there."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigurationError(f"{path} is not the engine's directory: {error.strerror}.") from error
    try:
        owner = os.fstat(handle).st_uid
        if owner != uid and owner == os.geteuid() == 0 and not os.listdir(handle):
            os.fchown(handle, uid, uid)
        elif owner != uid:
            raise ConfigurationError(f"{path} belongs to uid {owner}, and the engine runs as uid {uid}.")
        os.fchmod(handle, 0o700)
    finally:
        os.close(handle)
    return path


def _become_unprivileged(state: Path, uid: int, readable: Sequence[str]) -> Path | None:
    """Fork under supervision; in the child, make the way free for `uid` and become it. Returns the cgroup v2
    directory for boxes, which only root can make and only the child may be moved into."""
    sys.stdout.flush()
    sys.stderr.flush()
    supervisor = fork_under_supervision(lambda: clean_engine(state))
    cgroup2 = _cgroup2.make_parent(group_name(state), uid, _cgroup2.own_group())
    try:
        _kernel.unshare(_kernel.CLONE_NEWNS)
        _kernel.mount(None, "/", None, _kernel.MS_REC | _kernel.MS_PRIVATE)
        needed = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.executable, *sys.path, str(state), *readable]
        os.chdir("/")
        expose(needed, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _kernel.prctl(_kernel.PR_SET_DUMPABLE, 1)
        die_with(supervisor)
    except OSError as error:
        raise IsolationUnavailable(
            f"The engine could not become uid {uid}: {error}.",
            remedy="Where this host maps fewer uids, set SANDBOXKIT_UID to an unused one that it has.",
        ) from error
    return cgroup2


def _unshare(uid: int) -> None:
    gid = os.getegid()
    _kernel.unshare(_kernel.CLONE_NEWUSER | _kernel.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _kernel.mount(None, "/", None, _kernel.MS_REC | _kernel.MS_SLAVE)
