"""Builds of templates that clients ask for: requested, their files taken in, carried out, listened to, recorded.

    waiting ──start──> building ──> ready | error

What is built outlives the engine (`images/_store`); a build on its way, and the logs of builds, do not.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound
from sandboxkit.local._log import log
from sandboxkit.local.control._refusals import Refused, bad_request, unsupported
from sandboxkit.local.control._templates import Templates
from sandboxkit.local.images import BuiltTemplate
from sandboxkit.local.images._build_box import BuildFailed, Level
from sandboxkit.local.images._builder import Builder
from sandboxkit.local.images._records import DEFAULT_TAG
from sandboxkit.local.images._steps import BadDefinition, Definition, base_of, digest, read_definition
from sandboxkit.local.images._store import BuildRecord, Store, TemplateRecord
from sandboxkit.local.isolation._base import HOME

MAX_BUILDS = 100
"""Builds that are remembered, with their logs."""

MAX_LOG = 20_000
MAX_LOG_TEXT = 2 * 1024 * 1024
"""Lines, and characters in all of them, that are kept of a build's log."""

AT_ONCE = 2
TICKETS = 1000
TICKET_LIFE = 3600.0
MIB = 1024 * 1024
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

Status = Literal["waiting", "building", "ready", "error"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a build's log."""

    at: datetime
    level: Level
    message: str
    step: str = ""


@dataclass(slots=True)
class Build:
    """One build that a client has asked for."""

    build_id: str
    template: str
    tags: tuple[str, ...]
    cpus: float
    memory_mb: int
    disk_mb: int
    made_at: datetime
    status: Status = "waiting"
    entries: list[Entry] = field(default_factory=list)
    text_left: int = MAX_LOG_TEXT
    failed_step: str = ""
    failure: str = ""
    task: asyncio.Task[None] | None = None

    def tell(self, message: str, level: Level = "info", step: str = "") -> None:
        """Add a line to the log; past its bound the last one says so."""
        if self.text_left < 0:
            return
        self.text_left -= len(message) + MAX_LOG_TEXT // MAX_LOG
        if self.text_left < 0:
            level, message = "warn", "No more of this log is kept."
        self.entries.append(Entry(datetime.now(UTC), level, message, step))


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to upload one archive, once."""

    digest: str
    until: float


class Builds:
    """All builds of an engine."""

    def __init__(self, *, store: Store, templates: Templates, builder: Builder) -> None:
        self._store = store
        self._templates = templates
        self._builder = builder
        self._builds: OrderedDict[str, Build] = OrderedDict()
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._turns = asyncio.Semaphore(AT_ONCE)

    # -- what clients ask for -------------------------------------------------------------------------------------

    def request(self, name: str, tags: Sequence[str], *, cpus: int, memory_mb: int, disk_mb: int) -> Build:
        """Note that a template is going to be built. Refused: 429 where too many are on their way."""
        for old in [key for key, build in self._builds.items() if build.status in ("ready", "error")]:
            if len(self._builds) < MAX_BUILDS:
                break
            del self._builds[old]
        for old in [key for key, build in self._builds.items() if build.status == "waiting"]:
            if len(self._builds) < MAX_BUILDS:
                break
            del self._builds[old]
        if len(self._builds) >= MAX_BUILDS:
            raise Refused(429, "Too many builds are on their way", error_code="too_many_builds", retry=False)
        build = Build(
            build_id=str(uuid.uuid4()),
            template=name,
            tags=tuple(dict.fromkeys(tags)) or (DEFAULT_TAG,),
            cpus=float(cpus),
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            made_at=datetime.now(UTC),
        )
        self._builds[build.build_id] = build
        return build

    def get(self, template: str, build_id: str) -> Build:
        """One that was asked for, or was recorded by an engine before this one. Refused: 404."""
        build = self._builds.get(build_id)
        if build is not None and build.template == template:
            return build
        record = self._store.read(template)
        recorded = record.builds.get(build_id) if record is not None else None
        if recorded is None:
            raise Refused(
                404, f"Template {template[:128]!r} has no build {build_id[:64]!r}", error_code="no_such_build"
            )
        return Build(
            build_id=build_id,
            template=template,
            tags=(),
            cpus=recorded.cpus,
            memory_mb=recorded.memory_mb,
            disk_mb=recorded.disk_mb,
            made_at=datetime.fromisoformat(recorded.made_at),
            status="ready",
        )

    def start(self, build: Build, body: Mapping[str, Any]) -> None:
        """Begin to build; what no engine has fails at once. Refused: 400 for what is malformed or not supported here,
        409 where it has begun already."""
        if build.status != "waiting" or build.build_id not in self._builds:
            raise Refused(409, f"Build {build.build_id} has begun already", error_code="build_started", retry=False)
        try:
            base = base_of(body, python=PYTHON)
            below = self._base(base.template) if base.kind == "template" else None
            definition = read_definition(
                body,
                python=PYTHON,
                envs=below.envs if below is not None else None,
                **({"workdir": below.workdir} if below is not None else {}),
            )
        except BadDefinition as error:
            if error.fails:
                self._failed(build, error.message, str(error.step) if error.step else "base")
                return
            where = f"step {error.step}: " if error.step else ""
            if error.option:
                raise unsupported(error.option, f"{where}{error.message}") from None
            raise bad_request(f"{where}{error.message}") from None
        if below is not None:
            inherited = tuple(one.target for one in below.overlays if one.target != HOME)
            definition = replace(definition, inherited=inherited)
        if below is not None and not definition.start:
            definition = replace(definition, start=below.start, ready=below.ready)
        build.status = "building"
        build.task = asyncio.create_task(self._carry_out(build, definition, below), name=f"build {build.build_id}")

    def _base(self, name: str) -> BuiltTemplate:
        try:
            return self._templates.find(name)
        except TemplateNotFound as error:
            raise BadDefinition(f"fromTemplate: {error}", step=0, fails=True) from None
        except TemplateNotBuilt as error:
            raise BadDefinition(f"fromTemplate: {error}", step=0) from None

    # -- uploads --------------------------------------------------------------------------------------------------

    def ticket(self, digest: str) -> str:
        """The right to upload an archive of this digest, once, within an hour."""
        while len(self._tickets) >= TICKETS:
            self._tickets.popitem(last=False)
        token = secrets.token_urlsafe(32)
        self._tickets[token] = Ticket(digest, time.monotonic() + TICKET_LIFE)
        return token

    def redeem(self, token: str, digest: str) -> None:
        """Use a ticket. Refused: 403 where there is no such one (any more), or it is for other files."""
        ticket = self._tickets.pop(token, None)
        if ticket is None or ticket.digest != digest or ticket.until < time.monotonic():
            raise Refused(
                403, "This upload link is not valid, or was used already", error_code="upload_refused", retry=False
            )

    # -- carrying out ---------------------------------------------------------------------------------------------

    async def _carry_out(self, build: Build, definition: Definition, below: BuiltTemplate | None) -> None:
        started = time.monotonic()
        try:
            if self._turns.locked():
                build.tell("Other builds are running; waiting for a turn.")
            async with self._turns:
                names, key = await self._layers_of(below) if below is not None else ((), "")
                result = await self._builder.build(definition, below=names, key=key, tell=build.tell)
                notes = tuple(filter(None, (definition.base.note,)))
                record = BuildRecord(
                    build_id=build.build_id,
                    layers=result.layers,
                    base=definition.base.template or definition.base.kind,
                    made_at=build.made_at.isoformat(),
                    cpus=build.cpus,
                    memory_mb=build.memory_mb,
                    disk_mb=build.disk_mb,
                    envs=dict(definition.envs),
                    workdir=definition.workdir,
                    places=definition.places,
                    start=definition.start,
                    ready=definition.ready,
                    notes=notes,
                    has_interpreter=below.has_interpreter if below is not None else False,
                    python=PYTHON,
                )
                await asyncio.to_thread(self._record, build, record)
            build.tell(f"Template {build.template} is built ({result.seconds:.1f} s).")
            build.status = "ready"
        except BuildFailed as error:
            self._failed(build, error.message, error.step)
        except asyncio.CancelledError:
            self._failed(build, "The engine is shutting down", "base")
            raise
        except Exception as error:
            log(logging.ERROR, "build.failed", template=build.template, error=type(error).__name__, exc_info=True)
            self._failed(build, f"The engine failed ({type(error).__name__}); its log says why", "base")
        log(
            logging.INFO,
            "build.ended",
            template=build.template,
            status=build.status,
            duration=time.monotonic() - started,
        )

    def _failed(self, build: Build, message: str, step: str) -> None:
        build.tell(message, "error", step)
        build.failure, build.failed_step = message, step
        build.status = "error"

    async def _layers_of(self, below: BuiltTemplate) -> tuple[tuple[str, ...], str]:
        """The names of the layers of a base template, and the name of what they are together."""
        record = self._store.read(below.id)
        build = record.builds.get(below.build_id) if record is not None else None
        if build is not None:
            return build.layers, digest("template", build.layers)
        if not below.layers:
            return (), ""  # the system alone: the engine's Python, as for an image
        return await self._builder.adopt(below)

    def _record(self, build: Build, record: BuildRecord) -> None:
        with self._store.changing(build.template) as write:
            found = self._store.read(build.template)
            if found is None:
                found = TemplateRecord(name=build.template, made_at=build.made_at.isoformat())
            tags = {**found.tags, **{tag: (build.build_id, datetime.now(UTC).isoformat()) for tag in build.tags}}
            used = {build_id for build_id, _ in tags.values()}
            builds = {key: one for key, one in {**found.builds, build.build_id: record}.items() if key in used}
            write(replace(found, builds=builds, tags=tags))

    async def aclose(self) -> None:
        """End what is on its way. Idempotent."""
        tasks = [build.task for build in self._builds.values() if build.task is not None and not build.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
