"""Volumes through the unmodified SDK, sync and async, on the real engine."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import e2b
import pytest

pytestmark = pytest.mark.engine

Options = dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def content_url(sdk: Options) -> Iterator[None]:
    """What `--env-file` writes: the SDK takes this address from the environment alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2B_VOLUME_API_URL", sdk["api_url"])
        yield


@pytest.fixture
def options(sdk: Options) -> Options:
    """What the engine's key and address are called there."""
    return {"api_key": sdk["api_key"], "api_url": sdk["api_url"]}


@pytest.fixture
def volume(colour: Any, options: Options) -> Iterator[Any]:
    """An empty volume of this test's own."""
    made = colour.do(kind_of(colour).create(f"vol-{uuid.uuid4().hex}", **options))
    yield made
    colour.do(kind_of(colour).destroy(made.volume_id, **options))


def kind_of(colour: Any) -> Any:
    return e2b.Volume if colour.name == "sync" else e2b.AsyncVolume


def paths(colour: Any, volume: Any, path: str = "/", depth: int | None = None) -> list[str]:
    return [one.path for one in colour.do(volume.list(path, depth=depth))]


def test_a_volumes_life(colour: Any, options: Options) -> None:
    """Created, found by id and in the list, connected to, destroyed once."""
    kind, name = kind_of(colour), f"vol-{uuid.uuid4().hex}"
    made = colour.do(kind.create(name, **options))
    assert made.name == name
    assert name in [one.name for one in colour.do(kind.list(**options))]
    assert colour.do(kind.get_info(made.volume_id, **options)).token == made.token

    with pytest.raises(e2b.VolumeException, match="already"):
        colour.do(kind.create(name, **options))
    colour.do(made.write_file("a", "1"))
    again = colour.do(kind.connect(made.volume_id, **options))
    assert colour.do(again.read_file("a")) == "1"

    assert colour.do(kind.destroy(made.volume_id, **options)) is True
    assert colour.do(kind.destroy(made.volume_id, **options)) is False
    with pytest.raises(e2b.VolumeNotFoundException):
        colour.do(kind.get_info(made.volume_id, **options))
    with pytest.raises(e2b.VolumePathNotFoundException):
        colour.do(made.read_file("a"))


def test_files_without_a_sandbox(colour: Any, volume: Any) -> None:
    """Written, read in each form, listed, described, changed, removed."""
    written = colour.do(volume.write_file("hello.txt", "hello"))
    assert (written.path, written.size, written.type.value, written.mode) == ("/hello.txt", 5, "file", 0o644)
    assert (written.uid, written.gid) == (1000, 1000)
    assert colour.do(volume.read_file("/hello.txt")) == "hello"
    assert colour.do(volume.read_file("hello.txt", format="bytes")) == b"hello"
    colour.do(volume.write_file("hello.txt", b"over"))
    assert colour.do(volume.read_file("hello.txt")) == "over"

    assert colour.do(volume.make_dir("d", mode=0o700)).mode == 0o700
    assert colour.do(volume.make_dir("e/f", force=True)).path == "/e/f"
    colour.do(volume.write_file("e/f/g", "x", mode=0o600, uid=1000, gid=1000))
    assert sorted(paths(colour, volume)) == ["/d", "/e", "/hello.txt"]
    assert sorted(paths(colour, volume, "e", 2)) == ["/e/f", "/e/f/g"]
    assert colour.do(volume.update_metadata("e/f/g", mode=0o640)).mode == 0o640

    colour.do(volume.remove("e"))
    assert colour.do(volume.exists("e")) is False
    assert colour.do(volume.exists("hello.txt")) is True


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda v: v.read_file("nothing"), e2b.VolumePathNotFoundException),
        (lambda v: v.get_info("nothing"), e2b.VolumePathNotFoundException),
        (lambda v: v.list("nothing"), e2b.VolumePathNotFoundException),
        (lambda v: v.remove("nothing"), e2b.VolumePathNotFoundException),
        (lambda v: v.update_metadata("nothing", mode=0o600), e2b.VolumePathNotFoundException),
        (lambda v: v.write_file("no/parent", "x"), e2b.VolumePathNotFoundException),
        (lambda v: v.make_dir("no/parent"), e2b.VolumePathNotFoundException),
        (lambda v: v.make_dir("there"), e2b.VolumeException),
        (lambda v: v.write_file("there", "x"), e2b.VolumeException),
        (lambda v: v.read_file("there"), e2b.VolumeException),
        (lambda v: v.read_file("../../../etc/passwd"), e2b.VolumeException),
        (lambda v: v.write_file("../out", "x"), e2b.VolumeException),
        (lambda v: v.remove("/"), e2b.VolumeException),
        (lambda v: v.write_file("x", "x", uid=0), e2b.VolumeException),
        (lambda v: v.update_metadata("there", mode=0o4755), e2b.VolumeException),
        (lambda v: v.list("/", depth=0), e2b.VolumeException),
    ],
)
def test_what_is_refused(colour: Any, volume: Any, ask: Any, error: type[Exception]) -> None:
    """Each by a typed error, and nothing is there afterwards that was not before."""
    colour.do(volume.make_dir("there"))
    with pytest.raises(error) as refused:
        colour.do(ask(volume))
    if error is e2b.VolumeException:
        assert not isinstance(refused.value, e2b.VolumePathNotFoundException)
    assert paths(colour, volume, depth=3) == ["/there"]


