"""Boxes: the namespaces, mounts and limits that one sandbox lives in, and the agent that acts inside.

An engine's main calls `enter` first of all, then makes one `BubblewrapIsolation` on its event loop:

    namespace = enter(state_dir, readable=[cache])
    isolation = BubblewrapIsolation(namespace)
    await isolation.start()
    box = await isolation.create(BoxSpec(box_id="i1"))
    ...
    await isolation.aclose()
    release(namespace)
"""

from sandboxkit.local.isolation._base import (
    AGENT_PYTHON,
    BASE_PATH,
    ENV_PYTHON,
    HOME,
    PREFIX,
    UID,
    USER,
    Agent,
    AgentError,
    AgentLost,
    Box,
    BoxEnd,
    BoxSpec,
    Entry,
    ExitStatus,
    File,
    FileFacts,
    Isolation,
    Layer,
    LimitInForce,
    Limits,
    Overlay,
    Process,
    Usage,
)
from sandboxkit.local.isolation._doctor import Check, checks
from sandboxkit.local.isolation.bubblewrap._bubblewrap import BubblewrapIsolation, release
from sandboxkit.local.isolation.gvisor._gvisor import GvisorIsolation, find_runsc
from sandboxkit.local.isolation.host._namespace import EngineNamespace, enter
from sandboxkit.local.isolation.host._stale import reap_stale

__all__ = [
    "AGENT_PYTHON",
    "BASE_PATH",
    "ENV_PYTHON",
    "HOME",
    "PREFIX",
    "UID",
    "USER",
    "Agent",
    "AgentError",
    "AgentLost",
    "Box",
    "BoxEnd",
    "BoxSpec",
    "BubblewrapIsolation",
    "Check",
    "EngineNamespace",
    "Entry",
    "ExitStatus",
    "File",
    "FileFacts",
    "GvisorIsolation",
    "Isolation",
    "Layer",
    "LimitInForce",
    "Limits",
    "Overlay",
    "Process",
    "Usage",
    "checks",
    "enter",
    "find_runsc",
    "reap_stale",
    "release",
]
