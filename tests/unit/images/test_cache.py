"""The cache of layers: whole or not at all, made once, removed only while nobody uses it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local._trees import remove_tree
from sandboxkit.local.images import _cache, _manifest


def fill(working: Path) -> None:
    """Make a layer of one file."""
    (working / "file").write_text("x" * 8192)


def make(home: Path, name: str) -> Path:
    """Make a layer of one file, if it is not there."""
    return _cache.make_layer(home, name, fill, on_wait=lambda: None)


def names(home: Path) -> set[str]:
    """What lies in the cache, without the lock."""
    return {path.name for path in (home / "layers").iterdir()} - {".lock"}


def test_a_layer_is_made_once_and_found(tmp_path: Path) -> None:
    """The second maker gets what the first one made."""
    assert _cache.find_layer(tmp_path, "a") is None
    layer = make(tmp_path, "a")
    assert _cache.find_layer(tmp_path, "a") == layer
    assert _cache.make_layer(tmp_path, "a", lambda working: pytest.fail("made again"), on_wait=lambda: None) == layer


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """A failure is raised as it is, and there is no layer, not even half of one."""

    def fail(working: Path) -> None:
        fill(working)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        _cache.make_layer(tmp_path, "a", fail, on_wait=lambda: None)
    assert names(tmp_path) == set()
    make(tmp_path, "a")


def test_two_makers_at_once_make_one_layer(tmp_path: Path) -> None:
    """The second one says that it waits, and then finds the layer made."""
    begun, go = threading.Event(), threading.Event()
    waited: list[str] = []

    def slowly(working: Path) -> None:
        begun.set()
        assert go.wait(10)
        fill(working)

    first = threading.Thread(target=lambda: _cache.make_layer(tmp_path, "a", slowly, on_wait=lambda: None))
    first.start()
    assert begun.wait(10)

    def wait() -> None:
        waited.append("waited")
        go.set()

    _cache.make_layer(tmp_path, "a", lambda working: pytest.fail("made again"), on_wait=wait)
    first.join()
    assert waited == ["waited"]
    assert names(tmp_path) == {"a"}


@pytest.mark.slow
def test_what_a_killed_maker_left_is_removed_and_never_used(tmp_path: Path) -> None:
    """After a SIGKILL in the middle there is no layer; the next maker clears up and makes it."""
    code = f"""
import pathlib, sys, time
from sandboxkit.local.images import _cache
def make(working):
    (working / "half").write_text("x")
    print("begun", flush=True)
    time.sleep(60)
_cache.make_layer(pathlib.Path({str(tmp_path)!r}), "a", make, on_wait=lambda: None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"begun\n"
        maker.send_signal(signal.SIGKILL)
    assert _cache.find_layer(tmp_path, "a") is None
    assert len(names(tmp_path)) == 1
    layer = make(tmp_path, "a")
    assert {path.name for path in layer.iterdir()} == {"file"}
    assert names(tmp_path) == {"a"}


def test_folders_are_open_to_everybody_whatever_the_umask(tmp_path: Path) -> None:
    """Boxes run as another user, who has to get to the layer."""
    before = os.umask(0o077)
    try:
        layer = make(tmp_path / "cache", "a")
    finally:
        os.umask(before)
    for path in (layer, layer.parent, layer.parent.parent):
        assert path.stat().st_mode & 0o777 == 0o755


def test_prune_removes_the_least_recently_used_first_and_none_in_use(tmp_path: Path) -> None:
    """Layers go oldest first until enough is free; one that is held stays, however old."""
    for age, name in enumerate(["new", "old", "oldest"]):
        os.utime(make(tmp_path, name), (1_000_000 - age, 1_000_000 - age))
    size = 8192
    with _cache.hold_layer(tmp_path / "layers" / "old"):
        os.utime(tmp_path / "layers" / "old", (1, 1))
        assert _cache.prune_layers(tmp_path, keep_bytes=2 * size) == size
        assert names(tmp_path) == {"new", "old"}
        assert _cache.prune_layers(tmp_path, keep_bytes=0) == size
        assert names(tmp_path) == {"old"}
    assert _cache.prune_layers(tmp_path, keep_bytes=0) == size
    assert names(tmp_path) == set()
    assert _cache.prune_layers(tmp_path / "nothing", keep_bytes=0) == 0


def test_what_is_nested_deeper_than_python_calls_is_removed(tmp_path: Path) -> None:
    """A build step may nest directories as deep as it likes: what it left is measured and removed all the same."""
    layers = tmp_path / "layers"
    deep = layers / f"{_cache.TEMPORARY}deep"
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    assert sum(1 for _ in _manifest._lines(str(deep / "d"), "")) > 1000
    _cache.remove_left(layers)
    assert list(layers.iterdir()) == []


def test_a_link_that_a_step_has_left_leads_nowhere(tmp_path: Path) -> None:
    """Where it lies as if the kernel had made it, in what an overlay works with: what it names stays as it is."""
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o750)
    (victim / "precious").write_text("x")
    left = tmp_path / "left"
    (left / "work" / "x").mkdir(parents=True)
    (left / "work" / "x" / "work").symlink_to(victim)
    (left / "other").symlink_to(victim)
    remove_tree(left)
    assert not left.exists()
    assert (stat.S_IMODE(victim.stat().st_mode), os.listdir(victim)) == (0o750, ["precious"])


CLOSED = """
import os, sys
from pathlib import Path
from sandboxkit.local._trees import remove_tree
left = Path(sys.argv[1], "left")
(left / "a" / "b" / "c").mkdir(parents=True)
(left / "a" / "b" / "c" / "file").write_text("x")
for path in (left / "a" / "b" / "c", left / "a" / "b", left / "a", left):
    path.chmod(0)
remove_tree(left)
print(left.exists())
"""


def test_what_is_closed_within_what_is_closed_is_removed(
    ordinary_user: tuple[str, dict[str, str], dict[str, Any]],
) -> None:
    """A step may take all rights from what it leaves, one directory within the other; to root, nothing is closed."""
    python, env, switch = ordinary_user
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chmod(place, 0o777)
        command = [python, "-c", CLOSED, place]
        done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=False, **switch)
    assert (done.stdout, done.stderr) == ("False\n", "")
