"""What `checks` says about this machine, and that it leaves nothing."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from sandboxkit.local.isolation import checks
from sandboxkit.local.isolation._doctor import _gvisor_check, _kernel_check, _namespace_checks
from sandboxkit.local.isolation.host._remedies import HostFacts


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")
def test_checks() -> None:
    """Each check has a verdict, each failure a fix, and the trial of a real box leaves no directory and no cgroup."""

    def left() -> set[str]:
        return {path.name for path in Path(tempfile.gettempdir()).glob("sandboxkit-doctor-*")}

    before = left()
    told = checks()
    assert {"kernel", "user namespaces", "AppArmor", "bubblewrap", "sandbox", "gVisor"} <= {
        check.name for check in told
    }
    assert all(check.fix for check in told if check.status != "ok")
    sandbox = next(check for check in told if check.name == "sandbox")
    if sandbox.status == "ok":
        resources = {check.name for check in told if check.name.startswith("limit: ")}
        assert resources == {
            f"limit: {name}"
            for name in (
                "memory",
                "swap",
                "shared_memory",
                "locked_memory",
                "cpus",
                "processes",
                "open_files",
                "disk",
                "inodes",
            )
        }
    assert left() == before


def test_old_kernel() -> None:
    """A kernel without unprivileged overlays is a warning, an unreadable version too."""
    assert _kernel_check("6.1.0-18-amd64").status == "ok"
    assert _kernel_check("5.10.0").status == "warn"
    assert _kernel_check("strange").status == "warn"


def test_forbidden_namespaces() -> None:
    """A kernel setting that forbids namespaces is a failure with its remedy; AppArmor's rule is a warning."""
    names, _ = _namespace_checks(HostFacts(max_user_namespaces=0))
    assert (names.status, "max_user_namespaces" in names.fix) == ("fail", True)
    _, apparmor = _namespace_checks(HostFacts(apparmor_restrict=1))
    assert (apparmor.status, "apparmor" in apparmor.fix) == ("warn", True)


@pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")
def test_without_runsc(monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is no gVisor is no failure, and comes with how to get it; one that does not work is told as it is."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("SANDBOXKIT_RUNSC", raising=False)
    missing = _gvisor_check()
    assert (missing.status, "apt-get install runsc" in missing.fix) == ("info", True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="boxes need Linux")
def test_a_runsc_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that boots no sandbox is a warning with its own words."""
    monkeypatch.setenv("SANDBOXKIT_RUNSC", "/bin/false")
    broken = _gvisor_check()
    assert broken.status == "warn"
    assert broken.fix
