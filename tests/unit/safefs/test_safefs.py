"""SafeFS at `lexical`: each operation, each refusal, and what is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxkit._types import FileInfo
from sandboxkit.errors import (
    ConfigurationError,
    InvalidPath,
    IsADirectory,
    NoSpace,
    NotADirectory,
    NotFound,
    PathError,
    PathEscape,
    SafeFSError,
    TooLarge,
)
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.testing import FakeSandbox

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["lexical", "checked", "enforced"])
async def fs(recorded: Any, request: pytest.FixtureRequest) -> AsyncSafeFS:
    """SafeFS over the recorded sandbox, at each level."""
    return AsyncSafeFS(recorded, level=request.param)


async def test_text_and_bytes_come_back(fs: AsyncSafeFS) -> None:
    """What is written is read, as text or as bytes, with its line ends, and replaces what was there."""
    await fs.write("a.txt", "one\r\n\u00e9")
    assert await fs.read_text("a.txt") == "one\r\n\u00e9"
    assert await fs.read_bytes("/home/user/a.txt") == b"one\r\n\xc3\xa9"
    await fs.write("a.txt", b"\x00\xff")
    assert await fs.read_bytes("a.txt") == b"\x00\xff"
    await fs.write_text("deep/er/b", "b")
    await fs.write_bytes(b"deep/er/c", b"c")
    assert [entry.path for entry in await fs.list("deep/er")] == ["/home/user/deep/er/b", "/home/user/deep/er/c"]


async def test_reading_binary_as_text_says_what_to_do(fs: AsyncSafeFS) -> None:
    """A file that is not UTF-8 is a UnicodeDecodeError that names the file and read_bytes."""
    await fs.write("a.bin", b"ok\xff")
    with pytest.raises(UnicodeDecodeError, match=r"'a\.bin' is not UTF-8 text, read_bytes\(\)") as caught:
        await fs.read_text("a.bin")
    assert (caught.value.start, caught.value.object) == (2, b"ok\xff")


async def test_text_without_bytes_is_not_written(fs: AsyncSafeFS, recorded: Any) -> None:
    """Text with a lone surrogate is a UnicodeEncodeError, and no request is made."""
    with pytest.raises(UnicodeEncodeError):
        await fs.write("a", "\ud800")
    assert recorded.requests == []


async def test_append(fs: AsyncSafeFS) -> None:
    """Appending adds to the end, and makes the file where there is none."""
    await fs.append("log", "a")
    await fs.append("log", b"\xff")
    assert await fs.read_bytes("log") == b"a\xff"


async def test_reads_are_bounded(fs: AsyncSafeFS) -> None:
    """More than `max_bytes` is TooLarge, exactly that many is not; append and copy mind it too."""
    await fs.write("a", b"12345")
    assert await fs.read_bytes("a", max_bytes=5) == b"12345"
    for refused in (fs.read_bytes("a", max_bytes=4), fs.read_text("a", max_bytes=4), fs.append("a", "6", max_bytes=4)):
        with pytest.raises(TooLarge, match="max_bytes") as caught:
            await refused
        assert caught.value.path == "a"
    with pytest.raises(TooLarge):
        await fs.copy("a", "b", max_bytes=4)
    assert not await fs.exists("b")


async def test_stat_and_exists(fs: AsyncSafeFS) -> None:
    """An entry is described under the confined path; what is not there does not exist, and has no description."""
    await fs.write("d/a", b"123")
    info = await fs.stat("d/../d/./a")
    assert (info.name, info.path, info.type, info.size) == ("a", "/home/user/d/a", "file", 3)
    assert (await fs.stat("d")).type == "dir"
    assert (await fs.stat(".")).path == "/home/user"
    assert await fs.exists("d/a")
    assert not await fs.exists("d/b")
    with pytest.raises(NotFound):
        await fs.stat("d/b")


async def test_directories(fs: AsyncSafeFS) -> None:
    """A directory is made once; a file in the way is NotADirectory."""
    assert await fs.make_dir("a/b/c")
    assert not await fs.make_dir("a/b")
    assert not await fs.make_dir(".")
    await fs.write("f", "")
    with pytest.raises(NotADirectory):
        await fs.make_dir("f/x")


async def test_remove_rename_copy(fs: AsyncSafeFS) -> None:
    """Entries are removed with what is in them, renamed in place of a file, and copied by content."""
    await fs.write("d/a", "1")
    await fs.write("b", "2")
    await fs.rename("d/a", "b")
    assert await fs.read_text("b") == "1"
    await fs.copy("b", "d/c")
    assert await fs.read_text("d/c") == await fs.read_text("b") == "1"
    await fs.rename("d", "e")
    assert await fs.read_text("e/c") == "1"
    await fs.remove("e")
    assert [entry.name for entry in await fs.list()] == ["b"]
    with pytest.raises(NotFound):
        await fs.remove("e")
    with pytest.raises(IsADirectory):
        await fs.copy(".", "x")


async def test_list_is_sorted_and_deep_where_asked(fs: AsyncSafeFS) -> None:
    """Entries come by path, as many levels as were asked for."""
    for path in ("b/2", "a", "b/1/x"):
        await fs.write(path, "")
    assert [entry.name for entry in await fs.list()] == ["a", "b"]
    assert [entry.path.removeprefix("/home/user/") for entry in await fs.list(depth=2)] == ["a", "b", "b/1", "b/2"]
    with pytest.raises(NotADirectory):
        await fs.list("a")
    with pytest.raises(NotFound):
        await fs.list("c")


async def test_walk(fs: AsyncSafeFS) -> None:
    """Every entry comes once, a directory before what is in it, one request per directory."""
    for path in ("b/2", "a", "b/1/x", "c"):
        await fs.write(path, "")
    assert [entry.path.removeprefix("/home/user/") async for entry in fs.walk()] == [
        "a",
        "b",
        "b/1",
        "b/1/x",
        "b/2",
        "c",
    ]


async def test_walk_goes_on_when_a_directory_vanishes(fs: AsyncSafeFS) -> None:
    """A directory that is removed before it is reached yields nothing more; a missing start is NotFound."""
    await fs.write("a/x", "")
    await fs.write("b", "")
    seen = []
    async for entry in fs.walk():
        seen.append(entry.name)
        if entry.name == "a":
            await fs.remove("a")
    assert seen == ["a", "b"]
    with pytest.raises(NotFound):
        async for _ in fs.walk("nope"):
            pass


async def test_tree(fs: AsyncSafeFS) -> None:
    """A tree has directories first, then files, by name, with sizes; all of it is there."""
    await fs.write("z.txt", b"123")
    await fs.write("src/b.py", "")
    await fs.write("src/a/x.py", "")
    tree = await fs.tree()
    assert (tree.path, tree.type, tree.complete) == ("/home/user", "dir", True)
    assert [(node.name, node.type, node.size) for node in tree.children] == [("src", "dir", 0), ("z.txt", "file", 3)]
    assert [node.name for node in tree.children[0].children] == ["a", "b.py"]
    assert tree.children[0].children[0].children[0].path == "/home/user/src/a/x.py"


async def test_tree_does_not_open_what_is_excluded(fs: AsyncSafeFS, recorded: Any) -> None:
    """An excluded directory is shown, marked as not complete, and no request is made for it."""
    await fs.write("node_modules/left-pad/index.js", "")
    await fs.write("a/__pycache__/x.pyc", "")
    recorded.requests.clear()
    tree = await fs.tree()
    assert _but_looks(recorded.requests) == [("list", "/home/user"), ("list", "/home/user/a")]
    a, modules = tree.children
    assert (modules.name, modules.children, modules.complete) == ("node_modules", (), False)
    assert (a.complete, a.children[0].complete) == (True, False)
    assert (await fs.tree(exclude=())).children[1].children[0].children[0].name == "index.js"


def _but_looks(requests: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The requests without the looks that `checked` takes before."""
    return [request for request in requests if request[0] != "stat"]


