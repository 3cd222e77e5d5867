"""Exit, Ctrl-C, fork, a killed engine: each tried in a process of its own, with a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Start = Callable[[str], Any]

FAKE = """
import os, sys, time, atexit
from sandboxkit import SandboxPool, errors
from sandboxkit.testing import FakeProvider, Fault
fake = FakeProvider()
"""
# At exit our handler runs before this one: handlers run in the reverse order of their registration.
REPORT = """
atexit.register(lambda: print("LEFT", len(fake.live), "of", fake.created, flush=True))
"""


def test_exit_with_an_open_pool(script: Start) -> None:
    """A pool that was never closed is closed at exit, promptly, and its sandboxes are killed."""
    program = script(f"{FAKE}{REPORT}pool = SandboxPool(endpoint=fake)\nsession = pool.session('a')\nprint('OPEN')")
    assert program.ended(40) == 0
    assert "LEFT 0 of 1" in program.output
    assert "Traceback" not in program.output


def test_exit_by_an_exception_with_an_open_pool(script: Start) -> None:
    """A program that ends with a traceback ends as promptly, with its own exit code."""
    program = script(f"{FAKE}{REPORT}pool = SandboxPool(endpoint=fake)\nsession = pool.session('a')\n1 / 0")
    assert program.ended(40) == 1
    assert "LEFT 0 of 1" in program.output
    assert "ZeroDivisionError" in program.output


def test_exit_with_a_kill_that_hangs(script: Start) -> None:
    """A provider that never answers a kill cannot keep the interpreter from ending."""
    program = script(
        f"""{FAKE}
pool = SandboxPool(endpoint=fake)
session = pool.session('a')
fake.inject("kill", Fault(delay=3600, times=1000))
print('OPEN')
"""
    )
    assert program.ended(50) == 0


def test_exit_while_a_thread_still_works(script: Start) -> None:
    """A thread of the user's that outlives the main one can use its pool to its last line."""
    program = script(
        f"""{FAKE}{REPORT}
import threading
pool = SandboxPool(endpoint=fake)
def work():
    threading.main_thread().join()
    with pool.session("a") as session:
        print("RESULT", session.run_code("6 * 7").text, flush=True)
threading.Thread(target=work).start()
"""
    )
    assert program.ended(40) == 0
    assert "RESULT 42" in program.output
    assert "LEFT 0 of 1" in program.output


def test_interrupt_during_code(script: Start) -> None:
    """Ctrl-C during run_code raises KeyboardInterrupt there, interrupts the code, and the session goes on."""
    program = script(
        f"""{FAKE}{REPORT}
with SandboxPool(endpoint=fake) as pool, pool.session("a") as session:
    session.run_code("x = 5")
    try:
        session.run_code("print('RUNNING')\\nwhile True:\\n    pass", on_stdout=lambda m: print(m.text, flush=True))
    except KeyboardInterrupt:
        print("INTERRUPTED", flush=True)
    print("AGAIN", session.run_code("x").text, flush=True)
"""
    )
    program.wait_for("RUNNING")
    program.interrupt()
    assert program.ended(40) == 0
    assert "INTERRUPTED" in program.output
    assert "AGAIN 5" in program.output
    assert "LEFT 0 of 1" in program.output


def test_interrupt_while_acquiring(script: Start) -> None:
    """Ctrl-C while a session is being opened cancels it; its sandbox is not left, and the pool goes on."""
    program = script(
        f"""{FAKE}{REPORT}
import threading
def watch():
    while pool.stats()["waiting"] == 0:
        time.sleep(0.001)
    print("WAITING", flush=True)
with SandboxPool(endpoint=fake, max_live=1) as pool:
    held = pool.session("a")
    threading.Thread(target=watch).start()
    try:
        pool.session("b")
    except KeyboardInterrupt:
        print("INTERRUPTED", pool.stats()["waiting"], flush=True)
    held.close()
    with pool.session("b") as session:
        print("AGAIN", session.run_code("1 + 1").text, flush=True)
"""
    )
    program.wait_for("WAITING")
    program.interrupt()
    assert program.ended(40) == 0
    assert "INTERRUPTED 0" in program.output
    assert "AGAIN 2" in program.output
    assert "LEFT 0 of" in program.output


