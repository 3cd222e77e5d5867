"""Sandboxes made and killed at full speed, and cut off in the middle of everything: nothing adds up.

`SANDBOXKIT_CHURN_SECONDS` sets how long the long run takes (180 by default).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]

WORKERS = 4
GROWTH_ALLOWED = 8 * 2**20
"""Bytes that an engine's memory may grow between two looks at rest: the allocator's own, and sockets that come again.
A leak of one box's objects (some 20 KiB) would show after 400 sandboxes."""

THREADS = 1 + min(32, (os.cpu_count() or 1) + 4)
"""The loop's, and as many as asyncio's own executor may come to have (one more whenever all are at work)."""


def warm_up(run: Any, client: httpx.Client, count: int) -> None:
    """Make and kill some, in parallel: pools of threads and of memory, and layers, are there afterwards."""
    with ThreadPoolExecutor(WORKERS) as workers:
        for _ in workers.map(lambda _: make_and_kill(run, client), range(count)):
            continue


def make_and_kill(run: Any, client: httpx.Client) -> None:
    """One life."""
    sandbox = run.create(client, timeout=60)
    assert client.delete(f"/sandboxes/{sandbox['sandboxID']}").status_code == 204


def at_rest(run: Any, tools: Any) -> Any:
    """Its size once nothing is being made or ended and no client is connected."""
    with run.client() as client:
        tools.wait_until(lambda: client.get("/v2/sandboxes").json() == [], seconds=30, what="sandboxes are left")
    last = run.size()
    for _ in range(100):
        time.sleep(0.05)
        now = run.size()
        if (now.descriptors, now.processes, now.mounts) == (last.descriptors, last.processes, last.mounts):
            return now
        last = now
    return last


def same_size(before: Any, after: Any) -> None:
    """Nothing has grown."""
    assert after.processes == before.processes
    assert after.mounts == before.mounts
    assert after.descriptors <= before.descriptors + 1, (before, after)
    assert after.threads <= THREADS, (before, after)
    assert after.memory <= before.memory + GROWTH_ALLOWED, (before, after)


def lives(start: Any, tools: Any, who: str, *, count: int, warm: int) -> None:
    """Make and kill many, and compare."""
    run = start(who=who, log_level="warning")
    with run.client() as client:
        warm_up(run, client, warm)
    before = at_rest(run, tools)
    started = time.monotonic()
    with run.client() as client, ThreadPoolExecutor(WORKERS) as workers:
        for _ in workers.map(lambda _: make_and_kill(run, client), range(count)):
            continue
    rate = count / (time.monotonic() - started)
    after = at_rest(run, tools)
    print(f"\n{who}: {count} creates and kills, {rate:.1f} a second; before {before}, after {after}")
    same_size(before, after)
    assert run.log() == ""


@pytest.mark.timeout(120)
def test_sixty_lives(start: Any, tools: Any, who: str) -> None:
    """After 60 creates and kills the engine has no process, mount, thread or descriptor more, and its memory is flat;
    no cgroup, directory or process is left when it ends (which `start` checks)."""
    lives(start, tools, who, count=60, warm=24)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_thousand_lives(start: Any, tools: Any, who: str) -> None:
    """The same after 1,000."""
    lives(start, tools, who, count=1000, warm=100)


# -- cut off in the middle ----------------------------------------------------------------------------------------


