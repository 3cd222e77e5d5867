"""A provider in memory, for tests: deterministic, scriptable, and held to the same contract as the real ones.

It isolates nothing and starts nothing: code runs in this process (see `_python` for what that means), commands are a
handful of built-in ones, files lie in a dictionary. It works on any anyio backend and with a virtual clock.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

import anyio
import anyio.lowlevel

from sandboxkit._types import CODE_INTERPRETER, SandboxInfo
from sandboxkit.errors import ProviderUnavailable, RateLimited, SandboxNotFound, TemplateNotBuilt, TemplateNotFound
from sandboxkit.local.indexes import Indexes
from sandboxkit.provider._base import CreateRequest
from sandboxkit.provider._network import network_options
from sandboxkit.testing._sandbox import FakeSandbox

Operation = Literal[
    "create", "connect", "extend", "pause", "info", "kill", "list", "is_running", "run_code", "run_command", "files"
]
EndReason = Literal["killed", "expired", "crashed"]

_AN_INDEX = Indexes(endpoints=frozenset({("index.invalid", 443)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong with the next calls of one operation.

    Attributes:
        delay: seconds (on the event loop's clock) before the operation takes place.
        error: raised instead of the answer. Before the operation takes place, unless `after_commit`.
        after_commit: the operation takes place, and its reply is what is lost (ProviderUnavailable unless `error`).
        delay_reply: seconds between the operation's taking place and its reply.
        times: how many calls it meets.
    """

    delay: float = 0.0
    error: Exception | None = None
    after_commit: bool = False
    delay_reply: float = 0.0
    times: int = 1


