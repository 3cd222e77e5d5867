"""What is told to be installed in a template, whose author is a stranger."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from sandboxkit.local.images._definition import BuiltTemplate
from sandboxkit.local.images._installed import versions
from sandboxkit.local.isolation._base import HOME, PREFIX, Layer, Overlay

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="templates are Linux's")


@pytest.fixture
def built(tmp_path: Path) -> BuiltTemplate:
    """One with a Python distribution and a Node package."""
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    (packages / "Some_Thing-1.2+local.dist-info").mkdir(parents=True)
    (packages / "Some_Thing-1.2+local.dist-info" / "METADATA").write_text("Name: Some-Thing\nVersion: 1.2+local\n")
    module = tmp_path / "home" / "node_modules" / "left-pad"
    module.mkdir(parents=True)
    (module / "package.json").write_text(json.dumps({"version": "3.0.0"}))
    return BuiltTemplate(
        id="t",
        layers=(Layer(source=str(tmp_path / "env"), target=f"{PREFIX}/env"),),
        overlays=(Overlay(target=HOME, lowers=(str(tmp_path / "home"),)),),
    )


def test_versions(built: BuiltTemplate, tmp_path: Path) -> None:
    """By whatever spelling of its name; None for what is not there, or only in part."""
    (tmp_path / "env" / "lib" / "python3.11" / "site-packages" / "part-2.0.dist-info").mkdir()
    asked = ["some-thing", "Some.Thing", "left-pad", "part", "other"]
    assert versions(built, asked) == dict(zip(asked, ["1.2+local", "1.2+local", "3.0.0", None, None], strict=True))


def test_what_is_there_to_trip_over(built: BuiltTemplate, tmp_path: Path) -> None:
    """No pipe is read, and nothing that a link outside leads to."""
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    (packages / "pipe-1.0.dist-info").mkdir()
    os.mkfifo(packages / "pipe-1.0.dist-info" / "METADATA")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "package.json").write_text(json.dumps({"version": "secret"}))
    (tmp_path / "home" / "node_modules" / "linked").symlink_to(outside)
    found: dict[str, str | None] = {}
    looking = threading.Thread(
        target=lambda: found.update(versions(built, ["pipe", "linked", "left-pad"])), daemon=True
    )
    looking.start()
    looking.join(5)
    assert found == {"pipe": None, "linked": None, "left-pad": "3.0.0"}