def test_sandboxes_share_it(colour: Any, volume: Any) -> None:
    """What one writes, the other reads and the volume holds, when both are gone too; a pause changes nothing."""
    colour.do(volume.write_file("from-here", "1"))
    first = colour.create(volume_mounts={"/mnt/data": volume, "/home/user/vol": volume.name})
    assert colour.do(first.files.read("/mnt/data/from-here")) == "1"
    colour.do(first.files.write("/mnt/data/from-sdk", "2"))
    colour.do(first.commands.run("echo 3 > ~/vol/from-shell"))
    info = colour.do(first.get_info())
    assert {one["path"] for one in info.volume_mounts} == {"/mnt/data", "/home/user/vol"}

    second = colour.create(volume_mounts={"/data": volume})
    assert colour.do(second.commands.run("cat /data/from-sdk /data/from-shell")).stdout == "23\n"
    colour.do(first.pause())
    colour.do(first.connect())
    assert colour.do(first.files.read("/mnt/data/from-shell")) == "3\n"
    colour.do(first.kill())
    colour.do(second.kill())
    assert colour.do(volume.read_file("from-shell")) == "3\n"


def test_files_that_are_kept_find_it_again(colour: Any, volume: Any) -> None:
    """A sandbox of which only the files were kept has its volume when it starts anew."""
    box = colour.create(volume_mounts={"/mnt/data": volume})
    colour.do(box.pause(mode="filesystem"))
    colour.do(volume.write_file("meanwhile", "1"))
    colour.do(box.connect())
    assert colour.do(box.files.read("/mnt/data/meanwhile")) == "1"


def test_links_of_a_sandbox_lead_nowhere(colour: Any, volume: Any) -> None:
    """What a sandbox plants in it is not followed out of it, nor opened where that would wait."""
    box = colour.create(volume_mounts={"/v": volume})
    colour.do(
        box.commands.run("cd /v && ln -s /etc/passwd a && ln -s ../../../etc/passwd b && ln -s /etc c && mkfifo d")
    )
    assert colour.do(volume.get_info("a")).target == "/etc/passwd"
    for path in ("a", "b", "c/passwd", "d"):
        with pytest.raises(e2b.VolumeException):
            colour.do(volume.read_file(path))
    for path in ("a", "c/new", "d"):
        with pytest.raises(e2b.VolumeException):
            colour.do(volume.write_file(path, "x", force=True))
    assert colour.do(volume.get_info("a")).type.value == "symlink"


@pytest.mark.parametrize(
    "path",
    ["/", "/etc", "/usr/share/x", "/proc/x", "/dev", "/home/user", "/tmp", "/opt/sandboxkit/env", "here", "/a/../b"],
)
def test_where_it_cannot_be(colour: Any, volume: Any, path: str) -> None:
    """The system's own directories, and what is no path."""
    with pytest.raises(e2b.SandboxException, match="volumeMounts"):
        colour.create(volume_mounts={path: volume})


def test_what_is_not_there(colour: Any) -> None:
    """A volume that nobody has made."""
    with pytest.raises(e2b.SandboxException, match=r"404.*nobodys"):
        colour.create(volume_mounts={"/mnt/x": "nobodys"})


def test_a_link_is_no_place_for_it(colour: Any, volume: Any) -> None:
    """Nothing is made, and nothing bound, where a link in the files that a sandbox starts with leads."""
    first = colour.create(volume_mounts={"/home/user/data/v": volume})
    colour.do(first.commands.run("mkdir data2; mv data2 /tmp/real; ln -s /tmp/real ~/link; ln -s /etc ~/out"))
    snapshot = colour.do(first.create_snapshot(mode="filesystem")).snapshot_id
    for path in ("/home/user/link/v", "/home/user/out/v", "/home/user/link"):
        with pytest.raises(e2b.SandboxException, match=r"400.*link"):
            colour.create(template=snapshot, volume_mounts={path: volume})
    again = colour.create(template=snapshot, volume_mounts={"/home/user/data/v": volume})
    colour.do(again.files.write("data/v/x", "1"))
    assert colour.do(volume.read_file("x")) == "1"
    colour.do(again.kill())
    colour.do(type(again).delete_snapshot(snapshot, **colour.options))
