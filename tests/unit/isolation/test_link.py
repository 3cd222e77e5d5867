"""The engine's end against an agent that lies: each lie ends the link, and no descriptor is left."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from sandboxkit.local.agent import _codec as wire
from sandboxkit.local.isolation._base import AgentError, AgentLost, ExitStatus

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")


def descriptors() -> list[str]:
    """What is open, by number."""
    return sorted(os.listdir("/proc/self/fd"))


async def request(theirs: socket.socket) -> tuple[int, int, list[bytes]]:
    """Receive one request as the agent."""
    while True:
        try:
            data = theirs.recv(70_000, socket.MSG_DONTWAIT)
            break
        except BlockingIOError:
            await asyncio.sleep(0)
    number, kind, _flags = wire.HEADER.unpack_from(data)
    return number, kind, wire.unpack(data[wire.HEADER.size :])


def reply(
    theirs: socket.socket, number: int, kind: int, payload: bytes, fds: tuple[int, ...] = (), flags: int = 0
) -> None:
    """Send one packet as the agent."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    theirs.sendmsg([wire.HEADER.pack(number, kind, flags) + payload], rights)


LIES: dict[str, Callable[[socket.socket, int], None]] = {
    "answer to nothing": lambda s, n: reply(s, n + 100, wire.OK, b""),
    "unknown kind": lambda s, n: reply(s, n, 99, b""),
    "unknown flags": lambda s, n: reply(s, n, wire.OK, b"", flags=8),
    "short packet": lambda s, n: s.send(b"abc") and None,
    "huge packet": lambda s, n: s.send(wire.HEADER.pack(n, wire.OK, 0) + bytes(80_000)) and None,
    "small pieces": lambda s, n: reply(s, n, wire.OK, b"x", flags=wire.MORE),
    "cut field": lambda s, n: reply(s, n, wire.OK, b"\0\0\0\7ab"),
    "refusal without errno": lambda s, n: reply(s, n, wire.FAIL, wire.pack([b"x", b"y", b"z"])),
    "refusal with descriptor": lambda s, n: reply(s, n, wire.FAIL, wire.pack([1, b"", b""]), (0,)),
    "end of nothing": lambda s, n: reply(s, n, wire.EXIT, wire.pack([b"code", 0])),
    "no descriptor": lambda s, n: reply(s, n, wire.OK, b""),
    "a directory": lambda s, n: send_open(s, n, "/", os.O_RDONLY),
    "a device": lambda s, n: send_open(s, n, "/dev/null", os.O_RDONLY),
    "an O_PATH handle": lambda s, n: send_open(s, n, "/etc/passwd", os.O_PATH),
    "another access": lambda s, n: send_open(s, n, "/dev/shm", os.O_TMPFILE | os.O_RDWR),
    "a socket": lambda s, n: reply(s, n, wire.OK, b"", (s.fileno(),)),
    "two descriptors": lambda s, n: reply(s, n, wire.OK, b"", (0, 1)),
    "too many descriptors": lambda s, n: reply(s, n, wire.OK, b"", (0,) * 40),
    "hanging up": lambda s, n: s.shutdown(socket.SHUT_RDWR),
}


def send_open(theirs: socket.socket, number: int, path: str, flags: int) -> None:
    """Answer with a descriptor of something."""
    fd = os.open(path, flags, 0o600)
    reply(theirs, number, wire.OK, b"", (fd,))
    os.close(fd)


@pytest.mark.parametrize("lie", LIES)
def test_lies_end_the_link(with_impostor: Any, lie: str) -> None:
    """Whatever does not fit is AgentLost for all who wait, is told to the owner once, and leaves no descriptor."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        waiting = asyncio.ensure_future(link.open("/x", os.O_RDONLY))
        other = asyncio.ensure_future(link.ping())
        number, kind, _ = await request(theirs)
        await request(theirs)
        assert kind == wire.OPEN
        before = descriptors()
        LIES[lie](theirs, number)
        with pytest.raises(AgentLost):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(AgentLost):
            await asyncio.wait_for(other, 5)
        with pytest.raises(AgentLost):
            await link.ping()
        assert len(lost) == 1
        assert len(descriptors()) == len(before) - 1, "our end of the socket is closed, and nothing else is open"

    with_impostor(scenario)


@pytest.mark.parametrize(
    "payload",
    [
        wire.pack([b"name", b"/name", b"x", 0, 0, 0, 0, b"", b"", 0]),
        wire.pack([b"name", b"/name", 1, 0, 0, 0, 0, b"", b"", 5]),
        wire.pack([b"name"]),
        wire.pack([b"name", b"/name", 1, 0, 0, 0, 0, b"", b"", -1]),
        wire.pack([b"name", b"/name", 1 << 40, 0, 0, 0, 0, b"", b"", 0]),
        wire.pack([b"name", b"/name", -1, 0, 0, 0, 0, b"", b"", 0]),
        wire.pack([b"name", b"/name", 1, 1 << 63, 0, 0, 0, b"", b"", 0]),
        wire.pack([b"name", b"/name", 1, 0, 0, 0, 0, b"/", 1 << 40, 0]),
    ],
)
def test_malformed_entries(with_impostor: Any, payload: bytes) -> None:
    """Entries that do not parse are nonsense too."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        waiting = asyncio.ensure_future(link.list("/x"))
        number, _, _ = await request(theirs)
        reply(theirs, number, wire.OK, payload)
        with pytest.raises(AgentLost):
            await asyncio.wait_for(waiting, 5)
        assert len(lost) == 1

    with_impostor(scenario)


