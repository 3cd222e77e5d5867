"""The pool under threads, over the synchronous face: a state machine whose people are threads, on the fake and on the
engine.

What must hold is what the policy's machine holds it to: the cap at every moment, one sandbox for a key at a time, no
sandbox for two keys in its life, an honest answer to everybody in time, and nothing left at the end. Each person does
what it is told, one thing after the other; the machine tells, and does not wait, so that they meet as they like.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from sandboxkit import Event, SandboxPool, Session, SessionRef, TimeoutPolicy, _portal
from sandboxkit._types import Endpoint
from sandboxkit.errors import (
    KernelDied,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    ProviderError,
    ProviderUnavailable,
    RateLimited,
    SandboxLost,
    SessionBusy,
    SessionConflict,
)
from sandboxkit.pool._policy import UNSURE_ATTEMPTS
from sandboxkit.provider._endpoint import open_provider
from sandboxkit.testing import FakeProvider, Fault

HONEST = (PoolClosed, PoolFull, PoolTimeout, ProviderError, SandboxLost, SessionBusy, SessionConflict)
PEOPLE = 5
MOST_LIVE = 4
SOMEBODY = st.integers(0, PEOPLE - 1)
KEYS = st.sampled_from([None, "a", "b", "c"])
DEEDS = st.sampled_from(["run", "run", "run", "write", "write", "read", "pause", "interrupt", "restart", "die"])
OPTIONS = {
    "max_live": st.integers(1, MOST_LIVE),
    "max_waiting": st.sampled_from([None, 2]),
    "min_warm": st.sampled_from([0, 1]),
    "max_creating": st.sampled_from([None, 1]),
    "max_uses": st.sampled_from([None, 2]),
    "idle_timeout": st.sampled_from([None, 0.05]),
    "on_loss": st.sampled_from(["fail", "recreate", "replay"]),
    "timeouts": st.sampled_from([TimeoutPolicy(), TimeoutPolicy(renew="heartbeat"), TimeoutPolicy(at_end="pause")]),
}


class Person:
    """A thread that does what it is told."""

    def __init__(self, number: int) -> None:
        self.sessions: list[Session] = []
        self.failure: BaseException | None = None
        self._told: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=3)
        self._thread = threading.Thread(target=self._live, name=f"person-{number}")
        self._thread.start()

    def tell(self, work: Callable[[], None] | None) -> None:
        """Have something done, when all that was told before has been; None is the end."""
        self._told.put(work, timeout=60)

    def rest(self) -> None:
        """Wait until all is done."""
        done = threading.Event()
        self.tell(done.set)
        assert done.wait(60), "it hangs"

    def end(self) -> None:
        self.tell(None)
        self._thread.join(60)
        assert not self._thread.is_alive(), "it hangs"

    def _live(self) -> None:
        while (work := self._told.get()) is not None:
            try:
                work()
            except HONEST:
                pass  # each is an honest answer to what it was told
            except BaseException as failure:
                self.failure = self.failure or failure


class Crowd(RuleBasedStateMachine):
    """Tells people what to do; keeps the books of who had what."""

    pool: SandboxPool
    patience = 0.005, 0.1
    """Seconds of who is not patient, and of who is."""
    deadly = "true"
    """The command that ends a sandbox from within, where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.people: list[Person] = []
        self.lock = threading.Lock()
        self.keys: defaultdict[str, set[str | None]] = defaultdict(set)
        self.anonymous: Counter[str] = Counter()
        self.made: list[str] = []
        self.out: set[str] = set()
        """Handed over, and not taken up again."""
        self.most_alive = 0
        self.upset: set[str] = set()
        """Where somebody restarted the interpreter, or killed all that runs."""
        self.died: set[str | None] = set()
        """Where code met the end of its interpreter: an honest answer there, and nowhere else."""

    @initialize(options=st.fixed_dictionaries(OPTIONS))
    def begin(self, options: dict[str, Any]) -> None:
        self.cap = options["max_live"]
        self.pool = self.opened(min_warm=min(options.pop("min_warm"), self.cap), **options)
        self.pool.__enter__()
        self.people = [Person(number) for number in range(PEOPLE)]

    def opened(self, **options: Any) -> SandboxPool:
        raise NotImplementedError

    def take_in(self, event: Event) -> None:
        """What the pool tells, in its own thread: the moments at which the cap is looked at."""
        match event.name, event.sandbox_id:
            case "sandbox.created", str(sandbox_id):
                self.made.append(sandbox_id)
            case "session.detached", str(sandbox_id):
                self.out.add(sandbox_id)
            case "session.opened", str(sandbox_id):
                self.out.discard(sandbox_id)
        self.most_alive = max(self.most_alive, len(self.alive() - self.out))

    def alive(self) -> set[str]:
        raise NotImplementedError

    def note(self, session: Session, *, opened: bool) -> None:
        """Enter into the books whose a sandbox is."""
        with self.lock:
            self.keys[session.sandbox_id].add(session.key)
            self.anonymous[session.sandbox_id] += opened and session.key is None

    # -- what people do

    @rule(
        who=SOMEBODY,
        key=KEYS,
        is_patient=st.sampled_from([True, True, False]),
        does=st.lists(DEEDS, max_size=3),
        stays=st.booleans(),
        replace=st.sampled_from([False, False, False, True]),
        files=st.sampled_from([None, {"in/x": "1"}]),
        envs=st.sampled_from([None, None, None, {"N": "1"}]),
    )
    def visit(self, who: int, key: str | None, is_patient: bool, does: list[str], stays: bool, **more: Any) -> None:
        person, patience = self.people[who], self.patience[is_patient]

        def work() -> None:
            while len(person.sessions) > 1:  # nobody holds all that there is
                person.sessions.pop(0).close()
            asked_at = time.monotonic()
            try:
                session = self.pool.session(key, acquire_timeout=patience, secrets={"T": "1"}, **more)
            except PoolTimeout:
                assert time.monotonic() - asked_at >= patience - 0.01, "earlier than it said"
                raise
            self.note(session, opened=not session.losses)
            person.sessions.append(session)
            for deed in does:
                self.do(session, deed)
            if not stays:
                person.sessions.remove(session)
                session.close()

        person.tell(work)

    @rule(who=SOMEBODY, deed=DEEDS)
    def use(self, who: int, deed: str) -> None:
        person = self.people[who]
        person.tell(lambda: self.do(person.sessions[-1], deed) if person.sessions else None)

    def do(self, session: Session, deed: str) -> None:
        try:
            match deed:
                case "run":
                    try:
                        done = session.run_code("1 + 1")
                    except KernelDied as died:
                        self.died.add(died.sandbox_id)
                        return
                    assert done.text == "2" or (done.error is not None and done.error.name == "KeyboardInterrupt")
                case "write":
                    session.files.write("x", "1")
                case "read":
                    session.files.list()
                case "pause":
                    session.pause()
                case "interrupt":
                    session.interrupt()
                case "restart":
                    self.upset.add(session.sandbox_id)
                    session.restart()
                case "die":
                    self.upset.add(session.sandbox_id)
                    session.run_command(self.deadly)
        finally:
            if deed in ("restart", "die"):
                self.upset.add(session.sandbox_id)  # of the one that replaced a lost one meanwhile
            self.note(session, opened=False)

    @rule(who=SOMEBODY, how=st.sampled_from(["close", "close", "kill", "twice"]))
    def leave(self, who: int, how: str) -> None:
        person = self.people[who]

        def work() -> None:
            if not person.sessions:
                return
            session = person.sessions.pop()
            if how == "kill":
                session.kill()
            session.close()
            if how == "twice":
                session.close()

        person.tell(work)

    @rule(who=SOMEBODY)
    def hand_over(self, who: int) -> None:
        """To this very pool, as another process would: out of the books, and in again."""
        person = self.people[who]

        def work() -> None:
            if not person.sessions:
                return
            ref = SessionRef.from_json(person.sessions[-1].detach().to_json())
            person.sessions.pop()
            person.sessions.append(self.pool.attach(ref, acquire_timeout=self.patience[True]))

        person.tell(work)

    # -- what the owner and the world do

    @rule(max_live=st.integers(1, MOST_LIVE), min_warm=st.integers(0, 1), drains=st.booleans())
    def the_owner_decides(self, max_live: int, min_warm: int, drains: bool) -> None:
        if drains:
            self.pool.drain()
        else:
            self.cap = max(self.cap, max_live)
            self.pool.resize(max_live=max_live, min_warm=min_warm)

    @rule(which=st.integers(0, 4))
    def one_vanishes(self, which: int) -> None:
        """One of the last that were made, whatever it is used for."""
        if self.made:  # no precondition: what Hypothesis draws must not depend on threads
            self.crash(self.made[-1 - which % len(self.made)])

    def crash(self, sandbox_id: str) -> None:
        raise NotImplementedError

    @rule(who=SOMEBODY)
    def rest(self, who: int) -> None:
        self.people[who].rest()

    @rule()
    def all_rest(self) -> None:
        """When nobody is busy, nobody waits, and as many are in use as are held."""
        for person in self.people:
            person.rest()
        stats = self.pool.stats()
        held = {session.sandbox_id for person in self.people for session in person.sessions}
        assert stats["waiting"] == 0
        assert stats["in_use"] <= len(held)
        assert stats["live"] == sum(stats[name] for name in ("creating", "in_use", "idle", "warm", "killing"))

    # -- what must hold

    @invariant()
    def nobody_was_surprised(self) -> None:
        for person in self.people:
            if person.failure is not None:
                raise person.failure

    @invariant()
    def the_cap_holds(self) -> None:
        assert not self.people or self.most_alive <= self.cap

    @invariant()
    def a_sandbox_serves_one_session(self) -> None:
        with self.lock:
            assert all(len(keys) == 1 for keys in self.keys.values())
            assert all(times <= 1 for times in self.anonymous.values())

    def teardown(self) -> None:
        """Closed while people are busy: each ends with an honest answer, and nothing is left."""
        if not self.people:
            return
        left = self.pool.close()
        for person in self.people:
            person.end()
        self.nobody_was_surprised()
        self.the_cap_holds()
        self.a_sandbox_serves_one_session()
        assert left == ()
        assert self.died <= self.upset
        assert self.pool.stats()["in_use"] == self.pool.stats()["waiting"] == 0
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        raise NotImplementedError