class FakeProvider:
    """A `Provider` without sandboxes.

    Args:
        templates: the ids that can be created.
        unbuilt: ids that are known and not built.
        limit: answer 429 when this many sandboxes live.
        create_delay: seconds that every create takes, on the event loop's clock.
        disk: bytes that the files of one sandbox may have.
        clock: Unix time in seconds, for lifetimes.
    """

    def __init__(
        self,
        *,
        templates: Collection[str] = ("base", CODE_INTERPRETER),
        unbuilt: Collection[str] = (),
        limit: int | None = None,
        create_delay: float = 0.0,
        disk: int = 16 * 1024 * 1024,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.templates = frozenset(templates)
        self.unbuilt = frozenset(unbuilt)
        self.limit = limit
        self.create_delay = create_delay
        self.disk = disk
        self.clock = clock
        self.requests: list[CreateRequest] = []
        """Every create request, in order, refused ones among them."""
        self.calls: Counter[Operation] = Counter()
        """How many calls of each operation there were: requests, where a real service answered."""
        self.created = 0
        self.ended: dict[str, EndReason] = {}
        self.is_closed = False
        self._sandboxes: dict[str, FakeSandbox] = {}
        self._by_key: dict[str, str] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._numbers = itertools.count(1)

    # -- what tests look at, and do ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return "fake"

    @property
    def live(self) -> frozenset[str]:
        """Ids of the sandboxes that live now, paused ones too. Always `created == len(live) + len(ended)`."""
        self._reap()
        return frozenset(self._sandboxes)

    @property
    def killed(self) -> int:
        """How many were killed through this provider."""
        return sum(reason == "killed" for reason in self.ended.values())

    def inject(self, operation: Operation, fault: Fault) -> None:
        """Let the next calls of an operation meet a fault. Faults of one operation are met in the order given."""
        self._faults.setdefault(operation, []).append(fault)

    def crash(self, sandbox_id: str) -> None:
        """Let a sandbox vanish, as if its host had died: what runs in it fails, and it is never found again."""
        self.end(sandbox_id, "crashed")

    # -- Provider ------------------------------------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> FakeSandbox:
        self.requests.append(request)
        made: FakeSandbox | None = None
        try:
            with anyio.fail_after(request.timeout):
                async with self.faults("create"):
                    await anyio.sleep(self.create_delay)
                    known = self._by_key.get(request.idempotency_key, "")
                    made = self._sandboxes.get(known) or self._made(request)
        except TimeoutError as error:
            if made is not None:
                self.end(made.sandbox_id, "killed")
            raise ProviderUnavailable(
                f"No sandbox of {request.template!r} within create={request.timeout} s.", template=request.template
            ) from error
        except anyio.get_cancelled_exc_class():
            if made is not None:
                self.end(made.sandbox_id, "killed")
            raise
        return made

    async def connect(self, sandbox_id: str, *, lifetime: float) -> FakeSandbox:
        async with self.faults("connect"):
            sandbox = self._found(sandbox_id)
            sandbox.lengthen(lifetime)
        return sandbox

    async def list(self, *, metadata: Mapping[str, str] | None = None) -> AsyncIterator[SandboxInfo]:
        async with self.faults("list"):
            self._reap()
            wanted = dict(metadata or {}).items()
            found = [s.info() for s in self._sandboxes.values() if wanted <= s.metadata.items()]
        for info in found:
            yield info

    async def info(self, sandbox_id: str) -> SandboxInfo:
        async with self.faults("info"):
            return self._found(sandbox_id).info()

    async def kill(self, sandbox_id: str) -> bool:
        async with self.faults("kill"):
            self._reap()
            return self.end(sandbox_id, "killed")

    async def aclose(self) -> None:
        self.is_closed = True
        await anyio.lowlevel.checkpoint()

    # -- within ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def faults(self, operation: Operation) -> AsyncIterator[None]:
        """Carry out an operation among the faults that were injected for it."""
        self.calls[operation] += 1
        fault = self._next_fault(operation)
        await anyio.lowlevel.checkpoint()
        if fault.delay:
            await anyio.sleep(fault.delay)
        if fault.error is not None and not fault.after_commit:
            raise fault.error
        yield
        if fault.delay_reply:
            await anyio.sleep(fault.delay_reply)
        if fault.after_commit:
            raise fault.error or ProviderUnavailable(f"The reply to {operation} was lost (an injected fault).")

    def _next_fault(self, operation: Operation) -> Fault:
        waiting = self._faults.get(operation)
        if not waiting:
            return Fault()
        fault = waiting.pop(0)
        if fault.times > 1:
            waiting.insert(0, replace(fault, times=fault.times - 1))
        return fault

    def _made(self, request: CreateRequest) -> FakeSandbox:
        # It reaches nothing, whatever is asked for; what no service would take is refused all the same.
        network_options(request.network, indexes=_AN_INDEX)
        if request.template in self.unbuilt:
            raise TemplateNotBuilt(f"Template {request.template!r} is not built.", template=request.template)
        if request.template not in self.templates:
            known = sorted(self.templates)
            raise TemplateNotFound(
                f"No template {request.template!r}; known are {', '.join(known)}.",
                template=request.template,
                known=known,
            )
        self._reap()
        if self.limit is not None and len(self._sandboxes) >= self.limit:
            raise RateLimited(f"The limit of {self.limit} concurrent sandboxes is reached.", status=429)
        sandbox = FakeSandbox(self, f"fake{next(self._numbers):08d}", request)
        self._sandboxes[sandbox.sandbox_id] = sandbox
        self._by_key[request.idempotency_key] = sandbox.sandbox_id
        self.created += 1
        return sandbox

    def _found(self, sandbox_id: str) -> FakeSandbox:
        self._reap()
        if sandbox_id not in self._sandboxes:
            reason = self.ended.get(sandbox_id, "never there")
            raise SandboxNotFound(f"Sandbox {sandbox_id[:64]} was not found ({reason}).", sandbox_id=sandbox_id)
        return self._sandboxes[sandbox_id]

    def _reap(self) -> None:
        now = datetime.fromtimestamp(self.clock(), UTC)
        for sandbox in [s for s in self._sandboxes.values() if not s.is_paused and s.end_at <= now]:
            self.end_of_life(sandbox)

    def end_of_life(self, sandbox: FakeSandbox) -> None:
        """Let a sandbox meet the end of its lifetime."""
        if sandbox.pauses_at_end:
            sandbox.stop()
        else:
            self.end(sandbox.sandbox_id, "expired")

    def end(self, sandbox_id: str, reason: EndReason) -> bool:
        """Let a sandbox end; False if it had ended before."""
        sandbox = self._sandboxes.pop(sandbox_id, None)
        if sandbox is None:
            return False
        self.ended[sandbox_id] = reason
        sandbox.vanish()
        return True
