"""The one door to the E2B SDK: its asynchronous sandboxes, as the provider's contract wants them.

The cloud and the local engine are the same to it but for the connection's settings. What the SDK leaves open is closed
here: every wait has a limit of our own (the asynchronous SDK does not enforce the deadlines of commands), kept output
has a bound, `debug` is always off (E2B_DEBUG would bypass creation), a timeout is passed on each connect (the service's
default is shorter than most), a create carries an idempotency key, and all exceptions become ours.

The SDK runs on asyncio only. Every public method here may be called on any anyio backend: `_asyncio.on_asyncio` takes
the call over to an asyncio loop where the caller's is not one.
"""

from sandboxkit._foreign import wait_at_exit
from sandboxkit.provider._e2b._colours import async_twin, sync_twin, taken_up
from sandboxkit.provider._e2b._provider import E2BProvider
from sandboxkit.provider._e2b._sandbox import E2BSandbox

__all__ = ["E2BProvider", "E2BSandbox", "async_twin", "sync_twin", "taken_up"]

wait_at_exit()
