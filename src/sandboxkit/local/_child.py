"""Starts the engine as a child of this process: one per set of values, shared, ended with this process.

The child's standard input is a pipe that nothing is ever written to. Its end-of-file, which the kernel brings about
however this process ends, is what ends the engine. (The parent-death signal would not do: it follows the thread that
started the child.) The child says one line of JSON on its standard output: where it answers, or why it cannot.

A process that forks must not hold the pipe's other copy open, nor talk to its parent's engine: the child of a fork
forgets everything here and starts an engine of its own when it needs one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio.to_thread

from sandboxkit import errors
from sandboxkit._types import Endpoint
from sandboxkit.local._config import EngineConfig

START_TIMEOUT = 30.0
_REPORT_LIMIT = 64 * 1024


class _Process(subprocess.Popen[bytes]):
    """A child that needs no warning when it outlives its object: the pipe ends it."""

    def __del__(self) -> None:
        return None


class Engine:
    """A running engine and the process that it is."""

    def __init__(self, process: _Process, endpoint: Endpoint) -> None:
        self._process = process
        self.endpoint = endpoint

    @property
    def pid(self) -> int:
        """The process id of the engine."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Say whether the process still runs."""
        return self._process.poll() is None

    def stop(self, *, timeout: float = 15.0) -> None:
        """End it: all its sandboxes are killed. Kills the process itself if it takes longer than `timeout` seconds.
        Idempotent."""
        _close_pipes(self._process)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_lock = threading.Lock()
_engines: dict[EngineConfig, Engine] = {}


def start_engine(config: EngineConfig | None = None, *, timeout: float = START_TIMEOUT) -> Engine:
    """Return the engine of this process for these values, starting it if there is none, or if it has died.

    Blocks, at most `timeout` seconds; safe from any thread. Without a `config` the engine listens on a free loopback
    port and writes nothing but warnings to standard error.

    Raises:
        EngineUnavailable: it cannot run here, did not start, or did not answer within `timeout` seconds.
        IsolationUnavailable: this machine forbids what isolation needs; `remedy` says what to change.
        ConfigurationError: the values do not go together, or the port is in use.
    """
    if sys.platform != "linux":
        raise errors.EngineUnavailable(
            f"The local engine runs on Linux only, and this is {sys.platform}; set E2B_API_KEY and use endpoint='e2b'."
        )
    wanted = config or _own()
    deadline = time.monotonic() + timeout
    if not _lock.acquire(timeout=timeout):
        raise errors.EngineUnavailable(f"Another thread has been starting the local engine for {timeout:g} seconds.")
    try:
        engine = _engines.get(wanted)
        if engine is not None and engine.is_alive():
            return engine
        if engine is not None:
            _close_pipes(engine._process)
        engine = _start(wanted, deadline, timeout)
        _engines[wanted] = engine
        return engine
    finally:
        _lock.release()


def _own() -> EngineConfig:
    """How the engine of this program's pools is set. It serves this program alone, which says of each sandbox what it
    may reach: the ceiling is what it may say. `SANDBOXKIT_ISOLATION` says what makes its boxes."""
    isolation = os.environ.get("SANDBOXKIT_ISOLATION") or "auto"
    # What it may be is checked there, by name.
    return EngineConfig(isolation=isolation, log_level="warning", internet_ceiling="internet")  # type: ignore[arg-type]


def running_engine(config: EngineConfig | None = None) -> Engine | None:
    """The engine of this process for these values if it runs; starts none."""
    engine = _engines.get(config or _own())
    return engine if engine is not None and engine.is_alive() else None


async def start_engine_async(config: EngineConfig | None = None, *, timeout: float = START_TIMEOUT) -> Engine:
    """`start_engine` for an event loop. If cancelled, the start goes on, and the next caller gets its engine."""
    return await anyio.to_thread.run_sync(partial(start_engine, config, timeout=timeout), abandon_on_cancel=True)


def stop_engines(*, timeout: float = 15.0) -> None:
    """End every engine of this process; the next use starts a new one. Idempotent."""
    with _lock:
        engines = list(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.stop(timeout=timeout)


def serve_foreground(config: EngineConfig, *, on_ready: Callable[[Endpoint], None] | None = None) -> int:
    """Become the engine: serve until SIGINT or SIGTERM, and return the exit code.

    The process must have one thread and no event loop: it enters a namespace of its own and, as root, gives up its
    user id, for good. `on_ready` is called once requests are answered.

    Raises:
        EngineUnavailable, IsolationUnavailable, ConfigurationError: it cannot start; nothing is left.
    """
    try:
        from sandboxkit.local._serve import serve
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    return serve(config, on_ready=on_ready)


def missing_extra(error: ModuleNotFoundError) -> errors.EngineUnavailable:
    """Say that the engine's own dependencies are not installed."""
    return errors.EngineUnavailable(
        f"The local engine needs {error.name!r}, which is not installed: install the extra `local` "
        "(e2b-sandboxkit[local])."
    )


# -- the child ----------------------------------------------------------------------------------------------------


def _start(config: EngineConfig, deadline: float, timeout: float) -> Engine:
    # -P keeps the working directory off sys.path: a json.py of the user must not end up in the engine.
    # A session of its own: Ctrl-C is for the app, which then closes its pools while the engine still answers.
    process = _Process(
        [sys.executable, "-P", "-m", "sandboxkit.local", "--child", "--config-json", config.to_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        report = _read_report(process, deadline, timeout)
        if "error" in report:
            raise _reported_error(report["error"])
        endpoint = Endpoint(**report["endpoint"])
    except BaseException:
        _close_pipes(process)
        # It ends by itself now; killing it outright would leave its boxes to the next engine.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)
        if process.poll() is None:
            process.kill()
            process.wait()
        raise
    assert process.stdout is not None
    process.stdout.close()
    return Engine(process, endpoint)


def _read_report(process: _Process, deadline: float, timeout: float) -> dict[str, Any]:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                raise errors.EngineUnavailable(
                    f"The local engine did not answer within {timeout:g} seconds; `sandboxkit doctor` says what is "
                    "in its way."
                )
            piece = os.read(descriptor, _REPORT_LIMIT)
            received += piece
            if not piece or len(received) > _REPORT_LIMIT:
                raise errors.EngineUnavailable(
                    f"The local engine ended while it started (exit code {process.wait(5.0)}); its reason stands on "
                    "standard error."
                )
    report = json.loads(received)
    assert isinstance(report, dict)
    return report


def error_report(error: errors.SandboxkitError) -> dict[str, Any]:
    """Write an error as the child reports it."""
    return {"code": error.code, "message": str(error), "remedy": getattr(error, "remedy", "")}


def _reported_error(report: dict[str, Any]) -> errors.SandboxkitError:
    message = str(report["message"])
    if report["code"] == errors.IsolationUnavailable.code:
        return errors.IsolationUnavailable(message, remedy=str(report["remedy"]))
    if report["code"] == errors.ConfigurationError.code:
        return errors.ConfigurationError(message)
    if report["code"] == errors.UnsupportedOption.code:
        return errors.UnsupportedOption(message, option="engine")
    return errors.EngineUnavailable(message)


def _close_pipes(process: _Process) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _forget_after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for engine in _engines.values():
        _close_pipes(engine._process)
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

__all__ = [
    "Engine",
    "error_report",
    "missing_extra",
    "running_engine",
    "serve_foreground",
    "start_engine",
    "start_engine_async",
    "stop_engines",
]
