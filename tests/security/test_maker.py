"""Boxes that a warden makes by itself: the same as bubblewrap makes from the same words, compared from inside."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

AS = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])

LOOK = r"""
import json, os, re, stat
def read(path):
    try:
        with open(path, 'rb') as f: return f.read().decode(errors='replace')
    except OSError as e: return 'error %d' % e.errno
def described(path):
    s = os.lstat(path)
    text = os.readlink(path) if stat.S_ISLNK(s.st_mode) else ''
    # A directory's links and size are of what lies in it.
    return [path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev, text]
mounts = []
for line in read('/proc/self/mountinfo').splitlines():
    before, after = line.split(' - ')
    _, _, device, root, point, options, *_ = before.split()
    if point == '/proc/sys':
        # Of the /proc of whoever makes the box: a warden has one of its own, without programs.
        options = options.replace(',noexec', '')
    # A box has its own tmpfs, under its own name; file systems without a device have a number of their own.
    mounts.append([re.sub('^0:.*', 'none', device), re.sub('/boxes/[^/]*', '/boxes/X', root), point, options, after])
status = dict(l.split(':\\t', 1) for l in read('/proc/1/status').splitlines() if ':\\t' in l)
print(json.dumps({
    'mounts': mounts,
    'files': [described(os.path.join(top, name)) for top in ['/', '/dev', '/dev/pts', '/run', '/home', '/opt',
              '/opt/sandboxkit', '/etc'] for name in sorted(os.listdir(top))],
    'first process': {name: status.get(name) for name in ['Uid', 'Gid', 'Groups', 'CapInh', 'CapPrm', 'CapEff',
              'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp', 'SigBlk']},
    'maps': [read('/proc/1/' + name).split() for name in ['uid_map', 'gid_map', 'setgroups']],
    'environment': read('/proc/1/environ'), 'cgroup': re.sub('sandboxkit.*', '', read('/proc/1/cgroup')),
    'adjusted': read('/proc/1/oom_score_adj'), 'where': os.readlink('/proc/1/cwd'), 'root': os.readlink('/proc/1/root'),
    'network': [line.split(':')[0].strip() for line in read('/proc/net/dev').splitlines()[2:]],
    'addresses': read('/proc/net/fib_trie'), 'name': os.uname().nodename,
    'session': read('/proc/1/stat').rpartition(')')[2].split()[3],
}))
"""


async def look(isolation: Any) -> Any:
    """What a program sees in a box, and what the engine sees of the box's namespaces."""
    from box_tools import python, small

    box = await isolation.create(small("one"))
    seen = json.loads((await python(box, LOOK)).output)
    names = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    ours, its = ([os.readlink(f"/proc/{pid}/ns/{name}") for name in names] for pid in ("self", box.init_pid))
    seen["own namespaces"] = [name for name, one, other in zip(names, ours, its, strict=True) if one != other]
    return seen


@AS
def test_the_same_as_bubblewraps(box_runner: Any, ordinary: bool) -> None:
    """Mount table, files, first process, user map, control groups and network do not differ in anything."""
    ours = box_runner(look, as_ordinary_user=ordinary, zygote="only")
    theirs = box_runner(look, as_ordinary_user=ordinary, zygote="off")
    assert len(ours["mounts"]) > 20
    for what in theirs:
        assert ours[what] == theirs[what], what
    assert ours["own namespaces"] == ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]


async def look_at_parents(isolation: Any) -> str:
    """What the directories are like that are made for a volume to lie in."""
    import dataclasses

    from box_tools import run, small

    from sandboxkit.local.isolation import Layer

    volume = isolation._namespace.state_dir / "volume"
    volume.mkdir(mode=0o755)
    spec = dataclasses.replace(small("one"), volumes=(Layer(source=str(volume), target="/var/lib/volume"),))
    said = await run(await isolation.create(spec), ["stat", "-c", "%n %a %U", "/var", "/var/lib", "/var/lib/volume"])
    return said.output


@pytest.mark.parametrize("zygote", ["off", "only"])
def test_parents_of_a_volume_belong_to_nobody_else(box_runner: Any, zygote: str) -> None:
    """Whoever has made them. bubblewrap closes them to others altogether, of whom there are none."""
    told = box_runner(look_at_parents, zygote=zygote).splitlines()
    assert [line.split()[2] for line in told] == ["user"] * 3
    assert [int(line.split()[1], 8) & 0o022 for line in told] == [0] * 3