class CrowdOnTheFake(Crowd):
    """With every fault that a service can have."""

    def opened(self, **options: Any) -> SandboxPool:
        self.fake, self.searches_that_fail = FakeProvider(create_delay=0.001), 0
        return SandboxPool(endpoint=self.fake, on_event=self.take_in, **options)

    def alive(self) -> set[str]:
        return set(self.fake.live)

    def crash(self, sandbox_id: str) -> None:
        async def crash() -> None:
            self.fake.crash(sandbox_id)

        _portal.current().call(crash)  # the fake is no thread's but the loop's

    @rule(
        operation=st.sampled_from(
            ["create", "create", "kill", "extend", "files", "list", "run_code", "connect", "info"]
        ),
        fault=st.builds(
            Fault,
            delay=st.sampled_from([0.0, 0.02]),
            error=st.sampled_from([None, ProviderUnavailable("503")]),
            after_commit=st.booleans(),
        )
        | st.just(Fault(error=RateLimited("429"))),
    )
    def something_fails(self, operation: Any, fault: Fault) -> None:
        self.searches_that_fail += operation == "list"
        if operation != "list" or self.searches_that_fail < UNSURE_ATTEMPTS:  # after so many it gives up, as it says
            self.fake.inject(operation, fault)

    def nothing_is_left(self) -> None:
        assert self.fake.live <= self.out
        assert self.fake.created == len(self.fake.ended) + len(self.fake.live)


