"""Prints what web apps cost in a sandbox, as ratios to the same servers started by hand on this machine.

    python tests/bench/apps.py [first] [warm] [idle] [preview] [--repeat 3] [--idle 10] [--template NAME ...]

- first: seconds from nothing to an answer to HTTP, with the template built: a session, a fragment run in it, and one
  request; by hand the template's start command in a copy of its files, asked until it answers.
- warm: seconds to the same answer from a warm pool, whose server runs already.
- idle: memory of ten idle Next.js previews, as PSS of all their processes, and ten by hand.
- preview: requests a second and a body of 16 MiB through the preview, and directly from the same server by hand.

All four without a name. Templates that are not built are left out, by name. Nothing passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sandboxkit import Fragment, SandboxPool, Template, TimeoutPolicy
from sandboxkit._types import Endpoint
from sandboxkit.local import images
from sandboxkit.local._child import start_engine
from sandboxkit.local._config import EngineConfig

APPS = ("streamlit-developer", "gradio-developer", "nextjs-developer", "vue-developer")
MIB = 1024 * 1024
PATIENCE = 180.0
PYTHON = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()

SERVER = '''
"""Answers /small and /large, and keeps connections: as little of a server as can be."""
import asyncio, sys

async def serve(reader, writer):
    while True:
        try:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
        except asyncio.IncompleteReadError:
            break
        body = BODY if head.startswith(b"GET /large") else b"x" * 100
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
        await writer.drain()
    writer.close()

async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()

BODY = bytes(range(256)) * 65536
asyncio.run(main())
'''


# -- by hand ------------------------------------------------------------------------------------------------------


class ByHand:
    """A copy of a template's files, in which its server is started without a sandbox."""

    def __init__(self, name: str, place: Path) -> None:
        self.template, self.built = Template.get(name), images.find(name)
        self.home, self.env = place / "home", place / "env"
        (layer,) = self.built.layers
        for target, sources in ((self.env, (layer.source, *layer.below)), (self.home, self.built.overlays[0].lowers)):
            for source in reversed(sources):
                subprocess.run(["cp", "-a", "--no-target-directory", source, target], check=True)

    def start(self, port: int, home: Path | None = None) -> subprocess.Popen[bytes]:
        """Start the template's command, on a port of its own."""
        assert self.template.start is not None
        line = self.template.start.replace(str(self.template.port), str(port))
        packages = next(self.env.glob("lib/python3.*/site-packages"), None)
        environment = {**os.environ, **self.built.envs, "HOME": str(home or self.home)}
        environment["PATH"] = f"{self.env}/bin:{os.environ['PATH']}"
        if self.template.language == "python":
            # The scripts of the environment name the Python of a sandbox.
            line = line.replace("streamlit run", f"{PYTHON} -m streamlit run").replace("python3 ", f"{PYTHON} ")
            environment |= {"PYTHONPATH": str(packages), "GRADIO_SERVER_PORT": str(port)}
        return subprocess.Popen(
            ["bash", "-c", line],
            cwd=home or self.home,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server that was started by hand, with all its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ask(url: str) -> int | None:
    """The status of an answer, None where there is none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.request("GET", parts.path or "/")
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except OSError:
        return None
    finally:
        connection.close()


def until_it_answers(url: str) -> None:
    """Ask until there is an answer that is no error."""
    deadline = time.monotonic() + PATIENCE
    while (status := ask(url)) is None or status >= 400:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} did not answer: {status}")
        time.sleep(0.05)


# -- first answers ------------------------------------------------------------------------------------------------


def the_same_page(name: str) -> Fragment:
    """A fragment of what the template has anyway: what is measured is the way to its answer."""
    file = Template.get(name).file
    places = (Path(lower) / file for lower in images.find(name).overlays[0].lowers)
    return Fragment(template=name, code=next(place for place in places if place.is_file()).read_text())


def a_changed_page(name: str) -> Fragment:
    """The same with a blank line more, so that it is written, and loaded anew."""
    page = the_same_page(name)
    return page.model_copy(update={"code": f"{page.code}\n"})


def seconds_in_a_sandbox(pool: SandboxPool, page: Fragment) -> float:
    """From nothing to an answer."""
    began = time.perf_counter()
    with pool.session(None, template=page.template) as session:
        app = session.run(page).app
        assert app is not None
        assert ask(app.url) == 200
        return time.perf_counter() - began


def seconds_by_hand(hand: ByHand, port: int) -> float:
    """The same by hand."""
    began = time.perf_counter()
    process = hand.start(port)
    try:
        until_it_answers(f"http://127.0.0.1:{port}{hand.template.ready}")
        return time.perf_counter() - began
    finally:
        end(process)


def first(names: list[str], repeat: int, endpoint: Endpoint) -> None:
    """One line for each template; in turns, so that the machine's moods meet both."""
    for name in names:
        with (
            tempfile.TemporaryDirectory(dir="/var/tmp") as place,
            SandboxPool(endpoint=endpoint, timeouts=TimeoutPolicy(ready=PATIENCE)) as pool,
        ):
            hand = ByHand(name, Path(place))
            pairs = []
            for number in range(repeat + 1):
                pairs.append((seconds_in_a_sandbox(pool, the_same_page(name)), seconds_by_hand(hand, 21_000 + number)))
            ours, theirs = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        line(f"first answer of {name}", ours, theirs, "s")


def warm(names: list[str], repeat: int, endpoint: Endpoint) -> None:
    """From a pool that has one ready."""
    for name in names:
        with SandboxPool(endpoint=endpoint, min_warm={name: 1}, timeouts=TimeoutPolicy(ready=PATIENCE)) as pool:
            for what, page in (("the same page", the_same_page(name)), ("a changed page", a_changed_page(name))):
                times = []
                for _ in range(repeat):
                    pool.wait_ready(timeout=PATIENCE)
                    times.append(seconds_in_a_sandbox(pool, page))
                print(f"{f'warm {name}, {what}':<44} {statistics.median(times):9.3f} s", flush=True)
            assert pool.stats()["from_warm"] == 2 * repeat


# -- memory -------------------------------------------------------------------------------------------------------


def memory_below(roots: set[int]) -> float:
    """PSS of processes and of all that they have started, in MiB."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    total = 0
    for pid in parents:
        above = pid
        while above not in roots and above in parents:
            above = parents[above]
        if above in roots:
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += next(int(one.split()[1]) for one in rollup.splitlines() if one.startswith("Pss:"))
    return total / 1024


def children(pid: int) -> set[int]:
    """The processes that a process has started."""
    return {int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()}


def idle(count: int, endpoint: Endpoint, engine: int) -> None:
    """Next.js previews, answered once each and left alone; the engine's own memory counts as ours."""
    name = "nextjs-developer"
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        hand = ByHand(name, place)
        pool = SandboxPool(endpoint=endpoint, template=name, max_live=count, timeouts=TimeoutPolicy(ready=PATIENCE))
        stack.enter_context(pool)
        for _ in range(count):
            app = stack.enter_context(pool.session(None)).run(the_same_page(name)).app
            assert app is not None
            until_it_answers(app.url)
        time.sleep(10)
        ours = memory_below({engine})
        processes = []
        for number in range(count):
            home = place / f"home{number}"
            shutil.copytree(hand.home, home, symlinks=True, ignore=shutil.ignore_patterns("node_modules"))
            subprocess.run(["cp", "-al", hand.home / "node_modules", home / "node_modules"], check=True)
            processes.append(hand.start(22_000 + number, home))
            stack.callback(end, processes[-1])
            until_it_answers(f"http://127.0.0.1:{22_000 + number}/")
        time.sleep(10)
        theirs = memory_below({process.pid for process in processes})
    line(f"memory of {count} idle Next.js previews", ours, theirs, "MiB")


# -- throughput ---------------------------------------------------------------------------------------------------


def requests_per_second(url: str, *, seconds: float = 3.0, clients: int = 8) -> float:
    """Small answers over connections that are kept."""
    parts, counts = urlsplit(url), [0] * clients
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        while time.perf_counter() < until:
            connection.request("GET", "/small")
            connection.getresponse().read()
            counts[number] += 1
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def seconds_for_a_body(url: str) -> float:
    """16 MiB, by one request."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    began = time.perf_counter()
    connection.request("GET", "/large")
    answer, size = connection.getresponse(), 0
    while piece := answer.read(MIB):
        size += len(piece)
    assert size == 16 * MIB
    connection.close()
    return time.perf_counter() - began


def preview(repeat: int, endpoint: Endpoint) -> None:
    """The same server in a sandbox and by hand, in turns."""
    with SandboxPool(endpoint=endpoint, template="base") as pool, pool.session(None) as session:
        session.files.write("server.py", SERVER)
        session.run_command(["python3", "server.py", "8000"], background=True)
        by_hand = subprocess.Popen([PYTHON, "-c", SERVER, "23000"])
        inside, outside = session.url(8000), "http://127.0.0.1:23000"
        try:
            for url in (inside, outside):
                until_it_answers(f"{url}/small")
            rates = [(requests_per_second(inside), requests_per_second(outside)) for _ in range(repeat)]
            bodies = [(seconds_for_a_body(inside), seconds_for_a_body(outside)) for _ in range(repeat * 5)]
        finally:
            end_plainly(by_hand)
    line("small answers of a preview, eight clients", *map(statistics.median, zip(*rates, strict=True)), "/s")
    line("16 MiB from a preview", *(statistics.median(column) * 1000 for column in zip(*bodies, strict=True)), "ms")


def end_plainly(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# -- all ----------------------------------------------------------------------------------------------------------


def line(name: str, ours: float, theirs: float, unit: str) -> None:
    print(f"{name:<44} {ours:9.2f} {unit:<4} {ours / theirs:6.2f} x  {theirs:9.2f} by hand", flush=True)


@contextlib.contextmanager
def engine() -> Iterator[tuple[Endpoint, int]]:
    """An engine of this benchmark's own, and its process."""
    before = children(os.getpid())
    with tempfile.TemporaryDirectory() as state:
        os.chmod(state, 0o755)
        made = start_engine(EngineConfig(warm=0, state_root=f"{state}/run", log_level="warning", max_sandboxes=40))
        (process,) = children(os.getpid()) - before
        try:
            yield made.endpoint, process
        finally:
            made.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=("first", "warm", "idle", "preview", []), default=[])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--idle", type=int, default=10, help="how many idle previews")
    parser.add_argument("--template", action="append", choices=APPS, help="these alone")
    options = parser.parse_args()
    names = []
    for name in options.template or APPS:
        try:
            images.find(name)
        except Exception as error:
            print(f"{name}: left out, {error}")
        else:
            names.append(name)
    what = options.what or ["first", "warm", "idle", "preview"]
    with engine() as (endpoint, process):
        if "first" in what:
            first(names, options.repeat, endpoint)
        if "warm" in what:
            warm(names, options.repeat, endpoint)
        if "preview" in what:
            preview(options.repeat, endpoint)
        if "idle" in what and "nextjs-developer" in names:
            idle(options.idle, endpoint, process)


if __name__ == "__main__":
    main()
