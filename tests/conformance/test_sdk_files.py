"""Files through the unmodified SDK, in both colours, against the real engine."""

from __future__ import annotations

import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotEnoughSpaceException,
    SandboxException,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_write_and_read(colour: Any, box: Any, folder: str) -> None:
    """Text and bytes come back as they were, in every format, and parents are made."""
    path = f"{folder}/new/dir/f.txt"
    written = colour.do(box.files.write(path, "Zürich\n"))
    assert (written.path, written.name, written.type, written.metadata) == (path, "f.txt", FileType.FILE, None)
    assert colour.do(box.files.read(path)) == "Zürich\n"
    assert colour.do(box.files.read(path, format="bytes")) == "Zürich\n".encode()
    data = os.urandom(3_000_000)
    colour.do(box.files.write(path, data))
    assert colour.do(box.files.read(path, format="bytes")) == data
    assert _stream(colour, box, path) == data
    colour.do(box.files.write(path, ""))
    assert colour.do(box.files.read(path)) == ""


def _stream(colour: Any, box: Any, path: str) -> bytes:
    if colour.name == "sync":
        return b"".join(box.files.read(path, format="stream"))

    async def collect() -> bytes:
        return b"".join([chunk async for chunk in await box.files.read(path, format="stream")])

    return bytes(colour.do(collect()))


def test_every_way_of_writing(colour: Any, box: Any, folder: str) -> None:
    """Forms, octets, gzip, file objects, iterables and several files at once write the same bytes."""
    data = os.urandom(200_000)

    def pieces() -> Iterator[bytes]:
        yield data[:70_000]
        yield data[70_000:]

    async def apieces() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    write = box.files.write
    colour.do(write(f"{folder}/form", data))
    colour.do(write(f"{folder}/octets", data, use_octet_stream=True))
    colour.do(write(f"{folder}/gzip", data, gzip=True))
    colour.do(write(f"{folder}/object", io.BytesIO(data)))
    colour.do(write(f"{folder}/iterable", pieces() if colour.name == "sync" else apieces()))
    several = [{"path": f"{folder}/{n}", "data": data} for n in ("one", "two", "sub/three")]
    infos = colour.do(box.files.write_files(several))
    assert [info.path for info in infos] == [entry["path"] for entry in several]
    for name in ("form", "octets", "gzip", "object", "iterable", "one", "two", "sub/three"):
        assert colour.do(box.files.read(f"{folder}/{name}", format="bytes", gzip=name == "gzip")) == data


def test_relative_paths_lie_in_the_home(colour: Any, box: Any, folder: str) -> None:
    """A relative path and one with `~` mean the same file; another user's home is refused."""
    relative = folder.removeprefix("/home/user/")
    assert colour.do(box.files.write(f"{relative}/f", "x")).path == f"{folder}/f"
    assert colour.do(box.files.read(f"~/{relative}/f")) == "x"
    with pytest.raises(InvalidArgumentException, match="cannot expand user-specific home dir"):
        colour.do(box.files.read("~bob/f"))


def test_info(colour: Any, box: Any, folder: str) -> None:
    """Info of a file, a directory, and a link, whose type is its target's."""
    colour.do(box.files.write(f"{folder}/f", "test"))
    info = colour.do(box.files.get_info(f"{folder}/f"))
    assert (info.name, info.type, info.path, info.size) == ("f", FileType.FILE, f"{folder}/f", 4)
    assert (info.mode, info.permissions, info.owner, info.group) == (0o644, "-rw-r--r--", "user", "user")
    assert info.modified_time.tzinfo is not None
    directory = colour.do(box.files.get_info(folder))
    assert (directory.type, directory.permissions, directory.mode) == (FileType.DIR, "drwxr-xr-x", 0o755)
    colour.do(box.commands.run("ln -s f link; ln -s nowhere lost; mkfifo fifo", cwd=folder))
    link = colour.do(box.files.get_info(f"{folder}/link"))
    assert (link.type, link.symlink_target) == (FileType.FILE, f"{folder}/f")
    assert colour.do(box.files.get_info(f"{folder}/lost")).type is None
    listed = {entry.name for entry in colour.do(box.files.list(folder))}
    assert listed == {"f", "link"}, "the SDK leaves out what has no type"


def test_a_time_as_far_away_as_the_kernel_lets_it(colour: Any, box: Any, folder: str) -> None:
    """Of a file is shown as the nearest that the wire can say; it cost the sandbox its life."""
    colour.do(box.files.make_dir(folder))
    colour.do(
        box.commands.run(f"cd {folder} && touch -d @9223372036854775807 far && touch -d @-9223372036854775808 past")
    )
    shown = {one.name: one.modified_time.year for one in colour.do(box.files.list(folder))}
    assert shown == {"far": 9999, "past": 1}
    assert colour.do(box.files.get_info(f"{folder}/far")).modified_time.year == 9999
    assert colour.do(box.files.read(f"{folder}/far")) == ""


