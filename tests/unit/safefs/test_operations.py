"""What SafeFS has beyond single files: streams, file objects, patterns, watching, folders, trees as text."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxkit._types import FileEvent, FileInfo, FileNode
from sandboxkit.errors import (
    Changed,
    ConfigurationError,
    EnforcementUnavailable,
    InvalidPath,
    LinkEscape,
    NotFound,
    PathEscape,
    SafeFSError,
    TooLarge,
)
from sandboxkit.provider._confined import ERRORS, BrokenAnswer, FileAnswer, OperationFailed, decoded
from sandboxkit.safefs import AsyncSafeFS
from sandboxkit.safefs._watch import differences
from sandboxkit.testing import FakeSandbox

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["lexical", "checked", "enforced"])
def fs(fake_sandbox: FakeSandbox, request: pytest.FixtureRequest) -> AsyncSafeFS:
    """SafeFS over the fake, at each level."""
    return AsyncSafeFS(fake_sandbox, level=request.param)


async def test_ranges_and_streams(fs: AsyncSafeFS) -> None:
    """A range is what a slice is; a stream has the whole content, in pieces of the size that was asked for."""
    await fs.write("f", b"0123456789")
    assert await fs.read_range("f", 2, 3) == b"234"
    assert await fs.read_range("f", 8, 9) == b"89"
    assert await fs.read_range("f", 20, 1) == b""
    assert [piece async for piece in fs.stream("f", chunk=4)] == [b"0123", b"4567", b"89"]
    await fs.write("empty", b"")
    assert [piece async for piece in fs.stream("empty")] == []
    with pytest.raises(ConfigurationError):
        await fs.read_range("f", -1, 1)
    with pytest.raises(NotFound):
        [piece async for piece in fs.stream("none")]


async def test_file_objects(fs: AsyncSafeFS) -> None:
    """What is written takes its place at the end of the block, and not when an exception leaves it; reads can seek."""
    async with fs.open("f", "w") as file:
        await file.write("one\n")
        assert not await fs.exists("f")
        await file.write("two\n")
    async with fs.open("f", "ab") as file:
        await file.write(b"three")
    async with fs.open("f") as file:
        assert await file.read(3) == b"one"
        assert await file.seek(4) == file.tell() == 4
        assert await file.read() == b"two\nthree"
        assert await file.read() == b""
    async with fs.open("f", "r") as file:
        assert await file.read() == "one\ntwo\nthree"
    with pytest.raises(RuntimeError, match="mine"):
        async with fs.open("f", "wb") as file:
            await file.write(b"half")
            raise RuntimeError("mine")
    assert (await fs.read_text("f")).startswith("one")
    with pytest.raises(TooLarge):
        async with fs.open("f", "wb", max_bytes=3) as file:
            await file.write(b"four")
    with pytest.raises(ConfigurationError, match="mode"):
        fs.open("f", "x")  # type: ignore[arg-type]
    with pytest.raises(io.UnsupportedOperation):
        async with fs.open("f") as file:
            await file.write(b"")
    with pytest.raises(PathEscape):
        fs.open("../f")


async def test_glob(fs: AsyncSafeFS) -> None:
    """A star stays within a name, two go through directories, and the pattern itself is guarded."""
    for path in ("a.py", "b.txt", "src/c.py", "src/deep/d.py", ".hidden/e.py"):
        await fs.write(path, "")

    async def names(pattern: str) -> list[str]:
        return [entry.path.removeprefix("/home/user/") for entry in await fs.glob(pattern)]

    assert await names("*.py") == ["a.py"]
    assert await names("src/*") == ["src/c.py", "src/deep"]
    assert await names("**/*.py") == [".hidden/e.py", "a.py", "src/c.py", "src/deep/d.py"]
    assert await names("s[a-r]c/?.py") == ["src/c.py"]
    assert await names("none/*") == await names("a.py/*") == await names("none") == []
    assert await names("src/c.py") == ["src/c.py"]
    with pytest.raises(PathEscape):
        await fs.glob("../*")


async def test_watching_by_looking(fs: AsyncSafeFS) -> None:
    """Where nothing tells, changes are found by looking: what comes, what differs, what goes; the end of the directory
    is told, and is the end."""
    await fs.write("w/old", "1")
    seen: list[tuple[str, str]] = []
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            async for event in fs.watch("w", recursive=True, interval=0.001):
                seen.append((event.kind, event.path.removeprefix("/home/user/")))

        async def until(wanted: tuple[str, str]) -> None:
            while wanted not in seen:  # noqa: ASYNC110  (what is waited for sets no event)
                await anyio.sleep(0.001)

        tasks.start_soon(watch)
        while not seen:
            await fs.write("w/tick", "x") if not await fs.exists("w/tick") else await fs.remove("w/tick")
            await anyio.sleep(0.005)
        await fs.write("w/sub/new", "12")
        await until(("write", "w/sub/new"))
        await fs.append("w/old", "2")
        await until(("write", "w/old"))
        await fs.remove("w/sub")
        await until(("remove", "w/sub"))
        await fs.remove("w")
    assert seen[-1] == ("remove", "w")
    with pytest.raises(NotFound):
        await anext(fs.watch("none"))
    with pytest.raises(ConfigurationError):
        await anext(fs.watch(interval=0))


def test_what_differs_is_told() -> None:
    """Another type or link is a removal and a creation, another mode a chmod; of what is the same nothing is told."""

    def entry(name: str, **facts: Any) -> FileInfo:
        return FileInfo(**{"name": name, "path": name, "type": "file", **facts})

    before = {name: entry(name) for name in "abcd"}
    after = {"a": entry("a"), "b": entry("b", mode=1), "c": entry("c", type="dir"), "d": entry("d", link_target="x")}
    assert differences(before, after) == [
        FileEvent("chmod", "b"),
        FileEvent("remove", "c"),
        FileEvent("create", "c"),
        FileEvent("remove", "d"),
        FileEvent("create", "d"),
    ]
    assert differences(before, before) == []


async def test_folders_in_and_out(fs: AsyncSafeFS, tmp_path: Path) -> None:
    """A folder comes out as it went in; what is there is not replaced unasked; progress is told after each file."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a").write_bytes(b"1")
    (tmp_path / "in" / "sub" / "b").write_bytes(b"22")
    told: list[Any] = []
    assert await fs.upload(tmp_path / "in", "up", on_progress=told.append) == 2
    assert [(each.files, each.size, each.total_size) for each in told] == [(1, 1, 3), (2, 3, 3)]
    assert await fs.download("up", tmp_path / "out") == 2
    assert (tmp_path / "out" / "sub" / "b").read_bytes() == b"22"
    (tmp_path / "secret").write_bytes(b"mine")
    (tmp_path / "out" / "a").unlink()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(FileExistsError):
        await fs.download("up", tmp_path / "out")
    await fs.download("up", tmp_path / "out", overwrite=True)
    assert (tmp_path / "secret").read_bytes() == b"mine"
    assert await fs.download("up/a", tmp_path / "one") == 1
    with pytest.raises(TooLarge):
        await fs.download("up", tmp_path / "small", max_bytes=2)
    with pytest.raises(FileNotFoundError):
        await fs.upload(tmp_path / "nothing", "x")


