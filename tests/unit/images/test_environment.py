"""A built environment: works where it will be seen, and tells nothing of where it was made."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import marshal
import os
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
