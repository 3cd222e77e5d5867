"""SafeFS on the real engine: every mechanism of `enforced`, and `checked`, through the same scenarios, with the same
outcomes and errors; and against a process in the sandbox that exchanges files for links meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkit._types import Endpoint
from sandboxkit.errors import (
    EnforcementUnavailable,
    IsADirectory,
    LinkEscape,
    NotADirectory,
    NotFound,
    PathEscape,
    SafeFSError,
    SpecialFile,
    TooLarge,
    UnsupportedOption,
)
from sandboxkit.provider._base import CreateRequest, ProviderSandbox
from sandboxkit.provider._e2b import E2BProvider
from sandboxkit.safefs import AsyncSafeFS, _helper

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.anyio]

MECHANISMS = ("engine", "python", "sh", "checked")
SETTING = """
set -e; rm -rf /home/user/t; mkdir -p /home/user/t/d/e /tmp/out; cd /home/user/t; echo -n secret > /tmp/out/f
echo -n inside > f; echo -n deep > d/e/g; ln -s f in; ln -s /home/user/t/d absin; ln -s ../../../tmp/out/f esc
ln -s /tmp/out escdir; ln -s nothing dang; ln -s /tmp/out/nothing escdang; ln -s loop loop; mkfifo fifo
ln -s .. up; ln -s d/../f round; ln -s ../t/f back; ln -s /proc/self/environ environ; ln -s /proc/self/root magic
"""
READS = {
    "f": b"inside",
    "in": b"inside",
    "absin/e/g": b"deep",
    "round": b"inside",
    "d/../f": b"inside",
    "esc": LinkEscape,
    "escdir/f": LinkEscape,
    "escdang": LinkEscape,
    "up/t/f": LinkEscape,
    "back": LinkEscape,
    "environ": LinkEscape,
    "magic/etc/passwd": LinkEscape,
    "dang": NotFound,
    "loop": NotFound,
    "nothing": NotFound,
    "d": IsADirectory,
    "absin": IsADirectory,
    "f/x": NotADirectory,
    "fifo": SpecialFile,
    "../x": PathEscape,
}
EXISTS = {
    "f": True,
    "in": True,
    "d/e": True,
    "dang": False,
    "nothing": False,
    "f/x": False,
    "loop": False,
    "esc": LinkEscape,
    "escdang": LinkEscape,
    "escdir/f": LinkEscape,
    "escdir/none": LinkEscape,
}
WRITES = {
    "new/parents/f": None,
    "f": None,
    "in": None,
    "absin/new": None,
    "esc": LinkEscape,
    "escdir/f": LinkEscape,
    "escdang": LinkEscape,
    "dang": SpecialFile,
    "loop": SpecialFile,
    "fifo": SpecialFile,
    "d": IsADirectory,
    "f/x": NotADirectory,
}
LISTS = {"d": ["e"], "absin": ["e"], "f": NotADirectory, "escdir": LinkEscape, "nothing": NotFound, "up": LinkEscape}
NOT_AT_CHECKED = {"escdang", "back", "environ", "magic/etc/passwd", "up/t/f"}
"""The service says where a link ends, not what it says: what leaves and returns is not seen, nor what leads nowhere."""


class Plain:
    """A sandbox whose server has no way of its own to files below a root, as E2B's cloud."""

    def __init__(self, sandbox: Any) -> None:
        self._sandbox = sandbox

    async def confined(self, root: str) -> None:
        return None


def _passed_on(name: str) -> Any:
    return property(lambda self: getattr(self._sandbox, name))


for _name in [name for name in dir(ProviderSandbox) if not name.startswith("_") and name != "confined"]:
    setattr(Plain, _name, _passed_on(_name))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def sandbox(engine: Endpoint) -> AsyncIterator[Any]:
    provider = E2BProvider(engine, name="given")
    made = await provider.create(CreateRequest(template="base", lifetime=300.0, idempotency_key=os.urandom(8).hex()))
    yield made
    await made.kill()
    await provider.aclose()


SLOW_ONES = [
    name if name in ("engine", "checked") else pytest.param(name, marks=pytest.mark.full) for name in MECHANISMS
]
"""A helper is a process of its own for each operation: what has many of them runs in `nox -s full`."""


