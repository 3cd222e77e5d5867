"""Prints what SafeFS costs, as ratios to what it is measured against, in the same run.

    python tests/bench/safefs.py [--repeat 30]

`confine()` against `posixpath.normpath`; operations at `enforced` on the engine against the SDK's own, which guard
nothing; the helper's against the same. Figures are medians; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import posixpath
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sandboxkit import AsyncSafeFS, AsyncSandboxPool, confine
from sandboxkit.provider._base import ProviderSandbox

PLAIN = ("a", "data/x.csv", "/home/user/deep/er/still/file.txt", "src/pkg/mod.py", "d\u00e9/.env")
ODD = ("./a//b/./c", "a/../b.txt", "/home/user//x")


async def median(work: Callable[[], Awaitable[object]], repeat: int) -> float:
    """The median time in milliseconds, after one for warmth."""
    await work()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def line(name: str, ours: float, floor: float, unit: str, wanted: str) -> None:
    print(f"{name:<44} {ours:10.3f} {unit:<3} {ours / floor:7.2f} x   {floor:10.3f}   {wanted}")


def guard() -> None:
    """The lexical guard, per path in microseconds."""

    numbers = iter(range(10**9))
    for name, kinds in (("plain", PLAIN), ("to be normalised", ODD)):
        rounds = []
        for _ in range(25):
            seen = kinds * 1000
            fresh = [f"{path}{next(numbers)}" for path in seen]  # paths that nobody has seen
            rounds.append((each(confine, fresh), each(confine, seen), each(posixpath.normpath, seen)))
        never, before, floor = (min(times) for times in zip(*rounds, strict=True))
        line(f"confine(), {name}, seen before", before, floor, "us", "<= 3")
        line(f"confine(), {name}, never seen", never, floor, "us", "<= 3")


def each(work: Callable[[str], object], paths: Sequence[str]) -> float:
    """Microseconds per path, each of them once."""
    started = time.perf_counter()
    for path in paths:
        work(path)
    return (time.perf_counter() - started) / len(paths) * 1e6


async def interleaved(
    ours: Callable[[], Awaitable[object]], theirs: Callable[[], Awaitable[object]], repeat: int
) -> tuple[float, float]:
    """Both medians, measured by turns, so that the machine's other work meets both."""
    rounds = [(await median(ours, max(repeat // 5, 1)), await median(theirs, max(repeat // 5, 1))) for _ in range(5)]
    return statistics.median(one for one, _ in rounds), statistics.median(two for _, two in rounds)


class _Plain:
    """The sandbox without the engine's own way: SafeFS then sends its helper."""

    def __init__(self, sandbox: Any) -> None:
        self.sandbox = sandbox

    async def confined(self, root: str) -> None:
        return None


for _name in [name for name in dir(ProviderSandbox) if not name.startswith("_") and name != "confined"]:
    setattr(_Plain, _name, property(lambda self, name=_name: getattr(self.sandbox, name)))


async def operations(repeat: int) -> None:
    """Operations at `enforced` against the SDK's."""
    async with AsyncSandboxPool(endpoint="local") as pool, pool.session("bench") as session:
        raw, raw_run = session.sandbox.files, session.sandbox.commands.run
        files = AsyncSafeFS(session.sandbox)
        helper = AsyncSafeFS(_Plain(session._sandbox))
        small, large = os.urandom(4096), os.urandom(16 * 1024 * 1024)
        root = "/home/user"
        await session.run_command("mkdir -p many && cd many && seq 1 10000 | xargs touch")

        def read() -> Any:
            return raw.read(f"{root}/s2", format="bytes")

        def read_by_helper() -> Any:
            return helper.read_bytes("s")

        def read_large() -> Any:
            return raw.read(f"{root}/l2", format="bytes")

        cases: list[tuple[str, Any, Any, int, str]] = [
            ("write 4 KiB", lambda: files.write("s", small), lambda: raw.write(f"{root}/s2", small), repeat, "<= 1.5"),
            ("read 4 KiB", lambda: files.read_bytes("s"), read, repeat, "<= 1.5"),
            ("write 16 MiB", lambda: files.write("l", large), lambda: raw.write(f"{root}/l2", large), 5, "<= 1.43"),
            ("read 16 MiB", lambda: files.read_bytes("l"), read_large, 5, "<= 1.43"),
            ("list 10,000 entries", lambda: files.list("many"), lambda: raw.list(f"{root}/many"), 5, "<= 1.5"),
            ("stat", lambda: files.stat("s"), lambda: raw.get_info(f"{root}/s2"), repeat, ""),
            ("exists", lambda: files.exists("s"), lambda: raw.exists(f"{root}/s2"), repeat, ""),
            ("helper: read 4 KiB", read_by_helper, read, 5, ""),
            ("helper: read 4 KiB, to a bare command", read_by_helper, lambda: raw_run("true"), 5, ""),
        ]
        for name, ours, theirs, times, wanted in cases:
            one, two = await interleaved(ours, theirs, times)
            line(name, one, two, "ms", wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=30)
    repeat = parser.parse_args().repeat
    print(f"{'':<44} {'ours':>10}     {'ratio':>9}   {'theirs':>10}   wanted")
    guard()
    asyncio.run(operations(repeat))


if __name__ == "__main__":
    main()
