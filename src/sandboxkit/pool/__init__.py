"""Keeps sandboxes capped and keyed: the policy decides, the pool acts."""

from sandboxkit.pool._command import AsyncCommandHandle
from sandboxkit.pool._opening import SessionOpening
from sandboxkit.pool._pool import AsyncNullSandboxPool, AsyncSandboxPool
from sandboxkit.pool._session import AsyncSession
from sandboxkit.pool._stats import PoolStats

__all__ = [
    "AsyncCommandHandle",
    "AsyncNullSandboxPool",
    "AsyncSandboxPool",
    "AsyncSession",
    "PoolStats",
    "SessionOpening",
]
