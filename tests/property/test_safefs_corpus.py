"""Every kind of path and of tree that we could think of, against each mechanism of level `enforced`: the outcomes are
those of docs/explanation/safefs-levels.md, and the same whichever mechanism there is."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform != "linux":
    pytest.skip("the resolver is Linux's", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1]))

from beneath_tools import MARKER, World, world
from safefs_tools import MECHANISMS, HostSandbox, files_of, pythons
from safefs_zoo import LINKS, NAMES, READS, SHARED, plant, there, written

from sandboxkit.errors import (
    EnforcementUnavailable,
    IsADirectory,
    LinkEscape,
    NotADirectory,
    NotFound,
    PathEscape,
    SafeFSError,
    SpecialFile,
)
from sandboxkit.safefs import AsyncSafeFS

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=[*MECHANISMS[:2], *(pytest.param(name, marks=pytest.mark.full) for name in MECHANISMS[2:])])
def mechanism(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each mechanism; those that start a process for each operation in `nox -s full`."""
    with pythons(request.param):
        yield str(request.param)


@pytest.fixture
def made() -> Iterator[World]:
    """A world with the zoo in it."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="sandboxkit-zoo-", dir=place) as folder,
        world(Path(os.path.realpath(folder), "world")) as there,
    ):
        plant(there)
        yield there


async def outcome(work: Any) -> Any:
    """A call's value, or its error's class; the text must be printable ASCII and say nothing of what is outside."""
    try:
        return await work
    except SafeFSError as error:
        said = str(error)
        kind = type(error)
    assert said.isascii()
    assert said.isprintable()
    assert MARKER.decode() not in said
    return kind


def meant(made: World, path: str) -> str:
    return os.fsdecode(made.meant(os.fsencode(path))) if "ROOT" in path else path


async def test_reads(made: World, mechanism: str) -> None:
    """Every path reads what the policy says, or is refused as it says; nothing changes by it."""
    files = files_of(made.root, mechanism)
    before = made.digest()
    for path, expected in READS.items():
        assert await outcome(files.read_bytes(meant(made, path))) == expected, f"read {path!a}"
    assert made.digest() == before


async def test_looks(made: World, mechanism: str) -> None:
    """`exists` answers for what can be reached inside, and refuses what leads out in the one way."""
    files = files_of(made.root, mechanism)
    for path in READS:
        assert await outcome(files.exists(meant(made, path))) == there(path), f"exists {path!a}"


async def test_writes(made: World, mechanism: str) -> None:
    """A write is done inside, or refused with the same error as a read; nothing outside changes, and nothing is left
    beside what was written."""
    files = files_of(made.root, mechanism)
    before = made.digest()
    names = set(os.listdir(made.root))
    for path in READS:
        expected = written(path)
        assert await outcome(files.write(meant(made, path), "new")) == expected, f"write {path!a}"
        if expected is None:
            assert await files.read_bytes(meant(made, path)) == b"new"
            for name in set(os.listdir(made.root)) - names:
                full = made.root + b"/" + name
                shutil.rmtree(full) if os.path.isdir(full) else os.unlink(full)
    assert Path(os.fsdecode(made.out), "shared").read_bytes() == SHARED
    now = made.digest()
    # One name less for the file that had one inside.
    assert [entry[:3] + entry[4:] for entry in now] == [entry[:3] + entry[4:] for entry in before]
    assert set(os.listdir(made.root)) == names


async def test_links_are_described_as_themselves(made: World, mechanism: str) -> None:
    """`stat` and a listing tell what a link says, wherever it leads, and the same; the type is that of what it leads to
    inside, else "other"."""
    files = files_of(made.root, mechanism)
    listed = {entry.name: entry for entry in await files.list()}
    for name, (text, reads) in LINKS.items():
        found = await files.stat(name)
        assert found == listed[name]
        assert found.link_target == os.fsdecode(made.meant(text))
        kind = "file" if isinstance(reads, bytes) else "dir" if reads is IsADirectory else "other"
        assert found.type == ("other" if mechanism == "sh" else kind), name
    assert (listed["fifo"].type, listed["sock"].type, listed["f"].type) == ("other", "other", "file")
    assert {os.fsencode(name) for name in listed} == set(os.listdir(made.root))


async def test_lists(made: World, mechanism: str) -> None:
    """A listing goes where a directory is reached inside, and nowhere else."""
    files = files_of(made.root, mechanism)
    for path, reads in READS.items():
        told = await outcome(files.list(meant(made, path)))
        if reads is IsADirectory:
            assert isinstance(told, list), path
        else:
            refused = NotADirectory if isinstance(reads, bytes) or reads is SpecialFile else reads
            assert told is refused, f"list {path!a}"


async def test_names(made: World, mechanism: str) -> None:
    """Each strange name is that name, byte for byte, in every operation."""
    files = files_of(made.root, mechanism)
    for name in NAMES:
        await files.write(f"names/{name}", name.encode("utf-8", "surrogateescape"))
    assert set(os.listdir(made.root + b"/names")) == {os.fsencode(name) for name in NAMES}
    assert sorted(entry.name for entry in await files.list("names")) == sorted(NAMES)
    for name in NAMES:
        path = f"names/{name}"
        assert await files.read_bytes(path) == name.encode("utf-8", "surrogateescape")
        assert (await files.stat(path)).name == name
        assert await files.exists(path)
    if mechanism != "sh":
        for name in NAMES:
            await files.append(f"names/{name}", "+")
            await files.rename(f"names/{name}", f"moved/{name}")
            await files.remove(f"moved/{name}")
        assert os.listdir(made.root + b"/names") == os.listdir(made.root + b"/moved") == []


async def test_changes_of_the_tree(made: World, mechanism: str) -> None:
    """Removals and renames act on links themselves; directories are made through those that stay inside only."""
    files = files_of(made.root, mechanism)
    if mechanism == "sh":
        for refused in (files.make_dir("x"), files.remove("f"), files.rename("f", "x"), files.copy("f", "x")):
            assert await outcome(refused) is EnforcementUnavailable
        assert await outcome(files.append("f", "x")) is EnforcementUnavailable
        assert await outcome(files.list(depth=2)) is EnforcementUnavailable
        return
    before = made.digest()
    makes = {
        "new/a/b": True, "d": False, "dirlink": False, "dirlink/new": True, "abs-root/other": True, ".": False,
        "f": NotADirectory, "f/x": NotADirectory, "fifo/x": NotADirectory, "dangling": NotADirectory,
        "dangling/x": NotADirectory, "loop/x": NotADirectory, "out": LinkEscape, "out-dir": LinkEscape,
        "out-dir/x": LinkEscape, "out-none": LinkEscape, "out-none/x": LinkEscape, "out-up/x": LinkEscape,
        "slash/tmp/x": LinkEscape, "..": PathEscape,
    }  # fmt: skip
    for path, expected in makes.items():
        assert await outcome(files.make_dir(path)) == expected, f"make_dir {path}"
    copies = {
        ("f", "copied"): None, ("rel", "copied"): None, ("f", "rel"): None, ("d", "x"): IsADirectory, ("f", "f"): None,
        ("f", "d"): IsADirectory, ("fifo", "x"): SpecialFile, ("f", "fifo"): SpecialFile, ("out", "x"): LinkEscape,
        ("f", "out"): LinkEscape, ("f", "out-dir/x"): LinkEscape, ("f", "out-none"): LinkEscape,
        ("f", "/x"): PathEscape, ("nothing", "x"): NotFound, ("dangling", "x"): NotFound,
        ("f", "dangling"): SpecialFile, ("f", "f/x"): NotADirectory,
    }  # fmt: skip
    for (source, target), expected in copies.items():
        assert await outcome(files.copy(source, target)) == expected, f"copy {source} {target}"
    renames = {
        ("out", "renamed"): None, ("renamed", "out"): None, ("dangling", "to-link"): None, ("f", "over-link"): None,
        ("over-link", "f"): None, ("f", "out-dir/x"): LinkEscape, ("out-dir/secret", "x"): LinkEscape,
        ("f", "d"): IsADirectory, ("d", "f"): NotADirectory, ("nothing", "x"): NotFound, ("f", "f"): None,
        ("fifo", "pipe"): None, ("d", "dirlink"): NotADirectory, ("f", "out-none/x"): LinkEscape,
    }  # fmt: skip
    for (source, target), expected in renames.items():
        assert await outcome(files.rename(source, target)) == expected, f"rename {source} {target}"
    for name in os.listdir(made.root):
        assert await outcome(files.remove(os.fsdecode(name))) is None, name
        assert await outcome(files.remove(os.fsdecode(name))) is NotFound
    assert [entry[:3] + entry[4:] for entry in made.digest()] == [entry[:3] + entry[4:] for entry in before]


@pytest.mark.parametrize("mechanism", ["openat2"], indirect=True)
async def test_every_operation_refuses_what_leads_out(made: World, mechanism: str) -> None:
    """Nothing that SafeFS has reaches a thing outside: not globs, trees, walks, streams, ranges or open files."""
    files = files_of(made.root, mechanism)
    before = made.digest()

    async def all_of(iterator: Any) -> list[Any]:
        return [each async for each in iterator]

    for path in ("out-dir", "out-up", "slash", "proc-root"):
        assert await outcome(files.tree(path)) is LinkEscape
        assert await outcome(all_of(files.walk(path))) is LinkEscape
        assert await outcome(anext(files.watch(path, interval=0.01))) is LinkEscape
        assert await outcome(files.glob(f"{path}/*")) in (LinkEscape, [])
        assert await outcome(files.read_range(f"{path}/secret", 0, 9)) is LinkEscape
        assert await outcome(all_of(files.stream(f"{path}/secret"))) is LinkEscape
        assert await outcome(files.open(f"{path}/secret").read()) is LinkEscape
        assert await outcome(files.download(path, made.base.decode() + "/down")) is LinkEscape
        async with files.open("f", "wb") as unwritten:
            await unwritten.write(b"x")
    everything = [entry.path for entry in await all_of(files.walk())] + [
        entry.path for entry in await files.glob("**/*")
    ]
    assert not [path for path in everything if "secret" in path]
    assert MARKER.decode() not in repr(await files.tree())
    assert made.digest() == before


@pytest.mark.parametrize("options", [{"links": "refuse"}, {"hard_links": "refuse"}, {"strict_names": True}], ids=str)
async def test_options(made: World, mechanism: str, options: dict[str, Any]) -> None:
    """`links` refuses each link on the way, `hard_links` each file of more names; all else is as without them."""
    files: AsyncSafeFS = files_of(made.root, mechanism, **options)
    if "links" in options:
        for path in ("rel", "dirlink/g", "abs", "out", "dangling", "loop", "here/f"):
            assert await outcome(files.read_bytes(path)) is LinkEscape, path
            assert await outcome(files.exists(path)) is LinkEscape, path
            assert await outcome(files.write(path, "x")) is LinkEscape, path
        assert await outcome(files.list("dirlink")) is LinkEscape
        assert (await files.stat("rel")).link_target == "f"
    elif "hard_links" in options:
        for refused in (files.read_bytes("hard"), files.write("hard", "x")):
            assert await outcome(refused) is LinkEscape
        if mechanism != "sh":
            for refused in (files.append("hard", "x"), files.copy("hard", "x"), files.copy("f", "hard")):
                assert await outcome(refused) is LinkEscape
    assert await files.read_bytes("f") == b"in"
    assert await files.read_bytes("d/g") == b"deep"
    await files.write("f", "new")


class BreakingOff(HostSandbox):
    """A sandbox to which the connection is lost in the middle of a large write."""

    async def start_command(self, cmd: str, **options: Any) -> Any:
        running = await super().start_command(cmd, **options)
        sent = 0

        async def send_stdin(data: str) -> None:
            nonlocal sent
            sent += 1
            if sent == 1:
                await running.process.stdin.send(data.encode())
                await running.process.stdin.aclose()

        running.send_stdin = send_stdin
        return running


@pytest.mark.full
@pytest.mark.parametrize("helper", ["python", "sh"])
async def test_a_write_that_breaks_off_leaves_the_old_content(made: World, helper: str) -> None:
    """A large content takes the file's place as a whole, or not at all; nothing is left beside it."""
    before = set(os.listdir(made.root))
    with pythons(helper):
        files = AsyncSafeFS(BreakingOff(helper), root=os.fsdecode(made.root))
        with pytest.raises(SafeFSError):
            await files.write("f", bytes(1_000_000))
        whole = files_of(made.root, helper)
        assert await whole.read_bytes("f") == b"in"
        assert set(os.listdir(made.root)) == before
        for path, refusal in (
            ("out", LinkEscape),
            ("d", IsADirectory),
            ("fifo", SpecialFile),
            ("dangling", SpecialFile),
        ):
            assert await outcome(whole.write(path, bytes(5_000_000))) is refusal
        await whole.write("f", bytes(1_000_000))
        assert (await whole.stat("f")).size == 1_000_000
