"""The released pools of llm-sandbox and opensandbox on a fake provider of the same costs; started by `pool.py`.

It needs neither sandboxkit nor its tests, and runs in the Python that has the two. Their sandboxes are stand-ins that
cost 50 ms to create and 5 for a run, behind the same limit of four; over it a create fails, as with a 429.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any

THREADS, USES, PLACES, CREATE, RUN = 8, 40, 4, 0.05, 0.005
TIMES = 5
logging.disable(logging.CRITICAL)


class Fake:
    """Counts sandboxes that exist."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.numbers = itertools.count(1)
        self.live: set[str] = set()
        self.created = self.most = self.over = 0

    def create(self) -> str:
        with self.lock:
            name = f"fake{next(self.numbers)}"
            self.live.add(name)
            self.created += 1
            self.most = max(self.most, len(self.live))
            self.over += len(self.live) > PLACES
        time.sleep(CREATE)
        return name

    def kill(self, name: str) -> None:
        with self.lock:
            self.live.discard(name)


def crowd(name: str, fake: Fake, use: Callable[[], None], close: Callable[[], Any], number: int = THREADS) -> None:
    """Let so many threads use 40 sandboxes, and say how that went."""
    left, lock, failed = iter(range(0)), threading.Lock(), []

    def person() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            try:
                use()
            except Exception as error:
                failed.append(type(error).__name__)

    times = []
    for _ in range(TIMES):
        left = iter(range(USES))
        threads = [threading.Thread(target=person) for _ in range(number)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        times.append(time.perf_counter() - started)
    close()
    print(
        f"{name:<52} {min(times) * 1000:8.2f} ms, {fake.created} created in {TIMES} runs, at most {fake.most} at once, "
        f"{len(failed)} of {USES * TIMES} callers failed {sorted(set(failed))}, {len(fake.live)} left",
        flush=True,
    )


def llm_sandbox(name: str, *, uses: int | None, threads: int = THREADS, run: float = RUN) -> None:
    from llm_sandbox.pool.base import ContainerPoolManager
    from llm_sandbox.pool.config import PoolConfig

    fake = Fake()

    class Session:
        container: Any = None

        def open(self) -> None:
            self.container = fake.create()

        def close(self) -> None:
            pass

    class Pool(ContainerPoolManager):
        def _create_session_for_container(self) -> Any:
            return Session()

        def _destroy_container_impl(self, container: Any) -> None:
            fake.kill(container)

        def _get_container_id(self, container: Any) -> str:
            return str(container)

        def _health_check_impl(self, container: Any) -> bool:
            return container in fake.live

    config = PoolConfig(
        max_pool_size=PLACES, min_pool_size=0, acquisition_timeout=5.0, max_container_uses=uses, enable_prewarming=False
    )
    pool = Pool(None, config, "python")

    def use() -> None:
        sandbox = pool.acquire()
        if run:
            time.sleep(run)
        pool.release(sandbox)

    crowd(f"llm-sandbox {version('llm-sandbox')}, {name}", fake, use, pool.close, threads)


def opensandbox() -> None:
    from opensandbox._pool_store import InMemoryPoolStateStore
    from opensandbox.config import ConnectionConfigSync
    from opensandbox.pool_types import PoolCreationSpec
    from opensandbox.sync.pool import SandboxPoolSync

    fake = Fake()

    class Sandbox:
        def __init__(self, name: str) -> None:
            self.id = name

        @classmethod
        def connect(cls, sandbox_id: str, *args: Any, **options: Any) -> Sandbox:
            return cls(sandbox_id)

        def renew(self, timeout: Any) -> None:
            pass

        def kill(self) -> None:
            fake.kill(self.id)

        def close(self) -> None:
            pass

    class Manager:
        def kill_sandbox(self, sandbox_id: str) -> None:
            fake.kill(sandbox_id)

        def close(self) -> None:
            pass

    pool = SandboxPoolSync(
        pool_name="bench",
        max_idle=2,
        state_store=InMemoryPoolStateStore(),
        connection_config=ConnectionConfigSync(),
        creation_spec=PoolCreationSpec(image="x"),
        warmup_skip_health_check=True,
        acquire_skip_health_check=True,
        sandbox_manager_factory=lambda *args, **options: Manager(),  # type: ignore[arg-type]
        sandbox_factory=Sandbox,  # type: ignore[arg-type]
        sandbox_creator=lambda context: Sandbox(fake.create()),  # type: ignore[arg-type,return-value]
        drain_timeout=timedelta(seconds=5),
    )
    pool.start()

    def use() -> None:
        sandbox = pool.acquire()
        time.sleep(RUN)
        sandbox.kill()
        sandbox.close()

    crowd(f"opensandbox {version('opensandbox')}, max_idle=2", fake, use, lambda: pool.shutdown(graceful=True))


def main() -> None:
    """Measure those that are there; say which are not."""
    runs: list[tuple[str, Callable[[], None]]] = [
        ("llm-sandbox", lambda: llm_sandbox("one use each", uses=1)),
        ("llm-sandbox", lambda: llm_sandbox("returned and reused with a run", uses=None, threads=PLACES)),
        ("llm-sandbox", lambda: llm_sandbox("returned and reused, no run", uses=None, run=0)),
        ("opensandbox", opensandbox),
    ]
    for name, run in runs:
        try:
            run()
        except (ImportError, PackageNotFoundError) as error:
            print(f"{name}: left out, {error}")


if __name__ == "__main__":
    main()