async def test_hostile_names_do_not_leave_the_target(fake_sandbox: FakeSandbox, tmp_path: Path) -> None:
    """A sandbox that lists names which lead out gets no file written here."""

    class Hostile:
        takes_any_name = True

        async def list(self, path: str, *, depth: int = 1) -> list[FileInfo]:
            return [FileInfo(name="..", path="/home/user/d/../../evil", type="file")]

    fs = AsyncSafeFS(fake_sandbox, level="lexical")
    fs._files = Hostile()  # type: ignore[assignment]  # no honest provider can be made to answer this
    with pytest.raises(SafeFSError):
        await fs.download("d", tmp_path / "out")
    assert list(tmp_path.rglob("*")) == []


def test_trees_are_shown_escaped() -> None:
    """A tree as text is printable ASCII names; as HTML no name can be markup; what was left out shows."""
    evil = FileNode(name="<script>\x1b[2J\u202e", path="/x", type="file")
    link = FileNode(name="l", path="/l", type="other", link_target="/etc/\n")
    top = FileNode(name="top", path="/", type="dir", children=(evil, link), complete=False)
    text = top.to_text()
    assert text.splitlines() == ["top/", "├── <script>\\x1b[2J\\u202e", "├── l -> /etc/\\n", "└── ..."]
    assert "<script>" not in top.to_html()
    assert top.to_html().startswith("top/<ul><li>&lt;script&gt;")


