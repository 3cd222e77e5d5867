"""The kernel's life: one event loop for good, one cell at a time on it, and an interrupt that only ever hits a cell.

Cells run on the loop as in a notebook: `await` works at the top level, tasks that a cell started go on between cells
and while a later one waits, and `asyncio.run()` is refused. SIGINT raises KeyboardInterrupt where user code runs; where
a cell waits, the loop throws it in there; while a frame is on its way out, it comes after; else it is ignored.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # (the plain one: `signal` makes enums of all numbers)
import asyncio
import contextlib
import contextvars
import faulthandler
import io
import json
import linecache
import os
import selectors
import socket
import sys
import traceback
from collections.abc import Coroutine, Generator, Iterator
from types import FrameType
from typing import Any

from ._pages import REPEATS, gather
from .kernel_mime import DERIVED, encode, fields
from .kernel_shell import SHOWN_BY as SHOWN_BY
from .kernel_shell import Shell, make_shell
from .kernel_wire import MAX_BODY, Wire

READY = {"op": "ready"}
REHEARSED = ("print(1)", "1 + 1")


class ResultTooLarge(ValueError):
    """A displayed value is larger than what can be sent."""


class Output(io.RawIOBase):
    """A descriptor that is written to at once: what children and C code write keeps its place between our own."""

    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self.name = name

    def fileno(self) -> int:
        return self._descriptor

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += os.write(self._descriptor, view[written:])
        return written


class Selector(selectors.DefaultSelector):
    """Knows whether the loop waits."""

    waits = False

    def select(self, timeout: float | None = None) -> Any:
        self.waits = True
        try:
            return super().select(timeout)
        finally:
            self.waits = False


class Kernel:
    """One interpreter, behind one wire."""

    def __init__(self, wire: Wire, shell: Shell | None = None) -> None:
        self._selector = Selector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        asyncio.set_event_loop(self._loop)
        self._wire = wire
        wire.hold, wire.release = self._hold, self._release
        self._is_warm = shell is not None
        self._shell = make_shell() if shell is None else shell
        self._shell.sink = self
        # Cells share one context, so that context variables live on from cell to cell.
        self._context = contextvars.copy_context()
        self._frames: asyncio.Queue[tuple[dict[str, Any], bytes] | None] = asyncio.Queue()
        self._cell: int | None = None
        self._task: asyncio.Task[None] | None = None
        self._failed = False
        self._exiting = False
        self._interruptible = False
        self._interrupted = False
        self._sending = 0
        self._owed = False

    # -- serving --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the engine goes, or the user's code asks for the end."""
        self._loop.add_reader(self._wire.fileno(), self._receive)
        serving = self._loop.create_task(self._serve())
        if not self._is_warm:
            self._wire.send(READY)
        while not serving.done() and not self._loop.is_closed():
            try:
                self._loop.run_until_complete(serving)
            except (KeyboardInterrupt, SystemExit, RuntimeError):
                # Raised by a task or callback of the user's (the last by `loop.stop()`): it ends that one, not us.
                continue

    def rehearse(self) -> None:
        """Serve what has come, and nothing else."""
        self._receive()
        self._frames.put_nowait(None)
        self.run()
        self._loop.close()
        asyncio.set_event_loop(None)
        self._wire.forget()

    def _receive(self) -> None:
        frames = self._wire.receive()
        if frames is None:
            self._loop.remove_reader(self._wire.fileno())
            self._frames.put_nowait(None)
            if self._task is not None:
                # The engine left in the middle of a cell; nobody will read the rest.
                os._exit(0)
            return
        for frame in frames:
            self._frames.put_nowait(frame)

    async def _serve(self) -> None:
        if not self._is_warm:
            await warm_up(self._shell)
        while not self._exiting and (frame := await self._frames.get()) is not None:
            head, body = frame
            request = json.loads(body)
            if head["op"] == "adopt":
                # It was started before it was known for whom.
                os.environ.update(request["envs"])
                continue
            self._cell = head["cell"]
            self._failed = self._interrupted = self._owed = False
            # The code of an earlier cell may have put a handler of its own.
            signal.signal(signal.SIGINT, self._on_interrupt)
            self._wire.send({"op": "began", "cell": self._cell, "count": self._shell.execution_count})
            self._task = self._loop.create_task(self._run_cell(request), context=self._context)
            await asyncio.wait([self._task])
            self._task = None
            ended, self._cell = self._cell, None
            self._wire.send({"op": "ended", "cell": ended, "exiting": self._exiting})

    # -- one cell -------------------------------------------------------------------------------------------------

    async def _run_cell(self, request: dict[str, Any]) -> None:
        envs: dict[str, str] = request["envs"]
        before = {name: os.environ.get(name) for name in envs}
        os.environ.update(envs)
        try:
            self._interruptible = True
            await _Driven(self, self._run_code(request["code"]))
        except BaseException as error:
            # IPython shows what the code raises; this was raised around it, by an interrupt for one.
            self._fail(error)
        finally:
            self._interruptible = False
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    continue  # the user's code may have put anything there, or closed it

    async def _run_code(self, code: str) -> None:
        shell = self._shell
        broken = None
        try:
            transformed = shell.transform_cell(code)  # type: ignore[no-untyped-call]
        except Exception:
            transformed, broken = code, sys.exc_info()
        result = await shell.run_cell_async(
            code, store_history=True, transformed_cell=transformed, preprocessing_exc_tuple=broken
        )
        shell.events.trigger("post_execute")
        shell.events.trigger("post_run_cell", result)
        error = result.error_before_exec or result.error_in_exec
        if error is not None and not self._failed:
            # IPython only printed it: a usage error of a magic command, or a group of exceptions.
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.error(type(error).__name__, str(error), "".join(traceback.format_exception(error)))

    # -- what the shell shows (the Sink) --------------------------------------------------------------------------

    def result(self, bundle: dict[str, Any], *, is_main: bool) -> None:
        """Send a displayed value; between cells there is nobody to show it to."""
        if self._cell is None:
            return
        named = fields(bundle) | {"is_main_result": is_main}
        body = encode(named)
        if len(body) > MAX_BODY:
            body = self._without_derived(named, size=len(body))
        self._wire.send({"op": "result", "cell": self._cell}, body)

    def _without_derived(self, named: dict[str, Any], *, size: int) -> bytes:
        limit = f"the limit is {MAX_BODY // 2**20} MiB"
        left_out = [name for name in DERIVED if named.pop(name, None) is not None]
        body = encode(named) if left_out else b""
        if not body or len(body) > MAX_BODY:
            raise ResultTooLarge(f"This result is {size / 2**20:.0f} MiB long; {limit}. Write it to a file instead.")
        print(f"Left out of a result of {size / 2**20:.0f} MiB: {', '.join(left_out)}; {limit}.", file=sys.stderr)
        return body

    def error(self, name: str, value: str, traceback: str) -> None:
        """Send the exception that ended the cell."""
        if self._cell is None:
            return
        self._failed = True
        half = MAX_BODY // 16
        shown = {"name": name, "value": value[:half], "traceback": traceback[-half:]}
        self._wire.send({"op": "error", "cell": self._cell}, encode(shown))

    def exit_after_cell(self) -> None:
        """End the process once the cell is done."""
        self._exiting = True

    # -- interrupts -----------------------------------------------------------------------------------------------

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self._interruptible:
            return
        if self._sending:
            self._owed = True
        elif self._selector.waits or not _runs_user_code(frame):
            self._loop.call_soon_threadsafe(self._interrupt_waiting)
        else:
            raise KeyboardInterrupt

    def _interrupt_waiting(self) -> None:
        if self._interruptible and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    def was_interrupted(self) -> bool:
        """Whether the cell's task was cancelled by an interrupt; answers once for each."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted

    def _hold(self) -> None:
        self._sending += 1

    def _release(self) -> None:
        self._sending -= 1
        if self._owed and not self._sending:
            self._owed = False
            if self._interruptible:
                raise KeyboardInterrupt


class _Driven:
    """Awaits a coroutine, turning a cancellation that stands for an interrupt into KeyboardInterrupt inside it."""

    def __init__(self, kernel: Kernel, coroutine: Coroutine[Any, Any, None]) -> None:
        self._kernel = kernel
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, None]:
        raised: BaseException | None = None
        while True:
            try:
                waits_for = self._coroutine.send(None) if raised is None else self._coroutine.throw(raised)
            except StopIteration:
                return
            raised = None
            try:
                yield waits_for
            except asyncio.CancelledError as error:
                raised = KeyboardInterrupt() if self._kernel.was_interrupted() else error
            except BaseException as error:
                raised = error


def _runs_user_code(frame: FrameType | None) -> bool:
    """Whether the loop was inside a task or a callback, instead of in its own code between two of them."""
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:
            return True
        frame = frame.f_back
    return False


def _open_streams() -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        raw = Output(descriptor, f"<{name}>")
        # Written through: no buffer that a forked child would write a second time, or a crash would lose.
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


@contextlib.contextmanager
def no_new_sources() -> Iterator[None]:
    """Forget the source of the cells that run in it."""
    before = set(linecache.cache)
    yield
    for name in linecache.cache.keys() - before:
        del linecache.cache[name]


async def warm_up(shell: Shell) -> None:
    """Go once through all that a cell goes through, without a trace: the first one takes fifteen times as long as the
    next, and need not be the user's."""
    code = 'print(end="")'
    with no_new_sources():
        await shell.run_cell_async(
            code,
            store_history=False,
            silent=True,
            transformed_cell=shell.transform_cell(code),  # type: ignore[no-untyped-call]
        )
    shell.last_execution_result = None


