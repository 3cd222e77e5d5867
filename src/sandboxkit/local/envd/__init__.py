"""E2B's envd for one sandbox: processes, the file system and `/files`, served over HTTP."""

from __future__ import annotations

from sandboxkit.local.envd._service import EnvdService

__all__ = ["EnvdService"]
