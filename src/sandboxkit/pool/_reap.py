"""Finds the sandboxes that processes left when they died, and kills them.

Whose they are is told by their metadata: the pool's name, the process that made them, the pool in it. On the same host
a process that has ended is known to have ended; of all others, only age says that nobody needs them any more, and how
much that is, only who asks knows.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from sandboxkit._types import SandboxInfo
from sandboxkit.pool._options import PoolOptions
from sandboxkit.pool._tags import OWNER, POOL, POOL_ID, PROCESS
from sandboxkit.provider._base import Provider


def is_orphan(
    info: SandboxInfo,
    *,
    pool_id: str,
    now: datetime,
    older_than: float | None,
    is_dead: Callable[[str, str], bool],
) -> bool:
    """Whether a sandbox with the pool's name is nobody's: never one of this very pool."""
    made_by = info.metadata.get(POOL_ID, "")
    if not made_by or made_by == pool_id:
        return False
    if older_than is not None and now - info.started_at >= timedelta(seconds=older_than):
        return True
    return is_dead(info.metadata.get(PROCESS, ""), made_by)


async def orphans(
    provider: Provider,
    options: PoolOptions,
    *,
    now: datetime,
    older_than: float | None,
    is_dead: Callable[[str, str], bool],
) -> list[SandboxInfo]:
    """The sandboxes with this pool's name, and its owner where it has one, that nobody looks after.

    Raises:
        ProviderError: the service did not answer.
    """
    tags = {POOL: options.name}
    if options.owner != options.id.hex:
        tags[OWNER] = options.owner
    return [
        info
        async for info in provider.list(metadata=tags)
        if is_orphan(info, pool_id=options.id.hex, now=now, older_than=older_than, is_dead=is_dead)
    ]