@pytest.fixture(params=MECHANISMS)
def mechanism(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to carry operations out."""
    if request.param == "sh":
        monkeypatch.setattr(_helper, "PYTHONS", ("/no/python",))
    return str(request.param)


def files_of(sandbox: Any, mechanism: str, **options: Any) -> AsyncSafeFS:
    if mechanism == "checked":
        return AsyncSafeFS(sandbox, level="checked", **options)
    return AsyncSafeFS(sandbox if mechanism == "engine" else Plain(sandbox), **options)


async def outcome(work: Any) -> Any:
    """What a call came to: its value, or the class of its error."""
    try:
        return await work
    except SafeFSError as error:
        return type(error) if str(error).isascii() and "secret" not in str(error) else str(error)


async def test_every_mechanism_has_the_same_outcomes(sandbox: Any, mechanism: str) -> None:
    """Reads, looks, listings and writes of every kind of path come out as the written policy says."""
    files = files_of(sandbox, mechanism, root="/home/user/t")
    await sandbox.run_command(SETTING)
    skipped = NOT_AT_CHECKED if mechanism == "checked" else set()
    for path, expected in READS.items():
        if path not in skipped:
            assert await outcome(files.read_bytes(path)) == expected, f"read {path}"
    for path, there in EXISTS.items():
        if path not in skipped:
            assert await outcome(files.exists(path)) == there, f"exists {path}"
    for path, names in LISTS.items():
        if path not in skipped:
            listed = await outcome(files.list(path))
            assert (listed if isinstance(listed, type) else [entry.name for entry in listed]) == names, f"list {path}"
    for path, expected in WRITES.items():
        if path in skipped:
            continue
        assert await outcome(files.write(path, "written")) == expected, f"write {path}"
        if expected is None:
            assert await files.read_text(path) == "written"
    done = await sandbox.run_command(
        "cat /tmp/out/f; echo /tmp/out/*; cat f; [ -L in ] && [ -p fifo ]", cwd="/home/user/t"
    )
    assert (done.stdout, done.exit_code) == ("secret/tmp/out/f\nwritten", 0)
    assert files.root_adversary is (mechanism != "engine")


@pytest.mark.parametrize("mechanism", SLOW_ONES, indirect=True)
async def test_changes_of_the_tree(sandbox: Any, mechanism: str) -> None:
    """Directories, renames, copies, appends and removals act on links themselves where the policy says so, and never
    outside; without Python they are refused by name."""
    files = files_of(sandbox, mechanism, root="/home/user/t")
    await sandbox.run_command(SETTING)
    if mechanism == "sh":
        for refused in (files.remove("f"), files.rename("f", "g"), files.copy("f", "g"), files.append("f", "x")):
            with pytest.raises(EnforcementUnavailable, match="Python"):
                await refused
        return
    assert await outcome(files.make_dir("new/a/b")) is True
    assert await outcome(files.make_dir("d")) is False
    assert await outcome(files.make_dir("escdir/x")) is LinkEscape
    assert await outcome(files.make_dir("dang/x")) is NotADirectory or mechanism == "checked"
    assert await outcome(files.append("f", "+")) is None
    assert await outcome(files.copy("in", "copied")) is None
    assert await files.read_text("copied") == "inside+"
    assert await outcome(files.copy("esc", "copied")) is LinkEscape
    assert await outcome(files.copy("f", "escdir/x")) is LinkEscape
    assert await outcome(files.rename("esc", "renamed")) is None
    assert await outcome(files.rename("f", "escdir/x")) is LinkEscape
    assert await outcome(files.remove("renamed")) is None
    assert await outcome(files.remove("escdir")) is None
    assert await outcome(files.remove("nothing")) is NotFound
    assert await outcome(files.remove("new")) is None
    done = await sandbox.run_command("cat /tmp/out/f; echo /tmp/out/*; echo /home/user/t/esc* /home/user/t/new*")
    assert done.stdout.splitlines() == ["secret/tmp/out/f", "/home/user/t/escdang /home/user/t/new*"]


@pytest.mark.parametrize("mechanism", SLOW_ONES, indirect=True)
async def test_contents_of_every_size(sandbox: Any, mechanism: str) -> None:
    """Small and large contents come back as they were, as a whole, in ranges and as a stream; bounds hold."""
    files = files_of(sandbox, mechanism)
    for size in (0, 1, 65_537, 300_000, 1_500_000):
        data = os.urandom(size)
        await files.write("f", data)
        assert await files.read_bytes("f") == data
    if mechanism != "sh":
        assert await files.read_range("f", 1_000_000, 500) == data[1_000_000:1_000_500]
        assert b"".join([piece async for piece in files.stream("f", chunk=700_000)]) == data
        await files.append("f", data)
        assert len(await files.read_bytes("f")) == 3_000_000
    with pytest.raises(TooLarge):
        await files.read_bytes("f", max_bytes=1000)


@pytest.mark.parametrize("mechanism", SLOW_ONES, indirect=True)
async def test_names_of_every_kind(sandbox: Any, mechanism: str) -> None:
    """A name that looks like an option, has newlines, quotes or spaces is a name."""
    files = files_of(sandbox, mechanism)
    names = [
        "-rf",
        "two\nlines",
        "end\n",
        "q'u\"o$te`s",
        " ",
        "\u00fc",
        "e\u0301",
        "*",
        "~",
        "a\\b",
        "\x1b[2J",
        "%2e%2e",
    ]
    for name in names:
        await files.write(f"names/{name}", name)
        assert await files.read_text(f"names/{name}") == name
    assert sorted(entry.name for entry in await files.list("names")) == sorted(names)
    if mechanism != "checked":
        await files.write(b"names/\xff", "any")
        assert await files.read_text(b"names/\xff") == "any"


async def test_times_of_every_kind(sandbox: Any, mechanism: str) -> None:
    """A program may set any time that the kernel has: the file is listed, described and read."""
    files = files_of(sandbox, mechanism)
    script = "mkdir t; touch -d @9223372036854775807 t/far; touch -d @20000000000 t/next; touch -d @-1 t/past"
    await sandbox.run_command(script)
    assert sorted(entry.name for entry in await files.list("t")) == ["far", "next", "past"]
    assert (await files.stat("t/far")).modified.year > 9000
    assert (await files.stat("t/next")).modified.year == 2603
    assert await files.read_bytes("t/far") == b""


TOGGLE = """
import ctypes
exchange = ctypes.CDLL(None).renameat2
while True:
    exchange(-100, b'/home/user/x', -100, b'/home/user/y', 2)
"""


@pytest.mark.parametrize("mechanism", SLOW_ONES[:3], indirect=True)
@pytest.mark.parametrize("place", ["file", "directory"])
async def test_a_process_in_the_sandbox_wins_no_race(sandbox: Any, mechanism: str, place: str) -> None:
    """While code in the sandbox exchanges a file for a link, or a directory for one, a read has the inside content or
    is refused, and a write changes nothing outside."""
    files = files_of(sandbox, mechanism)
    outside = "f" if place == "file" else ""
    made = "echo -n inside > x" if place == "file" else "mkdir x; echo -n inside > x/f"
    await sandbox.run_command(f"mkdir /tmp/out; echo -n secret > /tmp/out/f; ln -s /tmp/out/{outside} y; {made}")
    path = "x" if place == "file" else "x/f"
    attacker = await sandbox.start_command(f'exec /opt/sandboxkit/python/bin/python3 -I -c "{TOGGLE}"')
    full = os.environ.get("HYPOTHESIS_PROFILE") == "full"
    deadline, told, calls = time.monotonic() + (20 if full else 3), set(), 0
    while time.monotonic() < deadline or calls < 4:
        try:
            told.add(await files.read_bytes(path))
        except SafeFSError as error:
            told.add(type(error).__name__)
        await outcome(files.write(path, "inside"))
        calls += 1
    await attacker.kill()
    assert b"secret" not in told, told
    # The shell's helper makes its new file in the directory that it has gone into; nothing else may be there.
    assert (
        await sandbox.run_command("cat /tmp/out/f; echo /tmp/out/* /tmp/out/.s*")
    ).stdout == "secret/tmp/out/f /tmp/out/.s*\n"
    assert calls


@pytest.mark.parametrize("mechanism", SLOW_ONES, indirect=True)
async def test_options_hold_by_every_mechanism(sandbox: Any, mechanism: str) -> None:
    """Links and hard links are refused on request, also for what is large; what a level cannot keep is refused before
    anything is asked."""
    await sandbox.run_command(SETTING + "head -c 400000 /dev/zero > big; ln big again; ln -s big tobig")
    no_links = files_of(sandbox, mechanism, root="/home/user/t", links="refuse")
    for path in ("in", "absin/e/g", "esc", "dang"):
        assert await outcome(no_links.read_bytes(path)) is LinkEscape, path
        assert await outcome(no_links.write(path, "x")) is LinkEscape, path
    assert await outcome(no_links.read_bytes("tobig")) is LinkEscape
    assert await outcome(no_links.write("tobig", bytes(300_000))) is LinkEscape
    assert await no_links.read_bytes("f") == b"inside"
    assert len(await no_links.read_bytes("big")) == 400_000
    if mechanism == "checked":
        for option in ({"hard_links": "refuse"}, {"mounts": ["volume"]}):
            with pytest.raises(UnsupportedOption):
                files_of(sandbox, mechanism, **option)
        return
    no_names = files_of(sandbox, mechanism, root="/home/user/t", hard_links="refuse")
    assert await outcome(no_names.read_bytes("big")) is LinkEscape
    assert await outcome(no_names.write("again", bytes(300_000))) is LinkEscape
    await no_names.write("f", bytes(300_000))
    assert len(await no_names.read_bytes("f")) == 300_000
    if mechanism != "sh":
        assert await outcome(no_names.append("big", "x")) is LinkEscape
        assert [piece async for piece in no_links.stream("big", chunk=300_000)] == [bytes(300_000), bytes(100_000)]


def test_the_sdk_itself_can_be_pointed_there(sdk: dict[str, str]) -> None:
    """An unmodified SDK handle whose sandbox_url is the confined base path is confined; it has no commands."""
    from e2b import Sandbox

    from sandboxkit.provider._e2b._confined import base_path

    own = Sandbox.create("base", timeout=120, **sdk)
    try:
        own.commands.run("mkdir d; ln -s /etc/passwd esc; ln -s d in; ln /etc/hostname h 2>/dev/null; true")
        url = sdk["sandbox_url"].rstrip("/") + base_path("/home/user")
        confined = Sandbox.connect(own.sandbox_id, timeout=120, **{**sdk, "sandbox_url": url})
        confined.files.write("in/f", "text")
        assert confined.files.read("/home/user/d/f") == "text"
        assert {entry.name for entry in confined.files.list("~")} == {"d", "in"}
        assert confined.files.exists("d/f")
        confined.files.rename("d/f", "d/g")
        confined.files.make_dir("new/dir")
        confined.files.remove("d/g")
        for refused in (
            lambda: confined.files.read("esc"),
            lambda: confined.files.read("/etc/passwd"),
            lambda: confined.files.write("esc", "x"),
            lambda: confined.files.list("/"),
            lambda: confined.files.get_info("../../etc/passwd"),
            lambda: confined.commands.run("true"),
        ):
            with pytest.raises(Exception, match=r"."):
                refused()
        assert "root" in own.files.read("/etc/passwd")
    finally:
        own.kill()


async def test_watching_through_safefs(sandbox: Any) -> None:
    """Events come from the engine as they happen, beneath the root; a directory outside is refused."""
    files = AsyncSafeFS(sandbox, root="/home/user")
    await files.make_dir("w")
    seen = []
    events = files.watch("w", recursive=True)
    first = None
    import anyio

    async with anyio.create_task_group() as tasks:

        async def act() -> None:
            await anyio.sleep(0.2)
            for number in range(200):
                await files.write(f"w/{number % 5}/f", "x")
                if first is not None:
                    return
                await anyio.sleep(0.05)

        tasks.start_soon(act)
        async for event in events:
            seen.append(event)
            if event.path.endswith("/f"):
                first = event
                break
    await events.aclose()
    assert all(event.path.startswith("/home/user/w") for event in seen)
    await sandbox.run_command("ln -s /tmp out")
    with pytest.raises(LinkEscape):
        await anext(files.watch("out"))


@pytest.mark.parametrize("mechanism", SLOW_ONES, indirect=True)
async def test_folders_in_and_out(sandbox: Any, mechanism: str, tmp_path: Path) -> None:
    """A folder goes in and comes out again as it was, without links in either direction."""
    if mechanism == "sh":
        return
    files = files_of(sandbox, mechanism)
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "sub" / "b").write_bytes(b"\x00\xff")
    (source / "link").symlink_to("/etc/passwd")
    told = []
    assert await files.upload(source, "up", on_progress=told.append) == 2
    assert [(each.files, each.total_files) for each in told] == [(1, 2), (2, 2)]
    await sandbox.run_command("ln -s /etc/passwd up/evil")
    assert await files.download("up", tmp_path / "back") == 2
    found = sorted(path.relative_to(tmp_path / "back").as_posix() for path in (tmp_path / "back").rglob("*"))
    assert found == ["a.txt", "sub", "sub/b", "sub/empty"]
    with pytest.raises(FileExistsError):
        await files.download("up", tmp_path / "back")
    assert await files.download("up", tmp_path / "back", overwrite=True) == 2
