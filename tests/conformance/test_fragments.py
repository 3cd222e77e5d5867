"""Fragments and SafeFS do the same on the in-memory provider and on the real engine, by the same checks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sandboxkit._types import DEFAULT_ROOT, Endpoint
from sandboxkit.errors import (
    IsADirectory,
    LinkEscape,
    NotADirectory,
    NotFound,
    PathEscape,
    SafeFSError,
    SpecialFile,
    TooLarge,
)
from sandboxkit.fragment import Fragment
from sandboxkit.pool import AsyncSandboxPool, AsyncSession
from sandboxkit.testing import FakeProvider

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

IT = "code-interpreter-v1"


def _place(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("engine") if request.param == "engine" else FakeProvider()


@pytest.fixture(params=["fake", pytest.param("engine", marks=pytest.mark.engine)])
async def session(request: pytest.FixtureRequest) -> AsyncIterator[AsyncSession]:
    """A session of its own, on each place that sandboxes come from."""
    async with AsyncSandboxPool(endpoint=_place(request)) as pool, pool.session(None) as opened:
        yield opened


@pytest.fixture
async def real_session(engine: Endpoint) -> AsyncIterator[AsyncSession]:
    """A session on the engine, for what the fake has not."""
    async with AsyncSandboxPool(endpoint=engine) as pool, pool.session(None) as opened:
        yield opened


async def test_fragments_share_their_sandbox(session: AsyncSession) -> None:
    """Two fragments of one session run in one sandbox, and the second has the first one's variables."""
    first = await session.run(Fragment(template=IT, code="x = 40\nprint('first')"))
    second = await session.run(Fragment(template=IT, code="x + 2"))
    assert first.execution is not None
    assert second.execution is not None
    assert first.sandbox_id == second.sandbox_id == session.sandbox_id
    assert (first.execution.stdout, second.execution.text) == ("first\n", "42")


async def test_all_files_are_there_when_the_main_one_runs(session: AsyncSession) -> None:
    """A fragment of several files finds the others, byte for byte."""
    text = "\u00e9\r\n\u65e5\u672c"
    main = "list(open('/home/user/data/a b.txt', 'rb').read())"
    done = await session.run(Fragment(template=IT, files={"data/a b.txt": text, "script.py": main}))
    assert done.execution is not None
    assert done.execution.error is None
    assert done.execution.text == repr(list(text.encode()))
    assert {"data", "script.py"} <= {node.name for node in done.files}


async def test_an_exception_is_a_result(session: AsyncSession) -> None:
    """What the code raises comes back as data, and the sandbox goes on."""
    done = await session.run(Fragment(template=IT, code="1 / 0"))
    assert done.execution is not None
    assert done.execution.error is not None
    assert done.execution.error.name == "ZeroDivisionError"
    assert (await session.run_code("1")).text == "1"


async def test_a_stream_ends_with_the_result(session: AsyncSession) -> None:
    """The events of a fragment come in order, the last with its result."""
    events = [event async for event in session.stream(Fragment(template=IT, code="6 * 7"))]
    assert [(event.name, event.data.get("step")) for event in events] == [
        ("fragment.step", "write"),
        ("fragment.step", "run"),
        ("fragment.finished", None),
    ]
    assert events[-1].data["result"].execution.text == "42"


async def test_errors_are_the_same_everywhere(session: AsyncSession) -> None:
    """Each mistake has the same class, whatever the sandbox is, and carries the path as it was given."""
    fs = session.files
    await fs.write("f", b"12345")
    await fs.make_dir("d")
    for wrong, error, path in (
        (fs.read_bytes("nope"), NotFound, "nope"),
        (fs.read_bytes("d"), IsADirectory, "d"),
        (fs.read_bytes("f/x"), NotADirectory, "f/x"),
        (fs.read_bytes("f", max_bytes=4), TooLarge, "f"),
        (fs.write("d", ""), IsADirectory, "d"),
        (fs.write("f/x", ""), NotADirectory, "f/x"),
        (fs.list("nope"), NotFound, "nope"),
        (fs.list("f"), NotADirectory, "f"),
        (fs.stat("nope"), NotFound, "nope"),
        (fs.remove("nope"), NotFound, "nope"),
        (fs.rename("nope", "x"), NotFound, "nope"),
        (fs.make_dir("f"), NotADirectory, "f"),
        (fs.copy("nope", "x"), NotFound, "nope"),
        (fs.read_text("../../etc/passwd"), PathEscape, "../../etc/passwd"),
    ):
        with pytest.raises(SafeFSError) as caught:
            await wrong
        assert (type(caught.value), caught.value.path, caught.value.sandbox_id) == (error, path, session.sandbox_id)


