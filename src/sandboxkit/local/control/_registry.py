"""Which sandboxes there are, and what may happen to each next: decided here, carried out by `_sandboxes`, `_pauses`.

Pure: the time, the random names and what has happened come in; answers and decisions go out.

    making ──made──> live ──end──> ending ──gone──> (forgotten)
       └──failed──> (forgotten)  │ ^ ^
                           pause │ │ └───────resumed──────────┐
                                 v │resumed, pause_failed     │
       (a dead engine's)        paused ──stored──> stored ──restoring──> restoring
              └───────given_back──────────────────^    ^───restore_failed───┘

- `making`: a box is being made. It counts towards the cap, and nobody but its creator knows its id.
- `live`: it is listed, can be connected to, and ends at its deadline, which is a moment of the monotonic clock: the
  wall clock may jump. What clients are shown (`end_at`) is the wall clock's idea when the deadline was last set.
- `paused`: its processes are stopped, or are being stopped; it holds its place under the cap.
- `stored`: of it there are only files, kept by the engine, and no box: it holds no place under the cap.
- `restoring`: a box is being made for its files, and has a place under the cap.
- `ending`: somebody killed it, its time was up, or its box ended. Every question about it is answered as if it were
  gone; it counts towards the cap until nothing is left of it, unless it was stored.

Paused, stored and restoring are one thing to clients: it is listed as paused, and has no deadline. It becomes live
again when somebody connects to it; until then nothing else can be done with it but to kill it, or to copy its files.
`end` is granted to one caller in each of these states.

A deadline that has passed ends a sandbox (or pauses it, where its creator wanted that) for all questions at once,
whether or not anybody has acted on it yet.

An idempotency key stands for one sandbox from the first request on until some time after that sandbox's end, so that
a repeated request never makes a second one. A creation that fails frees its key.

Pages are cut by a number that each sandbox gets when it becomes live. A token says after which number to go on, so
that what comes or goes between two pages neither repeats nor hides another sandbox.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sandboxkit.local.control._network import Network
from sandboxkit.local.control._refusals import Refused, bad_request, no_such_sandbox
from sandboxkit.local.control._states import (
    PAGE_LIMIT,
    PAUSED,
    SHOWN_AS,
    Due,
    Make,
    Now,
    Order,
    Page,
    Query,
    Repeat,
    Sandbox,
    State,
    Wanted,
)

__all__ = [
    "KEYS_KEPT_FOR",
    "PAGE_LIMIT",
    "PAUSED",
    "SHOWN_AS",
    "Due",
    "Make",
    "Now",
    "Order",
    "Page",
    "Query",
    "Registry",
    "Repeat",
    "Sandbox",
    "State",
    "Wanted",
]

KEYS_KEPT_FOR = 600.0
"""Seconds that an idempotency key outlives its sandbox."""

KEYS_KEPT = 10_000
"""Keys of ended sandboxes that are remembered at most; the oldest go first."""


@dataclass(slots=True)
class _Key:
    """What an idempotency key stands for. `forget_at` is set when its sandbox has ended."""

    fingerprint: str
    sandbox: Sandbox
    forget_at: float | None = None


class Registry:
    """All sandboxes of one engine. `new_id` and `new_token` give random names; an id has never been used before."""

    def __init__(
        self,
        *,
        max_sandboxes: int,
        new_id: Callable[[], str],
        new_token: Callable[[], str],
        max_memory: int | None = None,
    ) -> None:
        self._max_sandboxes = max_sandboxes
        self._max_memory = max_memory
        self._new_id = new_id
        self._new_token = new_token
        self._sandboxes: dict[str, Sandbox] = {}
        self._keys: dict[str, _Key] = {}
        self._ended_keys: dict[str, None] = {}  # in the order of their ends
        self._numbers = 0
        self._closing = False

    # -- lives ----------------------------------------------------------------------------------------------------

    def create(self, wanted: Wanted, now: Now, *, sandbox_id: str | None = None) -> Make | Repeat:
        """Decide about a request to create. `sandbox_id` is one of `unused_id`, where its box is there already.

        Raises:
            Refused: 503 while the engine ends, 409 for a key that stands for another request, 429 at a cap.
        """
        if self._closing:
            raise Refused(503, "The engine is shutting down", error_code="engine_closing", retry=False)
        self._forget_keys(now)
        key = wanted.idempotency_key
        if key is not None and (known := self._keys.get(key)) is not None:
            if known.fingerprint != wanted.fingerprint:
                raise Refused(
                    409,
                    f"The idempotency key {key!r} was used for a different request; use a new key",
                    error_code="idempotency_conflict",
                )
            return Repeat(known.sandbox)
        self._refuse_more(wanted.limits.memory)
        sandbox = Sandbox(
            sandbox_id=sandbox_id or self.unused_id(),
            access_token=self._new_token(),
            wanted=wanted,
            state=State.MAKING,
            started_at=now.wall,
            end_at=now.wall,
            deadline=now.monotonic,
            memory_lost=wanted.from_files,
            traffic_token=None if wanted.public_traffic else self._new_token(),
        )
        self._sandboxes[sandbox.sandbox_id] = sandbox
        if key is not None:
            self._keys[key] = _Key(wanted.fingerprint, sandbox)
        return Make(sandbox)

    def _refuse_more(self, more: int) -> None:
        """Refused: 429 where there are as many as there may be, or all together could use more memory than they may."""
        placed = [sandbox for sandbox in self._sandboxes.values() if sandbox.has_place]
        if len(placed) >= self._max_sandboxes:
            raise Refused(
                429,
                f"There are {len(placed)} sandboxes already, as many as this engine allows; kill one first",
                error_code="too_many_sandboxes",
            )
        promised = sum(sandbox.wanted.limits.memory for sandbox in placed)
        if self._max_memory is not None and promised + more > self._max_memory:
            raise Refused(
                429,
                f"The sandboxes there are may use {promised >> 20} MiB of memory, this one could use {more >> 20} MiB, "
                f"and this engine allows {self._max_memory >> 20} MiB in all; kill one first",
                error_code="too_much_memory",
            )

    def made(self, sandbox_id: str, now: Now) -> Sandbox:
        """Note that it is made; its life begins now. Ending instead of live if the engine ends meanwhile: kill it."""
        sandbox = self._sandboxes[sandbox_id]
        if self._closing:
            sandbox = replace(sandbox, state=State.ENDING)
        else:
            self._numbers += 1
            sandbox = replace(
                _lasting(sandbox, sandbox.wanted.timeout, now),
                state=State.LIVE,
                number=self._numbers,
                started_at=now.wall,
            )
        self._keep(sandbox)
        return sandbox

    def failed(self, sandbox_id: str) -> None:
        """Note that it could not be made; nothing of it is left."""
        sandbox = self._sandboxes.pop(sandbox_id)
        if (key := sandbox.wanted.idempotency_key) is not None:
            del self._keys[key]

    def end(self, sandbox_id: str) -> bool:
        """Let a live or paused one end, now. True for the one caller who must carry it out; False if it is neither."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state not in SHOWN_AS:
            return False
        self._keep(replace(sandbox, state=State.ENDING))
        return True

    def gone(self, sandbox_id: str, now: Now) -> None:
        """Note that nothing is left of an ending one."""
        sandbox = self._sandboxes.pop(sandbox_id)
        if (key := sandbox.wanted.idempotency_key) is not None:
            self._keys[key].forget_at = now.monotonic + KEYS_KEPT_FOR
            self._ended_keys[key] = None
            self._forget_keys(now)

    def due(self, now: Now) -> list[Due]:
        """Let all those end or pause whose time is up; the caller carries it out."""
        late = [s.sandbox_id for s in self._sandboxes.values() if s.state is State.LIVE and s.deadline <= now.monotonic]
        return [due for sandbox_id in late for due in self.due_one(sandbox_id, now)]

    def due_one(self, sandbox_id: str, now: Now) -> list[Due]:
        """The same for one of them, which may not be there."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state is not State.LIVE or sandbox.deadline > now.monotonic:
            return []
        if not sandbox.wanted.auto_pause:
            self.end(sandbox_id)
            return [Due(sandbox_id, "end")]
        self._keep(_seen(sandbox, now))
        return [Due(sandbox_id, "pause")]

    def pause(self, sandbox_id: str, now: Now) -> Sandbox:
        """Count a live one as paused from now on; the caller stops its processes, and says `stopped` or `stored`.

        Raises:
            Refused: 404, there is none; 409, it is paused.
        """
        sandbox = self.get(sandbox_id, now)
        if sandbox.is_paused:
            raise Refused(409, f"Sandbox {sandbox_id[:64]!r} is paused already", error_code="sandbox_paused")
        sandbox = replace(sandbox, state=State.PAUSED, end_at=now.wall, memory_lost=False)
        self._keep(sandbox)
        return sandbox

    def stopped(self, sandbox_id: str) -> None:
        """Note that the pause is done: nothing of it runs, and its memory is kept."""
        self._in(State.PAUSED, sandbox_id, pause_mode="full")

    def pause_failed(self, sandbox_id: str, now: Now) -> None:
        """Note that its pause could not be done, and its processes go on: its time is what it was before."""
        if (sandbox := self._sandboxes.get(sandbox_id)) is None:
            return
        end_at = now.wall + timedelta(seconds=sandbox.deadline - now.monotonic)
        self._in(State.PAUSED, sandbox_id, state=State.LIVE, pause_mode=None, persisted=False, end_at=end_at)

    def persisted(self, sandbox_id: str) -> bool:
        """Note that a copy of its files is kept; False if it is not paused any more: then the copy is of no use."""
        return self._in(State.PAUSED, sandbox_id, persisted=True) is not None

    def stored(self, sandbox_id: str, *, persisted: bool) -> bool:
        """Note that of a paused one there are only files from now on; False if it is not paused any more.

        Args:
            persisted: they outlive the engine.
        """
        changes = {"state": State.STORED, "pause_mode": "filesystem", "persisted": persisted, "has_place": False}
        return self._in(State.PAUSED, sandbox_id, **changes) is not None

    def given_back(self, sandbox: Sandbox) -> bool:
        """Take in one that an engine before this one has stored; False if there is one of its id."""
        if sandbox.sandbox_id in self._sandboxes:
            return False
        self._numbers += 1
        kept = replace(sandbox, state=State.STORED, number=self._numbers, persisted=True)
        kept = replace(kept, pause_mode="filesystem", has_place=False)
        self._sandboxes[sandbox.sandbox_id] = kept
        return True

    def restoring(self, sandbox_id: str) -> Sandbox:
        """Give a stored one a place under the cap; the caller makes its box, and says `resumed` or `restore_failed`.

        Raises:
            Refused: 404, it is not stored; 429, there is no place; 503 while the engine ends.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state is not State.STORED:
            raise no_such_sandbox(sandbox_id)
        if self._closing:
            raise Refused(503, "The engine is shutting down", error_code="engine_closing", retry=False)
        self._refuse_more(sandbox.wanted.limits.memory)
        restoring = self._in(State.STORED, sandbox_id, state=State.RESTORING, has_place=True)
        assert restoring is not None
        return restoring

    def restore_failed(self, sandbox_id: str) -> None:
        """Note that no box could be made for it; it is stored as before, unless somebody has ended it meanwhile."""
        self._in(State.RESTORING, sandbox_id, state=State.STORED, has_place=False)

    def resumed(self, sandbox_id: str, seconds: int, now: Now, *, network: Network | None = None) -> Sandbox:
        """Note that a paused one goes on, or that a box was made for it (then it may reach `network`); it ends
        `seconds` from now. Refused: 404, it is neither."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state not in (State.PAUSED, State.RESTORING):
            raise no_such_sandbox(sandbox_id)
        if network is not None:
            sandbox = replace(sandbox, wanted=replace(sandbox.wanted, network=network))
        sandbox = replace(
            _lasting(sandbox, seconds, now),
            state=State.LIVE,
            pause_mode=None,
            persisted=False,
            memory_lost=sandbox.state is State.RESTORING,
        )
        self._keep(sandbox)
        return sandbox

    def next_deadline(self) -> float | None:
        """Say when, by the monotonic clock, the next one's time is up."""
        return min((s.deadline for s in self._sandboxes.values() if s.state is State.LIVE), default=None)

    def close(self) -> list[str]:
        """Make no more; let every live one end. Those being made end when they are made."""
        self._closing = True
        ids = [s.sandbox_id for s in self._sandboxes.values()]
        return [sandbox_id for sandbox_id in ids if self.end(sandbox_id)]

    # -- what clients ask -----------------------------------------------------------------------------------------

    def get(self, sandbox_id: str, now: Now) -> Sandbox:
        """Return a live or paused one.

        Raises:
            Refused: 404, there is none.
        """
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is not None:
            sandbox = _seen(sandbox, now)
        if sandbox is None or sandbox.state not in SHOWN_AS:
            raise no_such_sandbox(sandbox_id)
        return sandbox

    def running(self, sandbox_id: str, now: Now) -> Sandbox:
        """Return a live one. Refused: 404, also for a paused one."""
        sandbox = self.get(sandbox_id, now)
        if sandbox.state is not State.LIVE:
            raise no_such_sandbox(sandbox_id)
        return sandbox

    def set_timeout(self, sandbox_id: str, seconds: int, now: Now) -> Sandbox:
        """Let it end `seconds` from now, later or earlier than before; 0 makes it due at once. Refused: 404."""
        sandbox = _lasting(self.running(sandbox_id, now), seconds, now)
        self._keep(sandbox)
        return sandbox

    def extend(self, sandbox_id: str, seconds: int, now: Now) -> Sandbox:
        """Let it live at least `seconds` from now; never shortens. Refused: 404."""
        sandbox = self.running(sandbox_id, now)
        if now.monotonic + seconds > sandbox.deadline:
            sandbox = _lasting(sandbox, seconds, now)
            self._keep(sandbox)
        return sandbox

    def set_network(self, sandbox_id: str, network: Network, now: Now) -> None:
        """Note what it may reach from now on. Refused: 404."""
        sandbox = self.running(sandbox_id, now)
        self._keep(replace(sandbox, wanted=replace(sandbox.wanted, network=network)))

    def page(self, query: Query, now: Now) -> Page:
        """List live and paused ones.

        Raises:
            Refused: 400, a token that this registry did not give for this order.
        """
        after = None if query.token is None else _read_token(query.token, query.order)
        descending = query.order == "desc"
        found = [s for one in self._sandboxes.values() if _matches(s := _seen(one, now), query)]
        found.sort(key=lambda s: s.number, reverse=descending)
        if after is not None:
            found = [s for s in found if (s.number < after if descending else s.number > after)]
        shown = tuple(found[: query.limit])
        return Page(shown, _write_token(shown[-1].number, query.order) if len(found) > len(shown) else None)

    def counts(self) -> dict[State, int]:
        """Count them by state."""
        states = [s.state for s in self._sandboxes.values()]
        return {state: states.count(state) for state in State}

    def unused_id(self) -> str:
        """Give an id that no sandbox has."""
        while (sandbox_id := self._new_id()) in self._sandboxes:
            pass
        return sandbox_id

    def room(self) -> int:
        """Say how many more sandboxes the cap allows."""
        return self._max_sandboxes - sum(one.has_place for one in self._sandboxes.values())

    # -- inside ---------------------------------------------------------------------------------------------------

    def _in(self, state: State, sandbox_id: str, /, **changes: Any) -> Sandbox | None:
        """Change a sandbox that is in this state; None where it is in none such."""
        sandbox = self._sandboxes.get(sandbox_id)
        if sandbox is None or sandbox.state is not state:
            return None
        sandbox = replace(sandbox, **changes)  # the names and types are those of `Sandbox`, written above
        self._keep(sandbox)
        return sandbox

    def _keep(self, sandbox: Sandbox) -> None:
        self._sandboxes[sandbox.sandbox_id] = sandbox
        if (key := sandbox.wanted.idempotency_key) is not None:
            self._keys[key].sandbox = sandbox

    def _forget_keys(self, now: Now) -> None:
        for key in list(self._ended_keys):
            forget_at = self._keys[key].forget_at
            assert forget_at is not None
            if forget_at > now.monotonic and len(self._ended_keys) <= KEYS_KEPT:
                break
            del self._ended_keys[key], self._keys[key]


