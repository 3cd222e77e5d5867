"""The engine's registry against a plain model of it, in virtual time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control._registry import (
    KEYS_KEPT_FOR,
    Make,
    Now,
    Query,
    Registry,
    Repeat,
    Sandbox,
    State,
    Wanted,
)

CAP = 5
KEYS = ["a", "b", "c"]
TIMEOUTS = st.integers(min_value=1, max_value=50)
START = datetime(2026, 1, 1, tzinfo=UTC)


def wanted(timeout: int = 30, key: str | None = None, body: str = "x", **metadata: str) -> Wanted:
    return Wanted(
        template_id="base", alias="base", timeout=timeout, fingerprint=body, idempotency_key=key, metadata=metadata
    )


class RegistryLives(RuleBasedStateMachine):
    """Whatever happens in whatever order: nothing is lost, nothing is counted twice, and time is kept."""

    making = Bundle("making")
    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        numbers = itertools.count()
        self.registry = Registry(
            max_sandboxes=CAP, new_id=lambda: f"i{next(numbers)}", new_token=lambda: f"token{next(numbers)}"
        )
        self.monotonic = 100.0
        self.wall = START
        self.deadlines: dict[str, float] = {}
        self.paused: set[str] = set()
        self.stored: set[str] = set()
        self.restoring: set[str] = set()
        self.persisted: set[str] = set()
        self.old_deadlines: dict[str, float] = {}
        self.auto_pause: set[str] = set()
        self.ending: set[str] = set()
        self.ending_without_place: set[str] = set()
        self.ever: set[str] = set()
        self.made_count = self.failed_count = self.gone_count = 0
        self.in_making: set[str] = set()
        self.keys: dict[str, tuple[str, str]] = {}
        self.key_ends: dict[str, float] = {}

    def now(self) -> Now:
        return Now(self.monotonic, self.wall)

    def is_live(self, sandbox_id: str) -> bool:
        return self.deadlines.get(sandbox_id, 0.0) > self.monotonic

    def is_paused(self, sandbox_id: str) -> bool:
        """Whether it counts as paused: also where its time is up and nobody has acted on it yet."""
        waits = sandbox_id in self.deadlines and not self.is_live(sandbox_id) and sandbox_id in self.auto_pause
        return sandbox_id in self.paused | self.stored | self.restoring or waits

    @rule(
        seconds=st.floats(min_value=0, max_value=20) | st.just(KEYS_KEPT_FOR),
        jump=st.integers(min_value=-9999, max_value=9999),
    )
    def time_passes(self, seconds: float, jump: int) -> None:
        """The monotonic clock goes on; the wall clock does as it likes."""
        self.monotonic += seconds
        self.wall += timedelta(seconds=seconds + jump)

    def placed(self) -> int:
        """How many hold a place under the cap."""
        holders = (self.in_making, self.deadlines, self.paused, self.restoring, self.ending)
        return sum(len(each) for each in holders) - len(self.ending_without_place & self.ending)

    @rule(
        target=making,
        timeout=TIMEOUTS,
        key=st.none() | st.sampled_from(KEYS),
        body=st.sampled_from(["x", "y"]),
        auto_pause=st.booleans(),
    )
    def create(self, timeout: int, key: str | None, body: str, auto_pause: bool) -> str:
        if key is not None and self.key_ends.get(key, self.monotonic + 1) <= self.monotonic:
            del self.keys[key], self.key_ends[key]
        try:
            asked = replace(wanted(timeout, key, body), auto_pause=auto_pause)
            decision = self.registry.create(asked, self.now())
        except Refused as refusal:
            if refusal.status == 409:
                assert key is not None
                assert self.keys[key][1] != body
            elif refusal.status != 429:
                raise
            else:
                assert self.placed() == CAP
            return ""
        sandbox = decision.sandbox
        if isinstance(decision, Repeat):
            assert key is not None
            assert self.keys[key] == (sandbox.sandbox_id, body)
            return ""
        assert isinstance(decision, Make)
        assert key is None or key not in self.keys
        assert sandbox.sandbox_id not in self.ever
        self.ever.add(sandbox.sandbox_id)
        self.in_making.add(sandbox.sandbox_id)
        if auto_pause:
            self.auto_pause.add(sandbox.sandbox_id)
        if key is not None:
            self.keys[key] = (sandbox.sandbox_id, body)
        return sandbox.sandbox_id

    @rule(target=ids, sandbox_id=consumes(making))
    def made(self, sandbox_id: str) -> str:
        if sandbox_id:
            sandbox = self.registry.made(sandbox_id, self.now())
            assert sandbox.state is State.LIVE
            assert sandbox.started_at == self.wall
            self.in_making.remove(sandbox_id)
            self.deadlines[sandbox_id] = self.monotonic + sandbox.wanted.timeout
            self.made_count += 1
        return sandbox_id

    @rule(sandbox_id=consumes(making))
    def failed(self, sandbox_id: str) -> None:
        if sandbox_id:
            self.registry.failed(sandbox_id)
            self.in_making.remove(sandbox_id)
            self.failed_count += 1
            for key in [k for k, (named, _) in self.keys.items() if named == sandbox_id]:
                del self.keys[key]

    @rule(sandbox_id=ids, seconds=st.integers(min_value=0, max_value=50))
    def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        alive = self.is_live(sandbox_id)
        try:
            sandbox = self.registry.set_timeout(sandbox_id, seconds, self.now())
        except Refused as refusal:
            if refusal.status != 404:
                raise
            assert not alive
        else:
            assert alive
            assert sandbox.end_at == self.wall + timedelta(seconds=seconds)
            self.deadlines[sandbox_id] = self.monotonic + seconds

    @rule(sandbox_id=ids, seconds=st.integers(min_value=0, max_value=50))
    def extend(self, sandbox_id: str, seconds: int) -> None:
        alive = self.is_live(sandbox_id)
        try:
            self.registry.extend(sandbox_id, seconds, self.now())
        except Refused as refusal:
            if refusal.status != 404:
                raise
            assert not alive
        else:
            assert alive
            self.deadlines[sandbox_id] = max(self.deadlines[sandbox_id], self.monotonic + seconds)

    @rule(sandbox_id=ids)
    def end(self, sandbox_id: str) -> None:
        known = {*self.deadlines, *self.paused, *self.stored, *self.restoring}
        assert self.registry.end(sandbox_id) == (sandbox_id in known)
        self._ends(sandbox_id)

    @rule(sandbox_id=ids)
    def pause(self, sandbox_id: str) -> None:
        live, paused = self.is_live(sandbox_id), self.is_paused(sandbox_id)
        if not live:
            with pytest.raises(Refused) as refusal:
                self.registry.pause(sandbox_id, self.now())
            assert refusal.value.status == (409 if paused else 404)
            return
        assert self.registry.pause(sandbox_id, self.now()).state is State.PAUSED
        self._pauses(sandbox_id)

    @rule(sandbox_id=ids, seconds=st.integers(min_value=1, max_value=50))
    def resumed(self, sandbox_id: str, seconds: int) -> None:
        """One whose processes wait goes on with its memory; one that a box was made for has lost it."""
        if sandbox_id not in self.paused | self.restoring:
            with pytest.raises(Refused) as refusal:
                self.registry.resumed(sandbox_id, seconds, self.now())
            assert refusal.value.status == 404
            return
        resumed = self.registry.resumed(sandbox_id, seconds, self.now())
        assert (resumed.state, resumed.pause_mode, resumed.persisted) == (State.LIVE, None, False)
        assert resumed.memory_lost == (sandbox_id in self.restoring)
        self.paused.discard(sandbox_id)
        self.restoring.discard(sandbox_id)
        self.persisted.discard(sandbox_id)
        self.deadlines[sandbox_id] = self.monotonic + seconds

    @rule(sandbox_id=ids)
    def stopped(self, sandbox_id: str) -> None:
        """A pause that is done says what it has kept; of one that is in no pause nothing changes."""
        self.registry.stopped(sandbox_id)
        if sandbox_id in self.paused:
            assert self.registry.get(sandbox_id, self.now()).pause_mode == "full"

    @rule(sandbox_id=ids)
    def pause_failed(self, sandbox_id: str) -> None:
        """A pause that cannot be done leaves the sandbox the time that it had."""
        self.registry.pause_failed(sandbox_id, self.now())
        if sandbox_id in self.paused:
            self.paused.remove(sandbox_id)
            self.persisted.discard(sandbox_id)
            self.deadlines[sandbox_id] = self.old_deadlines[sandbox_id]

    @rule(sandbox_id=ids)
    def persisted_copy(self, sandbox_id: str) -> None:
        """A copy counts only while the sandbox is paused."""
        assert self.registry.persisted(sandbox_id) == (sandbox_id in self.paused)
        if sandbox_id in self.paused:
            self.persisted.add(sandbox_id)

    @rule(sandbox_id=ids, persisted=st.booleans())
    def stored_as_files(self, sandbox_id: str, persisted: bool) -> None:
        """Of a paused one there may be files alone, and then its place is free."""
        assert self.registry.stored(sandbox_id, persisted=persisted) == (sandbox_id in self.paused)
        if sandbox_id in self.paused:
            self.paused.remove(sandbox_id)
            self.stored.add(sandbox_id)
            (self.persisted.add if persisted else self.persisted.discard)(sandbox_id)

    @rule(sandbox_id=ids)
    def restore(self, sandbox_id: str) -> None:
        """A box is made for a stored one alone, and only where there is a place."""
        if sandbox_id in self.stored and self.placed() < CAP:
            assert self.registry.restoring(sandbox_id).state is State.RESTORING
            self.stored.remove(sandbox_id)
            self.restoring.add(sandbox_id)
            return
        with pytest.raises(Refused) as refusal:
            self.registry.restoring(sandbox_id)
        assert refusal.value.status == (429 if sandbox_id in self.stored else 404)

    @rule(sandbox_id=ids)
    def restore_failed(self, sandbox_id: str) -> None:
        """It is stored as before."""
        self.registry.restore_failed(sandbox_id)
        if sandbox_id in self.restoring:
            self.restoring.remove(sandbox_id)
            self.stored.add(sandbox_id)

    @rule(target=ids)
    def given_back(self) -> str:
        """What an engine before this one has kept is there again, past the cap too; and once."""
        sandbox_id = f"old{len(self.ever)}"
        kept = Sandbox(
            sandbox_id=sandbox_id,
            access_token="t",
            wanted=wanted(),
            state=State.STORED,
            started_at=START,
            end_at=START,
            deadline=0.0,
        )
        assert self.registry.given_back(kept)
        assert not self.registry.given_back(kept)
        self.ever.add(sandbox_id)
        self.stored.add(sandbox_id)
        self.persisted.add(sandbox_id)
        return sandbox_id

    @rule(sandbox_id=ids)
    def look(self, sandbox_id: str) -> None:
        """What `get` and `running` say of one sandbox is the same truth."""
        try:
            found = self.registry.get(sandbox_id, self.now())
        except Refused:
            found = None
        state = None if found is None else found.state
        expected = State.LIVE if self.is_live(sandbox_id) else State.PAUSED if self.is_paused(sandbox_id) else None
        for others, exact in ((self.stored, State.STORED), (self.restoring, State.RESTORING)):
            expected = exact if sandbox_id in others else expected
        assert state is expected
        assert found is None or found.persisted == (sandbox_id in self.persisted)
        if expected is State.LIVE:
            assert self.registry.running(sandbox_id, self.now()).state is State.LIVE
            return
        with pytest.raises(Refused) as refusal:
            self.registry.running(sandbox_id, self.now())
        assert refusal.value.status == 404

    @rule()
    def timer_fires(self) -> None:
        due = self.registry.due(self.now())
        up = {one for one, deadline in self.deadlines.items() if deadline <= self.monotonic}
        assert {(one.sandbox_id, one.action) for one in due} == {
            (one, "pause" if one in self.auto_pause else "end") for one in up
        }
        for one in due:
            (self._pauses if one.action == "pause" else self._ends)(one.sandbox_id)

    @rule(data=st.data())
    def gone(self, data: st.DataObject) -> None:
        if self.ending:
            sandbox_id = data.draw(st.sampled_from(sorted(self.ending)))
            self.registry.gone(sandbox_id, self.now())
            self.ending.remove(sandbox_id)
            self.gone_count += 1
            for key in [k for k, (named, _) in self.keys.items() if named == sandbox_id]:
                self.key_ends[key] = self.monotonic + KEYS_KEPT_FOR

    @rule(order=st.sampled_from(["asc", "desc"]), limit=st.integers(min_value=1, max_value=3))
    def pages_cover_everything_once(self, order: str, limit: int) -> None:
        found: list[str] = []
        token = None
        while True:
            query = Query(order="asc" if order == "asc" else "desc", limit=limit, token=token)
            page = self.registry.page(query, self.now())
            assert len(page.sandboxes) <= limit
            found += [s.sandbox_id for s in page.sandboxes]
            token = page.next_token
            if token is None:
                break
        known = {*self.deadlines, *self.paused, *self.stored, *self.restoring}
        assert sorted(found) == sorted(one for one in known if self.is_live(one) or self.is_paused(one))
        for name, predicate in (("running", self.is_live), ("paused", self.is_paused)):
            page = self.registry.page(Query(states=frozenset({name})), self.now())
            assert {s.sandbox_id for s in page.sandboxes} == {one for one in known if predicate(one)}

    @invariant()
    def everything_is_accounted_for(self) -> None:
        counts = self.registry.counts()
        assert counts == {
            State.MAKING: len(self.in_making),
            State.LIVE: len(self.deadlines),
            State.PAUSED: len(self.paused),
            State.STORED: len(self.stored),
            State.RESTORING: len(self.restoring),
            State.ENDING: len(self.ending),
        }
        assert len(self.ever) == self.failed_count + self.gone_count + sum(counts.values())
        assert self.placed() <= CAP
        assert self.registry.room() == CAP - self.placed()
        assert self.registry.next_deadline() == min(self.deadlines.values(), default=None)

    def _ends(self, sandbox_id: str) -> None:
        if self.deadlines.pop(sandbox_id, None) is not None or self.is_paused(sandbox_id):
            if sandbox_id in self.stored:
                self.ending_without_place.add(sandbox_id)
            for states in (self.paused, self.stored, self.restoring, self.persisted):
                states.discard(sandbox_id)
            self.ending.add(sandbox_id)

    def _pauses(self, sandbox_id: str) -> None:
        self.old_deadlines[sandbox_id] = self.deadlines.pop(sandbox_id)
        self.paused.add(sandbox_id)


TestRegistryLives = RegistryLives.TestCase
TestRegistryLives.settings = settings(stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def filled() -> tuple[Registry, Callable[[str], Sandbox], Now]:
    """A registry with room, and a way to put a live sandbox into it."""
    numbers = itertools.count()
    registry = Registry(max_sandboxes=100, new_id=lambda: f"i{next(numbers)}", new_token=lambda: "t")
    now = Now(0.0, START)

    def add(group: str = "g") -> Sandbox:
        made = registry.create(wanted(group=group), now)
        return registry.made(made.sandbox.sandbox_id, now)

    return registry, add, now


def test_a_key_outlives_its_sandbox_for_a_while(filled: tuple[Registry, Callable[[str], Sandbox], Now]) -> None:
    """A repeated request after the sandbox's end names the same sandbox, and much later makes a new one."""
    registry, _, now = filled
    first = registry.create(wanted(key="k"), now).sandbox
    registry.made(first.sandbox_id, now)
    registry.end(first.sandbox_id)
    registry.gone(first.sandbox_id, now)
    repeated = registry.create(wanted(key="k"), now)
    assert isinstance(repeated, Repeat)
    assert repeated.sandbox.sandbox_id == first.sandbox_id
    later = Now(now.monotonic + KEYS_KEPT_FOR, now.wall)
    assert isinstance(registry.create(wanted(key="k"), later), Make)


def test_what_is_made_while_the_engine_ends_is_to_be_killed(
    filled: tuple[Registry, Callable[[str], Sandbox], Now],
) -> None:
    """A box that becomes ready after the end began is not handed to anybody."""
    registry, add, now = filled
    live = add("g")
    making = registry.create(wanted(), now).sandbox
    assert registry.close() == [live.sandbox_id]
    assert registry.made(making.sandbox_id, now).state is State.ENDING
    with pytest.raises(Refused) as refusal:
        registry.create(wanted(), now)
    assert refusal.value.status == 503


def test_a_secret_is_not_shown(filled: tuple[Registry, Callable[[str], Sandbox], Now]) -> None:
    """The text form of a sandbox, which may end in a log, holds neither its token nor its environment."""
    registry, _, now = filled
    secret = Wanted(template_id="base", timeout=1, fingerprint="x", envs={"PASSWORD": "hunter2"})
    shown = repr(registry.create(secret, now))
    assert "hunter2" not in shown
    assert "access_token" not in shown
