"""What a live sandbox is made of, and how its services are made: values and Protocols shared by control's shells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.datastructures import QueryParams

from sandboxkit.local._log import log
from sandboxkit.local._sandbox import SandboxSettings
from sandboxkit.local.control._app import App
from sandboxkit.local.gateway.egress._dialler import Dialler
from sandboxkit.local.gateway.egress._proxy import Egress
from sandboxkit.local.gateway.preview._doors import Doors
from sandboxkit.local.indexes import KnownIndexes
from sandboxkit.local.isolation._base import HOME, Agent, Box, Layer, Overlay, Usage

SAMPLES_KEPT = 720
SERVICE_CLOSE_TIMEOUT = 5.0

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Service(Protocol):
    """An ASGI application for one sandbox."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None: ...

    async def aclose(self) -> None:
        """End its streams and processes. Idempotent."""


class EnvdLike(Service, Protocol):
    """The service of port 49983."""

    def owns(self, query_params: QueryParams) -> bool:
        """Say whether a signed URL of /files carries this sandbox's signature."""


class InterpreterLike(Service, Protocol):
    """The service of port 49999."""

    def pause(self) -> None:
        """Be ready for the box to be stopped: what runs is to go on after it, though its client is cut off now."""

    def resume(self) -> None:
        """The box goes on."""

    def adopt(self, settings: SandboxSettings) -> None:
        """Take over another sandbox's settings, before any code was run: what was started before is now its own."""


@dataclass(frozen=True, slots=True)
class Services:
    """How to make the services of a sandbox."""

    envd: Callable[[Agent, SandboxSettings], EnvdLike]
    interpreter: Callable[[Agent, SandboxSettings], InterpreterLike]


@dataclass(frozen=True, slots=True)
class WayOut:
    """What all sandboxes share to reach what they may."""

    dialler: Dialler
    indexes: KnownIndexes

    def variables(self, egress: Egress) -> dict[str, str]:
        """What programs of a sandbox need now to get out: nothing where they cannot."""
        found = dict(egress.variables())
        if found:
            found |= self.indexes.certificate_variables()
            if egress.policy.packages:
                found |= self.indexes.variables()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a template contributes to a box."""

    layers: tuple[Layer, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    envs: Mapping[str, str] = field(default_factory=dict, repr=False)
    has_environment: bool = False
    workdir: str = HOME
    start: str = ""
    ready: str = ""
    volumes: tuple[Layer, ...] = ()
    files: Path | None = None
    """What `Box.save` wrote, where the box starts with such."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sandbox used at one moment (Unix seconds)."""

    at: float
    usage: Usage
    cpu_percent: float


@dataclass(slots=True)
class Live:
    """A live sandbox's parts."""

    settings: SandboxSettings
    box: Box
    envd: EnvdLike
    interpreter: InterpreterLike | None
    egress: Egress
    doors: Doors = field(default_factory=Doors)
    app: App | None = None
    """What its template's start command has started."""
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES_KEPT))
    requests: set[asyncio.Task[Any]] = field(default_factory=set)
    """Those that are being answered by its services."""
    cut: set[asyncio.Task[Any]] = field(default_factory=set)
    """Those of them that were cancelled because it was paused."""
    last_cpu: tuple[float, float] = (0.0, 0.0)
    """Monotonic time and CPU seconds at the last measurement."""

    async def aclose(self) -> str | None:
        """Take it apart: nothing of it is left. Returns the name of an error that came in between; logs each."""
        # The box first: its services then see that their agent is lost, and end what they stream.
        steps = [self.doors.aclose, self.egress.aclose, self.box.kill, self.envd.aclose]
        steps += [self.interpreter.aclose] if self.interpreter else []
        steps += [self.app.aclose] if self.app else []
        failed = None
        for step in steps:
            try:
                async with asyncio.timeout(None if step == self.box.kill else SERVICE_CLOSE_TIMEOUT):
                    await step()
            except Exception as error:
                failed = type(error).__name__
                sandbox_id = self.settings.sandbox_id
                log(logging.ERROR, "sandbox.kill_failed", sandbox_id=sandbox_id, error=failed, exc_info=True)
        return failed

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Note that the current task answers a request; it is cut off when the sandbox is paused."""
        task = asyncio.current_task()
        assert task is not None
        self.requests.add(task)
        try:
            yield
        finally:
            self.requests.discard(task)

    def was_cut(self) -> bool:
        """Whether the current task was cancelled by a pause, and not by anybody else; answers once."""
        task = asyncio.current_task()
        if task is None or task not in self.cut:
            return False
        self.cut.discard(task)
        return task.uncancel() == 0
