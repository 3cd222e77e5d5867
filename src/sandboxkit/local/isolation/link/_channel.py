"""One message channel to an agent: numbered requests out, answers and descriptors in, bounds on everything.

The wire and its bounds are told in `_link`. This file knows packets, requests and their ends; what the verbs mean it
does not know, but for two: SPAWN's answer opens a second wait (for EXIT), and DIAL may run out of time without the
agent being at fault.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.isolation._base import AgentError, AgentLost, ExitStatus
from sandboxkit.local.isolation.link._port import Port, close_all

MAX_OPEN = 1024
MAX_UNSENT = 4 * 1024 * 1024
MIN_PIECE = 1024
MAX_PLAIN_ANSWER = 256 * 1024
ANSWER_WITHIN = 60.0

CANCELLED = frozenset({wire.LIST, wire.REMOVE, wire.DIAL, wire.ACCEPT, wire.BENEATH_LONG, wire.WATCH_NEXT})
"""Requests that the agent can give up."""
LARGE = frozenset({wire.LIST, wire.BENEATH_LONG})
"""Requests whose answers may be long."""

NO_DESCRIPTORS = "the engine has no descriptors left"

DescriptorCheck = Callable[[int], None]


def to_bytes(text: str) -> bytes:
    """A file name as the kernel has it. AgentError EINVAL for NUL and for what cannot be a name."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise AgentError(errno.EINVAL, os.strerror(errno.EINVAL), ascii(text)) from None
    if b"\0" in data:
        raise AgentError(errno.EINVAL, os.strerror(errno.EINVAL), text)
    return data


def to_text(data: bytes) -> str:
    """A file name of the kernel as text, losslessly."""
    return data.decode("utf-8", "surrogateescape")


@dataclass(slots=True)
class _Request:
    """One open request. `future` gets (fields, descriptors); `process` waits for the EXIT of a spawned program."""

    kind: int
    future: asyncio.Future[tuple[list[bytes], list[int]]]
    within: float | None = ANSWER_WITHIN
    undo: int = 0
    deadline: asyncio.TimerHandle | None = None
    body: bytearray = field(default_factory=bytearray)


