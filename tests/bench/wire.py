"""Prints what the way through HTTP costs: code, commands and files by the SDK, beside the same work done bare.

    python tests/bench/wire.py [--repeat 50] [--json]

The floors, in the same run: an ipykernel without isolation, asked over ZMQ; `bash -l -c true` started by a program in
the same sandbox; a file server of two routes on uvicorn, for the same client. Rounds alternate between ours and the
floor, so that another load of the machine meets both. Nothing here passes or fails; what is aimed at stands beside.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass

SIZE = 64 * 1024 * 1024
STREAMS = 50
LINES = 2000

SERVER = """
import json, os, socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route

PLACE = os.path.join(sys.argv[1], "file")

async def create(request):
    made = {"templateID": "base", "sandboxID": "bare", "clientID": "c", "envdVersion": "0.6.13", "envdAccessToken": "t"}
    return JSONResponse(made, status_code=201)

async def put(request):
    with open(PLACE, "wb") as file:
        async for piece in request.stream():
            file.write(piece)
    return JSONResponse([{"name": "file", "type": "file", "path": "/file"}])

async def get(request):
    return FileResponse(PLACE)

app = Starlette(routes=[
    Route("/v2/sandboxes", create, methods=["POST"]),
    Route("/files", put, methods=["POST"]),
    Route("/files", get, methods=["GET"]),
])
sock = socket.socket()
sock.bind(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="critical", http="httptools")).run([sock])
"""


@dataclass(frozen=True)
class Figure:
    """One line: what it is, what we took, what the floor took, and how the two may be to one another."""

    name: str
    unit: str
    ours: float
    floor: float
    floor_name: str
    aim: str

    def line(self) -> str:
        ratio = self.ours / self.floor
        measured = f"{self.name:<34} {self.ours:9.2f} {self.unit:<5} {ratio:6.2f} x {self.floor:9.2f}"
        return f"{measured} {self.floor_name} ({self.aim})"


def timed(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternating(ours: Callable[[], object], floor: Callable[[], object], repeat: int) -> tuple[float, float]:
    """The median times of both, in seconds, taken in turns."""
    for warm_up in (ours, floor, ours, floor):
        warm_up()
    pairs = [(timed(ours), timed(floor)) for _ in range(repeat)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


@contextmanager
def ipykernel() -> Iterator[Callable[[], object]]:
    """An ipykernel of this environment; yields what asks it for `1` and waits for all of its answer."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield lambda: client.execute_interactive("1", output_hook=lambda message: None, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@contextmanager
def file_server() -> Iterator[str]:
    """A bare file server in a process of its own, its file on a tmpfs; yields its address."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        subprocess.Popen([sys.executable, "-c", SERVER, folder], stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()


BARE_BASH = """
import subprocess, time
times = []
for _ in range(%d):
    started = time.perf_counter()
    subprocess.run(["/bin/bash", "-l", "-c", "true"], check=True)
    times.append(time.perf_counter() - started)
sorted(times)[len(times) // 2]
"""


def measure(repeat: int) -> list[Figure]:
    """Measure everything."""
    import e2b
    from e2b_code_interpreter import Sandbox

    from sandboxkit.local._child import start_engine
    from sandboxkit.local._config import EngineConfig

    endpoint = start_engine(EngineConfig(log_level="warning")).endpoint
    where = {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}
    figures = []
    with Sandbox.create(timeout=600, **where) as sandbox:  # type: ignore[arg-type]
        with ipykernel() as ask:
            ours, floor = alternating(lambda: sandbox.run_code("1"), ask, repeat)
        figures.append(Figure('run_code("1")', "ms", ours * 1e3, floor * 1e3, "ipykernel over ZMQ", "at most 1"))

        ratios = []
        for _ in range(5):
            commands = statistics.median(timed(lambda: sandbox.commands.run("true")) for _ in range(repeat // 5 + 1))
            bare = float(sandbox.run_code(BARE_BASH % (repeat // 5 + 1)).text or "nan")
            ratios.append((commands, bare))
        ours, floor = (statistics.median(values) for values in zip(*ratios, strict=True))
        figures.append(Figure('commands.run("true")', "ms", ours * 1e3, floor * 1e3, "bash inside", "at most 3"))

        data = os.urandom(SIZE)
        with file_server() as address:
            bare_where = {"api_key": "k", "api_url": address, "sandbox_url": address}
            server = e2b.Sandbox.create("base", **bare_where)  # type: ignore[arg-type]
            for name, transfer in TRANSFERS.items():
                ours, floor = alternating(lambda: transfer(sandbox, data), lambda: transfer(server, data), 7)  # noqa: B023
                mib = SIZE / 1024 / 1024
                figures.append(Figure(name, "MiB/s", mib / ours, mib / floor, "bare file server", "at least 0.6"))

        figures.append(streams(sandbox))
    return figures


def write_form(sandbox: object, data: bytes) -> None:
    """One upload, as the SDK sends bytes by itself; the bare server keeps the form as it is."""
    sandbox.files.write("/home/user/bench", data)  # type: ignore[attr-defined]


def write(sandbox: object, data: bytes) -> None:
    """One upload of nothing but the bytes."""
    sandbox.files.write("/home/user/bench", data, use_octet_stream=True)  # type: ignore[attr-defined]


def read(sandbox: object, data: bytes) -> None:
    """One download."""
    assert len(sandbox.files.read("/home/user/bench", format="bytes")) == len(data)  # type: ignore[attr-defined]


TRANSFERS = {"64 MiB up, as a form": write_form, "64 MiB up": write, "64 MiB down": read}


def streams(sandbox: object) -> Figure:
    """Fifty commands at once: how many of their lines arrive."""
    expected = [f"{line}" for line in range(1, LINES + 1)]

    def run(_: int) -> int:
        lines = sandbox.commands.run(f"seq {LINES}", timeout=120).stdout.split()  # type: ignore[attr-defined]
        return sum(got == sent for got, sent in zip(lines, expected, strict=False))

    with ThreadPoolExecutor(STREAMS) as threads:
        arrived = sum(threads.map(run, range(STREAMS)))
    return Figure(f"lines of {STREAMS} streams at once", "lines", arrived, STREAMS * LINES, "lines sent", "exactly 1")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Print what the way through HTTP costs.")
    parser.add_argument("--repeat", type=int, default=50, help="how often each thing is done")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = measure(max(5, arguments.repeat))
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
        return
    for figure in figures:
        print(figure.line())


if __name__ == "__main__":
    main()
