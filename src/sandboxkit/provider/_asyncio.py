"""The way onto asyncio, where alone the SDK runs: none from an asyncio task, over the portal from a trio task."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio

from sandboxkit import _portal
from sandboxkit._crossing import CallBack, Done, Message

T = TypeVar("T")


class TrioCall:
    """One call from a trio task, with the callbacks that were given to it run by that task."""

    is_crossing = True

    def __init__(self, portal: _portal.Portal) -> None:
        import trio

        self._portal = portal
        self._token = trio.lowlevel.current_trio_token()
        self._run_finished = trio.RunFinishedError
        self._messages: deque[Message] = deque()
        self._arrived = anyio.Event()

    def back(self, func: Callable[[Any], object] | None) -> Callable[[Any], Awaitable[object]] | None:
        """As `Call.back`."""
        if func is None:
            return None

        async def run_by_the_caller(argument: Any) -> object:
            message = CallBack(func, argument)
            self._post(message)
            return await message.answered()

        return run_by_the_caller

    async def __call__(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        """As `Call.__call__`."""
        running = self._portal.start(partial(func, *args, **kwargs), self._post)
        try:
            while not isinstance(message := await self._next(), Done):
                if isinstance(message, CallBack):
                    await message.carry_out_async()
        except BaseException as error:
            running.cancel()
            done: Done | None = None
            with anyio.move_on_after(_portal.CANCEL_GRACE, shield=True):
                while done is None:
                    left = await self._next()
                    if isinstance(left, CallBack):
                        left.refuse()
                    elif isinstance(left, Done):
                        done = left
            if done is None or done.error is not None or not isinstance(error, anyio.get_cancelled_exc_class()):
                raise
            # It was over before the cancellation came: what it made is the caller's, who is cancelled at the next
            # step, with it in hand.
            message = done
        result: T = message.unwrap()
        return result

    def _post(self, message: Message) -> None:
        self._messages.append(message)
        with contextlib.suppress(self._run_finished):
            self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        self._arrived.set()

    async def _next(self) -> Message:
        while not self._messages:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._messages.popleft()


class Here:
    """The same shape for a caller that is on asyncio already: nothing crosses anything."""

    is_crossing = False

    def back(self, func: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
        return func

    async def __call__(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
        return await func(*args, **kwargs)


_HERE = Here()


def on_asyncio() -> TrioCall | Here:
    """What carries one call out on asyncio, whichever backend this task runs on."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            return TrioCall(_portal.current())
    return _HERE
