"""Making a sandbox so that none is lost: a repeated question, and a kill when nobody waits any more."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import httpx

from sandboxkit.provider._e2b._request import one_request

if TYPE_CHECKING:
    # mypy takes the package's own name for that of the SDK below it, which is star-imported first.
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox
else:
    from e2b_code_interpreter import AsyncSandbox

CANCEL_GRACE = 10.0
"""Seconds that a cancelled create may take to be answered, so that what it made can be killed."""
KILL_GRACE = 10.0
"""Seconds that such a kill may take."""

_logger = logging.getLogger("sandboxkit.provider")


def again_if_the_reply_was_lost(
    make: Callable[[], Awaitable[AsyncSandbox]],
) -> Callable[[], Awaitable[AsyncSandbox]]:
    """Ask a second time where the first answer was lost on its way: the idempotency key makes that safe, and only so
    is it known which sandbox to use, or to kill."""

    async def make_again() -> AsyncSandbox:
        try:
            return await make()
        except httpx.TransportError as error:
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise
            _logger.info("the reply to a create was lost (%s); asking again", type(error).__name__)
            return await make()

    return make_again


async def made_or_killed(make: Callable[[], Awaitable[AsyncSandbox]], timeout: float) -> AsyncSandbox:
    """Make a sandbox within `timeout` seconds. When cancelled, wait CANCEL_GRACE more for the answer and kill it.

    Raises:
        TimeoutError: there was no answer in time. A sandbox that the service makes all the same ends with its lifetime.
    """
    made: list[AsyncSandbox] = []
    failed: list[Exception] = []
    answered = anyio.Event()
    limit = anyio.CancelScope(deadline=anyio.current_time() + timeout, shield=True)

    async def ask() -> None:
        with limit:
            try:
                made.append(await make())
            except Exception as error:
                failed.append(error)
        answered.set()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            try:
                await answered.wait()
            except BaseException:
                limit.deadline = min(limit.deadline, anyio.current_time() + CANCEL_GRACE)
                raise
    except BaseException:
        with anyio.move_on_after(KILL_GRACE, shield=True):
            for sandbox in made:
                await one_request(sandbox.kill, "killing a sandbox whose creation was cancelled", sandbox.sandbox_id)
        raise
    if made:
        return made[0]
    raise failed[0] if failed and not limit.cancel_called else TimeoutError
