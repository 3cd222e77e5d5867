"""Boxes by gVisor: another kernel, in a box that has nothing, with limits, pauses and ends as bubblewrap's have."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.full,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux"),
    pytest.mark.usefixtures("runsc"),
]

BOTH = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])


@pytest.fixture(scope="module")
def runsc() -> None:
    """gVisor's program, installed where root may and it is missing."""
    if shutil.which(os.environ.get("SANDBOXKIT_RUNSC") or "runsc"):
        return
    if os.getuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "runsc"], check=False, capture_output=True)
    if not shutil.which("runsc"):
        pytest.skip("no runsc here (gVisor), and it could not be installed")


@pytest.fixture
def on_gvisor(box_runner: Any) -> Any:
    """Run a scenario with gVisor's boxes."""

    def run(scenario: Any, **arguments: Any) -> Any:
        return box_runner(scenario, isolation="gvisor", **arguments)

    return run


LOOK = r"""
import json, os, pwd, socket
def tried(action, *args):
    try:
        action(*args)
    except OSError as error:
        return error.errno
    return 0
def connect(port):
    socket.create_connection(('127.0.0.1', port), 5).close()
def abstract(name):
    socket.socket(socket.AF_UNIX).connect('\0' + name)
status = dict(line.rstrip('\n').split(':\t', 1) for line in open('/proc/self/status') if ':\t' in line)
print(json.dumps({
    'release': os.uname().release, 'node': os.uname().nodename, 'user': pwd.getpwuid(os.getuid()).pw_name,
    'ids': os.getresuid() + os.getresgid(), 'caps': [status['Cap' + k] for k in ('Inh', 'Prm', 'Eff', 'Bnd')],
    'processes': [n for n in os.listdir('/proc') if n.isdigit()], 'root': sorted(os.listdir('/')),
    'interfaces': [name for _, name in socket.if_nameindex()], 'mounts': open('/proc/self/mountinfo').read(),
    'environ': open('/proc/1/environ').read(), 'port': tried(connect, PORT), 'abstract': tried(abstract, 'NAME'),
    'outside': tried(connect, 1), 'host_file': os.path.exists('SECRET'), 'cgroup': tried(os.listdir, '/sys/fs/cgroup'),
    'writes': {p: tried(lambda: open(p + '/hostile', 'w')) for p in
               ('/', '/usr', '/etc', '/opt/sandboxkit/agent', '/run', '/dev', '/proc', '/sys')},
}))
"""


def describe(pid: int) -> dict[str, Any] | None:
    """What the host shows of a process; None when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        return {
            "uids": [int(number) for number in status["Uid"].split()],
            "net": os.readlink(f"/proc/{pid}/ns/net"),
            "environ": Path(f"/proc/{pid}/environ").read_text(),
            "nnp": status["NoNewPrivs"],
        }
    except OSError:
        return None


def command_of(pid: int) -> str:
    """The name that a process has in its command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]


def lives(pid: int) -> bool:
    """Whether a process is there, and not only its remains."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def look(isolation: Any, code: str) -> Any:
    """Look around inside, and at the box's processes from outside."""
    import json

    from box_tools import python, small

    from sandboxkit.local.isolation.gvisor._processes import tree

    box, other = await isolation.create(small("one")), await isolation.create(small("other"))
    (await other.agent.open_file("/home/user/secret", os.O_WRONLY | os.O_CREAT)).close()
    done = await python(box, code)
    outside = [described for pid in tree(box.init_pid) if (described := describe(pid))]
    return {
        "inside": json.loads(done.output),
        "outside": outside,
        "uid": os.getuid(),
        "net": os.readlink("/proc/self/ns/net"),
        "secret": (await python(box, "import os; print(os.path.exists('/home/user/secret'))")).output,
    }


