"""A built environment: works where it will be seen, and tells nothing of where it was made."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import marshal
import os
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxkit.errors import TemplateBuildFailed
from sandboxkit.local.images import _install
from sandboxkit.local.images._environment import make_environment

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a module, a test of it, and a command."""
    files = {
        "small/__init__.py": "def main():\n    return __file__\n",
        "small/tests/test_small.py": "import small\n",
        "small-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
        "small-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "small-1.0.dist-info/entry_points.txt": "[console_scripts]\nsmall = small:main\n",
    }
    record = ""
    path = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(content)}\n"
        archive.writestr("small-1.0.dist-info/RECORD", record + "small-1.0.dist-info/RECORD,,\n")
    return path


@pytest.fixture
def requirements(tmp_path: Path, wheel: Path) -> Path:
    """Requirements that need no index."""
    path = tmp_path / "requirements.txt"
    path.write_text(f"small @ {wheel.as_uri()}\n")
    return path


def only(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one of the installers; the other one is not on this machine, so to say."""
    found = _install.tools

    def tools(env_python: Path) -> Iterator[_install.Tool]:
        return (known for known in found(env_python) if known.name == tool)

    monkeypatch.setattr(_install, "tools", tools)
    if not list(tools(Path("/x"))):
        pytest.skip(f"{tool} is not installed here")


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_an_environment_tells_nothing_of_the_host(
    tool: str, tmp_path: Path, requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With either installer: no path of the host is left in any file or link, and everybody may read all of it."""
    only(tool, monkeypatch)
    root = tmp_path / "made"
    root.mkdir(0o755)
    before = os.umask(0o077)
    try:
        make_environment(root, requirements, on_line=lambda line: None)
    finally:
        os.umask(before)

    assert os.readlink(root / "bin" / "python3") == "/opt/sandboxkit/python/bin/python3"
    assert "home = /opt/sandboxkit/python/bin\n" in (root / "pyvenv.cfg").read_text()
    assert (root / "bin" / "small").read_text().splitlines()[0] == "#!/opt/sandboxkit/env/bin/python3"
    packages = root / "lib" / VERSION / "site-packages"
    cached = packages / "small" / "__pycache__" / os.path.basename(importlib.util.cache_from_source("__init__.py"))
    data = cached.read_bytes()
    assert data[4:8] == b"\x01\x00\x00\x00"  # by hash, and never checked
    code = marshal.loads(data[16:])
    assert isinstance(code, types.CodeType)
    assert code.co_filename == f"/opt/sandboxkit/env/lib/{VERSION}/site-packages/small/__init__.py"
    assert not (packages / "small" / "tests" / "__pycache__").exists()
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                assert str(tmp_path) not in os.readlink(path)
                continue
            assert path.stat().st_mode & 0o777 in ((0o755,) if path.is_dir() else (0o644, 0o755))
            if path.is_file():
                assert os.fsencode(tmp_path) not in path.read_bytes(), path


@pytest.mark.slow
def test_where_one_installer_fails_the_other_is_tried_and_both_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure names what each installer said, and keeps the end of their logs."""
    root = tmp_path / "made"
    root.mkdir()
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no-such-package-as-this==1.0\n")
    for name in ("UV_NO_INDEX", "PIP_NO_INDEX", "UV_OFFLINE"):
        monkeypatch.setenv(name, "1")
    lines: list[str] = []
    with pytest.raises(TemplateBuildFailed, match="could not be installed") as caught:
        make_environment(root, requirements, on_line=lines.append)
    tried = [tool.name for tool in _install.tools(root / "bin" / "python3")]
    assert tried
    assert all(f"{name} failed" in str(caught.value) for name in tried)
    assert "no-such-package-as-this" in caught.value.log_tail  # type: ignore[attr-defined]
    assert [line for line in lines if line.startswith("Installing with")] == [f"Installing with {n}." for n in tried]


@pytest.mark.slow
def test_a_package_without_a_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are never built, by any installer: that would run a stranger's code on this machine."""
    ran = tmp_path / "ran"
    source = tmp_path / "small-1.0.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for name, content in {
            "small-1.0/PKG-INFO": "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n",
            # A build that needs nothing but the package itself, so that only a refusal keeps it from running.
            "small-1.0/pyproject.toml": "[build-system]\nrequires=[]\nbuild-backend='back'\nbackend-path=['.']\n",
            "small-1.0/back.py": f"open({str(ran)!r}, 'w').close()\n",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("small==1.0\n")
    for name in ("UV", "PIP"):
        monkeypatch.setenv(f"{name}_NO_INDEX", "1")
        monkeypatch.setenv(f"{name}_FIND_LINKS", str(tmp_path))
    root = tmp_path / "made"
    root.mkdir()
    with pytest.raises(TemplateBuildFailed):
        make_environment(root, requirements, on_line=lambda line: None)
    assert not ran.exists()


FULL = """
import ctypes, os, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
uid, gid = os.getuid(), os.getgid()
if libc.unshare(0x10020000):  # a user and a mount namespace
    sys.exit(77)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
assert libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=256k") == 0, ctypes.get_errno()
from sandboxkit.errors import TemplateBuildFailed
from sandboxkit.local.images import _cache
from sandboxkit.local.images._environment import make_environment
make = lambda root: make_environment(root, Path(sys.argv[2]), on_line=lambda line: None)
try:
    _cache.make_layer(Path(sys.argv[1]), "a", make, on_wait=lambda: None)
except TemplateBuildFailed as error:
    print(error)
print(os.listdir(sys.argv[1] + "/layers"))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount of its own")
def test_a_full_disk_is_called_so_and_leaves_nothing(tmp_path: Path) -> None:
    """Where the disk is full the advice is to make room, not to look for an index; no part of a layer stays."""
    wheel, place = tmp_path / "large-1.0-py3-none-any.whl", tmp_path / "cache"
    place.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("large.bin", os.urandom(2 << 20))
        archive.writestr("large-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: large\nVersion: 1.0\n")
        lines = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr("large-1.0.dist-info/WHEEL", lines)
        archive.writestr("large-1.0.dist-info/RECORD", "large.bin,,\n")
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"large @ {wheel.as_uri()}\n")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(place), str(requirements)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip("no namespaces here")
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert "make room" in said
    assert str(place) in said
    assert "index" not in said
    assert left == "['.lock']"
