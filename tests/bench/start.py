"""Prints what a sandbox's start, pause, resume and end cost through the unmodified E2B SDK, beside a stub's answers.

    python tests/bench/start.py [--repeat 20] [--many 0] [--json]

The stub is an HTTP server of the kind that the engine has, which answers every call at once and does nothing: what the
SDK, its HTTP client and the socket take is in both. `--many N` also makes N sandboxes with ready interpreters, asks
each of them to print, and says what memory they take. Where runsc is installed, lives on gVisor are measured, too.
Figures are medians in milliseconds; nothing passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2b_code_interpreter import Sandbox

from sandboxkit._types import Endpoint
from sandboxkit.local._child import start_engine
from sandboxkit.local._config import EngineConfig

TEMPLATE = "code-interpreter-v1"
STUB = """
import asyncio, json, sys
from sandboxkit.local.gateway._listener import bind, server

BODY = json.dumps({"templateID": "t", "alias": "t", "sandboxID": "i" + "a" * 19, "clientID": "c",
                   "envdVersion": "0.6.13", "envdAccessToken": "t", "domain": "localhost"}).encode()
LINES = [b'{"type": "stdout", "text": "1\\\\n", "timestamp": "2026-01-01T00:00:00Z"}\\n',
         b'{"type": "number_of_executions", "execution_count": 1}\\n', b'{"type": "end_of_execution"}\\n']

async def app(scope, receive, send):
    more = scope["method"] == "POST"
    while more:
        more = (await receive()).get("more_body", False)
    status, kind, parts = 201, b"application/json", [BODY]
    if scope["path"] == "/execute":
        status, kind, parts = 200, b"application/x-ndjson", LINES
    elif scope["path"].endswith("/pause") or scope["method"] == "DELETE":
        status, parts = 204, []
    headers = [(b"content-type", kind)]
    if scope["path"] != "/execute":
        headers.append((b"content-length", str(sum(map(len, parts))).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})