def test_list_to_a_depth(colour: Any, box: Any, folder: str) -> None:
    """Depth 1 is the default; deeper listings hold everything below, with absolute paths."""
    colour.do(box.commands.run("mkdir -p a/b/c && touch a/1 a/b/2 a/b/c/3", cwd=folder))

    def paths(**options: Any) -> list[str]:
        found = colour.do(box.files.list(folder, **options))
        return [entry.path.removeprefix(f"{folder}/") for entry in found]

    assert paths() == ["a"]
    assert paths(depth=2) == ["a", "a/1", "a/b"]
    assert paths(depth=9) == ["a", "a/1", "a/b", "a/b/2", "a/b/c", "a/b/c/3"]
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        colour.do(box.files.list(f"{folder}/a/1"))
    with pytest.raises(FileNotFoundException):
        colour.do(box.files.list(f"{folder}/none"))


def test_make_exists_rename_remove(colour: Any, box: Any, folder: str) -> None:
    """Each says what it did, and the second time what it found."""
    assert colour.do(box.files.make_dir(f"{folder}/a/b")) is True
    assert colour.do(box.files.make_dir(f"{folder}/a/b")) is False
    colour.do(box.files.write(f"{folder}/a/b/f", "x", metadata={"stage": "one"}))
    moved = colour.do(box.files.rename(f"{folder}/a/b/f", f"{folder}/moved/g"))
    assert (moved.path, moved.metadata) == (f"{folder}/moved/g", {"stage": "one"})
    assert colour.do(box.files.exists(f"{folder}/a/b/f")) is False
    assert colour.do(box.files.exists(f"{folder}/moved/g")) is True
    colour.do(box.files.remove(f"{folder}/moved"))
    colour.do(box.files.remove(f"{folder}/moved"))
    assert colour.do(box.files.exists(f"{folder}/moved")) is False
    with pytest.raises(FileNotFoundException):
        colour.do(box.files.rename(f"{folder}/none", f"{folder}/x"))


def test_a_rename_leads_to_any_place_that_can_be_written(colour: Any, box: Any, folder: str) -> None:
    """Files, links and trees move between home and /tmp with all they are, over what is there; else they stay whole."""
    other = f"/tmp/{folder.rsplit('/', 1)[1]}-{colour.name}"
    colour.do(box.files.write(f"{folder}/tree/a/f", "content", metadata={"stage": "one"}))
    script = "chmod 640 a/f; chmod 500 a; ln -s a/f link; mkfifo pipe; truncate -s 64M holes; touch -d @1000 a/f holes"
    colour.do(box.commands.run(script, cwd=f"{folder}/tree"))
    described = "stat -c '%n %A %s %Y' a a/f holes pipe; readlink link; du -k holes"
    before = colour.do(box.commands.run(described, cwd=f"{folder}/tree")).stdout
    moved = colour.do(box.files.rename(f"{folder}/tree", f"{other}/new/tree"))
    assert (moved.type, moved.path) == (FileType.DIR, f"{other}/new/tree")
    assert colour.do(box.files.exists(f"{folder}/tree")) is False
    assert colour.do(box.commands.run(described, cwd=f"{other}/new/tree")).stdout == before
    assert colour.do(box.files.get_info(f"{other}/new/tree/a/f")).metadata == {"stage": "one"}
    assert colour.do(box.files.read(f"{other}/new/tree/link")) == "content"

    colour.do(box.files.write(f"{folder}/file", "new"))
    colour.do(box.files.write(f"{other}/file", "old"))
    colour.do(box.files.rename(f"{folder}/file", f"{other}/file"))
    assert colour.do(box.files.read(f"{other}/file")) == "new"
    colour.do(box.files.write(f"{folder}/full/of", "something"))
    with pytest.raises(SandboxException, match="Directory not empty"):
        colour.do(box.files.rename(f"{other}/new", f"{folder}/full"))
    assert [entry.name for entry in colour.do(box.files.list(folder))] == ["full"]
    assert sorted(entry.name for entry in colour.do(box.files.list(other))) == ["file", "new"]
    for fixed in ("/etc/passwd", "/home/user"):
        with pytest.raises(SandboxException):
            colour.do(box.files.rename(fixed, f"{other}/taken"))
    assert colour.do(box.files.exists(folder)) is True
    assert colour.do(box.files.exists(f"{other}/taken")) is False