async def test_files_move_and_copy(session: AsyncSession) -> None:
    """Writing, appending, copying, renaming, walking and removing have the same effect everywhere."""
    fs = session.files
    await fs.write("a/one.txt", "1")
    await fs.append("a/one.txt", "2")
    await fs.copy("a/one.txt", "b/two.txt")
    await fs.rename("b", "c")
    assert await fs.read_text("c/two.txt") == "12"
    assert await fs.read_bytes("c/two.txt", max_bytes=2) == b"12"
    assert [entry.path.removeprefix("/home/user/") async for entry in fs.walk("c")] == ["c/two.txt"]
    assert (await fs.stat("c/two.txt")).size == 2
    await fs.remove("c")
    assert not await fs.exists("c")
    assert await fs.exists("a/one.txt")
    assert not await fs.make_dir("a")


name_text = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=10)
names = st.one_of(
    st.sampled_from(
        ["a\nb", 'a"b', "a%0Ab", "%2e%2e", "-rf", "~", "a\\b", " ", "e\u0301", "\u00e9", "\u202e", "x" * 255, "?#&="]
    ),
    name_text.filter(lambda name: name not in (".", "..")),
)


@settings(
    max_examples=25,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=names, data=st.binary(max_size=64))
async def test_every_name_is_kept(session: AsyncSession, name: str, data: bytes) -> None:
    """Whatever a file is called: what was written is read, and the listing has exactly that name."""
    fs = session.files
    if await fs.exists("t"):
        await fs.remove("t")
    await fs.write(f"t/{name}", data)
    assert await fs.read_bytes(f"t/{name}") == data
    assert [entry.name for entry in await fs.list("t")] == [name]
    await fs.remove(f"t/{name}")
    assert await fs.list("t") == []


@pytest.mark.engine
async def test_a_megabyte_and_an_empty_file(real_session: AsyncSession) -> None:
    """Large and empty contents arrive as they are."""
    data = bytes(range(256)) * 4096
    await real_session.files.write("big", data)
    await real_session.files.write("empty", b"")
    assert await real_session.files.read_bytes("big") == data
    assert await real_session.files.read_bytes("empty") == b""


@pytest.mark.engine
async def test_a_chart_has_its_data(real_session: AsyncSession) -> None:
    """A fragment that draws gives a picture, and the chart's typed data beside it."""
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3], [4, 5, 6], label='l')\nplt.title('T')\nplt.show()"
    done = await real_session.run(Fragment(template=IT, code=code))
    assert done.execution is not None
    (result,) = done.execution.results
    assert result.png is not None
    assert (result.chart["type"], result.chart["title"]) == ("line", "T")
    assert [tuple(point) for point in result.chart["elements"][0]["points"]] == [(1, 4), (2, 5), (3, 6)]


@pytest.mark.engine
async def test_links_are_leaves(real_session: AsyncSession) -> None:
    """Walk and tree show a link to a directory, and do not go through it."""
    await real_session.run_code("import os\nos.makedirs('/home/user/d/e')\nos.symlink('/etc', '/home/user/d/link')")
    assert [entry.name async for entry in real_session.files.walk("d")] == ["e", "link"]
    nodes = (await real_session.files.tree("d")).children
    assert {node.name: node.children for node in nodes} == {"e": (), "link": ()}
    assert {node.name: node.link_target for node in nodes} == {"e": None, "link": "/etc"}


@pytest.mark.engine
async def test_what_has_no_end_is_not_read(real_session: AsyncSession) -> None:
    """A device or a FIFO in place of a file is refused at once, and a read of it neither hangs nor fills memory."""
    await real_session.run_code(
        "import os\nos.mkfifo('/home/user/fifo')\nos.symlink('/dev/zero', '/home/user/zero')\n"
        "os.symlink('/proc/self/maps', '/home/user/maps')"
    )
    with pytest.raises(SpecialFile):
        await real_session.files.read_bytes("fifo", max_bytes=1024)
    for name in ("zero", "maps"):
        with pytest.raises(LinkEscape):
            await real_session.files.read_bytes(name, max_bytes=8)


@pytest.mark.engine
async def test_a_home_that_the_code_removed(real_session: AsyncSession) -> None:
    """Code that empties its home still gives its result."""
    code = (
        "import os, shutil\n"
        "for entry in os.scandir('/home/user'):\n"
        "    shutil.rmtree(entry.path) if entry.is_dir() else os.remove(entry.path)\n"
        "7"
    )
    done = await real_session.run(Fragment(template=IT, code=code))
    assert done.execution is not None
    assert done.execution.text == "7"
    assert await real_session.files.exists(DEFAULT_ROOT)
