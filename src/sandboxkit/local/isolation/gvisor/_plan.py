"""What bubblewrap and runsc are told for one gVisor box, decided purely.

The box is two boxes, one in the other. The outer one, of bubblewrap, holds runsc's own processes: it has no network,
no files but runsc, its bundle and the root below, and nobody's rights. The inner one is gVisor's: a kernel in user
space, which the sandbox's programs see as theirs.

    /runsc            the program                     /box              the inner root, put together read-only
    /bundle           config.json, what runsc runs    /state, /tmp      runsc's own notes, in memory

The inner home, /tmp and /dev/shm are file systems of gVisor's, each with a size: files there are the sandbox's alone,
and belong to its user, which they could not on a file system of the host's, where the box has one user id only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sandboxkit.local.isolation._argv import AGENT, HOSTNAME, HostRoot
from sandboxkit.local.isolation._base import BASE_PATH, HOME, PREFIX, UID, Layer, LimitInForce, Limits
from sandboxkit.local.isolation.limits._limits import Cgroup, report

ROOT = "/box"
SKELETON = f"{PREFIX}/skeleton"
PLATFORMS = ("systrap", "ptrace")
"""In the order in which they are tried. Versions before 2023 have no systrap; kvm is left out, since a machine may open
its device and hang."""
OPEN_FILES = 16_384
"""Of the agent, which holds an end of every stream."""

OVERHEAD = 96 * 1024 * 1024
"""Bytes of runsc's own processes, on top of what the sandbox may use."""
TASKS_EACH, TASKS_OURS = 16, 160
"""Tasks of the host for each process inside, and those of runsc's own. A thread of gVisor's kernel keeps one in each
program that it has run: a process that sleeps has 3, one that calls the kernel all the time 12, however many there
are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GvisorPlan:
    """One box: host paths (as the engine's namespace has them), and the descriptors that bubblewrap inherits."""

    runsc: str
    platform: str
    root: HostRoot
    etc: str
    python: str
    agent: str
    layers: tuple[Layer, ...]
    skeleton: str | None
    config_fd: int
    info_fd: int
    block_fd: int


def outer_arguments(plan: GvisorPlan) -> list[str]:
    """bubblewrap's arguments, to be joined by NUL and passed by descriptor."""
    links = [word for name, text in plan.root.links for word in ("--symlink", text, f"{ROOT}/{name}")]
    bound = [word for name in plan.root.directories for word in ("--ro-bind", f"/{name}", f"{ROOT}/{name}")]
    layers = [word for layer in plan.layers for word in ("--ro-bind", layer.source, f"{ROOT}{layer.target}")]
    made = ("/proc", "/sys", "/dev", "/tmp", "/run", "/home", HOME, "/opt", PREFIX)
    return [
        # runsc makes user namespaces of its own: they are not disabled here.
        *("--unshare-all", "--unshare-user", "--uid", str(UID), "--gid", str(UID), "--hostname", HOSTNAME),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"),
        *("--info-fd", str(plan.info_fd), "--block-fd", str(plan.block_fd)),
        *("--proc", "/proc", "--dev", "/dev", "--ro-bind", plan.runsc, "/runsc"),
        *("--size", "1048576", "--tmpfs", "/state", "--size", "1048576", "--tmpfs", "/tmp"),
        *("--dir", "/bundle", "--ro-bind-data", str(plan.config_fd), "/bundle/config.json"),
        *("--perms", "0755", "--dir", ROOT),
        *(word for path in made for word in ("--perms", "0755", "--dir", f"{ROOT}{path}")),
        *("--ro-bind", "/usr", f"{ROOT}/usr", *links, *bound, "--ro-bind", plan.etc, f"{ROOT}/etc"),
        *("--ro-bind", plan.python, f"{ROOT}{PREFIX}/python", "--ro-bind", plan.agent, f"{ROOT}{AGENT}"),
        *layers,
        *(() if plan.skeleton is None else ("--ro-bind", plan.skeleton, f"{ROOT}{SKELETON}")),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
    ]


def command(plan: GvisorPlan) -> list[str]:
    """The first program of the outer box. Its standard input is the agent's stream."""
    return [
        *("/runsc", "--root=/state", "--rootless", "--ignore-cgroups", "--network=none"),
        *(f"--platform={plan.platform}", "--file-access=exclusive", "--overlay2=none", "--host-uds=none"),
        *("run", "--bundle=/bundle", "box"),
    ]


def config(limits: Limits) -> bytes:
    """runsc's config.json: the inner box."""
    empty: list[str] = []
    given = {
        "ociVersion": "1.0.2",
        "hostname": HOSTNAME,
        # Not `readonly`: runsc would mount it again, with fewer flags than the kernel lets it. It is read-only already.
        "root": {"path": ROOT, "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": UID, "gid": UID},
            "args": [f"{PREFIX}/python/bin/python3", "-I", "-S", f"{AGENT}/agent.py", "0", "framed"],
            "env": [f"PATH={BASE_PATH}", f"HOME={HOME}", "LANG=C.UTF-8"],
            "cwd": HOME,
            "capabilities": dict.fromkeys(("bounding", "effective", "inheritable", "permitted", "ambient"), empty),
            "noNewPrivileges": True,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "soft": OPEN_FILES, "hard": OPEN_FILES},
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            ],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0755", "size=65536"]},
            _sized(HOME, limits.disk, "0755"),
            _sized("/tmp", limits.disk, "1777"),
            _sized("/dev/shm", limits.disk, "1777"),
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }
    return json.dumps(given).encode()


def _sized(path: str, size: int, mode: str) -> dict[str, object]:
    options = [f"size={size}", f"mode={mode}", f"uid={UID}", f"gid={UID}", "nosuid", "nodev"]
    return {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options}


def host_tasks(limits: Limits) -> int:
    """How many tasks of the host a box may have."""
    return limits.processes * TASKS_EACH + TASKS_OURS


def limits_in_force(limits: Limits, cgroup: Cgroup | None, version: int) -> tuple[LimitInForce, ...]:
    """Say how each limit is held; see `_limits.report`."""
    held = {limit.resource: limit for limit in report(limits, cgroup, version)}
    by = held["memory"].by
    held["memory"] = LimitInForce(
        "memory",
        limits.memory,
        by,
        "all of the sandbox's memory is its kernel's, so the whole sandbox ends; "
        + ("looked at every 20 ms" if by == "watchdog" else f"{OVERHEAD >> 20} MiB more for gVisor itself"),
    )
    held["shared_memory"] = LimitInForce("shared_memory", limits.memory, by, "is part of the sandbox's memory")
    held["processes"] = LimitInForce(
        "processes",
        limits.processes,
        held["processes"].by,
        "held by the host's tasks, up to a dozen for each process: the whole sandbox may end past it",
    )
    held["disk"] = LimitInForce("disk", limits.disk, "tmpfs", "each of the home, /tmp and /dev/shm, in its memory")
    held["inodes"] = LimitInForce("inodes", 0, "none", "files count as the sandbox's memory")
    return tuple(held.values())
