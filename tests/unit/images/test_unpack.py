"""Archives of COPY steps: unpacked and placed as Docker does it; hostile ones end as errors, with nothing left."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxkit.local.agent import unpack

Fill = Callable[[tarfile.TarFile], None]


def archive(fill: Fill, *, mode: str = "w:gz") -> bytes:
    """An archive with what `fill` puts into it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        fill(tar)
    return out.getvalue()


def member(name: str, data: bytes = b"", **more: object) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """One member, with any field set."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in more.items():
        setattr(info, field, value)
    return info, io.BytesIO(data)


def run(
    data: bytes, place: Path, source: str, target: Path, *, into: str = "", mode: str = "", most: int = 10_000
) -> str:
    """Unpack; returns what it said, empty for success."""
    command = [sys.executable, "-I", "-S", str(unpack.__file__), source, str(target), into, mode, str(place)]
    done = subprocess.run([*command, str(most), "100"], input=data, capture_output=True, check=False, timeout=30)
    assert (done.returncode == 0) == (not done.stderr), done
    assert not list(place.glob(".copying-*"))
    return done.stderr.decode()


def tree(root: Path) -> dict[str, str]:
    """Every file below, by its path."""
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def some(tar: tarfile.TarFile) -> None:
    """Two folders and files in them."""
    for name in ("a.txt", "src/b.py", "src/deep/c.py", "src/.hidden"):
        tar.addfile(*member(name, name.encode()))


@pytest.mark.parametrize(
    ("source", "target", "into", "expected"),
    [
        ("a.txt", "new", "", {"new": "a.txt"}),
        ("a.txt", "new", "1", {"new/a.txt": "a.txt"}),
        ("a.txt", "there", "", {"there/a.txt": "a.txt", "there/old": "old"}),
        (
            "src",
            "there",
            "",
            {
                "there/old": "old",
                "there/b.py": "src/b.py",
                "there/deep/c.py": "src/deep/c.py",
                "there/.hidden": "src/.hidden",
            },
        ),
        ("src/*.py", "new", "", {"new/b.py": "src/b.py"}),
        (
            "./src/",
            "new",
            "1",
            {"new/b.py": "src/b.py", "new/deep/c.py": "src/deep/c.py", "new/.hidden": "src/.hidden"},
        ),
        ("**/*.py", "new", "", {"new/b.py": "src/b.py", "new/c.py": "src/deep/c.py"}),
        (".", "new", "", {f"new/{name}": name for name in ("a.txt", "src/b.py", "src/deep/c.py", "src/.hidden")}),
    ],
)
def test_places(tmp_path: Path, source: str, target: str, into: str, expected: dict[str, str]) -> None:
    """A folder's content is merged, a file becomes the target or goes into it, a pattern's matches go into it."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("old")
    data = archive(some, mode="w" if source == "src" else "w:gz")
    if source == "src/*.py":
        expected = {"new": "src/b.py"}  # one match is one file
    assert run(data, tmp_path, source, tmp_path / target, into=into) == ""
    assert {name: text for name, text in tree(tmp_path).items() if name.startswith(target)} == expected


def test_a_file_beside_the_systems_directories_is_refused(tmp_path: Path) -> None:
    """`COPY app.py /app.py` would make a directory of that name; a folder, or a file for a folder, is copied there."""
    place = tmp_path / "app.py"
    assert "app.py cannot be a file here" in run(archive(some), place, "a.txt", place)
    assert tree(tmp_path) == {}
    assert run(archive(some), place, "src/deep", place) == ""
    assert run(archive(some), place, "a.txt", place, into="1") == ""
    assert tree(tmp_path) == {"app.py/c.py": "src/deep/c.py", "app.py/a.txt": "a.txt"}