async def test_tree_is_bounded(fs: AsyncSafeFS, recorded: Any) -> None:
    """Depth and number of entries have limits; where something was left out, `complete` is False."""
    for number in range(5):
        await fs.write(f"d{number}/a/b", "")
    shallow = await fs.tree(depth=1)
    assert shallow.complete
    assert [(node.complete, node.children) for node in shallow.children] == [(False, ())] * 5
    recorded.requests.clear()
    few = await fs.tree(max_entries=3)
    assert len(_but_looks(recorded.requests)) == 1
    assert not few.complete
    assert [node.name for node in few.children] == ["d0", "d1", "d2"]
    seven = await fs.tree(max_entries=7)
    assert [len(node.children) for node in seven.children] == [1, 1, 0, 0, 0]
    assert [node.complete for node in seven.children] == [True, True, False, False, False]


async def test_tree_of_nothing(fs: AsyncSafeFS) -> None:
    """A file has no tree, and a missing directory neither."""
    await fs.write("f", "")
    with pytest.raises(NotADirectory):
        await fs.tree("f")
    with pytest.raises(NotFound):
        await fs.tree("nope")


OPERATIONS = {
    "read_text": lambda fs, path: fs.read_text(path),
    "read_bytes": lambda fs, path: fs.read_bytes(path),
    "write": lambda fs, path: fs.write(path, "x"),
    "write_text": lambda fs, path: fs.write_text(path, "x"),
    "write_bytes": lambda fs, path: fs.write_bytes(path, b"x"),
    "append": lambda fs, path: fs.append(path, "x"),
    "list": lambda fs, path: fs.list(path),
    "walk": lambda fs, path: anext(fs.walk(path)),
    "tree": lambda fs, path: fs.tree(path),
    "stat": lambda fs, path: fs.stat(path),
    "exists": lambda fs, path: fs.exists(path),
    "make_dir": lambda fs, path: fs.make_dir(path),
    "remove": lambda fs, path: fs.remove(path),
    "rename from": lambda fs, path: fs.rename(path, "x"),
    "rename to": lambda fs, path: fs.rename("x", path),
    "copy from": lambda fs, path: fs.copy(path, "x"),
    "copy to": lambda fs, path: fs.copy("x", path),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("../../etc/passwd", PathEscape),
        ("/etc/passwd", PathEscape),
        ("/home/user2", PathEscape),
        ("../user/x", PathEscape),
        ("a\0", InvalidPath),
        ("\ud800", InvalidPath),
        (b"\xff", InvalidPath),
        ("x" * 256, InvalidPath),
        (None, InvalidPath),
        ({}, InvalidPath),
    ],
    ids=ascii,
)
async def test_a_refused_path_makes_no_request(
    recorded: Any, operation: Any, path: Any, error: type[PathError]
) -> None:
    """Every operation refuses such a path before any request, tells the listener once, and gives path and sandbox."""
    told: list[PathError] = []
    fs = AsyncSafeFS(recorded, level="lexical" if path == b"\xff" else None, on_refused=told.append)
    with pytest.raises(error) as caught:
        await operation(fs, path)
    assert recorded.requests == []
    assert told == [caught.value]
    assert caught.value.path is path
    assert caught.value.sandbox_id == recorded.sandbox_id


