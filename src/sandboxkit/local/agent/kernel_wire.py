"""The kernel's end of the wire: whole frames out, whole frames in, none cut in two by an interrupt.

A frame is two 32-bit lengths, a small JSON object (the head), and as many bytes as the second length says (the body).
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

LENGTHS = struct.Struct("!II")
MAX_BODY = 64 * 1024 * 1024


class Wire:
    """A stream socket that carries frames. Any thread may send; one reads.

    `hold` is called before and `release` after each frame that the main thread sends: in between, an interrupt has to
    wait, or the engine would read half a frame. Until they are set, there is none.
    """

    hold: Callable[[], None] | None = None
    release: Callable[[], None] | None = None

    def __init__(self, descriptor: int) -> None:
        self._socket: socket.socket | None = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        os.set_inheritable(descriptor, False)
        self._lock = threading.Lock()
        self._received = bytearray()

    def fileno(self) -> int:
        """The descriptor, to wait on."""
        assert self._socket is not None
        return self._socket.fileno()

    def wait(self) -> None:
        """Return once there is something to receive."""
        select.select([self.fileno()], [], [])

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame; waits while the engine does not take it. Does nothing once it is forgotten."""
        if self._socket is None:
            return
        encoded = json.dumps(head).encode()
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self.hold is not None:
            self.hold()
        try:
            with self._lock:
                self._socket.sendall(LENGTHS.pack(len(encoded), len(body)) + encoded)
                if body:
                    self._socket.sendall(body)
        finally:
            if is_main and self.release is not None:
                self.release()

    def receive(self) -> list[tuple[dict[str, Any], bytes]] | None:
        """Return the frames that came whole with what can be read now; None once the engine has gone."""
        assert self._socket is not None
        try:
            chunk = self._socket.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        if not chunk:
            return None
        self._received += chunk
        frames = []
        while len(self._received) >= LENGTHS.size:
            head_size, body_size = LENGTHS.unpack_from(self._received)
            middle = LENGTHS.size + head_size
            end = middle + body_size
            if len(self._received) < end:
                break
            head = json.loads(bytes(self._received[LENGTHS.size : middle]))
            frames.append((head, bytes(self._received[middle:end])))
            del self._received[:end]
        return frames

    def forget(self) -> None:
        """Speak and listen no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
