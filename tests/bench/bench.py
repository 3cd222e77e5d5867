"""Prints how long the common things take, as ratios to what this machine can do at best, measured in the same run.

    python tests/bench/bench.py [--repeat 20] [--json]

The floors: the engine's own bubblewrap arguments with nothing but Python inside; an ipykernel without isolation, asked
over ZMQ; the host's own processes and files. Figures are medians; nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

MIB = 1024 * 1024
IDLE_SANDBOXES = 5


@dataclass(frozen=True)
class Figure:
    """One line: what it is, what we took, and what the floor took, in one unit."""

    name: str
    unit: str
    ours: float
    floor: float
    floor_name: str

    def line(self) -> str:
        ratio = f"{self.ours / self.floor:8.2f} x" if self.floor else "       -  "
        return f"{self.name:<44} {self.ours:9.2f} {self.unit:<4} {ratio}   {self.floor:9.2f} {self.floor_name}"


def median_ms(work: Callable[[], object], repeat: int) -> float:
    """The median time of a piece of work, in milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


# -- floors -------------------------------------------------------------------------------------------------------


def box_with_bare_python(repeat: int) -> float:
    """From nothing to the first byte printed by Python in a box of the engine's own arguments."""
    from sandboxkit.local.isolation import _argv
    from sandboxkit.local.isolation.host import _runtime
    from sandboxkit.local.isolation.seccomp import _filter

    bwrap = _runtime.wheel_bwrap() or "bwrap"
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder, name) for name in ("etc", "agent", "empty", "home", "tmp", "shm")}
        for place in places.values():
            place.mkdir()

        def once() -> None:
            seccomp, arguments = _memory(_filter.filter_for(platform.machine())), -1
            info, block = os.open(os.devnull, os.O_WRONLY), os.open(os.devnull, os.O_RDONLY)
            try:
                plan = _argv.Plan(
                    root=_runtime.host_root(),
                    python=str(python),
                    nothing=os.devnull,
                    layers=(),
                    **{name: str(place) for name, place in places.items()},
                )
                words = _argv.arguments(plan, seccomp_fd=seccomp, info_fd=info, block_fd=block)
                arguments = _memory("\0".join([*words, ""]).encode())
                command = [bwrap, "--args", str(arguments), _argv.command(0)[0], "-I", "-S", "-c", "print(1)"]
                done = subprocess.run(
                    command, env={}, pass_fds=(seccomp, info, block, arguments), stdout=subprocess.PIPE, check=True
                )
                assert done.stdout == b"1\n"
            finally:
                for fd in (seccomp, arguments, info, block):
                    if fd >= 0:
                        os.close(fd)

        return median_ms(once, repeat)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("bench")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@dataclass(frozen=True)
class KernelFloor:
    """A bare ipykernel: start to first print, a later print (milliseconds), and its memory when idle (MiB)."""

    cold: float
    warm: float
    memory: float


def bare_ipykernel(repeat: int) -> KernelFloor:
    """Ask an ipykernel on this machine, without any isolation, over ZMQ."""
    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.manager import KernelManager

    def started() -> tuple[KernelManager, BlockingKernelClient]:
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute_interactive("print(1)", output_hook=lambda message: None, timeout=60)
        return manager, client

    colds = []
    for _ in range(3):
        began = time.perf_counter()
        manager, client = started()
        colds.append((time.perf_counter() - began) * 1000)
        warm = median_ms(
            lambda c=client: c.execute_interactive("print(1)", output_hook=lambda message: None, timeout=60), repeat
        )
        pid = manager.provisioner.pid  # type: ignore[union-attr]  # set once it runs
        memory = resident({pid, *descendants(pid)}) / MIB
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return KernelFloor(cold=statistics.median(colds), warm=warm, memory=memory)


# -- memory -------------------------------------------------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, more = set(), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more} - found
        found |= more
    return found


