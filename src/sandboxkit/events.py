"""What happened, as frozen values: pools, runners and SafeFS tell it, `on_event` and `instrumentation` listen.

Names, in the order of a sandbox's life (the data that each carries is in brackets):

    pool.opened pool.closed  pool.resized [max_live, min_warm]  pool.drained  pool.reap_failed [error]
    pool.degraded [error]  pool.gave_up [error]  pool.recovered  (the warm stock of `template`)
    sandbox.creating  sandbox.created [duration, source]  sandbox.create_failed [error, duration]
    sandbox.create_aborted [duration]
    sandbox.reused  sandbox.renewed [end_at]  sandbox.renew_failed [error]  sandbox.lost [error, files_lost]
    sandbox.paused  sandbox.resumed [end_at]
    sandbox.killed [reason]  sandbox.kill_failed [error]  sandbox.reaped  sandbox.let_go
    session.queued  session.refused [error, duration]
    session.opened [source: reused | warm | created | attached, duration]  session.released [duration]
    session.conflict  session.detached
    session.recovered [error, lost_sandbox_id, files_restored, files_lost]
    code.started  code.finished [duration, error]  command.started  command.finished [duration, exit_code]
    fragment.step [step, detail]  fragment.finished [duration, error]
    path.refused [path, code, level, root_adversary]; `session` is the principal, where there is one

No event carries code, output, environment values or keys. Two exceptions, which `session.stream()` yields to its
caller and to nobody else: `fragment.log [step, text]` is what an installer says, and the last event has the
`FragmentResult` as `result`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sandboxkit.errors import ConfigurationError, SandboxkitError


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `at` is Unix time in seconds; `data` holds what is particular to `name`."""

    name: str
    at: float
    pool: str | None = None
    session: str | None = None
    sandbox_id: str | None = None
    template: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


FuncT = TypeVar("FuncT", bound=Callable[..., object])
EventHandler = Callable[[Event], object]
"""Takes an event; what it returns is ignored, and what it raises is logged and goes no further.

It is a plain function. Events are told in the middle of decisions, where nothing can be awaited; who has something to
await puts the event into a queue of their own.
"""


def listener(func: FuncT | None, *, name: str = "on_event") -> FuncT | None:
    """Check what a caller passes as `on_event`, or as another function that is told something; and return it.

    Raises:
        ConfigurationError: it cannot be called, or it is an async function, which would never be awaited.
    """
    if func is None:
        return None
    if not callable(func):
        raise ConfigurationError(f"{name}={func!r} is not callable.")
    for called in (func, type(func).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise ConfigurationError(
                f"{name}={func!r} is an async function, and nobody awaits it. Pass a plain one, which may put what it "
                "is told into a queue for a task of yours."
            )
    return func


def name_of(error: BaseException) -> str:
    """What an event says of an error: its stable code, or its class for one that is not ours; never its message."""
    return error.code if isinstance(error, SandboxkitError) else type(error).__name__


Event.__module__ = "sandboxkit"
