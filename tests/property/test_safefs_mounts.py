"""Mounts below the root, of another file system and of the same one, against each mechanism of level `enforced`. The
mounts are made in a namespace of the test's own, by a process that runs this file."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("mounts are Linux's", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1]))

from beneath_tools import World, world
from safefs_tools import MECHANISMS, files_of, pythons

from sandboxkit.errors import EnforcementUnavailable, LinkEscape, NotFound, SafeFSError
from sandboxkit.safefs import AsyncSafeFS

pytestmark = [pytest.mark.slow]


@pytest.mark.parametrize(
    "mechanism", [*MECHANISMS[:2], *(pytest.param(name, marks=pytest.mark.full) for name in MECHANISMS[2:])]
)
def test_mounts(mechanism: str) -> None:
    """What is mounted below the root is neither read, written, described, entered, moved nor removed, whatever file
    system it is of; what is allowed by name is, and nothing else."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("needs unshare (util-linux), and namespaces where it is not root who runs this")
    with tempfile.TemporaryDirectory(prefix="sandboxkit-mounts-", dir=place) as folder:
        script = [*unshare, sys.executable, __file__, mechanism, os.path.realpath(folder)]
        done = subprocess.run(script, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tried\n"


async def outcome(work: Any) -> Any:
    try:
        return await work
    except SafeFSError as error:
        return type(error)


def mounted(made: World) -> None:
    """A directory and a file of what lies outside, a file system of its own, and one whose name has to be escaped."""
    for name in (b"d/bind", b"tmpfs", b"allowed", b"two words\\", b"plain"):
        os.makedirs(made.root + b"/" + name)
    for name in (b"file", b"d/x"):
        Path(os.fsdecode(made.root + b"/" + name)).write_bytes(b"x")
    os.symlink(b"d/bind/secret", made.root + b"/link")
    for arguments in (
        ["--bind", made.out, made.root + b"/d/bind"],
        ["--bind", made.out + b"/secret", made.root + b"/file"],
        ["--bind", made.out, made.root + b"/two words\\"],
        ["-t", "tmpfs", "none", made.root + b"/tmpfs"],
        ["-t", "tmpfs", "none", made.root + b"/allowed"],
    ):
        subprocess.run(["mount", *arguments], check=True)
    Path(os.fsdecode(made.root + b"/allowed/inside")).write_bytes(b"volume")


async def try_mounts(made: World, mechanism: str) -> None:
    files = files_of(made.root, mechanism)
    before = made.digest()
    for path in (
        "d/bind",
        "d/bind/secret",
        "d/bind/none",
        "file",
        "tmpfs",
        "link",
        "two words\\/secret",
        "allowed/inside",
    ):
        assert await outcome(files.read_bytes(path)) is LinkEscape, path
        assert await outcome(files.exists(path)) is LinkEscape, path
        assert await outcome(files.write(path, "new")) is LinkEscape, path
        assert await outcome(files.list(path)) is LinkEscape, path
        if path != "link":
            assert await outcome(files.stat(path)) is LinkEscape, path
    told = {entry.name: (entry.type, entry.size, entry.mode) for entry in await files.list()}
    assert {name for name, (kind, size, mode) in told.items() if (kind, size, mode) == ("other", 0, 0)} == {
        "allowed", "file", "tmpfs", "two words\\"
    }  # fmt: skip
    assert await outcome(files.read_bytes("d/x")) == b"x"
    allowed = files_of(made.root, mechanism, mounts=["allowed"])
    if mechanism == "sh":
        assert await outcome(allowed.read_bytes("allowed/inside")) is EnforcementUnavailable
        return
    for refused in (
        files.make_dir("d/bind/new"), files.make_dir("tmpfs/new"), files.append("file", "x"), files.copy("file", "c"),
        files.copy("d/x", "file"), files.copy("d/bind/secret", "c"), files.rename("d/bind", "moved"),
        files.rename("file", "moved"), files.rename("d/x", "d/bind/x"), files.remove("d"), files.remove("tmpfs"),
        files.remove("d/bind"), files.remove("file"), files.remove("two words\\"),
    ):  # fmt: skip
        assert await outcome(refused) is LinkEscape
    deep = [entry.path async for entry in files.walk()]
    assert [path for path in deep if "secret" in path or "inside" in path] == []
    assert not [entry for entry in await files.list(depth=9) if "secret" in entry.path]
    assert made.digest() == before
    await try_allowed(allowed)
    assert made.digest() == before
    await files.rename("d/x", "plain/x")
    await files.remove("plain")
    assert await outcome(files.exists("plain/x")) is False


async def try_allowed(allowed: AsyncSafeFS) -> None:
    assert await allowed.read_bytes("allowed/inside") == b"volume"
    await allowed.write("allowed/deep/new", "volume")
    assert sorted([entry.name async for entry in allowed.walk("allowed")]) == ["deep", "inside", "new"]
    assert (await allowed.stat("allowed")).type == "dir"
    await allowed.append("allowed/inside", "+")
    await allowed.copy("d/x", "allowed/x")
    await allowed.rename("allowed/x", "allowed/y")
    await allowed.remove("allowed/deep")
    assert await outcome(allowed.read_bytes("allowed/deep/new")) is NotFound
    assert await outcome(allowed.rename("allowed/y", "y")) is LinkEscape  # from one file system to another
    for path in ("d/bind/secret", "tmpfs/x", "file", "link"):
        assert await outcome(allowed.read_bytes(path)) is LinkEscape, path
    assert await outcome(allowed.remove("allowed")) is LinkEscape


def main() -> None:
    mechanism, folder = sys.argv[1:]
    with world(Path(folder, "world")) as made, pythons(mechanism):
        mounted(made)
        try:
            asyncio.run(try_mounts(made, mechanism))
        finally:
            for name in (b"d/bind", b"file", b"two words\\", b"tmpfs", b"allowed"):
                subprocess.run(["umount", made.root + b"/" + name], check=False)
    print("tried")


if __name__ == "__main__":
    main()
