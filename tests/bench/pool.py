"""Prints what a pool costs and saves: reuse, warm hand-over, a whole use, beside the raw SDK and two released pools.

    python tests/bench/pool.py [--repeat 20] [--fake-only]

On the engine: opening a session again; a warm hand-over; acquire, run, release; one `run_code` through the session, by
`await` and by the synchronous face, beside the same through the SDK's own objects. Requests are counted on the fake.

On the fake provider, whose creates take 50 ms: eight threads use 40 sandboxes on four places, with this pool and with
those of llm-sandbox and opensandbox, where a Python that has them is named by SANDBOXKIT_BENCH_PEERS (a virtual
environment with `pip install -e . llm-sandbox opensandbox`); else they are left out, by name. Nothing passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sandboxkit import AsyncSandboxPool, SandboxPool
from sandboxkit._types import Endpoint
from sandboxkit.testing import FakeProvider

PEERS = Path(__file__).with_name("pool_peers.py")
THREADS, USES, PLACES, CREATE = 8, 40, 4, 0.05


async def median_of(work: Callable[[], Awaitable[object]], repeat: int) -> float:
    """The median time of a piece of work, in milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def median_ms(work: Callable[[], object], repeat: int) -> float:
    """The same of a plain function."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def line(name: str, ours: float, theirs: float | None = None, what: str = "") -> None:
    ratio = f"{ours / theirs:7.2f} x  {theirs:9.3f} {what}" if theirs else f"           {what}"
    print(f"{name:<44} {ours:9.3f} ms {ratio}", flush=True)


# -- on the fake --------------------------------------------------------------------------------------------------


async def requests_and_reuse(repeat: int) -> None:
    """What reuse and a warm hand-over ask of the service, and what reuse costs without a network."""
    fake = FakeProvider()
    async with AsyncSandboxPool(endpoint=fake, min_warm=1) as pool:
        await pool.wait_ready()
        before = fake.calls.copy()
        held = await pool.session("a")
        used = {name: number for name, number in (fake.calls - before).items() if name != "create"}
        print(f"requests of a warm hand-over: {used} (and the next one's create, in the background)")

        async def again() -> None:
            await (await pool.session("a")).close()

        await again()
        before = fake.calls.copy()
        took = await median_of(again, repeat * 20)
        print(f"requests of opening a session that is held again: {dict(fake.calls - before)}")
        line("open a held session again, and close it", took)
        await held.close()


def crowd(acquire_and_use: Callable[[], None]) -> float:
    """Seconds until eight threads have used 40 sandboxes."""
    left = iter(range(USES))
    lock = threading.Lock()

    def person() -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            acquire_and_use()

    threads = [threading.Thread(target=person) for _ in range(THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def on_the_fake() -> None:
    """This pool and its peers, all on sandboxes that cost 50 ms to create and nothing to use."""
    for min_warm in (0, 2):
        fake = FakeProvider(create_delay=CREATE, limit=PLACES)
        with SandboxPool(endpoint=fake, max_live=PLACES, min_warm=min_warm) as pool:
            pool.wait_ready()

            def use(pool: SandboxPool = pool) -> None:
                with pool.session(None, acquire_timeout=60) as session:
                    session.run_code("1")

            took = crowd(use)
        print(
            f"{'sandboxkit':<14} min_warm={min_warm}, a new one for each use: {took:6.2f} s, {fake.created} created, "
            f"{len(fake.live)} left"
        )
    fake = FakeProvider(create_delay=CREATE, limit=PLACES)
    with SandboxPool(endpoint=fake, max_live=PLACES) as pool:

        def reuse() -> None:
            with pool.session(f"user-{threading.get_ident() % PLACES}", acquire_timeout=60) as session:
                session.run_code("1")

        took = crowd(reuse)
    print(f"{'sandboxkit':<14} four sessions, reused:           {took:6.2f} s, {fake.created} created, 0 left")
    python = os.environ.get("SANDBOXKIT_BENCH_PEERS")
    if not python:
        print("llm-sandbox, opensandbox: left out, SANDBOXKIT_BENCH_PEERS names no Python that has them")
        return
    subprocess.run([python, str(PEERS)], check=False)


# -- on the engine ------------------------------------------------------------------------------------------------


async def on_the_engine(repeat: int, endpoint: Endpoint) -> None:
    """The pool beside the SDK's own objects, on one engine."""
    from e2b_code_interpreter import AsyncSandbox

    options = {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}

    async def raw_use() -> None:
        sandbox = await AsyncSandbox.create("code-interpreter-v1", **options)  # type: ignore[arg-type]
        await sandbox.run_code("1 + 1")
        await sandbox.kill()

    async with AsyncSandboxPool(endpoint=endpoint, min_warm=2, max_live=8) as pool:
        await pool.wait_ready()

        async def use() -> None:
            async with pool.session(None) as session:
                await session.run_code("1 + 1")

        async def warm() -> None:
            async with pool.session(None):
                pass

        raw = await median_of(raw_use, repeat)
        line("acquire, run, release (warm, new each time)", await median_of(use, repeat), raw, "raw create, run, kill")
        await pool.wait_ready()
        line("warm hand-over and release", await median_of(warm, repeat))
        async with pool.session("a") as session:
            sandbox = session.sandbox
            pairs = []
            for _ in range(repeat * 5):  # in turns, so that the machine's moods meet both
                ours = await median_of(lambda: session.run_code("1 + 1"), 1)
                pairs.append((ours, await median_of(lambda: sandbox.run_code("1 + 1"), 1)))
            ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            line("session.run_code", ours, theirs, "sandbox.run_code of the SDK")


def on_the_sync_face(repeat: int, endpoint: Endpoint) -> None:
    """The synchronous face beside the SDK's synchronous object."""
    with SandboxPool(endpoint=endpoint) as pool, pool.session("a") as session:
        sandbox = session.sandbox
        sandbox.run_code("1 + 1")
        pairs = []
        for _ in range(repeat * 5):
            ours = median_ms(lambda: session.run_code("1 + 1"), 1)
            pairs.append((ours, median_ms(lambda: sandbox.run_code("1 + 1"), 1)))
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        line("the same by the synchronous face", ours, theirs, "the SDK's synchronous one")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--fake-only", action="store_true", help="leave the engine out")
    options = parser.parse_args()
    asyncio.run(requests_and_reuse(options.repeat))
    on_the_fake()
    if options.fake_only:
        return
    from sandboxkit.local._child import start_engine, stop_engines

    endpoint = start_engine().endpoint
    try:
        asyncio.run(on_the_engine(options.repeat, endpoint))
        on_the_sync_face(options.repeat, endpoint)
    finally:
        stop_engines()


if __name__ == "__main__":
    main()