async def test_the_root_stays(fs: AsyncSafeFS, recorded: Any) -> None:
    """The root cannot be removed, renamed, replaced or written, by any of its names; no request is made for it."""
    for root in (".", "", "/home/user", "/home/user/", "a/..", "//home//user//."):
        for refused in (fs.remove(root), fs.rename(root, "x"), fs.rename("x", root)):
            with pytest.raises(PathEscape, match="root"):
                await refused
        for refused in (fs.write(root, ""), fs.append(root, ""), fs.read_bytes(root), fs.copy("x", root)):
            with pytest.raises(IsADirectory):
                await refused
    assert recorded.requests == []


async def test_nothing_moves_into_itself(fs: AsyncSafeFS, recorded: Any) -> None:
    """Renaming a directory to a place inside it is refused."""
    with pytest.raises(InvalidPath, match="into itself"):
        await fs.rename("a", "a/b")
    assert recorded.requests == []


async def test_errors_name_the_callers_path_in_ascii(fs: AsyncSafeFS) -> None:
    """An error of the sandbox carries the path as it was given, and its text has no control character of it."""
    await fs.write("f", "")
    for wrong, error in ((fs.read_text("d/\x1b[2J\u202e"), NotFound), (fs.list("f"), NotADirectory)):
        with pytest.raises(error) as caught:
            await wrong
        assert str(caught.value).isascii()
        assert str(caught.value).isprintable()
        assert caught.value.sandbox_id is not None
        assert isinstance(caught.value, SafeFSError)
        assert isinstance(caught.value, OSError)
    assert caught.value.path == "f"


async def test_a_full_disk_is_named(fs: AsyncSafeFS) -> None:
    """A write that does not fit is NoSpace with its path, and the file is as it was."""
    await fs.write("a", "old")
    with pytest.raises(NoSpace) as caught:
        await fs.write("a", bytes(2 * 1024 * 1024))
    assert caught.value.path == "a"
    assert await fs.read_text("a") == "old"


async def test_strict_names(recorded: Any) -> None:
    """With strict_names a control character is refused before any request; without it is a name like any other."""
    with pytest.raises(InvalidPath, match=r"U\+001B"):
        await AsyncSafeFS(recorded, strict_names=True).write("a\x1b", "")
    assert recorded.requests == []
    await AsyncSafeFS(recorded).write("a\x1b", "")
    assert recorded.requests == [("write", "/home/user/a\x1b")]


