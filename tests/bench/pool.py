"""Prints what a pool costs and saves: reuse, warm hand-over, a whole use, beside the raw SDK and two released pools.

    python tests/bench/pool.py [--repeat 20] [--fake-only]

On the engine: opening a session again; a warm hand-over; acquire, run, release; one `run_code` through the session, by
`await` and by the synchronous face, beside the same through the SDK's own objects; a web app's first answer from a
warm sandbox in which its server runs already, where its template is built. Requests are counted on the fake. What
stands side by side is measured in turns, in an order that chance shuffles, so that the machine's moods meet all.

On the fake provider, whose creates take 50 ms: threads acquire, run (5 ms of sleep, for all alike) and release 40 times
on four places, with this pool and with those of llm-sandbox and opensandbox, where a Python that has them is named by
SANDBOXKIT_BENCH_PEERS (a virtual environment with `pip install -e . llm-sandbox opensandbox`); else they are left out,
by name. Nothing passes or fails.

Of "returned and reused" there are four more lines, without a run, since llm-sandbox's does less: it is a lock in the
caller's thread, and hands a sandbox on as it was left, to whoever comes, without asking whether it is there. Ours asks
at each hand-over (one request, for nothing on the fake), unless somebody holds the session; and the synchronous face
crosses to the event loop and back twice a use, which 80 empty crossings are shown for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from sandboxkit import AsyncSandboxPool, Fragment, SandboxPool, Template, _portal
from sandboxkit._types import Endpoint
from sandboxkit.errors import SandboxkitError
from sandboxkit.testing import FakeProvider

PEERS = Path(__file__).with_name("pool_peers.py")
WEB = "streamlit-developer"
THREADS, USES, PLACES, CREATE, RUN = 8, 40, 4, 0.05, 0.005
TIMES = 5
"""How often the crowd comes; the best time counts, since a machine has other things to do."""


def in_turns(works: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """The median times of several plain functions, each as often as the others, in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for _ in range(repeat):
        random.shuffle(names)
        for name in names:
            started = time.perf_counter()
            works[name]()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) * 1000 for name, taken in times.items()}


async def median_of(work: Callable[[], Awaitable[object]], repeat: int) -> float:
    """The median time of a piece of work, in milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await work()
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


def crowd(acquire_and_use: Callable[[int], object], number: int = THREADS) -> float:
    """Seconds until so many threads have used 40 sandboxes."""
    left = iter(range(USES))
    lock = threading.Lock()

    def person(who: int) -> None:
        while True:
            with lock:
                if next(left, None) is None:
                    return
            acquire_and_use(who)

    threads = [threading.Thread(target=person, args=[who]) for who in range(number)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def said(name: str, took: float, fake: FakeProvider) -> None:
    made = f"{fake.created} created in {TIMES} runs"
    print(f"{f'sandboxkit, {name}':<52} {took * 1000:8.2f} ms, {made}, {len(fake.live)} left", flush=True)


def on_the_fake_again() -> None:
    """A sandbox of one's own for each of four threads, returned and reused with a run in between; then one session,
    opened and closed 40 times by eight threads or tasks without a run, with what peers leave out and without it."""
    fake = FakeProvider(create_delay=CREATE, limit=PLACES)
    with SandboxPool(endpoint=fake, max_live=PLACES) as pool:

        def use(who: int) -> None:
            with pool.session(f"user {who}", acquire_timeout=60):
                time.sleep(RUN)

        took = min(crowd(use, PLACES) for _ in range(TIMES))
    said(f"returned and reused, {PLACES} threads, each with a run", took, fake)
    fake = FakeProvider(create_delay=CREATE, limit=PLACES)
    with SandboxPool(endpoint=fake, max_live=PLACES) as pool:

        def reuse(_: int) -> None:
            with pool.session("user", acquire_timeout=60):
                pass

        reuse(0)
        took = min(crowd(reuse) for _ in range(TIMES))
        with pool.session("user"):
            held = min(crowd(reuse) for _ in range(TIMES))
    portal = _portal.current()
    crossings = min(crowd(lambda _: (portal.call(nothing), portal.call(nothing))) for _ in range(TIMES))
    said("returned and reused, no run", took, fake)
    said("the same while somebody holds it: unasked", held, fake)
    print(f"{'  of that, 80 empty crossings to the event loop':<52} {crossings * 1000:8.2f} ms", flush=True)
    fake = FakeProvider(create_delay=CREATE, limit=PLACES)
    said("the same, asynchronous: tasks, no crossings", asyncio.run(crowd_of_tasks(fake)), fake)


async def nothing() -> None:
    """What costs nothing but its way."""


async def crowd_of_tasks(fake: FakeProvider) -> float:
    """Seconds until eight tasks have opened one held session 40 times."""
    async with AsyncSandboxPool(endpoint=fake, max_live=PLACES) as pool, pool.session("user"):

        async def person(left: Iterator[int]) -> None:
            for _ in left:
                async with pool.session("user", acquire_timeout=60):
                    pass

        times = []
        for _ in range(TIMES):
            left = iter(range(USES))
            started = time.perf_counter()
            await asyncio.gather(*(person(left) for _ in range(THREADS)))
            times.append(time.perf_counter() - started)
        return min(times)


def on_the_fake() -> None:
    """This pool and its peers, all on sandboxes that cost 50 ms to create, and 5 for a run."""
    # Ten places, and two warm: as many as opensandbox takes, whatever the limit.
    for places, min_warm in ((PLACES, 0), (PLACES, 2), (10, 2)):
        fake = FakeProvider(create_delay=CREATE, limit=places)
        with SandboxPool(endpoint=fake, max_live=places, min_warm=min_warm) as pool:
            pool.wait_ready()

            def use(_: int, pool: SandboxPool = pool) -> None:
                with pool.session(None, acquire_timeout=60):
                    time.sleep(RUN)

            took = min(crowd(use) for _ in range(TIMES))
        said(f"one use each, {places} places, {min_warm} warm", took, fake)
    on_the_fake_again()
    python = os.environ.get("SANDBOXKIT_BENCH_PEERS")
    if not python:
        print("llm-sandbox, opensandbox: left out, SANDBOXKIT_BENCH_PEERS names no Python that has them")
        return
    subprocess.run([python, str(PEERS)], check=False)


async def tenfold(work: Callable[[], Awaitable[object]]) -> None:
    for _ in range(10):
        await work()


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

        pairs = []
        for _ in range(repeat):  # in turns, so that the machine's moods meet both
            await pool.wait_ready()
            pairs.append((await median_of(use, 1), await median_of(raw_use, 1)))
        ours, raw = (statistics.median(column) for column in zip(*pairs, strict=True))
        line("acquire, run, release (a warm one each)", ours, raw, "raw create, run, kill")
        together = []
        for _ in range(5):  # ten uses in a row, with no time to fill the stock between them
            ten = [await median_of(repeated, 1) for repeated in (lambda: tenfold(use), lambda: tenfold(raw_use))]
            together.append((ten[0] / 10, ten[1] / 10))
        ours, raw = (statistics.median(column) for column in zip(*together, strict=True))
        line("  ten of them without a break, each", ours, raw, "raw create, run, kill")
        await pool.wait_ready()
        line("warm hand-over and release", await median_of(warm, repeat))
        async with pool.session("a") as session:
            raw = await AsyncSandbox.connect(session.sandbox_id, timeout=600, **options)  # type: ignore[arg-type]
            pair = [session, raw]
            times: dict[object, list[float]] = {session: [], raw: []}
            for _ in range(repeat * 10):
                random.shuffle(pair)
                for one in pair:
                    times[one].append(await median_of(lambda one=one: one.run_code("1 + 1"), 1))
            line("session.run_code", *map(statistics.median, times.values()), "sandbox.run_code of the SDK")


def on_the_sync_face(repeat: int, endpoint: Endpoint) -> None:
    """The synchronous face beside the SDK's synchronous object, and beside the asynchronous one that it stands on."""
    with SandboxPool(endpoint=endpoint) as pool, pool.session("a") as session:
        sandbox, beneath, portal = session.sandbox, session._async.sandbox, _portal.current()
        works: dict[str, Callable[[], object]] = {
            "ours": lambda: session.run_code("1 + 1"),
            "sync": lambda: sandbox.run_code("1 + 1"),
            "async": lambda: portal.call(beneath.run_code, "1 + 1"),
        }
        in_turns(works, 5)
        took = in_turns(works, repeat * 15)
        loop = type(portal.loop).__module__.partition(".")[0]
        line(f"the same by the synchronous face ({loop})", took["ours"], took["sync"], "the SDK's synchronous one")
        line("  beside what it stands on", took["ours"], took["async"], "its asynchronous one, by the same crossing")