def test_modes(tmp_path: Path) -> None:
    """A mode goes to every file; folders can be entered where they can be read. setuid is taken away."""

    def fill(tar: tarfile.TarFile) -> None:
        tar.addfile(*member("src", type=tarfile.DIRTYPE, mode=0o700))
        tar.addfile(*member("src/x", b"x", mode=0o4777))

    assert run(archive(fill), tmp_path, "src", tmp_path / "plain") == ""
    assert (tmp_path / "plain" / "x").stat().st_mode & 0o7777 == 0o755
    assert run(archive(fill), tmp_path, "src", tmp_path / "set", mode="0640") == ""
    assert (tmp_path / "set" / "x").stat().st_mode & 0o7777 == 0o640


def test_links_stay_what_they_are(tmp_path: Path) -> None:
    """Wherever they lead, in folders and alone; a pattern does not look behind them, and a mode is not theirs."""
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "b.py").write_text("not of the archive")

    def fill(tar: tarfile.TarFile) -> None:
        tar.addfile(*member("src/b.py", b"x"))
        for name, to in (("src/venv", str(other)), ("src/up", "../../up"), ("src/to-b", "b.py"), ("src/none", "none")):
            tar.addfile(*member(name, type=tarfile.SYMTYPE, linkname=to))
        tar.addfile(*member("src/again", type=tarfile.LNKTYPE, linkname="src/venv"))

    assert run(archive(fill), tmp_path, "src", tmp_path / "new", mode="0755") == ""
    links = {path.name: str(path.readlink()) for path in (tmp_path / "new").iterdir() if path.is_symlink()}
    assert links == {"venv": str(other), "again": str(other), "up": "../../up", "to-b": "b.py", "none": "none"}
    assert run(archive(fill), tmp_path, "**/*.py", tmp_path / "found", into="1") == ""
    assert tree(tmp_path / "found") == {"b.py": "x"}
    assert run(archive(fill), tmp_path, "src/venv", tmp_path / "alone") == ""
    assert (tmp_path / "alone").readlink() == other
    assert (other.stat().st_mode & 0o777, [path.name for path in other.iterdir()]) == (0o700, ["b.py"])


HOSTILE: dict[str, Fill] = {
    "absolute": lambda tar: tar.addfile(*member("/tmp/../etc/escape", b"x")),
    "dots": lambda tar: tar.addfile(*member("../escape", b"x")),
    "through a link": lambda tar: [
        tar.addfile(*member("x", type=tarfile.SYMTYPE, linkname="..")),
        tar.addfile(*member("x/escape", b"x")),
    ].clear(),
    "a link in its place": lambda tar: tar.addfile(*member(".", type=tarfile.SYMTYPE, linkname="/tmp")),
    "hard link out": lambda tar: tar.addfile(*member("x", type=tarfile.LNKTYPE, linkname="../escape")),
    "device": lambda tar: tar.addfile(*member("x", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
    "pipe": lambda tar: tar.addfile(*member("x", type=tarfile.FIFOTYPE)),
    "too large": lambda tar: tar.addfile(*member("x", b"x" * 20_000)),
    "too many": lambda tar: [tar.addfile(*member(f"x{number}")) for number in range(200)].clear(),
    "nothing": lambda tar: None,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(tmp_path: Path, name: str) -> None:
    """What leads out, is no file, or is too much ends as an error, and nothing is placed."""
    place = tmp_path / "deep" / "place"
    place.mkdir(parents=True)
    said = run(archive(HOSTILE[name]), place, "*", place / "new")
    if name == "absolute":  # the slash is taken away, as tar does
        assert (place / "new").exists() or said
        assert not Path("/etc/escape").exists()
        return
    assert said.startswith("COPY *: ")
    assert list(tmp_path.rglob("*")) == [tmp_path / "deep", place]


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8b\x08 broken", archive(some)[:-40]])
def test_broken_archives(tmp_path: Path, data: bytes) -> None:
    """Bytes that are no archive, or only a piece of one, are an error in plain words."""
    assert "COPY .: " in run(data, tmp_path, ".", tmp_path / "new")
    assert not (tmp_path / "new").exists()
