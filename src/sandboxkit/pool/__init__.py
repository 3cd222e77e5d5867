"""Keeps sandboxes capped and keyed: the policy decides, the pool acts."""

from sandboxkit.pool._command import AsyncCommandHandle
from sandboxkit.pool._pool import AsyncSandboxPool
from sandboxkit.pool._session import AsyncSession, SessionOpening
from sandboxkit.pool._stats import PoolStats

__all__ = ["AsyncCommandHandle", "AsyncSandboxPool", "AsyncSession", "PoolStats", "SessionOpening"]