ORPHANS = r"""
import os, time
for _ in range(50):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
def is_zombie(n):
    try: return ') Z ' in open('/proc/%s/stat' % n).read()
    except OSError: return False
def zombies():
    return [n for n in os.listdir('/proc') if n.isdigit() and is_zombie(n)]
deadline = time.monotonic() + 10
while zombies() and time.monotonic() < deadline: time.sleep(0.01)
print(zombies())
"""


async def leave_orphans(isolation: Any) -> Any:
    """Leave fifty processes to the box's first one."""
    from box_tools import python, small

    # Room for all of them at once, where none has ended yet.
    return (await python(await isolation.create(small("one", processes=128)), ORPHANS)).output


def test_orphans_go(box_runner: Any) -> None:
    """What ends after its parent is gone leaves no zombie, though the first process waits for nobody."""
    assert box_runner(leave_orphans, zygote="only") == "[]\n"


BREAK_OUT = r"""
import ctypes, json, os
libc = ctypes.CDLL(None, use_errno=True)
def tried(result): return ctypes.get_errno() if result < 0 else 'worked'
told = {
    'kill the first': None, 'stop the first': None,
    'mount': tried(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)),
    'remount': tried(libc.mount(None, b'/', None, 32 | 4096, None)),
    'unmount': tried(libc.umount2(b'/proc/interrupts', 2)),
    'user namespace': tried(libc.unshare(0x10000000)), 'host name': tried(libc.sethostname(b'x', 1)),
}
for name, number in (('kill the first', 9), ('stop the first', 19)):
    os.kill(1, number)
    told[name] = open('/proc/1/stat').read().rpartition(')')[2].split()[0]
print(json.dumps(told))
"""


async def break_out(isolation: Any) -> Any:
    """Try what the first process, or a way back into the first user namespace, would allow."""
    from box_tools import python, small

    return json.loads((await python(await isolation.create(small("one")), BREAK_OUT)).output)


@AS
def test_there_is_no_way_back(box_runner: Any, ordinary: bool) -> None:
    """Mounts and settings of the box are beyond the reach of its programs, and its first process is beyond signals."""
    told = box_runner(break_out, as_ordinary_user=ordinary, zygote="only")
    assert (told.pop("kill the first"), told.pop("stop the first")) == ("S", "S")
    assert set(told.values()) == {1}, told


async def fail(isolation: Any) -> Any:
    """Have a box made of a directory that is not there."""
    import dataclasses

    from box_tools import run, small

    from sandboxkit.errors import EngineUnavailable

    right = isolation._plan
    well = await isolation.create(small("well"))
    isolation._plan = lambda *given: dataclasses.replace(right(*given), etc="/mnt/missing")
    try:
        await isolation.create(small("ill"))
    except EngineUnavailable as error:
        said = str(error)
    else:
        said = "made"
    return [said, (await run(well, ["echo", "fine"])).output, sorted(isolation._boxes)]


def test_a_box_that_cannot_be_made(box_runner: Any) -> None:
    """It is said what was missing, nothing of it is left, and others go on."""
    said, other, left = box_runner(fail, zygote="only")
    assert "/mnt/missing" in said
    assert other == "fine\n"
    assert left == ["well"]


async def fail_early(isolation: Any) -> list[str]:
    """What is said of boxes that cannot be made: from a word that nobody knows, for want of a kernel that refuses."""
    from box_tools import small

    from sandboxkit.errors import EngineUnavailable
    from sandboxkit.local.isolation import _argv

    await (await isolation.create(small("one"))).kill()
    words = _argv.file_system
    _argv.file_system = lambda plan: ["--nothing", *words(plan)]
    said = []
    for number in range(20):
        with pytest.raises(EngineUnavailable) as error:
            await isolation.create(small(f"not-{number}"))
        said.append(str(error.value))
    return said


def test_why_a_box_cannot_be_made_is_told(box_runner: Any) -> None:
    """However soon its first process has ended."""
    assert set(box_runner(fail_early, zygote="only")) == {"A sandbox did not start: --nothing is not known here."}