def test_a_flood_is_bounded(with_impostor: Any) -> None:
    """An answer without end is cut off at its bound."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        waiting = asyncio.ensure_future(link.stat("/x"))
        number, _, _ = await request(theirs)
        for _ in range(50):
            if lost:
                break
            reply(theirs, number, wire.OK, bytes(50_000), flags=wire.MORE)
            await asyncio.sleep(0.001)
        with pytest.raises(AgentLost):
            await asyncio.wait_for(waiting, 5)

    with_impostor(scenario)


def test_cancelled_requests(with_impostor: Any) -> None:
    """A late descriptor of a cancelled request is closed, a late program is killed, and the link goes on."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        opening = asyncio.ensure_future(link.open("/x", os.O_RDONLY))
        number, _, _ = await request(theirs)
        opening.cancel()
        await asyncio.sleep(0)
        before = descriptors()
        send_open(theirs, number, "/etc/passwd", os.O_RDONLY)
        starting = asyncio.ensure_future(link.spawn(["x"], envs={}, cwd="/", fds={}))
        number, kind, _ = await request(theirs)
        assert kind == wire.SPAWN
        starting.cancel()
        await asyncio.sleep(0)
        reply(theirs, number, wire.OK, wire.pack([77]))
        killing, kind, args = await request(theirs)
        assert (kind, args) == (wire.SIGNAL, [b"77", b"9", b"1"])
        reply(theirs, killing, wire.OK, wire.pack([1]))
        reply(theirs, number, wire.EXIT, wire.pack([b"signal", 9]))
        ping = asyncio.ensure_future(link.ping())
        number, _, _ = await request(theirs)
        reply(theirs, number, wire.OK, b"")
        await asyncio.wait_for(ping, 5)
        assert descriptors() == before
        assert lost == []

    with_impostor(scenario)


