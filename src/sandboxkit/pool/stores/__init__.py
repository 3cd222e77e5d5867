"""Where session rows live: memory now; SQLite and Postgres later."""

from sandboxkit.pool.stores._base import Row, Store
from sandboxkit.pool.stores._memory import MemoryStore

__all__ = ["MemoryStore", "Row", "Store"]