listener = bind("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
asyncio.run(server(app).serve(sockets=[listener]))
"""


@dataclass(frozen=True)
class Figure:
    """One line: what it is, the median of ours and of the stub's answer to the same call."""

    name: str
    ours: float
    stub: float

    def line(self) -> str:
        """The line as it is printed."""
        return f"{self.name:<44} {self.ours:9.2f} {self.stub:9.2f} {self.ours - self.stub:9.2f}"


def options(endpoint: Endpoint) -> dict[str, Any]:
    """The SDK's options for an endpoint."""
    return {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}


@contextlib.contextmanager
def stub() -> Iterator[Endpoint]:
    """Run the stub as a process of its own."""
    import subprocess

    process = subprocess.Popen([sys.executable, "-c", STUB], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        yield Endpoint(api_key="e2b_" + "0" * 40, api_url=url, sandbox_url=url)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def engine(warm: int, **values: Any) -> Iterator[Endpoint]:
    """Run an engine of this benchmark's own."""
    with tempfile.TemporaryDirectory() as state:
        os.chmod(state, 0o755)
        made = start_engine(EngineConfig(warm=warm, state_root=f"{state}/run", log_level="warning", **values))
        try:
            yield made.endpoint
        finally:
            made.stop()


Times = dict[str, list[float]]


def life(endpoint: Endpoint, times: Times) -> None:
    """One sandbox's life, each step timed."""

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        times.setdefault(name, []).append((time.perf_counter() - began) * 1000)
        return result

    sandbox = timed("create", lambda: Sandbox.create(template=TEMPLATE, timeout=300, **options(endpoint)))
    first = timed("first print", lambda: sandbox.run_code("print(1)"))
    assert "".join(first.logs.stdout) == "1\n", first
    timed("later print", lambda: sandbox.run_code("print(1)"))
    timed("pause", lambda: sandbox.pause())
    timed("resume", lambda: sandbox.connect(timeout=300))
    timed("kill", lambda: sandbox.kill())


def lives(endpoint: Endpoint, repeat: int, *, rest: float) -> dict[str, float]:
    """The medians of several lives; `rest` is the time between two, for the next blank to be made."""
    times: Times = {}
    life(endpoint, {})  # imports and first connections are not what is asked
    for _ in range(repeat):
        time.sleep(rest)
        life(endpoint, times)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(repeat: int) -> list[Figure]:
    """Stub, blanks and cold starts, one after another."""
    with stub() as endpoint:
        floor = lives(endpoint, repeat, rest=0.0)
    with engine(4) as endpoint:
        blank = lives(endpoint, repeat, rest=0.8)
    with engine(0) as endpoint:
        cold = lives(endpoint, repeat, rest=0.0)
    figures = [Figure(f"{name} (with a blank)", blank[name], floor[name]) for name in blank]
    figures += [Figure(f"{name} (without)", cold[name], floor[name]) for name in ("create", "first print")]
    if shutil.which(os.environ.get("SANDBOXKIT_RUNSC") or "runsc"):
        with engine(0, isolation="gvisor") as endpoint:
            strong = lives(endpoint, max(3, repeat // 4), rest=0.0)
        figures += [Figure(f"{name} (on gVisor, without)", strong[name], floor[name]) for name in strong]
    return figures


def own() -> int:
    """This process's memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """The machine's available memory in bytes."""
    from sandboxkit.local.control._blanks import memory_of_machine

    return memory_of_machine()[1]


def kernels() -> int:
    """How many interpreters there are on this machine, by what they are called: forked ones and others."""
    found = 0
    for folder in os.scandir("/proc"):
        if folder.name.isdigit():
            with contextlib.suppress(OSError), open(f"{folder.path}/cmdline", "rb") as file:
                found += file.read().split(b"\0")[1:2] == [b"/opt/sandboxkit/agent/kernel.py"]
    return found


def many(count: int) -> str:
    """Make many sandboxes, wait until each has its interpreter, have each print, and say what it took. Memory is what
    the machine has less of: the engine's and the kernel's share of each are in it, but not what this client has."""
    with engine(0, max_sandboxes=count) as endpoint:
        warm_up = Sandbox.create(template=TEMPLATE, timeout=3600, **options(endpoint))
        warm_up.run_code("print(1)")
        warm_up.kill()
        others = kernels()
        before, began = available() + own(), time.perf_counter()
        made = [Sandbox.create(template=TEMPLATE, timeout=3600, **options(endpoint)) for _ in range(count)]
        took = time.perf_counter() - began
        deadline = time.monotonic() + 60
        while kernels() < others + count and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1.0)  # the last ones are ready, and what the kernel frees late is free
        ready = kernels() - others
        idle = (before - available() - own()) / count / 2**20
        began = time.perf_counter()
        for number, sandbox in enumerate(made):
            assert "".join(sandbox.run_code(f"print({number})").logs.stdout) == f"{number}\n"
        asked = (time.perf_counter() - began) / count * 1000
        printed = (before - available() - own()) / count / 2**20
    return (
        f"{count} sandboxes: {count / took:.1f} creates/s, {ready} with a ready interpreter, {idle:.1f} MiB each; "
        f"first print {asked:.1f} ms, {printed:.1f} MiB each after it"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Print what starting and ending a sandbox costs beyond a stub.")
    parser.add_argument("--repeat", type=int, default=20, help="how many lives are measured")
    parser.add_argument("--many", type=int, default=0, help="how many sandboxes to have at once")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = compare(max(3, arguments.repeat))
    crowd = many(arguments.many) if arguments.many else None
    if arguments.json:
        print(json.dumps({"figures": [asdict(figure) for figure in figures], "many": crowd}, indent=2))
        return
    print(f"{'milliseconds':<44} {'ours':>9} {'stub':>9} {'over it':>9}")
    for figure in figures:
        print(figure.line())
    if crowd:
        print(crowd)


if __name__ == "__main__":
    main()
