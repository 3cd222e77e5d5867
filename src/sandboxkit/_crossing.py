"""The messages of a call that crosses from the portal's loop to whoever waits for it, a thread or a trio task."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

from sandboxkit.errors import ConfigurationError

_logger = logging.getLogger("sandboxkit.portal")


class Done:
    """The last message of a call: its value or its exception."""

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error

    def unwrap(self) -> Any:
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            self.error = None  # no cycle from the exception to this frame to the exception


class CallBack:
    """A message in the middle of a call: the loop's task waits until the caller has run this."""

    def __init__(self, func: Callable[[Any], object], argument: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._reply: asyncio.Future[object] = self._loop.create_future()
        self._func = func
        self._argument = argument

    async def answered(self) -> object:
        return await self._reply

    def carry_out(self) -> None:
        try:
            value = self._func(self._argument)
            if inspect.iscoroutine(value):
                value.close()
                raise ConfigurationError("An asynchronous callback was given to a synchronous call; use a function.")
        except Exception as error:
            self._answer(error)
        except BaseException:
            self.refuse()  # Ctrl-C in the callback: the call is left
            raise
        else:
            self._answer(None)

    async def carry_out_async(self) -> None:
        try:
            value = self._func(self._argument)
            if inspect.isawaitable(value):
                await value
        except Exception as error:
            self._answer(error)
        else:
            self._answer(None)

    def refuse(self) -> None:
        self._answer(ConfigurationError("The call that this callback belongs to was left."))

    def _answer(self, error: Exception | None) -> None:
        def settle() -> None:
            if self._reply.done():
                return
            if error is None:
                self._reply.set_result(None)
            else:
                self._reply.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop has ended, and the task with it
            self._loop.call_soon_threadsafe(settle)


class Told:
    """A message in the middle of a call that nobody waits for."""

    def __init__(self, func: Callable[[Any], object], argument: Any) -> None:
        self._func = func
        self._argument = argument

    def carry_out(self) -> None:
        try:
            self._func(self._argument)
        except Exception:
            _logger.warning("a listener of events raised", exc_info=True)


class Item:
    """A message of an iterator: one value; the task waits until the next is wanted."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._loop = asyncio.get_running_loop()
        self._wanted = asyncio.Event()

    async def until_next_is_wanted(self) -> None:
        await self._wanted.wait()

    def want_next(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wanted.set)


Message = Done | CallBack | Told | Item
Post = Callable[[Message], None]
