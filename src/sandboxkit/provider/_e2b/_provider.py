"""The provider over the SDK: makes, finds, lists and kills sandboxes."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import e2b

from sandboxkit._types import Endpoint, NetworkMode, NetworkPolicy, SandboxInfo
from sandboxkit.errors import (
    ConfigurationError,
    ProviderUnavailable,
    SandboxNotFound,
)
from sandboxkit.local._child import Engine, running_engine, start_engine_async
from sandboxkit.provider import _errors
from sandboxkit.provider._asyncio import Here, TrioCall
from sandboxkit.provider._base import CreateRequest
from sandboxkit.provider._e2b._create import again_if_the_reply_was_lost, made_or_killed
from sandboxkit.provider._e2b._own_engine import CallOnOwnEngine
from sandboxkit.provider._e2b._raw import RawSandbox
from sandboxkit.provider._e2b._request import connection_options, cross, one_request
from sandboxkit.provider._e2b._sandbox import E2BSandbox
from sandboxkit.provider._network import NetworkOptions, machine_indexes, network_options

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

    from sandboxkit.local.indexes import Indexes
else:
    from e2b_code_interpreter import AsyncSandbox

_logger = logging.getLogger("sandboxkit.provider")


class E2BProvider:
    """A `Provider` over the SDK. `endpoint` is None for the local engine of this process, started when it is needed."""

    def __init__(self, endpoint: Endpoint | None, name: Literal["e2b", "local", "given"]) -> None:
        if endpoint is None and name != "local":
            raise ConfigurationError(f"The endpoint {name!r} needs an Endpoint(...).")
        self._endpoint = endpoint
        self._name = name
        self._indexes: Indexes | None = None
        self._options: dict[str, Any] | None = None if endpoint is None else connection_options(endpoint)

    @property
    def name(self) -> str:
        return self._name

    async def create(self, request: CreateRequest) -> E2BSandbox:
        options = await self._network_options(request.network)
        sandbox: E2BSandbox = await cross()(self._create, request, options)
        return sandbox

    async def connect(self, sandbox_id: str, *, lifetime: float) -> E2BSandbox:
        sandbox: E2BSandbox = await cross()(self._connect, sandbox_id, lifetime)
        return sandbox

    async def list(self, *, metadata: Mapping[str, str] | None = None) -> AsyncIterator[SandboxInfo]:
        query = _query(metadata)
        found = self._reached()
        if found is None:
            return
        _, options = found
        pages = AsyncSandbox.list(query=query, **options)
        while pages.has_next:
            page = await cross()(one_request, pages.next_items, "listing sandboxes")
            for info in page:
                yield _sandbox_info(info)

    async def info(self, sandbox_id: str) -> SandboxInfo:
        found = self._reached()
        if found is None:
            raise _no_engine(sandbox_id)
        engine, options = found
        told: e2b.SandboxInfo = await _way(engine, sandbox_id)(
            one_request, lambda: AsyncSandbox.get_info(sandbox_id, **options), "asking for it", sandbox_id
        )
        return _sandbox_info(told)

    async def kill(self, sandbox_id: str) -> bool:
        found = self._reached()
        if found is None:
            return False
        engine, options = found
        try:
            killed: bool = await _way(engine, sandbox_id)(
                one_request, lambda: AsyncSandbox.kill(sandbox_id, **options), "killing it", sandbox_id
            )
        except SandboxNotFound:
            return False
        return killed

    async def aclose(self) -> None:
        # The SDK's connections belong to the process, and so does the engine, which other pools share.
        await anyio.lowlevel.checkpoint()

    def _reached(self) -> tuple[Engine | None, dict[str, Any]] | None:
        """What existing sandboxes are reached by. None where there are none, since this process's engine does not run:
        it would have to be started, only to say so."""
        if self._options is not None:
            return None, self._options
        engine = running_engine()
        return None if engine is None else (engine, connection_options(engine.endpoint))

    async def _started(self) -> tuple[Engine | None, dict[str, Any]]:
        """What a new sandbox is made by. Asked for each time: an engine that died is started again."""
        if self._options is not None:
            return None, self._options
        engine = await start_engine_async()
        return engine, connection_options(engine.endpoint)

    async def _network_options(self, network: NetworkMode | NetworkPolicy) -> NetworkOptions:
        if network == "packages" and (self._indexes is None or not self._indexes.is_whole):
            # Two that ask at once learn it twice; nothing else happens.
            self._indexes = await anyio.to_thread.run_sync(machine_indexes, abandon_on_cancel=True)
            if not self._indexes.is_whole:
                _logger.warning('network="packages": unknown is %s', "; ".join(self._indexes.left_out))
        return network_options(network, indexes=self._indexes, denies_names=self._name != "e2b")

    async def _create(self, request: CreateRequest, network: NetworkOptions) -> E2BSandbox:
        engine, options = await self._started()
        lifetime = math.ceil(request.lifetime)
        # The answer does not say when it ends: at the earliest, its lifetime after we asked.
        end_at = datetime.now(UTC) + timedelta(seconds=lifetime)

        async def make() -> AsyncSandbox:
            return await RawSandbox.create(
                request.template,
                timeout=lifetime,
                metadata=dict(request.metadata),
                envs={**network.envs, **request.envs},
                **network.arguments(),
                idempotency_key=request.idempotency_key,
                # What resumes a paused one is said by its session, not by whoever finds one of its URLs.
                lifecycle={"on_timeout": "pause", "auto_resume": False} if request.at_end == "pause" else None,
                **options,
            )

        try:
            raw = await made_or_killed(again_if_the_reply_was_lost(make), request.timeout)
        except TimeoutError as error:
            raise ProviderUnavailable(
                f"No sandbox of {request.template!r} within {request.timeout:g} s (TimeoutPolicy.create).",
                status=None,
                template=request.template,
            ) from error
        except Exception as error:
            if not _errors.is_from_the_sdk(error):
                raise
            raise _errors.create_error(error, template=request.template) from error
        return E2BSandbox(raw, request.template, end_at, _way_to(engine, raw.sandbox_id))

    async def _connect(self, sandbox_id: str, lifetime: float) -> E2BSandbox:
        found = self._reached()
        if found is None:
            raise _no_engine(sandbox_id)
        engine, options = found
        seconds = math.ceil(lifetime)

        async def connect() -> E2BSandbox:
            raw: Any = await RawSandbox.connect(sandbox_id, timeout=seconds, **options)  # typed as its base class
            info = await raw.get_info()
            way = _way_to(engine, sandbox_id)
            return E2BSandbox(raw, info.name or info.template_id, info.end_at, way)

        return await one_request(connect, "connecting to it", sandbox_id)


def _no_engine(sandbox_id: str) -> SandboxNotFound:
    return SandboxNotFound(
        f"Sandbox {sandbox_id} was not found: the local engine of this process does not run.", sandbox_id=sandbox_id
    )


def _way(engine: Engine | None, sandbox_id: str) -> TrioCall | Here | CallOnOwnEngine:
    return cross() if engine is None else CallOnOwnEngine(engine, sandbox_id)


def _way_to(engine: Engine | None, sandbox_id: str) -> Callable[[], TrioCall | Here | CallOnOwnEngine]:
    return partial(_way, engine, sandbox_id)


def _query(metadata: Mapping[str, str] | None) -> e2b.SandboxQuery | None:
    """The SDK's filter for listing by metadata."""
    return e2b.SandboxQuery(metadata=dict(metadata)) if metadata else None


def _sandbox_info(info: e2b.SandboxInfo) -> SandboxInfo:
    return SandboxInfo(
        sandbox_id=info.sandbox_id,
        template=info.name or info.template_id,
        state="paused" if info.state == e2b.SandboxState.PAUSED else "running",
        started_at=info.started_at,
        end_at=info.end_at,
        metadata=dict(info.metadata or {}),
    )