class Clients:
    """Clients that do what clients do, and break off at random. Each method is one life."""

    def __init__(self, run: Any, seed: int) -> None:
        self.run = run
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.odd: list[str] = []
        self.lock = threading.Lock()

    def live_one(self, number: int) -> None:
        """Some life."""
        lives = [self.killed_mid_command, self.killed_mid_upload, self.killed_mid_cell, self.create_broken_off]
        if self.run.template == "base":  # it has no interpreter
            lives.remove(self.killed_mid_cell)
        lives += [self.killed_while_made, self.killed_twice, self.expires, self.command_broken_off]
        life = self.random.choice(lives)
        with self.run.client(timeout=60.0) as client:
            life(client)
        with self.lock:
            self.done[life.__name__] += 1

    def expect(self, answer: httpx.Response, *statuses: int) -> None:
        """Note an answer that is none of those."""
        if answer.status_code not in statuses:
            with self.lock:
                self.odd.append(
                    f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}"
                )

    def kill_soon(self, sandbox: dict[str, Any]) -> threading.Thread:
        """Kill it from another thread, a moment from now."""
        delay = self.random.uniform(0, 0.2)

        def kill() -> None:
            time.sleep(delay)
            with self.run.client() as client:
                self.expect(client.delete(f"/sandboxes/{sandbox['sandboxID']}"), 204)

        thread = threading.Thread(target=kill)
        thread.start()
        return thread

    def framed(self, message: dict[str, Any]) -> bytes:
        """A Connect envelope."""
        data = json.dumps(message).encode()
        return b"\0" + len(data).to_bytes(4, "big") + data

    def start_command(self, client: httpx.Client, sandbox: dict[str, Any]) -> httpx.Response | None:
        """Run a command that prints without end; None where the stream was cut."""
        headers = {**self.run.to(sandbox), "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
        message = {"process": {"cmd": "/bin/sh", "args": ["-c", "while :; do echo y; sleep 0.01; done"]}}
        with contextlib.suppress(httpx.RemoteProtocolError):
            return client.post("/process.Process/Start", content=self.framed(message), headers=headers)
        return None

    def killed_mid_command(self, client: httpx.Client) -> None:
        """Its sandbox is killed while a command's output is read: the stream ends with a typed error."""
        sandbox = self.run.create(client)
        killer = self.kill_soon(sandbox)
        answer = self.start_command(client, sandbox)
        killer.join()
        if answer is None:
            self.odd.append("a command's stream was cut without its end")
            return
        self.expect(answer, 200, 502)
        if answer.status_code == 200 and '"unavailable"' not in answer.text:
            self.odd.append(f"a command's stream ended so: {answer.text[-200:]}")

    def killed_mid_upload(self, client: httpx.Client) -> None:
        """Its sandbox is killed during an upload."""
        sandbox = self.run.create(client)
        killer = self.kill_soon(sandbox)
        headers = {**self.run.to(sandbox), "Content-Type": "application/octet-stream"}
        pieces = (bytes(65_536) for _ in range(400))
        with contextlib.suppress(httpx.TransportError):  # it may hang up on who goes on sending
            self.expect(client.post("/files?path=big", content=pieces, headers=headers), 200, 502)
        killer.join()

    def killed_mid_cell(self, client: httpx.Client) -> None:
        """Its sandbox is killed while a cell runs: the connection is dropped, or not found."""
        sandbox = self.run.create(client)
        killer = self.kill_soon(sandbox)
        with contextlib.suppress(httpx.TransportError):
            code = "import time\nwhile True: print(1); time.sleep(0.01)"
            self.expect(client.post("/execute", json={"code": code}, headers=self.run.to(sandbox, 49999)), 502)
        killer.join()

    def create_broken_off(self, client: httpx.Client) -> None:
        """The client hangs up during its create; the same key gives it the same sandbox."""
        key = f"key-{self.random.getrandbits(64):x}"
        body = json.dumps({"templateID": self.run.template, "timeout": 60}).encode()
        url = httpx.URL(self.run.url)
        with socket.create_connection((url.host, url.port)) as connection:
            head = f"POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-KEY: {self.run.headers['X-API-KEY']}\r\n"
            head += f"Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            time.sleep(self.random.uniform(0, 0.1))
        answer = client.post("/v2/sandboxes", content=body, headers={"Idempotency-Key": key})
        self.expect(answer, 201)
        self.expect(client.delete(f"/sandboxes/{answer.json()['sandboxID']}"), 204)

    def killed_while_made(self, client: httpx.Client) -> None:
        """Somebody lists and kills what they see as soon as it is there, also before its creator has its answer."""
        mark = f"{self.random.getrandbits(64):x}"
        made: list[httpx.Response] = []

        def create() -> None:
            with self.run.client() as other:
                body = {"templateID": self.run.template, "metadata": {"mark": mark}}
                made.append(other.post("/v2/sandboxes", json=body))

        thread = threading.Thread(target=create)
        thread.start()
        found: list[Any] = []
        while thread.is_alive() and not found:
            found = client.get("/v2/sandboxes", params={"metadata": f"mark={mark}"}).json()
        if found:
            self.expect(client.delete(f"/sandboxes/{found[0]['sandboxID']}"), 204)
        thread.join()
        self.expect(made[0], 201)
        if not found:
            self.expect(client.delete(f"/sandboxes/{made[0].json()['sandboxID']}"), 204)

    def killed_twice(self, client: httpx.Client) -> None:
        """Two kills at once: one is it."""
        sandbox = self.run.create(client)
        with ThreadPoolExecutor(2) as both:
            path = f"/sandboxes/{sandbox['sandboxID']}"
            answers = sorted(answer.status_code for answer in both.map(client.delete, [path, path]))
        if answers != [204, 404]:
            self.odd.append(f"two kills: {answers}")

    def expires(self, client: httpx.Client) -> None:
        """Its time is up while a command runs."""
        self.start_command(client, self.run.create(client, timeout=1))

    def command_broken_off(self, client: httpx.Client) -> None:
        """The client hangs up in the middle of a stream; its sandbox is unharmed."""
        sandbox = self.run.create(client)
        headers = {**self.run.to(sandbox), "Content-Type": "application/connect+json", "Connect-Protocol-Version": "1"}
        message = {"process": {"cmd": "/bin/sh", "args": ["-c", "yes"]}}
        content = self.framed(message)
        with client.stream("POST", "/process.Process/Start", content=content, headers=headers) as stream:
            next(stream.iter_bytes())
        self.expect(client.get("/health", headers=self.run.to(sandbox)), 204)
        self.expect(client.delete(f"/sandboxes/{sandbox['sandboxID']}"), 204)


def churn(start: Any, tools: Any, who: str, *, seconds: float, warm: int) -> None:
    """Let clients do and break off at full speed, and compare."""
    run = start(who=who, log_level="warning")
    seed = int(os.environ.get("SANDBOXKIT_CHURN_SEED") or random.randrange(2**32))
    clients = Clients(run, seed)

    def round_of(count: int) -> None:
        with ThreadPoolExecutor(WORKERS) as workers:
            for _ in workers.map(clients.live_one, range(count)):
                continue

    round_of(warm)
    before = at_rest(run, tools)
    clients.done.clear()
    started = time.monotonic()
    while time.monotonic() < started + seconds:
        round_of(4 * WORKERS)
    lived = clients.done.total()
    after = at_rest(run, tools)
    print(f"\n{who}: {lived} lives in {time.monotonic() - started:.0f} s, seed {seed}; {dict(clients.done)}")
    print(f"before {before}\nafter  {after}")
    assert clients.odd == [], (seed, clients.odd[:10])
    tools.no_tracebacks(run)
    same_size(before, after)


@pytest.mark.timeout(120)
def test_churn(start: Any, tools: Any) -> None:
    """Clients that break off, kills in the middle of all: each gets a typed answer, and nothing is left or grows."""
    churn(start, tools, "as-started", seconds=6, warm=40)


@pytest.mark.full
@pytest.mark.timeout(2 * int(os.environ.get("SANDBOXKIT_CHURN_SECONDS") or 180) + 240)
def test_long_churn(start: Any, tools: Any, who: str) -> None:
    """The same for minutes, or for as long as SANDBOXKIT_CHURN_SECONDS says."""
    churn(start, tools, who, seconds=float(os.environ.get("SANDBOXKIT_CHURN_SECONDS") or 180), warm=100)