def test_interrupt_without_a_handler(script: Start) -> None:
    """Ctrl-C that nobody catches ends the program at once, as Ctrl-C does, and nothing is left."""
    program = script(
        f"""{FAKE}{REPORT}
pool = SandboxPool(endpoint=fake)
session = pool.session("a")
session.run_code("print('RUNNING')\\nwhile True:\\n    pass", on_stdout=lambda m: print(m.text, flush=True))
"""
    )
    program.wait_for("RUNNING")
    program.interrupt()
    assert program.ended(40) in (-2, 130)
    assert "KeyboardInterrupt" in program.output
    assert "LEFT 0 of 1" in program.output


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="needs fork")
def test_fork_after_use(script: Start) -> None:
    """In a forked child what was made before raises ForkedProcess at once; one made there works; the parent goes on."""
    program = script(
        f"""{FAKE}{REPORT}
pool = SandboxPool(endpoint=fake)
session = pool.session("a")
child = os.fork()
if child == 0:
    for use in (lambda: session.run_code("1"), lambda: pool.session("b"), pool.close, lambda: session.files.list()):
        try:
            use()
        except errors.ForkedProcess:
            print("FORKED", flush=True)
    with SandboxPool(endpoint=FakeProvider()) as own, own.session("a") as mine:
        print("OWN", mine.run_code("6 * 7").text, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
print("CHILD", status, flush=True)
print("PARENT", session.run_code("1 + 1").text, flush=True)
"""
    )
    assert program.ended(40) == 0
    assert program.output.count("FORKED") == 4
    assert "OWN 42" in program.output
    assert "CHILD 0" in program.output
    assert "PARENT 2" in program.output


ENGINE = """
import os, signal, sys, time, atexit
from sandboxkit import SandboxPool, errors
from sandboxkit.local._child import start_engine
"""


@pytest.mark.engine
def test_engine_exit_with_an_open_pool(script: Start) -> None:
    """With the engine, too, a program that closes nothing ends promptly, and the engine with it."""
    program = script(
        f"{ENGINE}pool = SandboxPool(endpoint='local')\nsession = pool.session('a')\n"
        "print('RESULT', session.run_code('6 * 7').text, flush=True)\nprint('ENGINE', start_engine().pid, flush=True)"
    )
    assert program.ended(40) == 0
    assert "RESULT 42" in program.output
    assert "Traceback" not in program.output


@pytest.mark.engine
def test_engine_interrupt_during_code(script: Start) -> None:
    """Ctrl-C during run_code on the engine interrupts the kernel; its variables are kept."""
    program = script(
        f"""{ENGINE}
with SandboxPool(endpoint="local") as pool, pool.session("a") as session:
    session.run_code("x = 5")
    try:
        session.run_code("print('RUNNING')\\nwhile True:\\n    pass", on_stdout=lambda m: print(m.text, flush=True))
    except KeyboardInterrupt:
        print("INTERRUPTED", flush=True)
    print("AGAIN", session.run_code("x", timeout=20).text, flush=True)
"""
    )
    program.wait_for("RUNNING")
    program.interrupt()
    assert program.ended(40) == 0
    assert "INTERRUPTED" in program.output
    assert "AGAIN 5" in program.output


@pytest.mark.engine
def test_engine_fork_after_use(script: Start) -> None:
    """A child forked after the SDK was used gets ForkedProcess at once, also from a pool of its own: it would hang."""
    program = script(
        f"""{ENGINE}
with SandboxPool(endpoint="local") as pool, pool.session("a") as session:
    session.run_code("1")
    child = os.fork()
    if child == 0:
        try:
            session.run_code("1")
        except errors.ForkedProcess:
            print("FORKED", flush=True)
        own = SandboxPool(endpoint="local")
        try:
            own.session("a")
        except errors.ForkedProcess as error:
            print("OWN", error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    print("PARENT", session.run_code("1 + 1").text, flush=True)
"""
    )
    assert program.ended(40) == 0
    assert "FORKED" in program.output
    assert "OWN The E2B SDK was used before os.fork()" in program.output
    assert "PARENT 2" in program.output


@pytest.mark.engine
def test_engine_killed_under_a_pool(script: Start) -> None:
    """With the engine killed by -9, uses raise typed errors, promptly; the next session has a new engine."""
    program = script(
        f"""{ENGINE}
with SandboxPool(endpoint="local") as pool:
    session = pool.session("a")
    session.run_code("x = 1")
    engine = start_engine()
    os.kill(engine.pid, signal.SIGKILL)
    while engine.is_alive():
        time.sleep(0.01)
    started = time.monotonic()
    for use in (lambda: session.run_code("x"), lambda: session.run_command("true"), lambda: session.files.list()):
        try:
            use()
        except (errors.ProviderUnavailable, errors.SandboxLost) as error:
            print("TYPED", type(error).__name__, flush=True)
    print("SECONDS", time.monotonic() - started, flush=True)
    with pool.session("b") as other:
        print("NEW", other.run_code("6 * 7").text, flush=True)
with SandboxPool(endpoint="local") as pool, pool.session("a") as session:
    print("NEXT", session.run_code("2 * 21").text, flush=True)
"""
    )
    assert program.ended(90) == 0
    assert program.output.count("TYPED") == 3
    assert "NEW 42" in program.output
    assert "NEXT 42" in program.output
