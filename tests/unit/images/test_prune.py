"""Root clears up in a store that belongs to somebody else, who has put something there to trip over."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from sandboxkit.local import images

UID = 60998


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of a user of no name, below a directory that is closed to it."""
    if os.geteuid() != 0:
        pytest.skip("only root clears up in others' stores")
    monkeypatch.setenv("SANDBOXKIT_HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    root = tmp_path / "built" / str(UID)
    for folder in (root, root / "layers", root / "files", root / "templates"):
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, UID, UID)
    return root


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """What the store's user may not touch, where anybody can get at it."""
    there = tmp_path / "victim"
    there.mkdir()
    (there / "precious").write_text("x")
    (there / "deeper").mkdir()
    (there / "deeper" / "precious").write_text("x")
    return there


def give(path: Path) -> None:
    os.chown(path, UID, UID, follow_symlinks=False)


def test_what_is_the_users_goes(store: Path) -> None:
    """Uploads and layers are removed, and counted, as before."""
    (store / "files" / "upload").write_bytes(os.urandom(40_000))
    layer = store / "layers" / ("a" * 16) / "home"
    layer.mkdir(parents=True)
    (layer / "file").write_bytes(os.urandom(40_000))
    for path in (store / "files" / "upload", layer.parent, layer, layer / "file"):
        give(path)
    assert images.prune() >= 80_000
    assert os.listdir(store / "files") == []
    assert [name for name in os.listdir(store / "layers") if not name.startswith(".")] == []


@pytest.mark.parametrize("name", ["files", "layers"])
def test_a_link_in_the_place_of_a_directory(store: Path, victim: Path, name: str) -> None:
    """Nothing is removed where it leads."""
    (store / name).rmdir()
    (store / name).symlink_to(victim)
    give(store / name)
    with contextlib.suppress(OSError):
        images.prune()
    assert (victim / "precious").exists()
    assert (victim / "deeper" / "precious").exists()


def test_a_link_in_the_place_of_the_store(store: Path, victim: Path) -> None:
    """Nor where the whole store is one."""
    for folder in store.iterdir():
        folder.rmdir()
    store.rmdir()
    (victim / "files").mkdir()
    (victim / "files" / "precious").write_text("x")
    store.symlink_to(victim)
    with pytest.raises(OSError, match=str(store)):
        images.prune()
    assert (victim / "files" / "precious").exists()
