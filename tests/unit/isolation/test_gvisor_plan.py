"""What bubblewrap and runsc are told for a gVisor box, and where runsc is looked for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.errors import ConfigurationError, EngineUnavailable, IsolationUnavailable
from sandboxkit.local._child import _own
from sandboxkit.local.isolation._argv import HostRoot
from sandboxkit.local.isolation._base import BoxEnd, BoxSpec, Layer, Limits
from sandboxkit.local.isolation.gvisor import _plan
from sandboxkit.local.isolation.gvisor._box import GvisorBox
from sandboxkit.local.isolation.gvisor._gvisor import find_runsc
from sandboxkit.local.isolation.limits._cgroup1 import BoxCgroups, Parent

PLAN = _plan.GvisorPlan(
    runsc="/usr/bin/runsc",
    platform="ptrace",
    root=HostRoot(links=(("bin", "usr/bin"),), directories=("lib64",)),
    etc="/mnt/etc",
    python="/mnt/python",
    agent="/mnt/agent",
    layers=(Layer(source="/mnt/layers/0", target="/opt/sandboxkit/env"),),
    skeleton=None,
    config_fd=5,
    info_fd=6,
    block_fd=7,
)


def test_the_outer_box() -> None:
    """Every bind is read-only, nothing of the host is bound but the system and ours, all namespaces are new, and what
    makes it read-only comes last."""
    words = _plan.outer_arguments(PLAN)
    assert {"--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert words[words.index("--cap-drop") + 1] == "ALL"
    assert not {"--bind", "--dev-bind", "--share-net", "--bind-try"} & set(words)
    sources = [words[at + 1] for at, word in enumerate(words) if word == "--ro-bind"]
    assert set(sources) == {
        "/usr/bin/runsc", "/usr", "/lib64", "/mnt/etc", "/mnt/python", "/mnt/agent", "/mnt/layers/0"
    }  # fmt: skip
    assert words[-6:] == ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    targets = [words[at + 2] for at, word in enumerate(words) if word == "--ro-bind"]
    assert all(target == "/runsc" or target.startswith("/box/") for target in targets)
    with_home = _plan.outer_arguments(replace(PLAN, skeleton="/mnt/skeleton"))
    assert with_home.index("/box/opt/sandboxkit/skeleton") > with_home.index("/box/opt/sandboxkit")


def test_runsc_gets_no_network_and_no_flag_for_tests() -> None:
    """No network, no sockets of the host's, no flag that is for tests only."""
    words = _plan.command(PLAN)
    assert {"--network=none", "--rootless", "--host-uds=none", "--overlay2=none", "--platform=ptrace"} <= set(words)
    assert not [word for word in words if "TESTONLY" in word or "unsafe" in word.lower()]


def test_a_box_that_does_not_get_into_its_groups(tmp_path: Path) -> None:
    """Is an error of its own; no descriptor is closed twice, which could be somebody else's by then."""

    async def boot() -> None:
        groups = BoxCgroups((Parent(("pids",), tmp_path),), "late")  # never made
        box = GvisorBox(
            BoxSpec(box_id="late"), directory=tmp_path / "box", cgroup=groups, version=1, on_ended=lambda _: None
        )
        with pytest.raises(EngineUnavailable, match=r"did not start .*cgroup\.procs"):
            await box.boot("/bin/true", lambda *fds: PLAN)
        await box.end(BoxEnd("engine"))

    asyncio.run(boot())


def test_the_inner_box() -> None:
    """One user without rights, writable places of the box's own with a size each, and namespaces of its own."""
    config: dict[str, Any] = json.loads(_plan.config(Limits(disk=1 << 20)))
    process = config["process"]
    assert process["user"] == {"uid": 1000, "gid": 1000}
    assert set(map(len, process["capabilities"].values())) == {0}
    assert process["noNewPrivileges"]
    mounts = {mount["destination"]: mount for mount in config["mounts"]}
    assert set(mounts) == {"/proc", "/dev", "/home/user", "/tmp", "/dev/shm"}
    assert all("size=1048576" in mounts[place]["options"] for place in ("/home/user", "/tmp", "/dev/shm"))
    assert {"network", "pid", "mount", "ipc", "uts"} == {each["type"] for each in config["linux"]["namespaces"]}


def test_what_its_limits_say() -> None:
    """Each resource is told, and what is not bounded is told as that."""
    told = {limit.resource: limit for limit in _plan.limits_in_force(Limits(), None, 0)}
    assert set(told) == {
        "memory", "swap", "shared_memory", "locked_memory", "cpus", "processes", "open_files", "disk", "inodes"
    }  # fmt: skip
    assert (told["memory"].by, told["inodes"].by, told["cpus"].by) == ("watchdog", "none", "none")
    assert all(told[name].note for name in ("memory", "processes", "disk", "inodes"))


def test_where_runsc_is(tmp_path: Path) -> None:
    """The variable wins over the PATH, links are followed, and where there is none the error says how to get it."""
    program = tmp_path / "runsc-1"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "runsc").symlink_to(program)
    assert find_runsc({"PATH": str(tmp_path / "bin")}) == str(program)
    assert find_runsc({"PATH": "/nonexistent", "SANDBOXKIT_RUNSC": str(program)}) == str(program)
    for environment in ({"PATH": "/nonexistent"}, {"PATH": str(tmp_path / "bin"), "SANDBOXKIT_RUNSC": "/none"}):
        with pytest.raises(IsolationUnavailable) as caught:
            find_runsc(environment)
        assert "apt-get install runsc" in caught.value.remedy


def test_the_pools_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """SANDBOXKIT_ISOLATION says what makes their boxes; a word that is none is refused by name."""
    monkeypatch.delenv("SANDBOXKIT_ISOLATION", raising=False)
    assert _own().isolation == "auto"
    monkeypatch.setenv("SANDBOXKIT_ISOLATION", "gvisor")
    assert _own().isolation == "gvisor"
    monkeypatch.setenv("SANDBOXKIT_ISOLATION", "chroot")
    with pytest.raises(ConfigurationError, match="chroot"):
        _own()