class Nobody:
    """Takes what a shell shows before there is a kernel: nothing is shown then."""

    def result(self, bundle: dict[str, Any], *, is_main: bool) -> None: ...

    def error(self, name: str, value: str, traceback: str) -> None: ...

    def exit_after_cell(self) -> None: ...


def prepare() -> Shell:
    """In the zygote: make the shell of the kernels that will be forked from it. It holds no descriptor but numbers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _open_streams()
    shell = make_shell()
    gather(lambda: rehearse(shell))
    for _ in range(REPEATS):
        rehearse(shell)
    return shell


def rehearse(shell: Shell) -> None:
    """Serve some cells to nobody, and forget them; see `_pages`."""
    names = dict(shell.user_ns)
    ours, theirs = (Wire(one.detach()) for one in socket.socketpair())
    for number, code in enumerate(REHEARSED):
        ours.send({"op": "execute", "cell": number}, json.dumps({"code": code, "envs": {}}).encode())
    with no_new_sources():
        Kernel(theirs, shell).rehearse()
    ours.forget()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shell.sink = Nobody()
    shell.reset()  # type: ignore[no-untyped-call]
    # It forgets what a module has from its start, and not what was typed in last.
    shell.user_ns.clear()
    shell.user_ns.update(names)
    for name in ("_i", "_ii", "_iii", "_i00"):
        setattr(shell.history_manager, name, "")


def serve(descriptor: int, shell: Shell | None = None) -> None:
    """Serve cells that come over `descriptor` until the engine closes it.

    Args:
        shell: what `prepare` has made in the process that this one is a fork of.
    """
    for signum in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # the last two as every Python does at its start
        signal.signal(signum, signal.SIG_IGN)
    if shell is None:
        _open_streams()
    else:
        shell.starting_dir = os.getcwd()
    faulthandler.enable()
    wire = Wire(descriptor)
    # A child by fork must neither speak for us nor keep the socket open after our end.
    os.register_at_fork(after_in_child=wire.forget)
    if shell is not None:
        # What else a cell needs is made when the first one comes: until then, few pages of the zygote's are copied.
        wire.send(READY)
        wire.wait()
    Kernel(wire, shell).run()
