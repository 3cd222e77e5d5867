"""The env-file: three variables for E2B's SDKs, written when the engine answers and removed when it ends.

A process of its own writes it. A root engine gives up its user id before it answers, and may then no longer be allowed
to write where its starter wants the file; the writer is forked before that. It also outlives an engine that is killed,
so that no stale key stays behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
from pathlib import Path

from sandboxkit._types import Endpoint
from sandboxkit.errors import ConfigurationError

CLOSE_TIMEOUT = 2.0
"""Seconds that the writer gets to remove the file."""


class EnvFile:
    """A file that exists while the engine answers. Made before any thread is started and any privilege given up."""

    def __init__(self, path: str, *, not_for_writer: tuple[int, ...] = ()) -> None:
        """Start the writer; `not_for_writer` are descriptors that it must not keep open."""
        self._path = path
        self._line, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._line.close()
                for descriptor in not_for_writer:
                    os.close(descriptor)
                _write_and_remove(Path(path), theirs)
            finally:
                os._exit(0)
        theirs.close()

    def write(self, endpoint: Endpoint) -> None:
        """Write it, mode 0600, the whole of it or nothing; returns when it is there.

        Raises:
            ConfigurationError: it cannot be written; the message names it.
        """
        values = {
            "E2B_API_KEY": endpoint.api_key,
            "E2B_API_URL": endpoint.api_url,
            "E2B_SANDBOX_URL": endpoint.sandbox_url,
        }
        self._line.sendall("".join(f"{name}='{value}'\n" for name, value in values.items()).encode())
        answer = self._line.recv(4096).decode()
        if answer != "written":
            raise ConfigurationError(
                f"The env-file {self._path!r} cannot be written: {answer or 'its writer is gone'}."
            )

    def close(self) -> None:
        """Remove it, and return when it is gone. Idempotent."""
        if self._line.fileno() < 0:
            return
        # Not a plain close: the supervisor of a root engine has a copy of this socket.
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
            self._line.settimeout(CLOSE_TIMEOUT)
            self._line.recv(1)  # the writer's end
        self._line.close()
        with contextlib.suppress(ChildProcessError):  # the supervisor's child, then
            os.waitpid(self._pid, 0)


def _write_and_remove(path: Path, line: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the engine says when; it gets the same signals
    content = line.recv(4096)
    if not content:
        return
    try:
        _write(path, content)
    except OSError as error:
        line.sendall((error.strerror or type(error).__name__).encode())
        return
    line.sendall(b"written")
    line.recv(1)  # the end of the engine, however it comes
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:  # another engine's file stays
            path.unlink()


def _write(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