def resident(pids: set[int]) -> int:
    """Bytes that the processes use: each shared page in equal parts where we may see that, else counted whole."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
        except OSError:
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:
                continue
    return total


# -- ours ---------------------------------------------------------------------------------------------------------


def measure(repeat: int) -> list[Figure]:
    """Measure everything, floors first."""
    box = box_with_bare_python(repeat)
    kernel = bare_ipykernel(repeat)
    host_command = median_ms(lambda: subprocess.run(["/bin/true"], check=True), repeat)
    figures = [import_time(repeat)]

    from sandboxkit import SandboxPool
    from sandboxkit.local._child import start_engine
    from sandboxkit.local._config import EngineConfig

    data = os.urandom(MIB)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        path = Path(file.name)
        host_write = median_ms(lambda: path.write_bytes(data), repeat)
        host_read = median_ms(path.read_bytes, repeat)

    began = time.perf_counter()
    # Without blanks: `start.py` measures those.
    engine = start_engine(EngineConfig(warm=0, log_level="warning"))
    figures.append(Figure("start of the engine", "ms", (time.perf_counter() - began) * 1000, box, "box + bare Python"))

    with SandboxPool(endpoint=engine.endpoint, max_live=IDLE_SANDBOXES + 2) as pool:

        def cold() -> None:
            with pool.session(None) as session:
                assert session.run_code("print(1)").stdout == "1\n"

        def create_only() -> None:
            with pool.session(None):
                pass

        cold()  # the SDK's own imports and connections are not what is asked
        created = median_ms(create_only, max(3, repeat // 2))
        first = median_ms(cold, max(3, repeat // 2))
        figures += [
            Figure("create a sandbox (and kill it)", "ms", created, box, "box + bare Python"),
            Figure("cold create to first printed result", "ms", first, box, "box + bare Python"),
            Figure("the same, beside an unisolated kernel", "ms", first, kernel.cold, "ipykernel from nothing"),
        ]
        with pool.session("warm") as session:
            session.run_code("print(1)")

            def warm() -> None:
                with pool.session("warm") as again:
                    assert again.run_code("print(1)").stdout == "1\n"

            session.files.write("mib", data)
            figures += [
                Figure("warm session to first printed result", "ms", median_ms(warm, repeat), kernel.warm, "ipykernel"),
                Figure(
                    "one command",
                    "ms",
                    median_ms(lambda: session.run_command("true"), repeat),
                    host_command,
                    "the host's own `true`",
                ),
                Figure(
                    "1 MiB written",
                    "ms",
                    median_ms(lambda: session.files.write("mib", data), repeat),
                    host_write,
                    "the host's tmpfs",
                ),
                Figure(
                    "1 MiB read",
                    "ms",
                    median_ms(lambda: session.files.read_bytes("mib"), repeat),
                    host_read,
                    "the host's tmpfs",
                ),
            ]
        before = resident(descendants(engine.pid))
        idle = [pool.session(f"idle-{number}") for number in range(IDLE_SANDBOXES)]
        for session in idle:
            session.run_code("print(1)")
        used = (resident(descendants(engine.pid)) - before) / IDLE_SANDBOXES / MIB
        figures.append(Figure("memory of an idle sandbox with its kernel", "MiB", used, kernel.memory, "ipykernel"))
    return figures


def import_time(repeat: int) -> Figure:
    """`import sandboxkit` in a new interpreter, beyond what the interpreter itself takes; the floor is the latter."""

    def start(code: str) -> float:
        return median_ms(lambda: subprocess.run([sys.executable, "-I", "-c", code], check=True), repeat)

    bare = start("pass")
    return Figure("import sandboxkit", "ms", max(0.0, start("import sandboxkit") - bare), bare, "an empty Python")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Print times as ratios to this machine's floor.")
    parser.add_argument("--repeat", type=int, default=20, help="how often each thing is done")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = measure(max(3, arguments.repeat))
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
        return
    print(f"{platform.platform()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, uid {os.getuid()}")
    print(f"{'':<44} {'ours':>9} {'':<4} {'ratio':>8}     {'floor':>9}")
    for figure in figures:
        print(figure.line())


if __name__ == "__main__":
    main()