def a_web_app(repeat: int, endpoint: Endpoint) -> None:
    """A web template's first answer from a warm sandbox in which its server runs already, and a fragment's."""
    import httpx
    from e2b import Sandbox, SandboxQuery

    template = Template.get(WEB)
    options = {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}
    asks = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{template.port}', timeout=5)"
    firsts, runs = [], []
    with SandboxPool(endpoint=endpoint, template=WEB, min_warm=1, max_live=2, name="bench-web") as pool:
        for number in range(repeat):
            pool.wait_ready(timeout=120)
            query = SandboxQuery(metadata={"sandboxkit.pool": "bench-web"})
            (warm,) = Sandbox.list(query=query, **options).next_items()  # type: ignore[arg-type]
            sandbox = Sandbox.connect(warm.sandbox_id, timeout=600, **options)  # type: ignore[arg-type]
            while sandbox.commands.run(f'python3 -c "{asks}" || true').stderr:
                time.sleep(0.5)
            started = time.perf_counter()
            with pool.session(None) as session:
                assert httpx.get(session.url(template.port or 0), timeout=30).status_code == 200
                firsts.append(time.perf_counter() - started)
                started = time.perf_counter()
                done = session.run(Fragment(template=WEB, code=f"import streamlit as st\nst.write({number})\n"))
                assert done.app is not None
                assert httpx.get(done.app.url, timeout=30).status_code == 200
                runs.append(time.perf_counter() - started)
    line(f"{WEB}, warm: session, url, answer", statistics.median(firsts) * 1000)
    line("  a fragment in it: files, check, answer", statistics.median(runs) * 1000)


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
    from sandboxkit.local import images
    from sandboxkit.local._child import start_engine, stop_engines

    endpoint = start_engine().endpoint
    try:
        asyncio.run(on_the_engine(options.repeat, endpoint))
        on_the_sync_face(options.repeat, endpoint)
        try:
            images.find(WEB)
        except SandboxkitError:
            print(f"{WEB}: left out, it is not built (`sandboxkit templates build {WEB}`)")
        else:
            a_web_app(3, endpoint)
    finally:
        stop_engines()


if __name__ == "__main__":
    main()