async def test_another_root(recorded: Any) -> None:
    """Relative paths count from the root that was given, and it is what confines."""
    fs = AsyncSafeFS(recorded, root="/tmp/base/")
    assert fs.root == "/tmp/base"
    await fs.write("a", "1")
    assert recorded.requests == [("write", "/tmp/base/a")]
    with pytest.raises(PathEscape):
        await fs.read_text("/home/user/a")


async def test_levels(recorded: Any) -> None:
    """The level in force is the one that was asked for, `enforced` where none was; anything else is a mistake."""
    for level in ("lexical", "checked", "enforced"):
        assert AsyncSafeFS(recorded, level=level).level == level  # type: ignore[arg-type]
    fs = AsyncSafeFS(recorded)
    assert (fs.level, fs.root_adversary) == ("enforced", True)
    await fs.exists("a")
    assert not fs.root_adversary
    with pytest.raises(ConfigurationError, match="strict"):
        AsyncSafeFS(recorded, level="strict")  # type: ignore[arg-type]
    with pytest.raises(InvalidPath, match="root"):
        AsyncSafeFS(recorded, root="home")


async def test_sizes_have_to_be_sizes(fs: AsyncSafeFS) -> None:
    """A depth or a number of entries below one is a mistake of the caller."""
    for wrong in (fs.list(depth=0), fs.tree(depth=0), fs.tree(max_entries=0)):
        with pytest.raises(ConfigurationError):
            await wrong


@pytest.mark.parametrize(
    "entry",
    [
        FileInfo(name="passwd", path="/etc/passwd", type="file"),
        FileInfo(name="user", path="/home/user", type="dir"),
        FileInfo(name="..", path="/home/user/..", type="dir"),
        FileInfo(name="b", path="/home/user/a/../b", type="file"),
        FileInfo(name="a", path="/home/user/b", type="file"),
        FileInfo(name="x", path="", type="file"),
    ],
    ids=lambda entry: entry.path,
)
async def test_a_listing_is_not_believed_blindly(fake_sandbox: FakeSandbox, entry: FileInfo) -> None:
    """A hostile sandbox that lists what cannot lie there gets an error, and no such path reaches the caller."""

    class Hostile:
        takes_any_name = True

        async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
            return [entry]

    fs = AsyncSafeFS(fake_sandbox, level="lexical")
    fs._files = Hostile()  # type: ignore[assignment]  # no honest provider can be made to answer this
    with pytest.raises(SafeFSError):
        await fs.list(".")


async def test_a_link_to_a_directory_is_a_leaf(fake_sandbox: FakeSandbox) -> None:
    """A link is not followed by walk and tree, although the service says that it is a directory."""

    class Linked:
        takes_any_name = True

        async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
            assert path == "/home/user"
            return [FileInfo(name="l", path="/home/user/l", type="dir", link_target="/")]

    fs = AsyncSafeFS(fake_sandbox, level="lexical")
    fs._files = Linked()  # type: ignore[assignment]  # the fake has no links
    assert [entry.name async for entry in fs.walk()] == ["l"]
    (link,) = (await fs.tree()).children
    assert (link.link_target, link.children, link.complete) == ("/", (), True)


async def test_an_error_inside_a_tree_is_raised_on_its_own(fake_sandbox: FakeSandbox) -> None:
    """What goes wrong in one of many listings comes out as itself, not in an ExceptionGroup."""

    class Failing:
        takes_any_name = True

        async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
            if path == "/home/user":
                return [FileInfo(name=str(n), path=f"/home/user/{n}", type="dir") for n in range(20)]
            raise NoSpace("cannot be", path=path)

    fs = AsyncSafeFS(fake_sandbox, level="lexical")
    fs._files = Failing()  # type: ignore[assignment]  # the fake's listings cannot fail so
    with pytest.raises(NoSpace):
        await fs.tree()


async def test_something_else_is_no_sandbox() -> None:
    """What is no sandbox, or one of the wrong colour, is a ConfigurationError."""
    with pytest.raises(ConfigurationError):
        AsyncSafeFS(object())


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(parts=st.lists(names, min_size=1, max_size=3), data=st.binary(max_size=100))
async def test_round_trip(fs: AsyncSafeFS, parts: list[str], data: bytes) -> None:
    """For every name: what is written is read, the listing has exactly this name, and the size is the data's."""
    await fs.remove("t") if await fs.exists("t") else None
    path = "/".join(["t", *parts])
    await fs.write(path, data)
    assert await fs.read_bytes(path) == data
    assert [entry.name for entry in await fs.list("/".join(["t", *parts[:-1]]))] == [parts[-1]]
    assert (await fs.stat(path)).size == len(data)
