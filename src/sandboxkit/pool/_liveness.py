"""Names this process so that another on the same host can see whether it still runs.

Only Linux tells when a process began, without which a process id says nothing. Elsewhere nobody is known to be dead,
and only their age tells orphans.
"""

from __future__ import annotations

import hashlib
import os
import platform
import weakref
from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Protocol


class HasSandboxes(Protocol):
    """A pool, as far as others need to know it."""

    def sandbox_ids(self) -> Set[str]:
        """The sandboxes that it has, or is about to take up. May be asked from any thread."""
        ...


open_pools: weakref.WeakValueDictionary[str, HasSandboxes] = weakref.WeakValueDictionary()
"""The pools of this process that are open, by id."""


def held_here(*, but: HasSandboxes | None = None) -> set[str]:
    """The sandboxes of all of them, attached ones among them, without those of `but`."""
    pools = [ref() for ref in open_pools.valuerefs()]
    return {sandbox_id for pool in pools if pool not in (None, but) for sandbox_id in pool.sandbox_ids()}


def this_process() -> str:
    """The name of this process: host, process id, start."""
    return f"{_host()}:{os.getpid()}:{_started(os.getpid()) or '-'}"


def is_dead(process: str, pool_id: str) -> bool:
    """Whether the process of that name is known to have ended, or to have lost that pool of its own."""
    host, _, rest = process.partition(":")
    number, _, started = rest.partition(":")
    if host != _host() or not number.isdecimal() or started == "-":
        return False
    if process == this_process():
        return pool_id not in open_pools
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it runs, and belongs to somebody else
    return _started(int(number)) not in (None, started)  # None: hidden from us, so nothing is known


def _host() -> str:
    """A name for this boot of this machine, or container, that tells nobody its name."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _started(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return stat.rpartition(b")")[2].split()[19].decode()