@BOTH
def test_what_is_seen_inside(on_gvisor: Any, ordinary: bool, tmp_path: Any) -> None:
    """The kernel is gVisor's; there is one user without rights, one loopback, a read-only system, nothing of the host
    and of other boxes; and what runs on the host for it is nobody's, without a network and an environment."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    name = f"sandboxkit-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        code = LOOK.replace("PORT", str(server.getsockname()[1])).replace("NAME", name).replace("SECRET", str(secret))
        seen = on_gvisor(look, code=code, as_ordinary_user=ordinary)
    inside = seen["inside"]
    assert inside["release"] != os.uname().release
    assert (inside["node"], inside["user"]) == ("sandbox", "user")
    assert set(inside["ids"]) == {1000}
    assert set(inside["caps"]) == {"0" * 16}
    assert len(inside["processes"]) == 2
    assert set(inside["root"]) <= {
        *[
            "bin",
            "boot",
            "dev",
            "etc",
            "home",
            "lib",
            "lib32",
            "lib64",
            "libx32",
            "opt",
            "proc",
            "run",
            "sbin",
            "sys",
            "tmp",
            "usr",
        ]
    }
    assert inside["interfaces"] == ["lo"]
    assert inside["port"] == inside["outside"] == inside["abstract"] == 111
    assert not inside["host_file"]
    assert seen["secret"] == "False\n"
    assert "sandboxkit/" not in inside["mounts"]
    assert "/mnt" not in inside["mounts"]
    assert set(inside["environ"].split("\0")) - {""} <= {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/home/user",
        "LANG=C.UTF-8",
    }
    assert all(inside["writes"].values()), inside["writes"]
    assert len(seen["outside"]) >= 5
    for process in seen["outside"]:
        assert set(process["uids"]) == {seen["uid"]} != {0}
        assert process["net"] != seen["net"]
        assert process["nnp"] == "1"
        assert "PYTHON" not in process["environ"]
        assert "SANDBOXKIT" not in process["environ"]


async def streams(isolation: Any) -> Any:
    """Use every verb that passes a stream or a file."""
    import asyncio
    import contextlib

    from box_tools import ENVIRONMENT, HOME, drain, python, run, small

    box = await isolation.create(small("streams"))
    loop = asyncio.get_running_loop()
    content = os.urandom(3_000_000)
    file = await box.agent.open_file("/home/user/big", os.O_RDWR | os.O_CREAT)
    await file.write(content)
    same = await file.read(len(content), 0) == content and (await file.facts()).size == len(content)
    file.close()
    await box.agent.set_xattrs("/home/user/big", {"note": "kept"})
    told = {"file": same, "xattrs": dict((await box.agent.stat("/home/user/big")).xattrs)}
    code = "import socket\ns=socket.create_server(('127.0.0.1',4000))\nprint(1,flush=True)\nc=s.accept()[0]\n"
    code += "d=b''\nwhile p:=c.recv(9999): d+=p\nc.sendall(d[::-1])"
    read, write = os.pipe()
    await box.agent.spawn(["python3", "-I", "-c", code], envs=ENVIRONMENT, cwd=HOME, fds={1: write})
    os.close(write)
    await asyncio.to_thread(os.read, read, 1)
    os.close(read)
    with socket.socket(fileno=await box.agent.dial(4000)) as dialled:
        await loop.sock_sendall(dialled, content[:200_000])
        dialled.shutdown(socket.SHUT_WR)
        got = b""
        while piece := await loop.sock_recv(dialled, 1 << 16):
            got += piece
    told["dialled"] = got == content[:200_000][::-1]
    port = await box.agent.listen(3128)
    asked = asyncio.ensure_future(
        python(box, f"import socket; s=socket.create_connection(('127.0.0.1',{port})); print(s.recv(9))")
    )
    with socket.socket(fileno=await box.agent.accept(port)) as accepted:
        await loop.sock_sendall(accepted, b"hello")
    told["accepted"] = (await asked).output
    process, terminal = await box.agent.spawn_pty(
        ["sh", "-c", "read x; stty size; exit 5"], envs=ENVIRONMENT, cwd=HOME, cols=80, rows=24
    )
    await box.agent.resize(process.pid, terminal, cols=101, rows=31)
    os.write(terminal, b"go\n")
    told["terminal"] = await drain(terminal)
    os.close(terminal)
    told["code"] = (await process.wait()).code
    with contextlib.suppress(TimeoutError):
        told["much"] = len((await run(box, ["sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x"])).output)
    return told


@BOTH
def test_streams_and_files(on_gvisor: Any, ordinary: bool) -> None:
    """Files, connections in both directions, terminals and output go through, whole and in order."""
    told = on_gvisor(streams, as_ordinary_user=ordinary)
    assert told["file"]
    assert told["xattrs"] == {"note": "kept"}
    assert told["dialled"]
    assert told["accepted"] == "b'hello'\n"
    assert "31 101" in told["terminal"]
    assert told["code"] == 5
    assert told["much"] == 20_000_000


async def pause(isolation: Any) -> Any:
    """Stop a box with a busy program, look whether it stands still, and let it go on."""
    import asyncio

    from box_tools import ENVIRONMENT, HOME, run, small

    box = await isolation.create(small("paused"))
    code = "import time\nn = 0\nwhile True:\n    n += 1\n    if n % 50000 == 0: open('n','w').write(str(n))"
    await box.agent.spawn(["python3", "-I", "-c", code], envs=ENVIRONMENT, cwd=HOME, fds={})

    async def count(above: int) -> int:
        """How far the program is, once it is past a number."""
        while True:
            said = (await run(box, ["sh", "-c", "cat n 2>/dev/null"])).output
            if said and int(said) > above:
                return int(said)

    first = await count(0)
    told = []
    for _ in range(3):
        await box.pause()
        before = (await box.usage()).cpu_seconds
        asked = asyncio.ensure_future(count(first))
        await asyncio.sleep(0.5)
        stood = (await box.usage()).cpu_seconds - before
        waits = not asked.done()
        await box.resume()
        first = await asked
        told.append([stood, waits])
    await box.pause()
    await box.kill()
    return told


@BOTH
def test_pause(on_gvisor: Any, ordinary: bool) -> None:
    """A paused box uses no time and answers nobody; it goes on where it was, and can be killed."""
    for stood, waits in on_gvisor(pause, as_ordinary_user=ordinary):
        assert stood < 0.1
        assert waits


async def ends(isolation: Any) -> Any:
    """Lose boxes in every way, and see what is left of each."""
    import asyncio
    import contextlib
    import signal

    from box_tools import ENVIRONMENT, HOME, run, small

    from sandboxkit.local.isolation import AgentLost
    from sandboxkit.local.isolation.gvisor._processes import tree

    other = await isolation.create(small("other"))
    await run(other, ["true"])
    await (await isolation.create(small("warm-up"))).kill()
    before = len(os.listdir("/proc/self/fd"))
    told = {}
    for how in ("kill", "sentry", "agent", "gofer", "cli", "stream"):
        box = await isolation.create(small(how))
        waiting = await box.agent.spawn(["sleep", "100"], envs=ENVIRONMENT, cwd=HOME, fds={})
        pids = tree(box.init_pid)
        names = {command_of(pid): pid for pid in pids}
        if how == "kill":
            await box.kill()
        elif how == "agent":
            with contextlib.suppress(AgentLost):
                await run(box, ["python3", "-I", "-c", "import os; os.kill(1, 9)"])
        elif how == "stream":
            box.agent._channel._port._sock.shutdown(socket.SHUT_RDWR)
        else:
            name = {"sentry": "runsc-sandbox", "gofer": "runsc-gofer", "cli": "/proc/self/exe"}[how]
            os.kill(names[name], signal.SIGKILL)
        reason = (await asyncio.wait_for(box.ended, 30)).reason
        try:
            await waiting.wait()
            lost = False
        except AgentLost:
            lost = True
        left = [pid for pid in pids if lives(pid)]
        told[how] = [reason, lost, left, (await run(other, ["echo", "fine"])).output]
    await asyncio.sleep(0)
    return {"told": told, "descriptors": len(os.listdir("/proc/self/fd")) - before}


@BOTH
def test_ends(on_gvisor: Any, ordinary: bool) -> None:
    """Whoever ends it, of a box nothing is left, who waits is told, and others go on."""
    seen = on_gvisor(ends, as_ordinary_user=ordinary)
    assert seen["descriptors"] == 0
    for how, (reason, lost, left, other) in seen["told"].items():
        assert reason in (("killed",) if how == "kill" else ("agent", "engine")), how
        assert (lost, left, other) == (True, [], "fine\n"), how


BOMBS = {
    "processes": "import os, time\nwhile True:\n  try:\n    os.fork()\n  except OSError: time.sleep(0.01)",
    "memory": "held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))",
    "files": "n = 0\nwhile True:\n  n += 1\n  os.close(os.open('/tmp/%d' % n, os.O_CREAT))",
    "disk": "f = open('/home/user/big', 'wb', 0)\nwhile True: f.write(b'x' * (1 << 20))",
}


async def bomb(isolation: Any, code: str) -> Any:
    """Let a program take all it can for some seconds while another box works."""
    import asyncio

    from box_tools import ENVIRONMENT, HOME, run, small

    greedy = await isolation.create(small("greedy", memory=192 << 20, disk=48 << 20))
    other = await isolation.create(small("other"))
    process = await greedy.agent.spawn(
        ["python3", "-I", "-c", "import os\n" + code], envs=ENVIRONMENT, cwd=HOME, fds={}
    )
    over = asyncio.ensure_future(process.wait())
    peak, meanwhile = 0, set()
    for _ in range(60):
        if over.done() or greedy.ended.done():
            break
        try:
            peak = max(peak, (await greedy.usage()).memory)
        except Exception as error:
            peak = max(peak, 0) if type(error).__name__ == "AgentLost" else -1
        meanwhile.add((await run(other, ["echo", "fine"])).output)
        await asyncio.sleep(0.05)
    meanwhile.add((await run(other, ["echo", "fine"])).output)
    over.cancel()
    await greedy.kill()
    return {"peak": peak >> 20, "ended": (await greedy.ended).reason, "other": sorted(meanwhile)}


@BOTH
@pytest.mark.parametrize("kind", sorted(BOMBS))
def test_bombs(on_gvisor: Any, ordinary: bool, kind: str) -> None:
    """A program that takes without end is refused or loses its own sandbox; another one works."""
    told = on_gvisor(bomb, code=BOMBS[kind], as_ordinary_user=ordinary)
    assert told["other"] == ["fine\n"]
    assert 0 <= told["peak"] < 192 + 96 + 128
    assert told["ended"] in ("killed", "memory", "agent", "engine")


async def keep(isolation: Any) -> Any:
    """Ask for what would need the files of a box."""
    import tempfile
    import threading
    from dataclasses import replace

    from box_tools import run, small

    from sandboxkit.local.isolation._archive import Unkeepable

    box = await isolation.create(small("keeps"))
    told = []
    with tempfile.TemporaryFile() as file:
        try:
            await box.save(file.fileno(), most=1 << 20, stop=threading.Event())
        except Unkeepable as error:
            told.append(str(error))
        try:
            await isolation.create(replace(small("starts"), files=file.fileno()))
        except Unkeepable as error:
            told.append(str(error))
    return {"told": told, "lives": (await run(box, ["echo", "lives"])).output}


def test_what_would_need_its_files(on_gvisor: Any) -> None:
    """A copy of a box's files, and a box that starts with one, are refused by a name; the box goes on."""
    answer = on_gvisor(keep)
    assert len(answer["told"]) == 2
    assert all("gvisor" in line for line in answer["told"])
    assert answer["lives"] == "lives\n"


async def refused(isolation: Any) -> Any:
    """Ask for boxes with a template's own files, to be written over, and with a volume."""
    from dataclasses import replace

    from box_tools import small

    from sandboxkit.errors import UnsupportedOption
    from sandboxkit.local.isolation._base import HOME, Layer, Overlay

    said = []
    for more in (
        {"overlays": (Overlay(target=HOME, lowers=("/usr/share",)),)},
        {"volumes": (Layer(target="/mnt/v", source="/usr/share"),)},
    ):
        try:
            await isolation.create(replace(small("over"), **more))
        except UnsupportedOption as error:
            said.append(f"{error.option}: {error}")
    return said


def test_what_cannot_be_had(on_gvisor: Any) -> None:
    """A template with files of its own and a volume are refused by name, with what to use instead."""
    said = on_gvisor(refused)
    assert [line.partition(":")[0] for line in said] == ["template", "volumeMounts"]
    assert all("gVisor" in line and "bubblewrap" in line for line in said)
