"""The background event loop keeps its six promises."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandboxkit import _portal
from sandboxkit.errors import ConfigurationError
from sandboxkit.provider import _asyncio


async def _thread() -> str:
    await asyncio.sleep(0)
    return threading.current_thread().name


def test_calls_cross() -> None:
    """A call runs in the portal's thread, on asyncio; its value and its exception come back."""
    portal = _portal.current()
    assert portal.call(_thread) == "sandboxkit-portal"
    assert portal is _portal.current()

    async def fail() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        portal.call(fail)


def test_the_loop_is_uvloops_where_that_is_installed() -> None:
    """It is found, and nothing is missing without it."""
    installed = sys.modules.get("uvloop", ...) is not None and importlib.util.find_spec("uvloop") is not None
    assert type(_portal.current().loop).__module__.startswith("uvloop" if installed else "asyncio.")


def test_a_pool_needs_no_uvloop() -> None:
    """Where it is not installed, the synchronous face runs on Python's own loop, to the end of the interpreter."""
    program = (
        "import sys\nsys.modules['uvloop'] = None\nfrom sandboxkit import SandboxPool, _portal\n"
        "from sandboxkit.testing import FakeProvider\npool = SandboxPool(endpoint=FakeProvider())\n"
        "print(pool.session('a').run_code('6 * 7').text, type(_portal.current().loop).__module__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "42 asyncio.unix_events\n", "")


def test_works_inside_a_running_loop() -> None:
    """A caller may have an event loop of its own that is running, as a notebook has."""

    async def main() -> str:
        return _portal.current().call(_thread)

    assert asyncio.run(main()) == "sandboxkit-portal"


def test_refuses_its_own_thread() -> None:
    """A synchronous call from the loop's thread is refused, since it could never be answered."""
    portal = _portal.current()

    async def nested() -> None:
        portal.call(_thread)

    with pytest.raises(ConfigurationError, match="own event loop"):
        portal.call(nested)


def test_callbacks_run_in_the_callers_thread() -> None:
    """Callbacks run, in order, in the thread that made the call, while the loop's task waits for each."""
    call = _portal.Call[str](_portal.current())
    seen: list[tuple[int, str]] = []
    back = call.back(lambda n: seen.append((n, threading.current_thread().name)))
    assert back is not None

    async def work() -> str:
        for n in range(3):
            await back(n)
            assert len(seen) == n + 1
        return "done"

    assert call(work) == "done"
    assert seen == [(n, threading.current_thread().name) for n in range(3)]
    assert call.back(None) is None


def test_a_callbacks_exception_comes_back() -> None:
    """What a callback raises is raised in the task, and comes out of the call; a coroutine function is refused."""
    for callback, kind in ((lambda _: 1 / 0, ZeroDivisionError), (anyio.sleep, ConfigurationError)):
        call = _portal.Call[None](_portal.current())
        back = call.back(callback)
        assert back is not None

        async def work(back: object = back) -> None:
            await back(0)  # type: ignore[operator]

        with pytest.raises(kind):
            call(work)


def test_callbacks_after_the_call_run_elsewhere() -> None:
    """A callback that outlives its call (a background command's) runs in a worker thread, and blocks nobody."""
    call = _portal.Call[asyncio.Task[None]](_portal.current())
    names: list[str] = []
    done = threading.Event()
    back = call.back(lambda _: names.append(threading.current_thread().name))
    assert back is not None

    async def later() -> None:
        await asyncio.sleep(0.02)
        await back(1)
        done.set()

    async def start() -> asyncio.Task[None]:
        return asyncio.create_task(later())

    task = call(start)
    assert done.wait(5)
    assert names
    assert threading.current_thread().name not in names
    assert task is not None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_a_call_that_is_left_is_cancelled(kind: type[BaseException]) -> None:
    """Any exception in the waiting thread cancels the call, which has ended before the exception goes on."""
    call = _portal.Call[None](_portal.current())
    events: list[str] = []

    def interrupt(_: object) -> None:
        raise kind

    tell = call.back(interrupt)
    assert tell is not None

    async def work() -> None:
        try:
            await tell(0)
            await asyncio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            events.append("cleaned up")

    with pytest.raises(kind):
        call(work)
    assert events == ["cleaned up"]


def test_a_result_that_came_too_late_is_discarded() -> None:
    """When a call is left just as its result arrives, `discard` gets the result, so that nothing leaks."""
    discarded: list[str] = []

    async def discard(value: str) -> None:
        discarded.append(value)

    call = _portal.Call[str](_portal.current(), discard=discard)
    back = call.back(lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert back is not None

    async def stubborn() -> str:
        asking = asyncio.ensure_future(back(0))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            asking.cancel()
        return "made"

    with pytest.raises(KeyboardInterrupt):
        call(stubborn)
    assert discarded == ["made"]


class _InterruptedInbox(queue.SimpleQueue[Any]):
    """Ctrl-C comes once, right after a message was taken out: the interpreter looks for signals between the two."""

    was_interrupted = False

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        message = super().get(block, timeout)
        if not self.was_interrupted:
            self.was_interrupted = True
            raise KeyboardInterrupt
        return message


@pytest.mark.timeout(10)  # it waited for CANCEL_GRACE
def test_a_result_that_was_taken_and_not_seen_is_discarded() -> None:
    """Ctrl-C between the inbox and whoever looks at the message: the call ends at once, and its result is not lost."""
    discarded: list[str] = []

    async def discard(value: str) -> None:
        discarded.append(value)

    async def work() -> str:
        return "made"

    call = _portal.Call[str](_portal.current(), discard=discard)
    call._inbox = _InterruptedInbox()  # a signal cannot be sent to that very moment
    with pytest.raises(KeyboardInterrupt):
        call(work)
    assert discarded == ["made"]


@pytest.mark.timeout(10)  # it waited for CANCEL_GRACE
@pytest.mark.parametrize("asks", [False, True])
def test_an_interrupt_while_the_loop_is_being_asked(asks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right before or after the loop has been asked: nothing is waited for that will not come, nothing lost."""
    made, discarded = list[str](), list[str]()
    ask = _portal._Running.ask

    def interrupted(running: _portal._Running) -> None:
        if not made:
            made.append("no")
            if asks:
                ask(running)
            raise KeyboardInterrupt
        ask(running)

    async def discard(value: str) -> None:
        discarded.append(value)

    async def work() -> str:
        made.append("yes")
        return "made"

    monkeypatch.setattr(_portal._Running, "ask", interrupted)  # a signal cannot be sent to that very moment
    with pytest.raises(KeyboardInterrupt):
        _portal.Call[str](_portal.current(), discard=discard)(work)
    assert (made, discarded) == ((["no", "yes"], ["made"]) if asks else (["no"], []))


def test_iterators_cross_in_one_task() -> None:
    """An asynchronous generator is iterated by one task, step by step, and closed when it is left early."""
    tasks: set[object] = set()
    closed = threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            async with anyio.create_task_group():
                for n in range(5):
                    tasks.add(asyncio.current_task())
                    yield n
        finally:
            closed.set()

    assert list(_portal.Call[int](_portal.current()).iterate(numbers)) == [0, 1, 2, 3, 4]
    assert len(tasks) == 1
    closed.clear()
    iterator = _portal.Call[int](_portal.current()).iterate(numbers)
    assert [next(iterator), next(iterator)] == [0, 1]
    iterator.close()
    assert closed.is_set()


def test_an_iterators_exception_comes_out() -> None:
    """What the generator raises comes out of the loop, after the values before it."""

    async def fails() -> AsyncIterator[int]:
        yield 1
        raise LookupError("mine")

    iterator = _portal.Call[int](_portal.current()).iterate(fails)
    assert next(iterator) == 1
    with pytest.raises(LookupError):
        next(iterator)


def test_context_managers_cross_in_one_task() -> None:
    """A context manager is entered and left in the same task, however many calls lie between."""
    tasks: list[object] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        tasks.append(asyncio.current_task())
        async with anyio.create_task_group():
            yield "value"
        tasks.append(asyncio.current_task())

    held = _portal.Held(_portal.current(), manager())
    assert held.enter() == "value"
    assert _portal.current().call(_thread)
    assert not held.exit(None, None, None)
    assert tasks[0] is tasks[1]


def test_context_variables_come_along() -> None:
    """The caller's context variables, a trace's for instance, are seen by the call."""
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("mine")

    async def read() -> str:
        return variable.get()

    assert _portal.current().call(read) == "mine"


def test_from_trio() -> None:
    """From a trio task a call runs on asyncio, calls back into trio, and is cancelled with its task."""
    cancelled = threading.Event()

    async def main() -> None:
        call = _asyncio.on_asyncio()
        assert isinstance(call, _asyncio.TrioCall)
        seen: list[object] = []

        async def callback(value: object) -> None:
            await anyio.lowlevel.checkpoint()
            seen.append((value, threading.current_thread().name))

        back = call.back(callback)
        assert back is not None

        async def work() -> str:
            asyncio.get_running_loop()
            await back(1)
            await anyio.sleep(0.001)
            return threading.current_thread().name

        assert await call(work) == "sandboxkit-portal"
        assert seen == [(1, threading.current_thread().name)]

        async def hang() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        with anyio.move_on_after(0.05):
            await _asyncio.on_asyncio()(hang)
        assert cancelled.is_set()

    anyio.run(main, backend="trio")


def test_on_asyncio_nothing_crosses() -> None:
    """On asyncio a call is awaited where it is made, and callbacks are passed as they are."""

    async def main() -> None:
        call = _asyncio.on_asyncio()
        assert isinstance(call, _asyncio.Here)
        assert await call(_thread) == threading.current_thread().name
        assert call.back(print) is print

    anyio.run(main, backend="asyncio")
