"""The background event loop: where the sync face's calls, and calls from trio, are carried out on asyncio.

One loop for the process, in a daemon thread of its own, started on first use. What it promises:

- a call that is left by any exception (Ctrl-C, a cancelled trio task) is cancelled, and has ended before the caller
  gets on, unless that takes longer than `CANCEL_GRACE`;
- a call from the loop's own thread is refused, since it could never be answered;
- after a fork, whatever was made before it raises ForkedProcess at once;
- at exit, what is still open is closed, within `EXIT_LIMIT`; the interpreter never waits longer for it;
- iterators and context managers cross: each lives in one task from its first step to its last;
- callbacks run in the thread of the call that they were given to, while it waits (in a notebook, that is the cell).

The exit handler is atexit's: it runs after the threads of the user have ended, so that they can use their pools to
their last line. Our thread is a daemon because the interpreter would otherwise wait for it before that.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import inspect
import logging
import os
import queue
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread

from sandboxkit._crossing import CallBack, Done, Item, Message, Post, Told
from sandboxkit._foreign import wait_at_exit
from sandboxkit.errors import ConfigurationError, ForkedProcess, PoolClosed
from sandboxkit.events import listener

T = TypeVar("T")

CANCEL_GRACE = 15.0
"""Seconds that a cancelled call may take to put things right; it then goes on without its caller."""
EXIT_LIMIT = 10.0
"""Seconds that closing may take at exit."""

# Windows cannot interrupt a wait without a limit by Ctrl-C.
_WAKE_UP_AFTER = 0.25 if sys.platform == "win32" else None

_logger = logging.getLogger("sandboxkit.portal")


class _Running:
    """A call that the loop carries out."""

    def __init__(self, portal: Portal, work: Callable[[], Awaitable[Any]], post: Post) -> None:
        self._portal = portal
        self._work = work
        self._post = post
        self._scope: anyio.CancelScope | None = None
        self._has_begun = self._is_cancelled = False

    def ask(self) -> None:
        """Have the loop carry it out; what comes of it is posted, also that the loop has ended."""
        # The caller's context variables come along (traces), but for the one that says which backend it runs on.
        context = contextvars.copy_context()
        if "sniffio" in sys.modules:
            context.run(sys.modules["sniffio"].current_async_library_cvar.set, "asyncio")
        try:
            self._portal.loop.call_soon_threadsafe(self._begin, context=context)
        except RuntimeError:
            self._post(Done(error=PoolClosed("The interpreter is ending, and sandboxkit has closed.")))

    def _begin(self) -> None:
        """Start its task; called by the loop."""
        self._has_begun = True
        tasks = self._portal.tasks
        task = self._portal.loop.create_task(self._run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _run(self) -> None:
        done: Done | None = None
        try:
            # An anyio scope, not task.cancel(): it repeats a cancellation for code that swallows one, as the SDK does.
            with anyio.CancelScope() as self._scope:
                if self._is_cancelled:
                    self._scope.cancel()
                try:
                    done = Done(await self._work())
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    done = Done(error=error)
        finally:
            # Last: the caller cannot get on before this thread lets go of the interpreter.
            self._post(done or Done(error=PoolClosed("The call was cancelled: sandboxkit is closing.")))

    def cancel(self) -> None:
        def cancel() -> None:
            self._is_cancelled = True
            if self._scope is not None:
                self._scope.cancel()
            elif not self._has_begun:  # Ctrl-C came before the loop was asked
                self._post(Done())

        with contextlib.suppress(RuntimeError):
            self._portal.loop.call_soon_threadsafe(cancel)


class Portal:
    """The loop and its thread. Use `current()`; there is one for each process."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self.loop = _new_loop()
        self._stop: asyncio.Event | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        """The calls that it carries out."""
        self._closers: dict[object, Callable[[], Awaitable[object]]] = {}
        self._thread = threading.Thread(target=self._main, name="sandboxkit-portal", daemon=True)
        self._thread.start()
        wait_at_exit()  # before ours: handlers run in reverse order
        atexit.register(self._at_exit)

    def check(self) -> None:
        """Refuse a call that could never be answered.

        Raises:
            ForkedProcess: this portal belongs to the parent of this process.
            ConfigurationError: this is the loop's own thread (a handler of a pool's events, mostly).
        """
        if os.getpid() != self._pid:
            raise ForkedProcess(
                "This object was made before os.fork() and cannot be used in the child: its event loop and its "
                "connections stayed in the parent. Start worker processes by `spawn` or `forkserver`, and open a pool "
                "in each."
            )
        if threading.get_ident() == self._thread.ident:
            raise ConfigurationError(
                "A synchronous call was made from sandboxkit's own event loop, by a handler of its events for "
                "instance, and could never be answered. Make it from another thread."
            )

    def start(self, work: Callable[[], Awaitable[Any]], post: Post) -> _Running:
        """Carry out `work`; what comes of it is posted, from the loop's thread."""
        self.check()
        running = _Running(self, work, post)
        running.ask()
        return running

    def call(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """Carry out one call without callbacks, from any thread but the loop's."""
        call: Call[T] = Call(self)  # not Call[T](...), which takes longer than all else here
        return call(func, *args, **kwargs)

    def close_at_exit(self, key: object, close: Callable[[], Awaitable[object]]) -> None:
        """Have something closed when the interpreter ends; `forget(key)` when it was closed before."""
        self._closers[key] = close

    def forget(self, key: object) -> None:
        self._closers.pop(key, None)

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            for task in list(self.tasks):
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*self.tasks, return_exceptions=True))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork's child: nothing here is its own
        inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        with contextlib.suppress(queue.Empty):
            self.start(self._close_everything, inbox.put)
            inbox.get(timeout=EXIT_LIMIT)
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(2.0)

    async def _close_everything(self) -> None:
        async def close(closer: Callable[[], Awaitable[object]]) -> None:
            try:
                await closer()
            except Exception:
                _logger.warning("closing at exit failed", exc_info=True)

        with anyio.move_on_after(EXIT_LIMIT - 1):
            async with anyio.create_task_group() as group:
                for closer in self._closers.values():
                    group.start_soon(close, closer)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where that is installed (the extras `local` and `fast`): a call takes 0.1 ms less on it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


