"""The pool under threads, over the synchronous face: random plans of many threads, on the fake and on the engine.

What must hold is what the policy's machine holds it to: the cap at every moment, one sandbox for a key at a time, no
sandbox for two keys in its life, an honest answer to everybody in time, and nothing left at the end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from sandboxkit import NullSandboxPool, SandboxPool, TimeoutPolicy
from sandboxkit._types import Endpoint
from sandboxkit.errors import (
    PoolClosed,
    PoolFull,
    PoolTimeout,
    ProviderError,
    ProviderUnavailable,
    SandboxLost,
    SessionBusy,
    SessionConflict,
)
from sandboxkit.testing import FakeProvider, Fault

HONEST = (PoolClosed, PoolFull, PoolTimeout, ProviderError, SandboxLost, SessionBusy, SessionConflict)


class Crowd:
    """Threads that open sessions, work in them and end them, each by its own plan, and the books of who had what."""

    def __init__(self, pool: SandboxPool, seed: int, kill: Any) -> None:
        self.pool = pool
        self.seed = seed
        self.kill = kill
        self.lock = threading.Lock()
        self.keys: defaultdict[str, set[str | None]] = defaultdict(set)
        self.anonymous: defaultdict[str, int] = defaultdict(int)
        self.failures: list[BaseException] = []
        self.served = 0
        self.most = 0

    def run(self, threads: int, rounds: int) -> None:
        crowd = [threading.Thread(target=self._person, args=(number, rounds)) for number in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def _person(self, number: int, rounds: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        try:
            for _ in range(rounds):
                self._once(chance)
        except BaseException as error:
            self.failures.append(error)

    def _once(self, chance: random.Random) -> None:
        key = chance.choice([None, "a", "b", "c"])
        patience = chance.choice([0.05, 5.0, 20.0])
        asked_at = time.monotonic()
        try:
            with self.pool.session(
                key, acquire_timeout=patience, replace=chance.random() < 0.1, secrets={"T": "1"}
            ) as session:
                with self.lock:
                    if not session.losses:
                        self.keys[session.sandbox_id].add(key)
                        self.anonymous[session.sandbox_id] += key is None
                    self.served += 1
                    self.most = max(self.most, self.pool.stats()["live"])
                assert session.run_code("1 + 1").text == "2"
                match chance.randrange(8):
                    case 0:
                        session.kill()
                    case 1:
                        self.kill(session.sandbox_id)
                    case 2:
                        session.pause()
                    case 3:
                        session.files.write("x", "1")
                    case 4:
                        session.interrupt()
        except HONEST as error:
            if isinstance(error, PoolTimeout):
                assert time.monotonic() - asked_at >= patience - 0.01, "earlier than it said"

    def check(self) -> None:
        assert self.served > 0
        assert self.most <= self.pool.stats()["max_live"]
        for sandbox_id, keys in self.keys.items():
            assert len(keys) == 1, f"{sandbox_id} served {keys}"
        assert all(times <= 1 for times in self.anonymous.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(n, marks=pytest.mark.full) for n in range(3, 60))])
def test_threads_on_the_fake(seed: int) -> None:
    """Eight threads with faults of every kind: all ends well, and nothing is left."""
    chance = random.Random(seed)
    fake = FakeProvider(create_delay=0.001)
    for _ in range(6):
        operation: Any = chance.choice(["create", "kill", "extend", "files", "list", "run_code"])
        fault = Fault(
            delay=chance.choice([0.0, 0.02]),
            error=chance.choice([None, ProviderUnavailable("503")]),
            after_commit=chance.random() < 0.3,
        )
        fake.inject(operation, fault)
    with SandboxPool(
        endpoint=fake,
        max_live=3,
        max_waiting=chance.choice([None, 4]),
        min_warm=chance.choice([0, 1]),
        on_loss=chance.choice(["fail", "recreate", "replay"]),
        max_creating=chance.choice([None, 1]),
    ) as pool:
        crowd = Crowd(pool, seed, fake.crash)
        crowd.run(8, 12)
        crowd.check()
        assert pool.stats()["in_use"] == pool.stats()["waiting"] == 0
    assert fake.live == frozenset()
    assert fake.created == len(fake.ended)


@pytest.mark.engine
@pytest.mark.full
@pytest.mark.timeout(300)
def test_threads_on_the_engine_with_real_kills(engine: Endpoint) -> None:
    """Sandboxes are killed behind the pool's back while threads work in them; at the end the engine has none."""
    import asyncio

    from sandboxkit.provider._endpoint import open_provider

    name = f"crowd-{time.time_ns()}"
    killer = open_provider(engine)

    def kill(sandbox_id: str) -> None:
        asyncio.run(killer.kill(sandbox_id))

    async def left() -> list[str]:
        return [info.sandbox_id async for info in killer.list(metadata={"sandboxkit.pool": name})]

    with SandboxPool(endpoint=engine, name=name, max_live=4, min_warm=1, on_loss="recreate") as pool:
        pool.wait_ready(timeout=60)
        crowd = Crowd(pool, 1, kill)
        crowd.run(6, 12)
        crowd.check()
        assert pool.stats()["lost"] > 0
    assert asyncio.run(left()) == []


@pytest.mark.engine
@pytest.mark.slow
def test_a_session_on_the_engine_survives_all_of_it(engine: Endpoint) -> None:
    """Warm with environment, secret and files; paused and gone on; interrupted; handed on; killed and replayed."""
    timeouts = TimeoutPolicy(lifetime=120, renew="heartbeat")
    with (
        SandboxPool(endpoint=engine, min_warm=1, on_loss="replay", timeouts=timeouts, owner="crowd") as pool,
        NullSandboxPool(endpoint=engine, owner="crowd") as other,
    ):
        pool.wait_ready(timeout=50)
        read = "import os\n(os.environ.get('N'), os.environ.get('T'), open('in/x.txt').read())"
        session = pool.session("a", envs={"N": "1"}, secrets={"T": "2"}, files={"in/x.txt": "x"})
        assert pool.stats()["from_warm"] == 1
        assert session.run_code(read).text == "('1', '2', 'x')"
        session.run_code("y = 5")
        session.pause()
        assert session.run_code("y").text == "5"
        interrupted: list[Any] = []
        worker = threading.Thread(
            target=lambda: interrupted.append(session.run_code("import time\nwhile True:\n    time.sleep(0.01)"))
        )
        worker.start()
        while not session.interrupt():
            time.sleep(0.01)
        worker.join(30)
        assert interrupted[0].error.name == "KeyboardInterrupt"
        assert session.run_code("y").text == "5"
        first = session.sandbox_id
        assert other.attach(session.detach()).run_code("y").text == "5"
        session = pool.session("a", envs={"N": "1"}, secrets={"T": "2"}, files={"in/x.txt": "x"})
        assert session.sandbox_id != first
        session.sandbox.kill()
        assert session.run_code(read).text == "('1', '2', 'x')"
        assert session.losses[0].restored == ("/home/user/in/x.txt",)