def test_answer_and_cancel_in_one_turn(with_impostor: Any) -> None:
    """A caller who is cancelled when its answer has just come leaves no descriptor behind."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        opening = asyncio.ensure_future(link.open("/x", os.O_RDONLY))
        number, _, _ = await request(theirs)
        before = descriptors()
        send_open(theirs, number, "/etc/passwd", os.O_RDONLY)
        link._channel._port._readable()  # the answer is there, its waiter has not run yet
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert descriptors() == before
        assert lost == []

    with_impostor(scenario)


@pytest.mark.parametrize("when", ["before", "in the same turn"])
def test_a_lie_to_nobody(with_impostor: Any, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """What was asked for by a caller who was cancelled, and is answered by nonsense with descriptors: they are closed
    once, for their numbers may be another's by then, the caller's cancellation is what it gets, and the link ends."""
    close = os.close
    closed_twice: list[int] = []

    def noting(fd: int) -> None:
        try:
            close(fd)
        except OSError:
            closed_twice.append(fd)
            raise

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        before = descriptors()
        watching = asyncio.ensure_future(link.watch("/x"))
        number, kind, _ = await request(theirs)
        assert kind == wire.WATCH
        if when == "before":
            watching.cancel()
            await asyncio.sleep(0)
        reply(theirs, number, wire.OK, wire.pack([b"no number"]), (0, 0))
        link._channel._port._readable()
        watching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await watching
        assert len(lost) == 1
        assert "nonsense" in lost[0]
        # The link's own end is closed by now, too.
        assert len(descriptors()) == len(before) - 1
        assert closed_twice == []

    monkeypatch.setattr(os, "close", noting)
    with_impostor(scenario)


def test_real_agent_programs(with_agent: Any, tmp_path: Any) -> None:
    """Programs start with exactly the environment, directory and descriptors that were asked for, and their ends are
    told."""

    async def scenario(link: Any) -> None:
        read, write = os.pipe()
        code = "import os; print(sorted(os.environ), os.getcwd(), sorted(os.listdir('/proc/self/fd'), key=int))"
        process = await link.spawn(
            [sys.executable, "-I", "-S", "-c", code],
            envs={"A": "1", "LC_ALL": "C"},
            cwd=str(tmp_path),
            fds={1: write, 5: write},
        )
        os.close(write)
        assert await process.wait() == ExitStatus(code=0)
        assert await process.wait() == ExitStatus(code=0)
        output = os.read(read, 4096).decode()
        os.close(read)
        assert output == f"['A', 'LC_ALL'] {tmp_path} ['0', '1', '2', '3', '5']\n", "3 is the listing's own"
        process = await link.spawn(["sh", "-c", "sleep 100 & wait"], envs={"PATH": "/usr/bin:/bin"}, cwd="/", fds={})
        assert await link.signal(process.pid, 15)
        assert await process.wait() == ExitStatus(signal=15)
        assert not await link.signal(process.pid, 15)
        assert not await link.signal(1, 0)
        for argv, cwd, number, path in (
            (["nonesuch"], "/", 2, "nonesuch"),
            (["true"], "/nonesuch", 2, "/nonesuch"),
            (["true"], "/etc/passwd", 20, "/etc/passwd"),
            (["/etc/passwd"], "/", 13, "/etc/passwd"),
        ):
            with pytest.raises(AgentError) as caught:
                await link.spawn(argv, envs={"PATH": "/usr/bin:/bin"}, cwd=cwd, fds={})
            assert (caught.value.errno, caught.value.path) == (number, path)

    with_agent(scenario)


def test_real_agent_terminal(with_agent: Any) -> None:
    """A program on a terminal has it as its controlling one, in the size asked for, and Ctrl-C reaches it."""

    async def scenario(link: Any) -> None:
        process, master = await link.spawn_pty(
            ["sh", "-c", "stty size; tty; exec sleep 100"], envs={"PATH": "/usr/bin:/bin"}, cwd="/", cols=81, rows=23
        )
        output = b""
        loop = asyncio.get_running_loop()
        while b"/dev/pts/" not in output:
            ready = loop.create_future()
            loop.add_reader(master, ready.set_result, None)
            await asyncio.wait_for(ready, 10)
            loop.remove_reader(master)
            output += os.read(master, 4096)
        assert output.startswith(b"23 81")
        ended = asyncio.ensure_future(process.wait())
        for _ in range(20):  # the first may come while the shell still waits for `tty`
            os.write(master, b"\x03")
            if (await asyncio.wait({ended}, timeout=0.5))[0]:
                break
        assert ended.result().signal == 2
        os.close(master)

    with_agent(scenario)


def test_real_agent_files(with_agent: Any, tmp_path: Any) -> None:
    """Files: opened only when regular, truncated only then; listed to a depth; removed never through links."""

    async def scenario(link: Any) -> None:
        root = str(tmp_path)
        assert await link.make_dir(f"{root}/a/b/c")
        assert not await link.make_dir(f"{root}/a/b")
        file = await link.open_file(f"{root}/a/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        await file.write(b"hel")
        await file.write(b"lo")
        facts = await file.facts()
        assert (facts.size, facts.has_metadata) == (5, False)
        assert (await file.read(3, 1), await file.read(99, 4), await file.read(9, 5)) == (b"ell", b"o", b"")
        file.close()
        file.close()
        with pytest.raises(AgentError, match="Not a directory"):
            await link.make_dir(f"{root}/a/f/x")
        with pytest.raises(AgentError, match="Not a directory"):
            await link.list(f"{root}/a/f")
        os.mkfifo(f"{root}/fifo")
        os.symlink("a", f"{root}/link")
        os.symlink("nowhere", f"{root}/dangling")
        for path, number in ((root, 21), (f"{root}/fifo", 22), ("/dev/null", 22), (f"{root}/none", 2)):
            for flags in (os.O_RDONLY, os.O_WRONLY | os.O_TRUNC):
                with pytest.raises(AgentError) as caught:
                    await asyncio.wait_for(link.open_file(path, flags), 5)
                assert caught.value.errno == number, (path, flags)
        with pytest.raises(AgentError):
            await link.open_file("/proc/self/oom_score_adj", os.O_WRONLY)
        names = sorted(entry.path[len(root) :] for entry in await link.list(root, depth=2))
        assert names == ["/a", "/a/b", "/a/f", "/dangling", "/fifo", "/link"]
        through = await link.list(f"{root}/link")
        assert sorted(entry.path[len(root) :] for entry in through) == ["/link/b", "/link/f"]
        entry = await link.stat(f"{root}/link")
        assert entry.link_target == os.path.realpath(f"{root}/a")
        assert entry.target_mode is not None
        entry = await link.stat(f"{root}/dangling")
        assert (entry.link_target, entry.target_mode) == (f"{root}/dangling", None)
        odd = f"{root}/caf\udce9"
        (await link.open_file(odd, os.O_WRONLY | os.O_CREAT)).close()
        assert odd in [entry.path for entry in await link.list(root)]
        await link.rename(f"{root}/a/f", f"{root}/new/deep/f")
        assert (await link.stat(f"{root}/new/deep/f")).size == 5
        assert await link.remove(f"{root}/link")
        assert await link.remove(f"{root}/a")
        assert not await link.remove(f"{root}/a")

    with_agent(scenario)


@pytest.mark.slow
def test_real_agent_removes_any_tree(with_agent: Any, tmp_path: Any) -> None:
    """A tree deeper than a path may be long, with closed directories in it, is removed, and pings go on meanwhile."""

    async def scenario(link: Any) -> None:
        top = tmp_path / "top"
        top.mkdir()
        here = os.open(top, os.O_RDONLY)
        for level in range(1500):
            os.mkdir("d" * 10, dir_fd=here)
            deeper = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = deeper
            if level % 100 == 0:
                os.mkdir("closed", dir_fd=here, mode=0o000)
        os.close(here)
        for number in range(3000):
            (top / f"f{number}").touch()
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "kept").touch()
        (top / "way-out").symlink_to(outside)
        removing = asyncio.ensure_future(link.remove(str(top)))
        pings = 0
        while not removing.done():
            await link.ping()
            pings += 1
        assert await removing
        assert pings > 2
        assert not top.exists()
        assert (outside / "kept").exists()

    with_agent(scenario)


def test_real_agent_dials(with_agent: Any) -> None:
    """A dial gives a connected socket, or says that nobody listens."""

    async def scenario(link: Any) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            fd = await link.dial(server.getsockname()[1])
            peer, _ = server.accept()
            assert not os.get_blocking(fd)
            with socket.socket(fileno=fd) as got, peer:
                peer.send(b"x")
                loop = asyncio.get_running_loop()
                assert await asyncio.wait_for(loop.sock_recv(got, 9), 10) == b"x"
                got.send(b"back")
                got.shutdown(socket.SHUT_WR)
                assert await asyncio.to_thread(peer.recv, 9) == b"back"
                assert await asyncio.to_thread(peer.recv, 9) == b""
            port = server.getsockname()[1]
        with pytest.raises(AgentError) as caught:
            await link.dial(port)
        assert caught.value.errno == 111

    with_agent(scenario)


def test_real_agent_many_arguments(with_agent: Any) -> None:
    """A request of many packets arrives whole; one that no program could take is refused."""

    async def scenario(link: Any) -> None:
        read, write = os.pipe()
        words = ["x" * 1000] * 300
        process = await link.spawn(
            ["sh", "-c", "echo $#", "sh", *words], envs={"PATH": "/usr/bin:/bin"}, cwd="/", fds={1: write}
        )
        os.close(write)
        await process.wait()
        assert os.read(read, 100) == b"300\n"
        os.close(read)
        with pytest.raises(AgentError) as caught:
            await link.spawn(["true", *["x" * 100_000] * 40], envs={}, cwd="/", fds={})
        assert caught.value.errno == 7

    with_agent(scenario)


def test_an_agent_that_is_held_may_be_late(with_impostor: Any) -> None:
    """While a box is paused no answer is late; once it goes on, each has its whole time again."""

    async def scenario(link: Any, theirs: socket.socket, lost: list[str]) -> None:
        before = asyncio.ensure_future(link._channel.ask(wire.PING, [], within=0.1))
        await asyncio.sleep(0)  # it is asked; were it waited for longer, a slow machine would make it late
        link.hold()
        await request(theirs)
        during = asyncio.ensure_future(link._channel.ask(wire.PING, [], within=0.1))
        number, _, _ = await request(theirs)
        done, _ = await asyncio.wait({before, during}, timeout=0.3)
        assert not done
        link.release()
        reply(theirs, number, wire.OK, wire.pack([]))
        await asyncio.wait_for(during, 5)
        with pytest.raises(AgentLost, match="in time"):
            await asyncio.wait_for(before, 5)
        assert len(lost) == 1

    with_impostor(scenario)