_lock = threading.Lock()
_portal: Portal | None = None


def current() -> Portal:
    """This process's portal, started now if it is the first use."""
    global _portal
    with _lock:
        if _portal is None:
            _portal = Portal()
        return _portal


def _forget_after_fork() -> None:
    global _portal, _lock
    _portal = None
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def contained(func: Callable[[Any], object] | None, name: str) -> Callable[[Any], object] | None:
    """The form of a listener that runs in the portal's own thread: `sys.exit()` there would end that thread, and every
    pool of the process with it. It is an error like others, which whoever calls the listener logs.

    Raises:
        ConfigurationError: it is an async function, or none at all.
    """
    checked = listener(func, name=name)
    if checked is None:
        return None

    def told(argument: Any) -> object:
        try:
            return checked(argument)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(
                f"{name} raised {error!r} in a thread of sandboxkit's own, where that ends nothing. Tell your main "
                "thread, by a queue or `signal.raise_signal` for instance."
            ) from error

    return told


# -- from a thread ------------------------------------------------------------------------------------------------


class Call(Generic[T]):
    """One call from a thread that waits for it, running the callbacks that were given to it meanwhile.

    `discard` gets a result that came too late to be handed over (Ctrl-C met the call's last moment).
    """

    def __init__(self, portal: Portal, *, discard: Callable[[T], Awaitable[object]] | None = None) -> None:
        self._portal = portal
        self._discard = discard
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._done: Done | None = None
        """How it ended: known here too, since Ctrl-C may meet the very moment in which it is taken out of the inbox."""

    def back(self, func: Callable[[Any], object] | None) -> Callable[[Any], Awaitable[object]] | None:
        """The form of a callback that the loop can await; it runs here, and what it raises is raised there.

        Once the call is over (a background command goes on after its start), it runs in a worker thread instead.

        Raises:
            ConfigurationError: it cannot be called. Behind the form that is returned, nobody else would see that.
        """
        if func is None:
            return None
        if not callable(func):
            raise ConfigurationError(f"A callback is {type(func).__name__}; a function is needed, or None.")

        async def run_by_the_caller(argument: Any) -> object:
            if self._done is not None:
                return await anyio.to_thread.run_sync(func, argument)
            message = CallBack(func, argument)
            self._inbox.put(message)
            return await message.answered()

        return run_by_the_caller

    def tell(self, func: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        """The form of a listener that nobody waits for; it runs here, and what it raises is logged.

        Raises:
            ConfigurationError: it is an async function, or none at all.
        """
        told = listener(func)
        if told is None:
            return None
        return lambda argument: self._inbox.put(Told(told, argument))

    def _post(self, message: Message) -> None:
        if isinstance(message, Done):
            self._done = message
        self._inbox.put(message)

    def __call__(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """Carry out `func(*args, **kwargs)`, and return or raise what it did."""
        self._portal.check()
        running = _Running(self._portal, partial(func, *args, **kwargs), self._post)
        try:
            running.ask()
            while not isinstance(message := self._next(), Done):
                if isinstance(message, CallBack | Told):
                    message.carry_out()
        except BaseException:
            self._leave(running)
            raise
        result: T = message.unwrap()
        return result

    def iterate(self, make: Callable[[], AsyncIterator[T]]) -> Generator[T, None, None]:
        """Iterate over what `make` gives, one task for all its steps; leaving early closes it."""

        async def pump() -> None:
            items = make()
            async with contextlib.AsyncExitStack() as stack:
                if inspect.isasyncgen(items):
                    await stack.enter_async_context(aclosing(items))
                async for value in items:
                    message = Item(value)
                    self._inbox.put(message)
                    await message.until_next_is_wanted()

        running = self._portal.start(pump, self._post)
        try:
            while not isinstance(message := self._next(), Done):
                if isinstance(message, CallBack | Told):
                    message.carry_out()
                else:
                    yield message.value
                    message.want_next()
        except BaseException:
            self._leave(running)
            raise
        message.unwrap()

    def _next(self, timeout: float | None = None) -> Message:
        while True:
            try:
                return self._inbox.get(timeout=_WAKE_UP_AFTER if timeout is None else timeout)
            except queue.Empty:
                if timeout is not None:
                    raise

    def _leave(self, running: _Running) -> None:
        """Cancel, and wait until it has ended; a second Ctrl-C does not wait."""
        running.cancel()
        if threading.get_ident() == self._portal._thread.ident:
            return  # an abandoned iterator, collected over there
        with contextlib.suppress(queue.Empty):
            while (done := self._done) is None:
                message = self._next(CANCEL_GRACE)
                if isinstance(message, CallBack):
                    message.refuse()
            if done.error is None and done.value is not None and self._discard is not None:
                Call[object](self._portal)(self._discard, done.value)


class Held(Generic[T]):
    """An asynchronous context manager, entered and left from threads, in one task of the loop."""

    def __init__(self, portal: Portal, manager: AbstractAsyncContextManager[T]) -> None:
        self._portal = portal
        self._manager = manager
        self._entered: Future[T] = Future()
        self._left: Future[bool | None] = Future()
        self._leave: asyncio.Future[tuple[Any, Any, Any]] | None = None

    def enter(self) -> T:
        """Enter it; if this is left by an exception (Ctrl-C), it is left again."""
        running = self._portal.start(self._hold, lambda _: None)
        try:
            return _waited_for(self._entered)
        except BaseException:
            running.cancel()
            with contextlib.suppress(FutureTimeout, Exception):
                self._left.result(CANCEL_GRACE)
            raise

    async def _hold(self) -> None:
        self._leave = asyncio.get_running_loop().create_future()
        try:
            value = await self._manager.__aenter__()
        except BaseException as error:
            failure = PoolClosed("Opening was cancelled.") if isinstance(error, asyncio.CancelledError) else error
            self._left.set_result(None)
            self._entered.set_exception(failure)
            raise
        self._entered.set_result(value)
        reason: tuple[Any, Any, Any] = (None, None, None)
        try:
            reason = await self._leave
        except asyncio.CancelledError:
            reason = sys.exc_info()
            raise
        finally:
            try:
                self._left.set_result(await self._manager.__aexit__(*reason))
            except BaseException as error:
                cancelled = isinstance(error, asyncio.CancelledError)
                self._left.set_exception(PoolClosed("Closing was cancelled.") if cancelled else error)
                raise

    def exit(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Leave it, with what was raised within. What is left already says again how that went."""
        self._portal.check()
        leave = self._leave
        assert leave is not None, "enter() comes first"

        def let_go() -> None:
            if not leave.done():
                leave.set_result((kind, error, trace))

        with contextlib.suppress(RuntimeError):
            self._portal.loop.call_soon_threadsafe(let_go)
        return _waited_for(self._left)


def _waited_for(future: Future[T]) -> T:
    while True:
        try:
            return future.result(_WAKE_UP_AFTER)
        except FutureTimeout:
            if future.done():
                raise
