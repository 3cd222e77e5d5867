"""The env-file: three variables for E2B's SDKs, written when the engine answers and removed when it ends.

A process of its own writes it. A root engine gives up its user id before it answers, and may then no longer be allowed
to write where its starter wants the file; the writer is forked before that. It also outlives an engine that is killed,
so that no stale key stays behind.

The writer may be killed, too. Before it writes the file it leaves a note in the engine's state directory: where the
file is, and the digest of what stands in it. Who removes that directory (the engine at its end, root's supervisor, the
next engine) first removes what the note names, if it is still that engine's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import tempfile
from pathlib import Path

from sandboxkit._types import Endpoint
from sandboxkit.errors import ConfigurationError

CLOSE_TIMEOUT = 2.0
"""Seconds that the writer gets to remove the file."""

NOTE = "env-file"
_NOTE_LIMIT = 16 * 1024
_FILE_LIMIT = 4096


class EnvFile:
    """A file that exists while the engine answers. Made before any thread is started and any privilege given up."""

    def __init__(self, path: str, *, state_dir: Path, not_for_writer: tuple[int, ...] = ()) -> None:
        """Start the writer; `state_dir` will be the engine's directory when the file is written, `not_for_writer` are
        descriptors that it must not keep open.

        Raises:
            ConfigurationError: the file could not be written, as far as can be told now.
        """
        _check(Path(os.path.abspath(path)))
        self._path = path
        self._state_dir = state_dir
        self._line, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._line.close()
                for descriptor in not_for_writer:
                    os.close(descriptor)
                _write_and_remove(Path(os.path.abspath(path)), theirs, state_dir)
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
            "E2B_VOLUME_API_URL": endpoint.api_url,
        }
        try:
            self._line.sendall("".join(f"{name}='{value}'\n" for name, value in values.items()).encode())
            answer = self._line.recv(4096).decode()
        except ConnectionError:
            answer = ""
        if answer != "written":
            raise ConfigurationError(
                f"The env-file {self._path!r} cannot be written: {answer or 'its writer was killed'}."
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
        remove_noted(self._state_dir)  # where the writer was killed, and we may


def _check(path: Path) -> None:
    """Refuse early what can be seen early: nobody should wait for an engine that then does not start."""
    if path.is_dir():
        problem = "it is a directory"
    elif not path.parent.exists():
        problem = f"there is no directory {str(path.parent)!r}"
    elif not path.parent.is_dir():
        problem = f"{str(path.parent)!r} is not a directory"
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        problem = f"the directory {str(path.parent)!r} cannot be written"
    else:
        return
    raise ConfigurationError(f"The env-file {str(path)!r} cannot be written: {problem}.")


def remove_noted(state_dir: Path) -> None:
    """Remove the env-file that an engine with this state directory has left, if there is one and it is still its own.

    Only a note of our own user is believed: the directory is the engine's, which may have less rights than we.
    """
    note = state_dir / NOTE
    try:
        descriptor = os.open(note, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        text = file.read(_NOTE_LIMIT)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        noted = json.loads(text)
        path = Path(noted["path"])
        # What lies there now may be anything, a pipe or another engine's file.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            is_same = hashlib.sha256(file.read(_FILE_LIMIT)).hexdigest() == noted["sha256"]
        if is_same:
            path.unlink()
    with contextlib.suppress(OSError):
        note.unlink()


def _write_and_remove(path: Path, line: socket.socket, state_dir: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the engine says when; it gets the same signals
    content = line.recv(_FILE_LIMIT)
    if not content:
        return
    note = {"path": str(path), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        _write(state_dir / NOTE, json.dumps(note).encode())
        _write(path, content)
    except OSError as error:
        with contextlib.suppress(OSError):
            line.sendall((error.strerror or type(error).__name__).encode())
        return
    with contextlib.suppress(OSError):
        line.sendall(b"written")
        line.recv(1)  # the end of the engine, however it comes
    remove_noted(state_dir)
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:  # the note went with the directory; another engine's file stays
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
