"""What this machine offers for isolation, one line per check, with the fix where something is wrong.

`checks` reads settings and makes one real box in a process of its own; nothing lasts.
"""

from __future__ import annotations

import asyncio
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any, Literal

from sandboxkit.errors import IsolationUnavailable, SandboxkitError
from sandboxkit.local.isolation._base import BoxSpec, Limits
from sandboxkit.local.isolation.bubblewrap._bubblewrap import BubblewrapIsolation, release
from sandboxkit.local.isolation.gvisor._gvisor import GvisorIsolation, find_runsc
from sandboxkit.local.isolation.host._namespace import enter
from sandboxkit.local.isolation.host._remedies import MISSING_BWRAP, MISSING_RUNSC, HostFacts, host_facts, remedy
from sandboxkit.local.isolation.host._runtime import wheel_bwrap

PROBE_WITHIN = 60.0
OVERLAY_SINCE = (5, 11)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `doctor`. `fix` is the one thing to do; empty when all is well."""

    name: str
    status: Literal["ok", "info", "warn", "fail"]
    detail: str
    fix: str = ""


def checks() -> list[Check]:
    """Look at everything. Takes less than a second where all is well, and two more where there is gVisor."""
    if sys.platform != "linux":
        fix = "Use E2B (set E2B_API_KEY), or run the engine on Linux."
        return [Check("platform", "fail", f"The local engine needs Linux; this is {sys.platform}.", fix)]
    facts = host_facts()
    return [
        _kernel_check(platform.release()),
        *_namespace_checks(facts),
        _bwrap_check(),
        *_box_checks(),
        _gvisor_check(),
    ]


def _kernel_check(release: str) -> Check:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < OVERLAY_SINCE:
        detail = f"Linux {release}: before 5.11, so host paths of the interpreter show in a sandbox's mount table."
        return Check("kernel", "warn", detail, "Use a kernel from 5.11 on.")
    return Check("kernel", "ok", f"Linux {release}")


def _namespace_checks(facts: HostFacts) -> list[Check]:
    blocked = facts.max_user_namespaces == 0 or facts.unprivileged_userns_clone == 0
    names = Check("user namespaces", "fail", "forbidden by a kernel setting", remedy(facts))
    if not blocked:
        limit = facts.max_user_namespaces
        names = Check("user namespaces", "ok", "allowed" if limit is None else f"allowed, at most {limit}")
    if facts.apparmor_restrict:
        # A profile for this very program may still allow them: the box check below decides.
        return [names, Check("AppArmor", "warn", "restricts user namespaces to programs with a profile", remedy(facts))]
    return [names, Check("AppArmor", "ok", "does not restrict user namespaces")]


def _bwrap_check() -> Check:
    found = [shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin"), wheel_bwrap()]
    paths = [str(path) for path in found if path is not None]
    if not paths:
        return Check("bubblewrap", "fail", "not found", MISSING_BWRAP)
    return Check("bubblewrap", "ok", ", ".join(paths))


def _trial(runsc: str = "") -> dict[str, Any]:
    """Make a box in another process, by gVisor where runsc is named, and return what that found."""
    with tempfile.TemporaryDirectory(prefix="sandboxkit-doctor-") as root:
        try:
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    f"from {__name__} import probe; import sys; probe(*sys.argv[1:])",
                    f"{root}/engine",
                    runsc,
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_WITHIN,
                check=False,
            )
            told: dict[str, Any] = (
                json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {"error": done.stderr[-500:]}
            )
        except (subprocess.TimeoutExpired, ValueError) as error:
            told = {"error": f"The trial did not end well: {error}"}
    return told


def _gvisor_check() -> Check:
    """Say whether `isolation=gvisor` would work. Nothing else needs it, so that it is never a failure."""
    try:
        runsc = find_runsc()
    except IsolationUnavailable as error:
        return Check("gVisor", "info", "no runsc: `--isolation gvisor` would be refused", error.remedy or MISSING_RUNSC)
    told = _trial(runsc)
    if "error" in told:
        return Check("gVisor", "warn", str(told["error"]), str(told.get("remedy", "")) or remedy(host_facts()))
    detail = f"made and removed a sandbox in {told['milliseconds']:.0f} ms with {told['chosen']}, {_version(runsc)}"
    return Check("gVisor", "ok", detail)


def _version(runsc: str) -> str:
    try:
        done = subprocess.run([runsc, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "version unknown"
    return (done.stdout.splitlines() or ["version unknown"])[0].removeprefix("runsc ")


def _box_checks() -> list[Check]:
    """Make a box, and tell how its limits are held."""
    told = _trial()
    if "error" in told:
        return [Check("sandbox", "fail", str(told["error"]), str(told.get("remedy", "")) or remedy(host_facts()))]
    made = Check("sandbox", "ok", f"made and removed one in {told['milliseconds']:.0f} ms with {told['chosen']}")
    overlay = Check("overlay", "ok", "read-only overlays hide host paths")
    if not told["overlay"]:
        overlay = Check(
            "overlay", "warn", "refused: host paths of the interpreter show inside", "Use Linux 5.11 or later."
        )
    limits = []
    for resource, by, note in told["limits"]:
        status: Literal["ok", "warn"] = "warn" if by in ("none", "watchdog") else "ok"
        fix = "Start the engine as root, or in a delegated cgroup." if status == "warn" else ""
        limits.append(Check(f"limit: {resource}", status, f"held by {by}" + (f" ({note})" if note else ""), fix))
    return [made, overlay, _zygote_check(told["zygotes"]), *limits]


def _zygote_check(zygotes: list[str]) -> Check:
    wrong = [state for state in zygotes if not state.isdigit()]
    if wrong or not zygotes:
        detail = f"not in use, each agent is started anew: {wrong[0] if wrong else 'none was made'}"
        return Check("zygote", "warn", detail, "Report it: sandboxes work, and start more slowly.")
    return Check("zygote", "ok", "agents are forked from one loaded process for each template")


def probe(state: str, runsc: str = "") -> None:
    """In the other process: make one box, print what was found as a line of JSON."""
    try:
        namespace = enter(state, readable=[runsc] if runsc else [])
        isolation = GvisorIsolation(namespace, runsc) if runsc else BubblewrapIsolation(namespace)

        async def run() -> dict[str, Any]:
            await isolation.start()
            began = asyncio.get_running_loop().time()
            box = await isolation.create(BoxSpec(box_id="doctor", limits=Limits(disk=1 << 20, inodes=64)))
            await box.kill()
            took = asyncio.get_running_loop().time() - began
            zygotes = isolation.zygotes() if isinstance(isolation, BubblewrapIsolation) else []
            limits = [(limit.resource, limit.by, limit.note) for limit in box.limits]
            await isolation.aclose()
            chosen = isolation.chosen if isinstance(isolation, GvisorIsolation) else isolation.bwrap
            return {"chosen": chosen, "milliseconds": took * 1000, "limits": limits, "zygotes": zygotes}

        told = asyncio.run(run())
        python = namespace.runtime / "python"
        with open("/proc/self/mountinfo") as mounts:
            kinds = {line.split()[4]: line.split(" - ")[1].split()[0] for line in mounts}
        told["overlay"] = kinds.get(str(python), "overlay") == "overlay"
        release(namespace)
    except (SandboxkitError, OSError) as error:
        told = {"error": str(error), "remedy": getattr(error, "remedy", "")}
    print(json.dumps(told), flush=True)
