"""One kernel process as the engine sees it: a socket, two pipes, and no more memory than it may take.

Everything is read in callbacks of the loop, the pipes before each message of the socket, so that what was printed
before a message is handed out before it. Once enough waits to be taken, nothing more is read: the kernel then waits in
its write, and the user's code with it.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import signal
import socket
import termios
from collections.abc import Mapping

from sandboxkit.local.interpreter._events import Gone, Item, Printed, Stream
from sandboxkit.local.interpreter._frames import Began, Decoder, FrameError, Ready, Shown, adopt, execute, interrupt
from sandboxkit.local.interpreter._languages import NO_KERNEL, Language
from sandboxkit.local.isolation._base import Agent, AgentError, AgentLost, ExitStatus, Process

START_TIMEOUT = 30.0
UNFINISHED = 0.1
"""Seconds that a line without its end may be held back."""
EXIT_TIMEOUT = 0.5
"""How long a kernel that is stopped gets to run its exit functions."""

WAITING = 256 * 1024
"""Bytes that may wait to be taken before reading stops; one message may go beyond it."""

OVERHEAD = 256
"""What an item counts for by itself: many empty ones take memory too."""

IDLE_PAUSE = 0.05
"""How long reading stops, between cells, after as many bytes as may wait."""

CHUNK = 64 * 1024
TAIL = 4096


class KernelFailed(Exception):
    """A kernel did not start; the message says what it said."""


class NoKernel(KernelFailed):
    """There is no kernel for the language in this sandbox."""


class Kernel:
    """A running kernel. One cell at a time; who runs it takes what comes until it has ended."""

    def __init__(self, language: Language, process: Process, sock: socket.socket, pipes: Mapping[Stream, int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._language = language
        self._process = process
        self._socket = sock
        self._pipes = dict(pipes)
        self._decoder = Decoder()
        self._items: list[Item] = []
        self._waiting = 0
        self._some = asyncio.Event()
        self._urgent = asyncio.Event()
        self._listening = True
        self._paused = True
        self._closed = False
        self._sending: list[asyncio.Task[None]] = []
        """One after the other, each until the socket has taken its frames."""
        self.gone: Gone | None = None
        """Set once nothing more can come from it."""
        self._has_begun = True
        """Whether the kernel has said that it runs the last cell."""
        self._is_without_kernel = False
        self._first = b""
        """What is to be sent before the next cell."""
        self.cell = 0
        """The number of the last cell that was sent."""
        self._resume()

    @classmethod
    async def start(cls, agent: Agent, language: Language, *, envs: Mapping[str, str], cwd: str) -> Kernel:
        """Start a kernel and wait until it takes cells.

        Raises:
            KernelFailed: it ended before it was ready, or was not ready in time.
            NoKernel: the sandbox has none for this language.
            AgentError: it could not be started: ENOENT for a missing `cwd`.
            AgentLost: the sandbox is gone.
        """
        try:
            ours, theirs, pipes = _connections()
        except OSError as error:
            raise KernelFailed(f"The engine has no means left to start an interpreter: {error.strerror}.") from error
        try:
            fds = {1: pipes[0][1], 2: pipes[1][1], 3: theirs.fileno()}
            process = await agent.spawn(language.argv, envs=envs, cwd=cwd, fds=fds)
        except BaseException as error:
            ours.close()
            for reader, _ in pipes:
                os.close(reader)
            program = language.argv[0]
            if isinstance(error, AgentError) and error.errno == errno.ENOENT and error.path == program:
                raise NoKernel(_without(language, f"there is no {program} in this sandbox")) from error
            raise
        finally:
            theirs.close()
            for _, writer in pipes:
                os.close(writer)
        ours.setblocking(False)
        for reader, _ in pipes:
            os.set_blocking(reader, False)
        kernel = cls(language, process, ours, {"stdout": pipes[0][0], "stderr": pipes[1][0]})
        try:
            await kernel._until_ready()
        except BaseException:
            kernel.close()
            with contextlib.suppress(AgentLost):
                await agent.signal(process.pid, signal.SIGKILL)
            raise
        return kernel

    async def _until_ready(self) -> None:
        said = b""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while True:
                    for item in await self.take():
                        if isinstance(item, Ready):
                            self._listening = False
                            return
                        if isinstance(item, Printed):
                            said = (said + item.data)[-TAIL:]
                        if isinstance(item, Gone):
                            how = await self.ending()
                            if self._is_without_kernel:
                                raise NoKernel(_without(self._language, _text(said)))
                            raise KernelFailed(f"The interpreter {how} before it was ready. {_text(said)}".rstrip())
        except TimeoutError:
            message = f"The interpreter was not ready within {START_TIMEOUT:.0f} s. {_text(said)}"
            raise KernelFailed(message.rstrip()) from None

    # -- a cell ---------------------------------------------------------------------------------------------------

    def adopt(self, envs: Mapping[str, str]) -> None:
        """Have these variables in its environment, beside those that it has, from the next cell on."""
        self._first += adopt(envs)

    def execute(self, code: str, envs: Mapping[str, str]) -> int:
        """Send a cell and return its number. Once the kernel is gone, the items say so."""
        self.cell += 1
        self._listening = True
        self._has_begun = False
        self._forget_items()
        if self.gone is not None:
            self._add(self.gone, 0)
            return self.cell
        frames, self._first = self._first + execute(self.cell, code, envs), b""
        self._send(frames)
        return self.cell

    def _send(self, frames: bytes) -> None:
        # A task, because a frame that was begun must be finished, whoever waits for the cell.
        earlier = self._sending[-1] if self._sending else None
        self._sending.append(self._loop.create_task(self._send_after(earlier, frames)))
        self._sending[-1].add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._sending.remove(sending)
        if not sending.cancelled():
            sending.exception()  # where it is gone, the socket's end says so

    async def _send_after(self, earlier: asyncio.Task[None] | None, frames: bytes) -> None:
        if earlier is not None:
            await asyncio.wait({earlier})
        await self._loop.sock_sendall(self._socket, frames)

    async def take(self, *, linger: float = 0.0, timeout: float | None = None) -> list[Item]:
        """Wait until something has come, and take all of it. Nothing is lost on cancellation.

        Args:
            linger: where it is only output and results, wait this long for more, so that single prints don't become
                single events, nor the end of a quick cell one of its own.
            timeout: give up after this long, with an empty list.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self._items:
                    self._some.clear()
                    await self._some.wait()
        except TimeoutError:
            return []
        if linger and not self._urgent.is_set():
            await self._wait_for_more(linger)
        items = self._items
        self._forget_items()
        return items

    async def _wait_for_more(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._urgent.wait()
        # A print writes its text and its end one after the other, and on a busy machine much lies between them.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNFINISHED):
                while not self._urgent.is_set() and _is_unfinished(self._items):
                    self._some.clear()
                    await self._some.wait()

    def rest(self) -> None:
        """The cell is over: from now on what comes is thrown away, so that nothing in the sandbox waits for us."""
        self._listening = False
        self._forget_items()

    def _forget_items(self) -> None:
        self._items = []
        self._waiting = 0
        self._some.clear()
        self._urgent.clear()
        self._resume()

    async def interrupt(self, agent: Agent, *, group: bool) -> None:
        """Send SIGINT: to the kernel alone, or to its children as well."""
        if self._language.interrupted_by == "frame":
            if self.gone is None and not self._closed:
                self._send(interrupt())
            if not group:
                return
        await agent.signal(self._process.pid, signal.SIGINT, group=group)

    # -- the end --------------------------------------------------------------------------------------------------

    async def ending(self) -> str:
        """How its process ended, in words; it is expected to end now.

        Raises:
            AgentLost: the sandbox has ended with it.
        """
        if self.gone is not None and self.gone.broken:
            return f"sent nonsense ({self.gone.broken})"
        try:
            async with asyncio.timeout(2.0):
                status = await self._process.wait()
        except TimeoutError:
            return "closed its socket"
        self._is_without_kernel = status.code == NO_KERNEL
        return _in_words(status)

    async def stop(self, agent: Agent) -> None:
        """End it, with what it started: in an orderly way at first, by SIGKILL where that takes too long."""
        self.close()
        try:
            async with asyncio.timeout(EXIT_TIMEOUT):
                await self._process.wait()
        except TimeoutError:
            await agent.signal(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it at once: it sees its socket close. Idempotent."""
        if not self._closed:
            self._closed = True
            self._pause()
            if self.gone is None:
                self._lost(Gone())
            for sending in self._sending:
                sending.cancel()
            # Now, not when they notice: the descriptor's number may be another's by then.
            self._loop.remove_writer(self._socket)
            self._socket.close()
            for descriptor in self._pipes.values():
                os.close(descriptor)
            self._pipes.clear()

    # -- reading --------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            for stream, descriptor in self._pipes.items():
                self._loop.add_reader(descriptor, self._read_pipe, stream)
            if self.gone is None:
                self._loop.add_reader(self._socket, self._read_socket)

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            for descriptor in self._pipes.values():
                self._loop.remove_reader(descriptor)
            self._loop.remove_reader(self._socket)

    def _read_pipe(self, stream: Stream) -> None:
        if not self._has_begun and self.gone is None:
            # It said so before it printed this, and so does the client expect it.
            self._read_socket()
        descriptor = self._pipes.get(stream)
        if descriptor is not None and self._read_some(stream, descriptor, CHUNK) == 0:
            # Closed by everybody inside.
            self._loop.remove_reader(descriptor)
            os.close(self._pipes.pop(stream))

    def _read_some(self, stream: Stream, descriptor: int, size: int) -> int | None:
        """Read up to `size` bytes; None when there are none now."""
        try:
            data = os.read(descriptor, size)
        except BlockingIOError:
            return None
        if data:
            self._add(Printed(stream, data), len(data))
        return len(data)

    def _read_pipes_now(self) -> None:
        """Read what is in the pipes at this moment, and not what a process adds meanwhile: that may never end."""
        for stream, descriptor in self._pipes.items():
            available = array.array("i", [0])
            fcntl.ioctl(descriptor, termios.FIONREAD, available)
            left = available[0]
            while left > 0 and (count := self._read_some(stream, descriptor, min(left, CHUNK))):
                left -= count

    def _read_socket(self) -> None:
        try:
            data = self._socket.recv(CHUNK * 4)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        broken = ""
        try:
            messages = self._decoder.feed(data)
        except FrameError as error:
            messages, broken = error.before, str(error)
        if messages and isinstance(messages[0], Began):
            self._has_begun = True
            self._add(messages.pop(0), 0)
        if messages or broken or not data:
            self._read_pipes_now()
        for message in messages:
            self._add(message, len(message.fields) if isinstance(message, Shown) else 0)
        if broken or not data:
            self._lost(Gone(broken))

    def _lost(self, gone: Gone) -> None:
        self._loop.remove_reader(self._socket)
        self.gone = gone
        self._add(gone, 0)

    def _add(self, item: Item, size: int) -> None:
        self._waiting += size + OVERHEAD
        if self._listening:
            self._items.append(item)
            self._some.set()
            # That a cell has begun can wait for the first of its output, and a result for the end, which mostly follows
            # at once: each piece costs its reader a turn, so that a quick cell is to come in one.
            if self._waiting >= CHUNK or not isinstance(item, Printed | Began | Shown):
                self._urgent.set()
        if self._waiting >= WAITING:
            self._pause()
            if not self._listening:
                # Thrown away, but not faster than this: a process that prints for ever must not keep the engine busy.
                self._loop.call_later(IDLE_PAUSE, self._go_on_idling)

    def _go_on_idling(self) -> None:
        if not self._listening:
            self._forget_items()


def _connections() -> tuple[socket.socket, socket.socket, list[tuple[int, int]]]:
    """A pair of sockets and two pipes, or OSError and nothing."""
    ours, theirs = socket.socketpair()
    pipes: list[tuple[int, int]] = []
    try:
        for _ in range(2):
            pipes.append(os.pipe2(os.O_CLOEXEC))
    except BaseException:
        for end in itertools.chain(*pipes):
            os.close(end)
        ours.close()
        theirs.close()
        raise
    return ours, theirs, pipes


def _is_unfinished(items: list[Item]) -> bool:
    return bool(items) and isinstance(items[-1], Printed) and not items[-1].data.endswith(b"\n")


def _without(language: Language, why: str) -> str:
    return f"Language {language.name!r} is not supported here: {why or 'it has no kernel'}."


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace").strip()


def _in_words(status: ExitStatus) -> str:
    if status.signal is not None:
        try:
            name = signal.Signals(status.signal).name
        except ValueError:
            name = str(status.signal)
        return f"was killed by signal {name}"
    return f"ended with exit code {status.code}"
