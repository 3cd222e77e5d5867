"""The steps by which a fork of the zygote becomes an agent: what holds after them, and that none can be forgotten.

The order and the reasons: `docs/explanation/the-zygote.md`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local.agent import _entry
from sandboxkit.local.isolation.zygote import _entered

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")]

STEPS = [name for name, _ in (*_entry.OUTSIDE, *_entry.INSIDE)]
AS = pytest.mark.parametrize("ordinary", [False, True], ids=["as-started", "as-ordinary-user"])


async def leave_out(isolation: Any, steps: list[str]) -> Any:
    """For each step: make a box by a zygote whose forks leave it out, and say what came of it."""
    from box_tools import small

    from sandboxkit.errors import EngineUnavailable
    from sandboxkit.local.isolation.bubblewrap._bubblewrap import BubblewrapIsolation
    from sandboxkit.local.isolation.zygote._nursery import Refused

    found = {}
    if not isolation._namespace.cgroups and isolation._namespace.cgroup2 is None:
        steps = [step for step in steps if step != "cgroup"]  # there is nothing to join
    for step in steps:
        other = BubblewrapIsolation(isolation._namespace, zygote="only", without_steps=[step])
        other._bwrap = isolation.bwrap
        try:
            await other.create(small(f"without-{step.replace('_', '-')}"))
        except Refused as error:
            found[step] = list(error.faults)
        except EngineUnavailable as error:
            found[step] = ["failed", str(error)]
        finally:
            left = os.listdir(isolation._namespace.runtime / "boxes")
            (nursery,) = other._nurseries.all()
            trusted = nursery.zygote_pid if nursery.given_up else None
            await other.aclose()
        assert left == [], "the box is ended before the refusal is told"
        assert trusted is None, "a zygote that is given up does not go on"
    return found


@AS
@pytest.mark.parametrize("half", [0, 1])
def test_no_step_can_be_forgotten(box_runner: Any, ordinary: bool, half: int) -> None:
    """A step that is left out is noticed, each one, and the box in which it happened is gone before a program runs."""
    found = box_runner(leave_out, as_ordinary_user=ordinary, steps=STEPS[half::2])
    assert set(STEPS[half::2]) - {"cgroup"} <= set(found)
    for step, noticed in found.items():
        # Without these two, later steps cannot be carried out at all.
        assert noticed[0] == "failed" if step in ("namespaces", "no_new_privileges") else step in noticed, (
            step,
            noticed,
        )


SELF = r"""
import json, os, random, resource, signal, uuid
status = dict(l.rstrip('\n').split(':\t', 1) for l in open('/proc/%d/status' % os.getpid()) if ':\t' in l)
print(json.dumps({
    'pid': os.getpid(), 'parent': os.getppid(), 'status': status,
    'random': [random.random() for _ in range(3)], 'uuid': str(uuid.uuid4()),
    'fds': sorted(fd for fd in range(256) if os.path.exists('/proc/self/fd/%d' % fd)),
    'adjusted': open('/proc/%d/oom_score_adj' % os.getppid()).read().strip(),
    'agent': dict(l.rstrip('\n').split(':\t', 1) for l in open('/proc/%d/status' % os.getppid()) if ':\t' in l),
    'mask': list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    'limits': {n: resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in ['NPROC', 'NOFILE', 'CORE', 'MEMLOCK']},
    'cwd': os.getcwd(), 'umask': os.umask(0o22), 'sid': os.getsid(0), 'env': dict(os.environ),
}))
"""


async def look(isolation: Any) -> Any:
    """What a program finds, and what the engine sees of the agent."""
    from box_tools import python, small

    box, other = await isolation.create(small("one")), await isolation.create(small("other"))
    seen = [json.loads((await python(one, SELF)).output) for one in (box, other)]
    agent = _entered.look_at(box._entered)
    return {
        "seen": seen,
        "faults": _entered.faults(box._entered, agent, _entered.look_at(box.init_pid)),
        "tasks": len(os.listdir(f"/proc/{box._entered}/task")),
        "zygote_tasks": [len(os.listdir(f"/proc/{pid}/task")) for pid in isolation.zygotes()],
    }


@AS
def test_what_an_entered_agent_is(box_runner: Any, ordinary: bool) -> None:
    """No capability, no new privileges, two filters, one task; programs below have their limits, and own randomness."""
    answer = box_runner(look, as_ordinary_user=ordinary, zygote="only")
    assert answer["faults"] == []
    assert answer["tasks"] == 1
    assert answer["zygote_tasks"] == [1]
    one, other = answer["seen"]
    for status in (one["status"], one["agent"]):
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[name] == "0" * 16
        assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")
    assert one["adjusted"] == "1000"
    assert one["parent"] != 1
    assert one["limits"]["CORE"] == [0, 0]
    assert one["limits"]["NPROC"] == [66, 66], "64, and two of ours"
    assert (one["mask"], one["cwd"], one["umask"], one["sid"]) == ([], "/home/user", 0o22, one["pid"])
    assert set(one["env"]) == {"PATH", "HOME", "LANG"}
    assert one["random"] != other["random"]
    assert one["uuid"] != other["uuid"]


async def lose(isolation: Any) -> Any:
    """Kill the zygote at rest, then in the middle of things, then so often that it is given up; and the warden."""
    import asyncio

    from box_tools import run, small

    before = await isolation.create(small("before"))
    (first,) = isolation.zygotes()
    os.kill(int(first), signal.SIGKILL)
    after = await isolation.create(small("after"))
    (second,) = isolation.zygotes()
    making = [asyncio.create_task(isolation.create(small(f"many{number}"))) for number in range(4)]
    await asyncio.sleep(0)
    os.kill(int(second), signal.SIGKILL)
    made = await asyncio.gather(*making)
    answers = [(await run(box, ["echo", box.box_id])).output.strip() for box in (before, after, *made)]
    (nursery,) = isolation._nurseries.all()
    warden = nursery.warden._process.pid
    os.kill(warden, signal.SIGKILL)
    ends = [(await box.ended).reason for box in (before, after)]
    last = await isolation.create(small("last"))
    answers.append((await run(last, ["echo", "last"])).output.strip())
    start_zygote = nursery._start_zygote

    async def start_without_a_warden(warden: Any) -> None:
        nursery._start_zygote = start_zygote
        os.kill(warden._process.pid, signal.SIGKILL)
        await start_zygote(warden)

    nursery._start_zygote = start_without_a_warden
    nursery.rest()
    retried = await isolation.create(small("retried"))
    answers.append((await run(retried, ["echo", "retried"])).output.strip())
    return {"answers": answers, "ends": ends, "is_new": second != first, "state": isolation.zygotes()}


@AS
def test_a_zygote_that_dies(box_runner: Any, ordinary: bool) -> None:
    """Sandboxes live on, those that are being made are made all the same; a warden's end is that of its own boxes, also
    while it starts a zygote: the next one does better."""
    answer = box_runner(lose, as_ordinary_user=ordinary)
    assert answer["answers"] == ["before", "after", "many0", "many1", "many2", "many3", "last", "retried"]
    assert answer["ends"] == ["agent", "agent"] or set(answer["ends"]) <= {"agent", "engine"}
    assert answer["is_new"]
    assert answer["state"][0].isdigit()


async def never(isolation: Any) -> Any:
    """Make a box where no zygote can be started."""
    from box_tools import run, small

    from sandboxkit.local.isolation.zygote import _warden_link

    _warden_link.PROGRAM = Path("/nonexistent")
    box = await isolation.create(small("plain"))
    return [(await run(box, ["echo", "made"])).output.strip(), isolation.zygotes(), box._entered]


def test_without_a_zygote(box_runner: Any) -> None:
    """Where there can be none, agents are started by exec, and it is said why."""
    said, state, entered = box_runner(never)
    assert said == "made"
    assert entered == 0
    assert "could not be started" in state[0]


def test_faults_are_told_from_outside() -> None:
    """Each line of what /proc shows is judged by itself."""
    status = {"Uid": "1", "Gid": "1", "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "2", "Threads": "1"}
    status |= dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd", "SigBlk", "ShdPnd"), "0" * 16)
    good = _entered.Looks(status, {"pid": "pid:[1]"}, "0::/x", "1000", session=7, group=7)
    init = _entered.Looks({"Uid": "1", "Gid": "1"}, {"pid": "pid:[1]"}, "0::/x", "0", session=1, group=1)
    assert _entered.faults(7, good, init) == []

    def bad(**changed: str) -> list[str]:
        looks = _entered.Looks(status | changed, good.namespaces, good.cgroups, "1000", session=7, group=7)
        return _entered.faults(7, looks, init)

    assert bad(CapEff="0000000000000001") == ["capabilities"]
    assert bad(CapBnd="000001ffffffffff") == ["bounding"]
    assert bad(NoNewPrivs="0") == ["no_new_privileges"]
    assert bad(Seccomp="0") == bad(Seccomp_filters="1") == ["seccomp"]
    assert bad(Threads="2") == ["one task"]
    assert bad(Uid="2") == ["namespaces"]
    assert _entered.faults(8, good, init) == ["session"]
    elsewhere = _entered.Looks(status, {"pid": "pid:[2]"}, "0::/x", "1000", session=7, group=7)
    assert _entered.faults(7, elsewhere, init) == ["namespaces"]


LOADS = """
import os, subprocess, sys, time
print("SECRET of a module", file=sys.stderr, flush=True)
{}
sys.argv[0] = __file__ = os.path.join(os.path.dirname(__file__), "really.py")
exec(compile(open(__file__, "rb").read(), __file__, "exec"))
"""
MODULES = {
    "fails": "raise ZeroDivisionError('SECRET of an exception')",
    "starts a process": 'subprocess.Popen(["sleep", "3517"], start_new_session=True)',
    "daemonizes": "if not os.fork():\n  if os.fork(): os._exit(0)\n  os.execlp('sleep', 'sleep', '3517')\nos.wait()",
    "never ends": "time.sleep(3517)",
    "takes no requests": "import socket; socket.socket(fileno=3).send(b'ready'); time.sleep(3517)",
    "answers nobody": "import socket; s = socket.socket(fileno=3); s.send(b'ready'); time.sleep(3517)",
}


async def load(isolation: Any, code: str) -> Any:
    """Have the zygote do something while it loads; what is said of it, and whether boxes are made all the same."""
    import logging
    import shutil
    import time

    from box_tools import run, small

    from sandboxkit.local.isolation.zygote import _nursery

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(str(vars(record)))  # type: ignore[method-assign]
    logging.getLogger("sandboxkit").addHandler(handler)
    programs = isolation._namespace.runtime / "agent"
    source = Path(_entry.__file__).with_name("zygote.py")
    shutil.copyfile(source, programs / "really.py")
    (programs / "zygote.py").unlink()
    (programs / "zygote.py").write_text(LOADS.format(code))
    _nursery.LOADED_WITHIN, _nursery.ENTERED_WITHIN = 2.0, 0.3
    made = []
    for number in range(8):
        began = time.monotonic()
        box = await isolation.create(small(f"box{number}"))
        made.append((await run(box, ["echo", "made"])).output)
    last = time.monotonic() - began
    return {"said": said, "made": made, "zygotes": isolation.zygotes(), "last": last}


QUICK = ("fails", "starts a process", "answers nobody")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.full) for kind in MODULES]
)
def test_what_a_zygote_loads(box_runner: Any, kind: str) -> None:
    """A module that starts processes, ends the zygote or keeps it: it is given up, boxes are made by exec, nothing of
    it goes on outside of them, and no word that it has written is in a log."""
    answer = box_runner(load, code=MODULES[kind])
    assert answer["made"] == ["made\n"] * 8
    assert not answer["zygotes"][0].isdigit(), answer["zygotes"]
    assert answer["last"] < 2
    assert answer["said"]
    assert not any("SECRET" in line for line in answer["said"])
    if kind == "fails":
        assert any("ZeroDivisionError" in line for line in answer["said"])
    running = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if b"\x003517" in _read(path)]
    assert running == []


async def bounded(isolation: Any) -> Any:
    """The limits of a zygote."""
    from box_tools import small

    await isolation.create(small("one"))
    (zygote,) = isolation.zygotes()
    return Path(f"/proc/{zygote}/limits").read_text()


def test_the_limits_of_a_zygote(box_runner: Any) -> None:
    """It dumps no core, and may lock, queue and signal no more than an agent may."""
    lines = [line.split("  ") for line in box_runner(bounded, zygote="only").splitlines()]
    hard = {line[0]: [word.strip() for word in line[1:] if word.strip()][1] for line in lines[1:]}
    assert hard["Max core file size"] == "0"
    for number, name in ((2, "Max locked memory"), (4, "Max pending signals"), (6, "Max msgqueue size")):
        assert int(hard[name]) <= dict(_entry.LIMITS)[_entry.LIMITS[number // 2][0]] + 1


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
