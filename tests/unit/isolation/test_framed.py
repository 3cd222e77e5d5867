"""The transport of frames, with the real agent as a plain process: order, bounds, half-closed ends, refusals."""

from __future__ import annotations

import array
import asyncio
import errno
import fcntl
import os
import socket
import sys
import termios
from typing import Any

import pytest

from sandboxkit.local.isolation._base import AgentError, AgentLost, ExitStatus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")

FRAMES = pytest.mark.parametrize("with_agent", ["frames"], indirect=True)
ENVS = {"PATH": "/usr/bin:/bin"}


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await asyncio.wait_for(ready, 30)
    finally:
        loop.remove_reader(fd)


async def read_all(fd: int) -> bytes:
    """Everything up to the end; closes it."""
    os.set_blocking(fd, False)
    parts = []
    while True:
        await readable(fd)
        piece = os.read(fd, 1 << 16)
        if not piece:
            os.close(fd)
            return b"".join(parts)
        parts.append(piece)


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


@FRAMES
def test_much_goes_through_and_ends(with_agent: Any) -> None:
    """More than any buffer holds goes in and comes out unchanged, and the end of the input is seen."""

    async def scenario(link: Any) -> None:
        sent = os.urandom(3_000_000)
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        process = await link.spawn(["cat"], envs=ENVS, cwd="/", fds={0: in_read, 1: out_write})
        os.close(in_read)
        os.close(out_write)
        reading = asyncio.ensure_future(read_all(out_read))
        with os.fdopen(in_write, "wb") as stream:
            await asyncio.to_thread(stream.write, sent)
            await asyncio.to_thread(stream.flush)
        assert await reading == sent
        assert await process.wait() == ExitStatus(code=0)

    with_agent(scenario)


@FRAMES
def test_a_reader_who_stops(with_agent: Any) -> None:
    """Output that nobody reads is bounded in between, stops its program, and holds up no other request."""

    async def scenario(link: Any) -> None:
        read, write = os.pipe()
        process = await link.spawn(["cat", "/dev/zero"], envs=ENVS, cwd="/", fds={1: write})
        os.close(write)
        await readable(read)
        port = link._channel._port
        for _ in range(50):
            await link.ping()
        lane = next(iter(port._lanes.values()))
        assert lane.came - lane.taken <= 65_536
        others, more = os.pipe()
        echo = await link.spawn(["echo", "fine"], envs=ENVS, cwd="/", fds={1: more})
        os.close(more)
        assert await read_all(others) == b"fine\n"
        assert await echo.wait() == ExitStatus(code=0)
        os.close(read)  # the program sees a broken pipe
        assert await asyncio.wait_for(process.wait(), 30) == ExitStatus(signal=13)
        for _ in range(1000):
            if not port._lanes:
                break
            await link.ping()
        assert not port._lanes

    with_agent(scenario)


@FRAMES
def test_what_was_printed_comes_first(with_agent: Any) -> None:
    """What a program says over its socket, and that it has ended, comes after all that it had printed before."""
    code = (
        "import os, socket\n"
        "s = socket.socket(fileno=3)\n"
        "for n in range(300):\n"
        "    os.write(1, b'%08d' % n * 100)\n"
        "    s.send(b'%04d' % n)\n"
    )

    async def scenario(link: Any) -> None:
        read, write = os.pipe()
        near, far = socket.socketpair()
        process = await link.spawn(python(code), envs=ENVS, cwd="/", fds={1: write, 3: far.fileno()})
        os.close(write)
        far.close()
        os.set_blocking(read, False)
        near.setblocking(False)
        printed = 0

        def take() -> int:
            waiting = array.array("i", [0])
            fcntl.ioctl(read, termios.FIONREAD, waiting)
            return len(os.read(read, waiting[0])) if waiting[0] else 0

        said = b""
        ended = asyncio.ensure_future(process.wait())
        while len(said) < 4 * 300:
            if not said or len(said) % 40:  # else its output fills up meanwhile
                printed += take()
            try:
                piece = near.recv(4)
            except BlockingIOError:
                printed += take()
                await asyncio.sleep(0)
                continue
            said += piece
            printed += take()
            assert printed >= 800 * (int(said[-4:]) + 1), "its output is there when it says so"
        assert await asyncio.wait_for(ended, 30) == ExitStatus(code=0)
        near.close()
        os.close(read)

    with_agent(scenario)


