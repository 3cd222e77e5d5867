"""bubblewrap's arguments for one box, decided purely: what is seen inside, and with which rights.

They go to bubblewrap by `--args FD`, so that its command line, which can be read inside at /proc/1/cmdline, shows
none of them. Order matters to bubblewrap: operations on the file system happen as they are named, and what makes
/dev and / read-only comes after all that needs them writable. A warden makes boxes from the same words (`_maker`).
"""

from __future__ import annotations

from dataclasses import dataclass

from sandboxkit.local.isolation._base import BASE_PATH, HOME, PREFIX, UID, Layer

HOSTNAME = "sandbox"
AGENT = f"{PREFIX}/agent"

STAGE = "/tmp/box"
"""Where a warden, in the mount table of a box that it makes, finds the box's own file system."""
HOLDER = (f"{AGENT}/holder",)
"""Keeps a box open that an agent will enter (`host/_holder`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoot:
    """What the host's root directory looks like: links into /usr (merged, as on all current distributions), and
    top-level directories of programs where it is not merged."""

    links: tuple[tuple[str, str], ...]
    """(name, text): `("bin", "usr/bin")`."""
    directories: tuple[str, ...] = ()
    """Names, such as `lib64`, that are bound read-only."""
    hidden_files: tuple[str, ...] = ()
    hidden_directories: tuple[str, ...] = ()
    """Paths below /proc that tell about the whole machine and that this kernel has: empty inside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one box sees: host paths, as the engine's namespace has them."""

    root: HostRoot
    etc: str
    python: str
    agent: str
    nothing: str
    """An empty file."""
    empty: str
    """An empty directory."""
    home: str
    tmp: str
    shm: str
    layers: tuple[Layer, ...]
    writable: tuple[Layer, ...] = ()
    """Further directories that may be written, over what was named before."""
    is_writable: bool = True
    """Whether home, /tmp and /dev/shm can be written: not in the view of a zygote."""


def arguments(plan: Plan, *, seccomp_fd: int, info_fd: int, block_fd: int) -> list[str]:
    """The arguments, to be joined by NUL and passed by descriptor; the command is not among them."""
    return [*_privileges(seccomp_fd, info_fd, block_fd), *file_system(plan)]


def file_system(plan: Plan) -> list[str]:
    """Those of them that say what is seen, and where the first program starts."""
    return [*_system(plan), *_ours(plan), *_writable(plan), *_seal()]


def command(agent_fd: int) -> list[str]:
    """The first program inside. This does show in /proc/1/cmdline."""
    return [f"{PREFIX}/python/bin/python3", "-I", "-S", f"{AGENT}/agent.py", str(agent_fd)]


def _privileges(seccomp_fd: int, info_fd: int, block_fd: int) -> list[str]:
    return [
        # --disable-userns needs --unshare-user to be said, although --unshare-all implies it.
        *("--unshare-all", "--unshare-user", "--disable-userns"),
        *("--uid", str(UID), "--gid", str(UID), "--hostname", HOSTNAME),
        *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--seccomp", str(seccomp_fd), "--info-fd", str(info_fd), "--block-fd", str(block_fd)),
        *("--clearenv", "--setenv", "PATH", BASE_PATH, "--setenv", "HOME", HOME, "--setenv", "LANG", "C.UTF-8"),
    ]


def _system(plan: Plan) -> list[str]:
    links = [word for name, text in plan.root.links for word in ("--symlink", text, f"/{name}")]
    bound = [word for name in plan.root.directories for word in ("--ro-bind", f"/{name}", f"/{name}")]
    return [
        *("--ro-bind", "/usr", "/usr"),
        *links,
        *bound,
        # The settings of the box's own IPC namespace belong to its user: nobody needs to write them.
        *("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"),
        *(word for path in plan.root.hidden_files for word in ("--ro-bind", plan.nothing, path)),
        *(word for path in plan.root.hidden_directories for word in ("--ro-bind", plan.empty, path)),
        *("--perms", "0755", "--dir", "/run"),
        *("--ro-bind", plan.etc, "/etc"),
    ]


def _ours(plan: Plan) -> list[str]:
    layers = [word for layer in plan.layers for word in ("--ro-bind", layer.source, layer.target)]
    return [
        *("--perms", "0755", "--dir", "/opt", "--perms", "0755", "--dir", PREFIX),
        *("--ro-bind", plan.python, f"{PREFIX}/python"),
        *("--ro-bind", plan.agent, AGENT),
        *layers,
    ]


def _writable(plan: Plan) -> list[str]:
    bind = "--bind" if plan.is_writable else "--ro-bind"
    return [
        *(bind, plan.tmp, "/tmp", bind, plan.shm, "/dev/shm"),
        *("--perms", "0755", "--dir", "/home", bind, plan.home, HOME),
        *(word for layer in plan.writable for word in ("--bind", layer.source, layer.target)),
    ]


def _seal() -> list[str]:
    return ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", HOME]
