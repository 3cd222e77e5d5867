"""Finds out whose a sandbox is before it is taken up: nothing is connected to, woken or prolonged for the question."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from sandboxkit._types import SandboxInfo, SessionRef
from sandboxkit.errors import ConfigurationError, PoolTimeout, SandboxNotFound, SessionBusy, SessionConflict
from sandboxkit.pool._liveness import held_here
from sandboxkit.pool._moves import Pairs, Spec
from sandboxkit.pool._options import PoolOptions, session_key, text
from sandboxkit.pool._shell import Request, Shell
from sandboxkit.pool._tags import OWNER, SESSION, TEMPLATE, own_pairs


def adoption(
    info: SandboxInfo,
    ref: SessionRef | None,
    options: PoolOptions,
    *,
    envs: Pairs | None,
    secrets: Mapping[str, str],
    timeout: float,
) -> Request:
    """What to ask of the pool for a sandbox that the service has described.

    Raises:
        SandboxNotFound: it is not this owner's; said as if there were none.
        SessionConflict: the reference names another session than the sandbox's tags.
    """
    if info.metadata.get(OWNER) != options.owner:
        raise not_found(info.sandbox_id)
    tagged = info.metadata.get(SESSION) or None
    named = None if ref is None else session_key(ref.key)
    if tagged is not None and named is not None and tagged != named:
        raise SessionConflict(
            f"Sandbox {info.sandbox_id} is session {tagged!r}'s, and the reference says {named!r}.",
            sandbox_id=info.sandbox_id,
        )
    return Request(
        key=tagged or named,
        spec=Spec(info.metadata.get(TEMPLATE) or info.template, envs or (), own_pairs(info.metadata)),
        timeout=timeout,
        adopt=info.sandbox_id,
        secrets=secrets,
    )


def not_found(sandbox_id: str) -> SandboxNotFound:
    return SandboxNotFound(
        f"Sandbox {sandbox_id} was not found among those of this pool's owner. Pools that take up each other's "
        "sandboxes need the same SandboxPool(owner=...).",
        sandbox_id=sandbox_id,
    )


async def attach_request(
    shell: Shell, sandbox: str | SessionRef, *, envs: Pairs | None, secrets: Mapping[str, str], timeout: float
) -> Request:
    """Find the sandbox, in this pool or at the service. Errors: as `AsyncSandboxPool.attach` says."""
    if not isinstance(sandbox, str | SessionRef):
        raise ConfigurationError(f"attach({type(sandbox).__name__}): a sandbox's id or a SessionRef is needed.")
    ref = sandbox if isinstance(sandbox, SessionRef) else None
    sandbox_id = text("sandbox", sandbox if isinstance(sandbox, str) else sandbox.sandbox_id)
    core = next((c for c in shell.workers.cores.values() if c.sandbox.sandbox_id == sandbox_id), None)
    if core is not None and core.gone is None and core.is_prepared:
        if core.key is None:
            raise SessionBusy(
                f"Sandbox {sandbox_id} is an anonymous session's, which this pool has lent.", sandbox_id=sandbox_id
            )
        spec = Spec(core.spec.template, envs)
        return Request(key=core.key, spec=spec, timeout=timeout, secrets=secrets)
    if core is not None:
        raise not_found(sandbox_id)
    info: SandboxInfo | None = None
    with anyio.move_on_after(timeout):
        info = await shell.provider.info(sandbox_id)
    if info is None:
        raise PoolTimeout(f"The service did not describe sandbox {sandbox_id} within acquire_timeout={timeout:g} s.")
    request = adoption(info, ref, shell.options, envs=envs, secrets=secrets, timeout=timeout)
    if sandbox_id in held_here(but=shell):
        raise SessionBusy(
            f"Sandbox {sandbox_id} is another pool's of this process, whose detach() lets go of it.",
            sandbox_id=sandbox_id,
        )
    return request