def test_a_files_mode_keeps_nobody_out(colour: Any, box: Any, folder: str) -> None:
    """The file API is root's at E2B: it reads and writes what programs may not, and leaves the mode as it is.

    That of a directory on the way still counts here."""
    path = f"{folder}/closed"
    colour.do(box.files.write(path, "old"))
    colour.do(box.commands.run(f"chmod 000 {path}"))
    assert colour.do(box.files.read(path)) == "old"
    colour.do(box.commands.run(f"chmod 400 {path}"))
    written = colour.do(box.files.write(path, "new", metadata={"stage": "two"}))
    assert (written.path, written.metadata) == (path, {"stage": "two"})
    assert colour.do(box.files.read(path)) == "new"
    info = colour.do(box.files.get_info(path))
    assert (info.permissions, info.size, info.metadata) == ("-r--------", 3, {"stage": "two"})
    colour.do(box.commands.run(f"mkdir {folder}/shut; cp {path} {folder}/shut/f; chmod 000 {folder}/shut"))
    with pytest.raises(SandboxException, match="403"):
        colour.do(box.files.read(f"{folder}/shut/f"))


def test_what_is_missing_or_no_file(colour: Any, box: Any, folder: str) -> None:
    """A missing file is FileNotFoundException; a directory or a FIFO is an invalid argument, at once."""
    with pytest.raises(FileNotFoundException, match=f"path '{folder}/none' does not exist"):
        colour.do(box.files.read(f"{folder}/none"))
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        colour.do(box.files.read(folder))
    colour.do(box.commands.run("mkfifo fifo", cwd=folder))
    with pytest.raises(InvalidArgumentException, match="not a regular file"):
        colour.do(box.files.read(f"{folder}/fifo"))
    with pytest.raises(InvalidArgumentException, match="path is a directory"):
        colour.do(box.files.write(folder, "x"))
    with pytest.raises(SandboxException, match="403"):
        colour.do(box.files.write("/etc/passwd", "x"))


def test_metadata(colour: Any, box: Any, folder: str) -> None:
    """Metadata is answered, kept, listed, replaced by the next upload, and may be set from inside."""
    path = f"{folder}/f"
    metadata = {"author": "mish", "purpose": "upload"}
    for octets in (False, True):
        assert colour.do(box.files.write(path, "x", metadata=metadata, use_octet_stream=octets)).metadata == metadata
        assert colour.do(box.files.get_info(path)).metadata == metadata
        assert colour.do(box.files.list(folder))[0].metadata == metadata
    assert colour.do(box.files.write(path, "x")).metadata is None
    assert colour.do(box.files.get_info(path)).metadata is None
    colour.do(box.commands.run(f'python3 -c \'import os; os.setxattr("{path}", "user.e2b.inside", b"yes")\''))
    assert colour.do(box.files.get_info(path)).metadata == {"inside": "yes"}


def test_only_user_exists(colour: Any, box: Any, folder: str) -> None:
    """`user="user"` works for files; root is refused."""
    colour.do(box.files.write(f"{folder}/f", "x", user="user"))
    assert colour.do(box.files.read(f"{folder}/f", user="user")) == "x"
    for call in (
        lambda: box.files.read(f"{folder}/f", user="root"),
        lambda: box.files.write(f"{folder}/f", "x", user="root"),
        lambda: box.files.list(folder, user="root"),
    ):
        with pytest.raises(AuthenticationException, match="root"):
            colour.do(call())


def test_signed_urls(colour: Any, box: Any, folder: str) -> None:
    """A signed URL downloads and uploads without any header; past its end it is a 401 that says so."""
    path = f"{folder}/signed.txt"
    colour.do(box.files.write(path, "signed"))
    for url in (
        box.download_url(path),
        box.download_url(path, "user"),
        box.download_url(path, use_signature_expiration=120),
    ):
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"signed"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(box.download_url(path, "user", use_signature_expiration=-120), timeout=20)
    with caught.value as refusal:
        assert refusal.code == 401
        assert json.load(refusal) == {"code": 401, "message": "signature is already expired"}
    upload = urllib.request.Request(
        box.upload_url(path, use_signature_expiration=120),
        data=b"uploaded",
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(upload, timeout=20) as answer:
        assert answer.status == 200
    assert colour.do(box.files.read(path)) == "uploaded"


def test_a_full_disk_is_an_error_of_that_sandbox(colour: Any) -> None:
    """Filling the disk raises NotEnoughSpaceException and leaves no half file; afterwards there is room again."""
    own = colour.create()
    colour.do(own.commands.run("fallocate -l $(($(df --output=avail -B1 /home/user | tail -1) - 3000000)) hog"))
    with pytest.raises(NotEnoughSpaceException, match="not enough disk space available"):
        colour.do(own.files.write("big", b"x" * 8_000_000))
    assert colour.do(own.files.get_info("big")).size == 0
    colour.do(own.files.write("small", "fits"))
    assert colour.do(own.files.read("small")) == "fits"


def test_a_hundred_at_once(colour: Any, box: Any, folder: str) -> None:
    """Many small files in one request all arrive."""
    several = [{"path": f"{folder}/{n}", "data": str(n)} for n in range(100)]
    colour.do(box.files.write_files(several))
    assert colour.do(box.commands.run("cat $(seq 0 99)", cwd=folder)).stdout == "".join(map(str, range(100)))
