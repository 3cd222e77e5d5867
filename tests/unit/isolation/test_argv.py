"""bubblewrap's arguments: what is unshared, bound and sealed, and in which order."""

from __future__ import annotations

from sandboxkit.local.isolation._argv import HostRoot, Plan, arguments, command
from sandboxkit.local.isolation._base import Layer

PLAN = Plan(
    root=HostRoot(links=(("bin", "usr/bin"), ("lib64", "usr/lib64")), directories=("sbin",)),
    etc="/mnt/etc",
    python="/mnt/python",
    agent="/mnt/agent",
    nothing="/mnt/nothing",
    empty="/mnt/empty",
    home="/mnt/boxes/i1/home",
    tmp="/mnt/boxes/i1/tmp",
    shm="/mnt/boxes/i1/shm",
    layers=(Layer(source="/mnt/layers/0", target="/opt/sandboxkit/env"),),
)


def pairs(words: list[str], flag: str, count: int) -> list[tuple[str, ...]]:
    """The values of every occurrence of a flag."""
    return [tuple(words[at + 1 : at + 1 + count]) for at, word in enumerate(words) if word == flag]


def test_every_namespace_and_no_privilege() -> None:
    """All namespaces are new, no further one can be made, no capability is left, and the filter is installed."""
    words = arguments(PLAN, seccomp_fd=7, info_fd=8, block_fd=9)
    needed = {"--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"}
    assert needed <= set(words)
    assert pairs(words, "--cap-drop", 1) == [("ALL",)]
    assert pairs(words, "--uid", 1) == pairs(words, "--gid", 1) == [("1000",)]
    assert pairs(words, "--seccomp", 1) == [("7",)]
    assert pairs(words, "--info-fd", 1) == [("8",)]
    assert pairs(words, "--block-fd", 1) == [("9",)]


def test_nothing_shared_is_kept() -> None:
    """No flag gives a namespace, a capability or the host's own /dev or /proc back."""
    words = arguments(PLAN, seccomp_fd=7, info_fd=8, block_fd=9)
    for flag in ("--share-net", "--cap-add", "--dev-bind", "--dev-bind-try", "--userns", "--pidns", "--keep-userns"):
        assert flag not in words


def test_only_three_places_are_writable() -> None:
    """The only writable binds are /tmp, /dev/shm and the home; /etc is never the host's."""
    words = arguments(PLAN, seccomp_fd=7, info_fd=8, block_fd=9)
    assert pairs(words, "--bind", 2) == [
        ("/mnt/boxes/i1/tmp", "/tmp"),
        ("/mnt/boxes/i1/shm", "/dev/shm"),
        ("/mnt/boxes/i1/home", "/home/user"),
    ]
    assert ("/mnt/etc", "/etc") in pairs(words, "--ro-bind", 2)
    assert "--tmpfs" not in words
    assert not [source for source, _ in pairs(words, "--ro-bind", 2) if source.startswith("/etc")]


def test_sealed_last() -> None:
    """/dev and / become read-only after everything that is put into them."""
    words = arguments(PLAN, seccomp_fd=7, info_fd=8, block_fd=9)
    assert words[-6:] == ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/home/user"]


def test_host_root_is_followed() -> None:
    """Links of the host's root are made as they are there, and directories that are none are bound."""
    words = arguments(PLAN, seccomp_fd=7, info_fd=8, block_fd=9)
    assert pairs(words, "--symlink", 2) == [("usr/bin", "/bin"), ("usr/lib64", "/lib64")]
    assert ("/sbin", "/sbin") in pairs(words, "--ro-bind", 2)


def test_layers_come_after_our_prefix() -> None:
    """Layers are read-only and bound after the directory that they lie in was made."""
    words = arguments(PLAN, seccomp_fd=7, info_fd=8, block_fd=9)
    assert ("/mnt/layers/0", "/opt/sandboxkit/env") in pairs(words, "--ro-bind", 2)
    assert words.index("/opt/sandboxkit") < words.index("/mnt/layers/0")


def test_command_names_no_host_path() -> None:
    """The command, which can be read in /proc/1/cmdline, has nothing but neutral paths."""
    assert command(5) == [
        "/opt/sandboxkit/python/bin/python3",
        "-I",
        "-S",
        "/opt/sandboxkit/agent/agent.py",
        "5",
    ]
