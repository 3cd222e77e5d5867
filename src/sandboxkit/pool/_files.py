"""A session's files: SafeFS over its sandbox, with what is refused told to the pool's listeners."""

from __future__ import annotations

from sandboxkit._confine import shown
from sandboxkit.errors import SafeFSError
from sandboxkit.pool._lease import Lease, LeasedSandbox
from sandboxkit.safefs import AsyncSafeFS


def files_of(lease: Lease, sandbox: LeasedSandbox) -> AsyncSafeFS:
    """The files beneath the home directory, at the highest level."""

    def tell_refused(error: SafeFSError) -> None:
        facts = {"level": files.level, "root_adversary": files.root_adversary}
        lease.core.tell("path.refused", path=shown(error.path), code=error.code, **facts)

    files = AsyncSafeFS(sandbox, on_refused=tell_refused)
    return files