@FRAMES
def test_its_end_comes_after_its_output(with_agent: Any) -> None:
    """Once a program has ended, all that it printed can be read at once, where a pipe could hold that much."""

    async def scenario(link: Any) -> None:
        for _ in range(20):
            read, write = os.pipe()
            process = await link.spawn(python("print('x' * 60000)"), envs=ENVS, cwd="/", fds={1: write})
            os.close(write)
            await process.wait()
            waiting = array.array("i", [0])
            fcntl.ioctl(read, termios.FIONREAD, waiting)
            assert waiting[0] == 60001
            os.close(read)

    with_agent(scenario)


@FRAMES
def test_a_socket_is_closed_by_halves(with_agent: Any) -> None:
    """A program that gets a socket sees one side end while the other goes on, and so does its caller."""
    code = (
        "import socket\n"
        "s = socket.socket(fileno=3)\n"
        "got = b''\n"
        "while data := s.recv(99): got += data\n"
        "s.sendall(b'got ' + got)\n"
    )

    async def scenario(link: Any) -> None:
        near, far = socket.socketpair()
        process = await link.spawn(python(code), envs=ENVS, cwd="/", fds={3: far.fileno()})
        far.close()
        near.sendall(b"this")
        near.shutdown(socket.SHUT_WR)
        assert await read_all(near.detach()) == b"got this"
        assert await process.wait() == ExitStatus(code=0)

    with_agent(scenario)


@FRAMES
def test_a_terminal_is_resized_and_hung_up(with_agent: Any) -> None:
    """A terminal takes a new size, and its programs are hung up when the caller closes it."""

    async def scenario(link: Any) -> None:
        process, terminal = await link.spawn_pty(
            ["sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done"],
            envs=ENVS,
            cwd="/",
            cols=80,
            rows=24,
        )
        output = b""
        while b"ready" not in output:
            await readable(terminal)
            output += os.read(terminal, 4096)
        await link.resize(process.pid, terminal, cols=101, rows=31)
        while b"31 101" not in output:
            await readable(terminal)
            output += os.read(terminal, 4096)
        with pytest.raises(AgentError):
            await link.resize(1, terminal, cols=1, rows=1)
        os.close(terminal)
        assert (await asyncio.wait_for(process.wait(), 30)).signal == 1

    with_agent(scenario)


@FRAMES
def test_what_cannot_be_passed(with_agent: Any, tmp_path: Any) -> None:
    """A file as a program's descriptor, and a file's descriptor out of the box, are refused by name."""

    async def scenario(link: Any) -> None:
        with (tmp_path / "file").open("wb") as file:
            with pytest.raises(AgentError) as caught:
                await link.spawn(["true"], envs=ENVS, cwd="/", fds={1: file.fileno()})
            assert caught.value.errno == errno.EOPNOTSUPP
        with pytest.raises(AgentError) as caught:
            await link.open(str(tmp_path / "file"), os.O_RDONLY)
        assert caught.value.errno == errno.EOPNOTSUPP
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(AgentError):
            read, write = os.pipe()
            try:
                await link.spawn(["nonesuch"], envs=ENVS, cwd="/", fds={0: read, 1: write})
            finally:
                os.close(read)
                os.close(write)
        await link.ping()
        assert sorted(os.listdir("/proc/self/fd")) == before

    with_agent(scenario)


@FRAMES
def test_a_file_that_stays_open(with_agent: Any, tmp_path: Any) -> None:
    """A file keeps its size and content while its name goes, is emptied, and too many of them are refused."""

    async def scenario(link: Any) -> None:
        path = str(tmp_path / "file")
        file = await link.open_file(path, os.O_RDWR | os.O_CREAT)
        content = os.urandom(500_000)
        await file.write(content)
        os.unlink(path)
        assert (await file.facts()).size == len(content)
        assert await file.read(400_000, 100_000) == content[100_000:]
        await file.empty()
        assert (await file.facts()).size == 0
        file.close()
        many = []
        with pytest.raises(AgentError) as caught:
            while len(many) < 300:
                many.append(await link.open_file("/etc/passwd", os.O_RDONLY))
        assert caught.value.errno == errno.EMFILE
        for one in many:
            one.close()
        (await link.open_file("/etc/passwd", os.O_RDONLY)).close()

    with_agent(scenario)


@FRAMES
def test_an_agent_that_dies(with_agent: Any) -> None:
    """When the agent is gone, streams end, and who waits is told."""

    async def scenario(link: Any) -> None:
        read, write = os.pipe()
        process = await link.spawn(python("import os; os.kill(os.getppid(), 9)"), envs=ENVS, cwd="/", fds={1: write})
        os.close(write)
        with pytest.raises(AgentLost):
            await asyncio.wait_for(process.wait(), 30)
        assert await read_all(read) == b""
        with pytest.raises(AgentLost):
            await link.ping()

    with_agent(scenario)