class Answering:
    """A sandbox whose own way answers what it was told to."""

    root_adversary = False
    mechanism = "fake"
    can_watch = False

    def __init__(self, sandbox: FakeSandbox) -> None:
        self._sandbox = sandbox
        self.answer: Any = None

    async def confined(self, root: str) -> Any:
        return self

    async def call(self, call: Any) -> FileAnswer:
        if isinstance(self.answer, Exception):
            raise self.answer
        if isinstance(self.answer, bytes):
            return decoded(self.answer)
        return self.answer  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sandbox, name)


FIELDS = st.lists(st.one_of(st.binary(max_size=12), st.integers(-5, 10**25).map(lambda n: b"%d" % n)), max_size=24)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.one_of(
        st.builds(FileAnswer, st.one_of(st.just(b"1:1"), st.binary(max_size=5)), FIELDS, st.binary(max_size=9)),
        st.binary(max_size=60),
        st.integers(0, 200).map(OperationFailed),
        st.just(BrokenAnswer("x")),
    )
)
async def test_any_answer_is_a_value_or_a_typed_error(fake_sandbox: FakeSandbox, answers: Any) -> None:
    """Whatever a sandbox answers, each operation returns what it promises, or raises a SafeFSError."""
    sandbox = Answering(fake_sandbox)
    sandbox.answer = answers
    fs = AsyncSafeFS(sandbox)
    for work in (
        fs.read_bytes("a", max_bytes=5),
        fs.read_range("a", 0, 5),
        fs.write("a", "b"),
        fs.append("a", "b"),
        fs.list("a"),
        fs.stat("a"),
        fs.exists("a"),
        fs.make_dir("a"),
        fs.remove("a"),
        fs.rename("a", "b"),
        fs.copy("a", "b"),
    ):
        try:
            value = await work
        except SafeFSError as error:
            assert str(error).isascii()  # noqa: PT017  (any class of ours will do)
        else:
            assert not isinstance(value, bytes) or len(value) <= 5


async def test_each_failure_inside_is_an_error_of_ours(fake_sandbox: FakeSandbox) -> None:
    """Every errno that has a class raises it, with the caller's path; refusals are told to the listener."""
    sandbox, told = Answering(fake_sandbox), []
    with pytest.raises(ConfigurationError, match=r"on_refused=.*async function"):
        AsyncSafeFS(sandbox, on_refused=anyio.sleep)
    fs = AsyncSafeFS(sandbox, on_refused=told.append)
    for number, kind in ERRORS.items():
        sandbox.answer = OperationFailed(number)
        with pytest.raises(kind) as caught:
            await fs.read_bytes("a")
        assert (type(caught.value), caught.value.path) == (kind, "a")
    sandbox.answer = EnforcementUnavailable("no way; level='checked' can be had")
    with pytest.raises(EnforcementUnavailable, match="checked"):
        await fs.read_bytes("a")
    assert {type(error) for error in told} >= {LinkEscape, EnforcementUnavailable, InvalidPath}


async def test_another_root_in_its_place_is_noticed(fake_sandbox: FakeSandbox) -> None:
    """Once the root has been seen, an answer from another directory is Changed."""
    sandbox = Answering(fake_sandbox)
    fs = AsyncSafeFS(sandbox)
    sandbox.answer = FileAnswer(b"1:2", [b"1"])
    assert await fs.exists("a")
    sandbox.answer = FileAnswer(b"1:3", [b"1"])
    with pytest.raises(Changed):
        await fs.exists("a")