def _lasting(sandbox: Sandbox, seconds: int, now: Now) -> Sandbox:
    return replace(sandbox, deadline=now.monotonic + seconds, end_at=now.wall + timedelta(seconds=seconds))


def _seen(sandbox: Sandbox, now: Now) -> Sandbox:
    """A sandbox as it counts at this moment: one whose time is up is paused or ending."""
    if sandbox.state is not State.LIVE or sandbox.deadline > now.monotonic:
        return sandbox
    return replace(sandbox, state=State.PAUSED if sandbox.wanted.auto_pause else State.ENDING)


def _matches(sandbox: Sandbox, query: Query) -> bool:
    wanted = sandbox.wanted
    return (
        sandbox.state in SHOWN_AS
        and (not query.states or SHOWN_AS[sandbox.state] in query.states)
        and (query.template is None or query.template in (wanted.template_id, wanted.alias))
        and (query.started_after is None or sandbox.started_at > query.started_after)
        and all(wanted.metadata.get(name) == value for name, value in query.metadata.items())
    )


def _write_token(number: int, order: Order) -> str:
    return base64.urlsafe_b64encode(f"{order}:{number}".encode()).decode()


def _read_token(token: str, order: Order) -> int:
    try:
        written_for, _, number = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        written_for, number = "", ""
    if written_for != order or not (number.isdecimal() and len(number) < 20):
        raise bad_request("Invalid next token")
    return int(number)
