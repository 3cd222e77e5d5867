"""Pools, fragments and confined files over E2B sandboxes, with an embedded engine that needs no account.

The names are imported where they are first used: `import sandboxkit` itself loads no SDK and no engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandboxkit import errors as errors
    from sandboxkit._confine import confine as confine
    from sandboxkit._sync import App as App
    from sandboxkit._sync import CommandHandle as CommandHandle
    from sandboxkit._sync import NullSandboxPool as NullSandboxPool
    from sandboxkit._sync import SafeFS as SafeFS
    from sandboxkit._sync import SandboxPool as SandboxPool
    from sandboxkit._sync import Session as Session
    from sandboxkit._types import CommandResult as CommandResult
    from sandboxkit._types import Endpoint as Endpoint
    from sandboxkit._types import Execution as Execution
    from sandboxkit._types import ExecutionError as ExecutionError
    from sandboxkit._types import FileEvent as FileEvent
    from sandboxkit._types import FileInfo as FileInfo
    from sandboxkit._types import FileNode as FileNode
    from sandboxkit._types import Loss as Loss
    from sandboxkit._types import NetworkPolicy as NetworkPolicy
    from sandboxkit._types import OutputMessage as OutputMessage
    from sandboxkit._types import Result as Result
    from sandboxkit._types import SandboxInfo as SandboxInfo
    from sandboxkit._types import SessionRef as SessionRef
    from sandboxkit._types import TimeoutPolicy as TimeoutPolicy
    from sandboxkit._types import TransferProgress as TransferProgress
    from sandboxkit.errors import SandboxkitError as SandboxkitError
    from sandboxkit.events import Event as Event
    from sandboxkit.fragment import Edit as Edit
    from sandboxkit.fragment import Fragment as Fragment
    from sandboxkit.fragment import FragmentResult as FragmentResult
    from sandboxkit.pool import AsyncCommandHandle as AsyncCommandHandle
    from sandboxkit.pool import AsyncNullSandboxPool as AsyncNullSandboxPool
    from sandboxkit.pool import AsyncSandboxPool as AsyncSandboxPool
    from sandboxkit.pool import AsyncSession as AsyncSession
    from sandboxkit.pool import PoolStats as PoolStats
    from sandboxkit.runner import AsyncApp as AsyncApp
    from sandboxkit.safefs import AsyncSafeFS as AsyncSafeFS
    from sandboxkit.template import Template as Template

_HOMES = {
    "App": "_sync",
    "AsyncApp": "runner",
    "AsyncCommandHandle": "pool",
    "AsyncNullSandboxPool": "pool",
    "AsyncSafeFS": "safefs",
    "AsyncSandboxPool": "pool",
    "AsyncSession": "pool",
    "CommandHandle": "_sync",
    "CommandResult": "_types",
    "Edit": "fragment",
    "Endpoint": "_types",
    "Event": "events",
    "Execution": "_types",
    "ExecutionError": "_types",
    "FileEvent": "_types",
    "FileInfo": "_types",
    "FileNode": "_types",
    "Fragment": "fragment",
    "FragmentResult": "fragment",
    "Loss": "_types",
    "NetworkPolicy": "_types",
    "NullSandboxPool": "_sync",
    "OutputMessage": "_types",
    "PoolStats": "pool",
    "Result": "_types",
    "SafeFS": "_sync",
    "SandboxInfo": "_types",
    "SandboxPool": "_sync",
    "SandboxkitError": "errors",
    "Session": "_sync",
    "SessionRef": "_types",
    "Template": "template",
    "TimeoutPolicy": "_types",
    "TransferProgress": "_types",
    "confine": "_confine",
    "errors": "",
}

__all__ = sorted(_HOMES)  # checkers take the TYPE_CHECKING block above


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = import_module(f"{__name__}.{home or name}")
    if home:
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