class Channel:
    """The engine's end. Made on the loop that it will live on, in state open.

    Args:
        port: our end, which the channel now owns.
        on_lost: called once, from the loop, with the reason, when the agent is gone or broke a rule; not by `close`.
    """

    def __init__(self, port: Port, *, on_lost: Callable[[str], None]) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._next = 1
        self._requests: dict[int, _Request] = {}
        self._running: dict[int, asyncio.Future[ExitStatus]] = {}
        self._lost: str | None = None
        self._is_held = False
        port.start(self._packet, lambda reason: self._end(reason, tell=True))

    @property
    def passes_descriptors(self) -> bool:
        """Whether files and sockets come out of the box as descriptors."""
        return self._port.passes_descriptors

    def hold(self) -> None:
        """The agent is being stopped: from now on an answer has all the time there is. Idempotent."""
        self._is_held = True
        for request in self._requests.values():
            if request.deadline is not None:
                request.deadline.cancel()

    def release(self) -> None:
        """The agent goes on: every answer that is due gets its whole time again. Idempotent."""
        if self._is_held and self._lost is None:
            self._is_held = False
            for number, request in self._requests.items():
                self._arm(number, request)

    def close(self) -> None:
        """Let go of the socket; what still waits gets AgentLost. Idempotent; does not call `on_lost`."""
        self._end("the sandbox was closed", tell=False)

    async def ask(
        self,
        kind: int,
        fields: Sequence[bytes | int],
        *,
        fds: tuple[int, ...] = (),
        takes: DescriptorCheck | None = None,
        descriptors: int = 0,
        within: float | None = ANSWER_WITHIN,
        status: asyncio.Future[ExitStatus] | None = None,
        undo: int = 0,
    ) -> tuple[list[bytes], list[int]]:
        """Send one request and wait for its answer; `within` of None waits for as long as the box lives. `undo` is
        the request that takes the answer's last number back, where it comes and nobody will take it.

        Raises:
            AgentError: the operation failed inside.
            AgentLost: there is no agent any more, or its answer broke a rule.
        """
        if self._lost is not None:
            raise AgentLost(self._lost)
        payload = wire.pack(fields)
        if len(payload) > MAX_UNSENT // 2:
            raise AgentError(errno.E2BIG, os.strerror(errno.E2BIG))
        if len(self._requests) >= MAX_OPEN or self._port.unsent_bytes > MAX_UNSENT:
            raise AgentError(errno.EAGAIN, "too many requests to this sandbox are waiting")
        kept = _duplicates(fds)
        number = self._take_number()
        request = _Request(kind, self._loop.create_future(), within, undo)
        self._requests[number] = request
        if status is not None:
            self._running[number] = status
        self._arm(number, request)
        try:
            self._port.send(wire.packets(number, kind, payload), kept, yields=descriptors)
        except OSError as error:
            self._forget(number)
            raise AgentError(error.errno or errno.EINVAL, error.strerror or "this cannot be passed") from error
        try:
            told, got = await request.future
        except asyncio.CancelledError:
            self._abandoned(number, request)
            raise
        try:
            if len(got) != descriptors:
                raise ValueError(f"{len(got)} descriptors where {descriptors} were promised")
            for fd in got:
                if takes is not None and self._port.passes_descriptors:
                    takes(fd)
        except (ValueError, OSError) as error:
            close_all(got)
            raise self.broken(f"a descriptor that does not fit: {error}") from None
        return told, got

    async def start(
        self, fields: Sequence[bytes | int], *, fds: tuple[int, ...], takes: DescriptorCheck | None, descriptors: int
    ) -> tuple[list[bytes], list[int], asyncio.Future[ExitStatus]]:
        """Send SPAWN; the last value is done when the program has ended. Cancelled while it waits, the program is
        killed as soon as its pid is known."""
        status: asyncio.Future[ExitStatus] = self._loop.create_future()
        status.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be waiting
        told, got = await self.ask(wire.SPAWN, fields, fds=fds, takes=takes, descriptors=descriptors, status=status)
        return told, got, status

    def _arm(self, number: int, request: _Request) -> None:
        if request.within is not None and not self._is_held:
            request.deadline = self._loop.call_later(request.within, self._late, number)

    def _take_number(self) -> int:
        """The next request number that is in no use: programs keep theirs for as long as they run."""
        while True:
            number, self._next = self._next, self._next % 0xFFFFFFFF + 1
            if number not in self._requests and number not in self._running:
                return number

    def _abandoned(self, number: int, request: _Request) -> None:
        """Its caller was cancelled: give up what can be given up, and drop an answer that came in the same turn."""
        if self._lost is not None:
            return
        if number in self._requests:
            if request.kind in CANCELLED:
                self._send(number, wire.CANCEL, wire.pack([number]))
        elif not request.future.cancelled() and request.future.exception() is None:
            fields, fds = request.future.result()
            try:
                self._dropped(request, fields, fds)
            except ValueError as error:
                close_all(fds)
                self.broken(str(error))

    def _dropped(self, request: _Request, fields: list[bytes], fds: list[int]) -> None:
        """Undo an answer that nobody will take. ValueError, with nothing done, where it is nonsense."""
        if request.kind == wire.SPAWN:
            self._kill_orphan(_pid(fields))
        elif request.undo:
            self.tell(request.undo, [wire.number(fields[-1] if fields else b"")])
        close_all(fds)

    def _late(self, number: int) -> None:
        """A request had no answer in time."""
        request = self._requests[number]
        if request.kind == wire.DIAL and not request.future.done():
            request.future.set_exception(AgentError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
            self._send(number, wire.CANCEL, wire.pack([number]))
            request.within = ANSWER_WITHIN
            self._arm(number, request)
            return
        self._end("the agent did not answer in time", tell=True)

    def _send(self, number: int, kind: int, payload: bytes) -> None:
        self._port.send(wire.packets(number, kind, payload), (), yields=0)

    def _forget(self, number: int) -> None:
        """A request could not be sent."""
        self._running.pop(number, None)
        deadline = self._requests.pop(number).deadline
        if deadline is not None:
            deadline.cancel()

    # -- answers -------------------------------------------------------------------------------------------------

    def _packet(self, data: bytes, fds: list[int], is_short: bool) -> None:
        """Handle one packet; takes over `fds` unless it raises ValueError. `is_short`: some could not be received."""
        if len(data) < wire.HEADER.size:
            raise ValueError("a packet of the wrong size")
        number, kind, flags = wire.HEADER.unpack_from(data)
        piece = data[wire.HEADER.size :]
        if flags not in (0, wire.MORE):
            raise ValueError("unknown flags")
        if kind == wire.EXIT:
            self._exited(number, piece, flags, fds)
            return
        request = self._requests.get(number)
        if request is None or kind not in (wire.OK, wire.FAIL):
            raise ValueError("an answer that nobody asked for")
        limit = wire.MAX_REPLY if request.kind in LARGE else MAX_PLAIN_ANSWER
        if len(request.body) + len(piece) > limit or (flags and (len(piece) < MIN_PIECE or fds)):
            raise ValueError("an answer that is too long, or cut too small")
        if flags:
            request.body += piece
            return
        fields = wire.unpack(bytes(request.body) + piece)
        failure = None
        if kind == wire.FAIL:
            if len(fields) != 3 or fds:
                raise ValueError("a refusal of the wrong shape")
            failure = AgentError(wire.number(fields[0]), to_text(fields[1])[:200], to_text(fields[2])[:4096])
            if request.kind == wire.SPAWN:
                self._running.pop(number, None)  # no EXIT will follow
        elif is_short:
            if request.kind == wire.SPAWN:
                self._kill_orphan(_pid(fields))
            close_all(fds)
            failure, fds = AgentError(errno.EMFILE, NO_DESCRIPTORS), []
        self._answered(number, request, fields, fds, failure)

    def _answered(
        self, number: int, request: _Request, fields: list[bytes], fds: list[int], failure: AgentError | None
    ) -> None:
        if request.kind == wire.SPAWN and failure is None:
            _pid(fields)
        del self._requests[number]
        if request.deadline is not None:
            request.deadline.cancel()
        if not request.future.done():
            if failure is not None:
                request.future.set_exception(failure)
            else:
                request.future.set_result((fields, fds))
        elif failure is None:
            self._dropped(request, fields, fds)

    def tell(self, kind: int, fields: Sequence[bytes | int]) -> None:
        """Send a request whose answer nobody waits for. Does nothing once the agent is lost."""
        if self._lost is not None:
            return
        number = self._take_number()
        request = _Request(kind, self._loop.create_future())
        request.future.cancel()
        self._requests[number] = request
        self._arm(number, request)
        self._send(number, kind, wire.pack(fields))

    def _kill_orphan(self, pid: int) -> None:
        """Kill a program whose caller was cancelled before it had its pid."""
        self.tell(wire.SIGNAL, [pid, 9, 1])

    def _exited(self, number: int, piece: bytes, flags: int, fds: list[int]) -> None:
        status = self._running.pop(number, None)
        if status is None or number in self._requests or flags or fds:
            raise ValueError("the end of a program that was not started")
        fields = wire.unpack(piece)
        if len(fields) != 2 or fields[0] not in (b"code", b"signal"):
            raise ValueError("an exit status of the wrong shape")
        value = wire.number(fields[1])
        if not 0 <= value <= 255:
            raise ValueError("an exit status out of range")
        if not status.done():
            status.set_result(ExitStatus(code=value) if fields[0] == b"code" else ExitStatus(signal=value))

    def number(self, fields: list[bytes]) -> int:
        """The number that an answer begins with; ends the link where there is none. Raises AgentLost."""
        try:
            return wire.number(fields[0])
        except (ValueError, IndexError):
            raise self.broken("an answer without its number") from None

    # -- the end -------------------------------------------------------------------------------------------------

    def broken(self, what: str) -> AgentLost:
        """End the link because of what the agent sent; returns what to raise."""
        self._end(f"the agent talked nonsense: {what}", tell=True)
        return AgentLost(self._lost)

    def _end(self, reason: str, *, tell: bool) -> None:
        if self._lost is not None:
            return
        self._lost = reason
        self._port.close()
        for request in self._requests.values():
            if request.deadline is not None:
                request.deadline.cancel()
            if not request.future.done():
                request.future.set_exception(AgentLost(reason))
                request.future.exception()  # read once: its waiter may have been cancelled in the same turn
        self._requests.clear()
        for status in self._running.values():
            if not status.done():
                status.set_exception(AgentLost(reason))
        self._running.clear()
        if tell:
            self._on_lost(reason)


def _duplicates(fds: Sequence[int]) -> tuple[int, ...]:
    """Duplicates of descriptors. AgentError EMFILE, and none of them, when there are not enough left."""
    kept: list[int] = []
    try:
        for fd in fds:
            kept.append(os.dup(fd))
    except OSError as error:
        close_all(kept)
        raise AgentError(error.errno or errno.EMFILE, NO_DESCRIPTORS) from error
    return tuple(kept)


def _pid(fields: Sequence[bytes]) -> int:
    pid = wire.number(fields[0] if fields else b"")
    if pid <= 0:
        raise ValueError("a pid that is none")
    return pid