def sized(examples: int, steps: int) -> settings:
    """What fails once need not fail again, since threads meet as they like: nothing is made simple."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
def test_threads_on_the_fake() -> None:
    """Whatever five threads do, in whatever order, with faults of every kind: all ends well, and nothing is left."""
    run_state_machine_as_test(CrowdOnTheFake, settings=sized(12, 40))


@pytest.mark.full
@pytest.mark.timeout(900)
def test_threads_on_the_fake_for_long() -> None:
    """The same for longer."""
    run_state_machine_as_test(CrowdOnTheFake, settings=sized(300, 50))


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(900)
def test_threads_on_the_engine_with_real_kills(engine: Endpoint) -> None:
    """Sandboxes are killed behind the pool's back, and from within, while threads work in them; at the end the engine
    has none."""
    provider, numbers = open_provider(engine), itertools.count(time.time_ns())

    class CrowdOnTheEngine(Crowd):
        patience = 0.05, 2.0
        deadly = "kill -9 -1"  # the agent too: from outside, the sandbox is gone

        def opened(self, **options: Any) -> SandboxPool:
            self.name = f"crowd-{next(numbers)}"
            self.ended = set[str]()
            return SandboxPool(endpoint=engine, name=self.name, on_event=self.take_in, **options)

        def take_in(self, event: Event) -> None:
            if event.name == "sandbox.killed" and event.sandbox_id is not None:
                self.ended.add(event.sandbox_id)
            super().take_in(event)

        def alive(self) -> set[str]:
            return set(self.made) - self.ended

        def crash(self, sandbox_id: str) -> None:
            asyncio.run(provider.kill(sandbox_id))

        def nothing_is_left(self) -> None:
            async def left() -> set[str]:
                found = provider.list(metadata={"sandboxkit.pool": self.name})
                return {info.sandbox_id async for info in found}

            async def kill_those_handed_over() -> None:
                for sandbox_id in self.out:
                    await provider.kill(sandbox_id)

            assert asyncio.run(left()) <= self.out
            asyncio.run(kill_those_handed_over())
            assert asyncio.run(left()) == set()

    run_state_machine_as_test(CrowdOnTheEngine, settings=sized(20, 30))
