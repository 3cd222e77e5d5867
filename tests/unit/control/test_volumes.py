"""Volumes without a sandbox: what is taken in at a start, what is full, whose token opens what, where they may lie."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route

from sandboxkit.local.control._refusals import Refused
from sandboxkit.local.control.volumes import _rules, _volumes
from sandboxkit.local.control.volumes._routes import VolumeRoutes
from sandboxkit.local.control.volumes._volumes import Volumes

MIB = 1 << 20

Ask = Callable[..., httpx.Response]


def volumes(root: Path, *, most: int = MIB) -> Volumes:
    """What an engine has of them, which starts here."""
    numbers = itertools.count()
    made = Volumes(
        root, most=most, new_id=lambda: f"id{next(numbers)}", new_token=lambda: f"token{next(numbers)}{os.getpid()}"
    )
    made.start()
    return made


def test_the_next_engine_has_them(tmp_path: Path) -> None:
    """With what lies in them, and with tokens that nobody was told yet; what was not completed is removed."""
    before = volumes(tmp_path / "v")
    made = asyncio.run(before.create("one"))
    (before.data(made) / "file").write_text("kept")
    (tmp_path / "v" / ".id9" / "data").mkdir(parents=True)
    (tmp_path / "v" / "broken").mkdir()

    after = volumes(tmp_path / "v")
    assert [one.name for one in after.all()] == ["one"]
    assert (after.data(after.all()[0]) / "file").read_text() == "kept"
    assert not (tmp_path / "v" / ".id9").exists()
    assert (tmp_path / "v" / "broken").exists()  # it may hold somebody's only copy


def test_a_full_one_takes_no_more(tmp_path: Path) -> None:
    """Neither is it given to a sandbox."""
    ours = volumes(tmp_path / "v")

    async def fill() -> None:
        made = await ours.create("one")
        assert 0 < await ours.room(made) <= MIB
        (ours.data(made) / "file").write_bytes(b"x" * (2 * MIB))
        for refused in (ours.room(made), ours.check_room(ours.wanted([_rules.Wish("one", "/x")]))):
            with pytest.raises(Refused) as error:
                await refused
            assert error.value.status == 507

    asyncio.run(fill())


def test_what_cannot_be_measured_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may nest directories as deep as to hide any amount."""
    ours = volumes(tmp_path / "v", most=1 << 40)
    monkeypatch.setattr(_volumes, "LEAST_FREE", 0)
    made = asyncio.run(ours.create("one"))
    deep = os.open(ours.data(made), os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    with pytest.raises(Refused, match="full"):
        asyncio.run(ours.room(made))
    asyncio.run(ours.destroy(made.volume_id))
    assert list((tmp_path / "v").iterdir()) == []


AT_WORK = """
import os, sys
victim = sys.argv[1]
names = [f"a{n}" for n in range(20)]
for name in names:
    os.mkdir(name)
    for file in sys.argv[2:]:
        os.close(os.open(f"{name}/{file}", os.O_CREAT | os.O_WRONLY))
    os.chmod(name, 0o555)
    os.symlink(victim, f"z{name}")
print(flush=True)
while True:
    for name in names:
        for one, other in ((name, f"t{name}"), (f"z{name}", name), (f"t{name}", f"z{name}")):
            try:
                os.rename(one, other)
            except OSError:
                pass
"""


@contextlib.contextmanager
def an_ordinary_user() -> Iterator[None]:
    """This thread, and those that it starts, may do no more with files than their owner may, if it is root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("Ii", 0x20080522, 0)
    held = ctypes.create_string_buffer(24)
    assert libc.capget(header, held) == 0
    effective, *others = struct.unpack("6I", held.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~0b1110, *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held.raw) == 0


def test_nothing_else_is_destroyed_with_it(tmp_path: Path) -> None:
    """While a program that has it exchanges its directories for links that lead out of it."""
    files = [f"precious{number}" for number in range(100)]
    (tmp_path / "home").mkdir(mode=0o755)
    for file in files:
        (tmp_path / "home" / file).touch()
    ours = volumes(tmp_path / "v")
    made = asyncio.run(ours.create("one"))
    command = [sys.executable, "-I", "-S", "-c", AT_WORK, str(tmp_path / "home"), *files]
    with an_ordinary_user(), subprocess.Popen(command, cwd=ours.data(made), stdout=subprocess.PIPE) as at_work:
        assert at_work.stdout is not None
        at_work.stdout.readline()
        asyncio.run(ours.destroy(made.volume_id))
        at_work.kill()
    assert len(os.listdir(tmp_path / "home")) == len(files)
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755
    # What the program has held on to goes with the next start.
    assert volumes(tmp_path / "v").all() == []
    assert list((tmp_path / "v").iterdir()) == []


@pytest.fixture
def client(tmp_path: Path) -> tuple[Ask, Volumes]:
    """The routes over two volumes, `a` and `b`."""
    ours = volumes(tmp_path / "v")

    async def read(request: object) -> bytes:
        return b"{}"

    async def refused(request: object, error: Exception) -> object:
        from starlette.responses import JSONResponse

        assert isinstance(error, Refused)
        return JSONResponse({"message": error.message}, status_code=error.status)

    routes = VolumeRoutes(ours, read=read)
    for name in "ab":
        asyncio.run(ours.create(name))
    application = Starlette(
        routes=[Route(path, run, methods=[method]) for method, path, run in routes.open()],
        exception_handlers={Refused: refused},  # type: ignore[dict-item]
    )

    def ask(method: str, url: str, **more: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app=application)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.request(method, url, **more)

        return asyncio.run(answer())

    return ask, ours


@pytest.mark.parametrize("said", ["", "Bearer ", "Bearer x", "the other's"])
def test_its_token_opens_it(client: tuple[Ask, Volumes], said: str) -> None:
    """And nothing else does: no token, another one, that of another volume."""
    ask, ours = client
    mine, other = ours.all()
    header = {"authorization": f"Bearer {other.token}" if said.startswith("the") else said}
    for method in ("GET", "PUT", "DELETE", "PATCH", "POST"):
        for what in ("path", "dir", "file"):
            answer = ask(method, f"/volumecontent/{mine.volume_id}/{what}?path=/", headers=header)
            assert answer.status_code in (401, 405)
            assert ask(method, f"/volumecontent/nothing/{what}?path=/", headers=header).status_code in (404, 405)
    right = {"authorization": f"Bearer {mine.token}"}
    assert ask("GET", f"/volumecontent/{mine.volume_id}/dir?path=/", headers=right).json() == []


def test_an_upload_past_its_room_leaves_nothing(client: tuple[Ask, Volumes]) -> None:
    """It is refused while it comes, and what came of it is removed."""
    ask, ours = client
    mine = ours.all()[0]
    right = {"authorization": f"Bearer {mine.token}"}
    url = f"/volumecontent/{mine.volume_id}/file?path=big"

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * MIB

    assert ask("PUT", url, content=pieces(), headers=right).status_code == 507
    assert os.listdir(ours.data(mine)) == []


@pytest.mark.parametrize(
    "query",
    ["", "path=/&depth=x", "path=/&depth=-1", "path=a%00b", "path=" + "a" * 300, "path=" + "a/" * 3000],
)
def test_malformed_queries_are_named(client: tuple[Ask, Volumes], query: str) -> None:
    """As a 400, or as not there."""
    ask, ours = client
    mine = ours.all()[0]
    right = {"authorization": f"Bearer {mine.token}"}
    assert ask("GET", f"/volumecontent/{mine.volume_id}/dir?{query}", headers=right).status_code in (400, 404)


names = st.sampled_from(
    [*("usr", "etc", "home", "user", "data", "mnt", "tmp", "opt", "sandboxkit", "proc"), "..", ".", ""]
)


@given(st.lists(names, max_size=5).map(lambda parts: "/" + "/".join(parts)) | st.text(max_size=20))
def test_targets_that_are_let_pass(path: str) -> None:
    """Are written out, and lie below nothing of the system's, nor at what is something else."""
    try:
        (wish,) = _rules.read_mounts([{"name": "v", "path": path}])
    except Refused:
        return
    assert os.path.normpath(wish.path) == wish.path
    assert wish.path == path.rstrip("/")
    assert wish.path.split("/")[1] not in ("usr", "etc", "proc", "dev", "sys", "")
    assert wish.path not in ("/home", "/home/user", "/tmp", "/opt")
    assert not wish.path.startswith("/opt/sandboxkit")


@pytest.mark.parametrize(
    "mounts",
    [
        {},
        ["/x"],
        [{"name": "v"}],
        [{"name": "v", "path": "/x", "more": 1}],
        [{"name": "../v", "path": "/x"}],
        [{"name": "v", "path": 1}],
        [{"name": "v", "path": "/x"}, {"name": "w", "path": "/x/y"}],
        [{"name": "v", "path": "/x"}, {"name": "w", "path": "/x/"}],
        [{"name": f"v{n}", "path": f"/x{n}"} for n in range(17)],
    ],
)
def test_mounts_that_are_refused(mounts: object) -> None:
    """By name."""
    with pytest.raises(Refused, match=r"volumeMounts|name"):
        _rules.read_mounts(mounts)


def fill_by_name(data: Path) -> int | None:
    (data / "file").write_bytes(b"x" * (2 * MIB))
    return None


def fill_without_name(data: Path) -> int | None:
    (data / "file").touch()
    held = os.open(data / "file", os.O_WRONLY)
    (data / "file").unlink()
    os.write(held, b"x" * (2 * MIB))
    return held


@pytest.mark.parametrize("destroyed", [False, True])
@pytest.mark.parametrize("fill", [fill_by_name, fill_without_name])
def test_a_volume_that_fills_ends_its_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill: Callable[[Path], int | None], destroyed: bool
) -> None:
    """Whoever has it, also after it was destroyed; others live on."""
    from types import SimpleNamespace

    from sandboxkit.local.control.volumes import _watch

    monkeypatch.setattr(_watch, "LOOK_EVERY", 0.01)
    # What is full is still there after it was destroyed: somebody holds on to it.
    monkeypatch.setattr(_volumes, "_remove", lambda place: None)
    ours = volumes(tmp_path / "v")
    ended: list[tuple[str, str]] = []

    async def run() -> None:
        await ours.create("full")
        await ours.create("other")
        mounted = {name: ours.wanted([_rules.Wish(name, "/x")]) for name in ("full", "other")}
        users = {"a": mounted["full"], "b": mounted["other"], "c": ()}
        done = asyncio.Event()
        house = SimpleNamespace(
            page=lambda query: SimpleNamespace(
                sandboxes=[
                    SimpleNamespace(sandbox_id=one, wanted=SimpleNamespace(volumes=volumes_of))
                    for one, volumes_of in users.items()
                ]
            ),
            # This process is in a box of its own, as it were.
            live=lambda one: SimpleNamespace(box=SimpleNamespace(init_pid=os.getpid() if one == "a" else 0)),
            lost=lambda sandbox_id, reason: (ended.append((sandbox_id, reason)), done.set()),
        )
        full = next(one for one in ours.all() if one.name == "full")
        held = fill(ours.data(full))
        if destroyed:
            await ours.destroy(full.volume_id)
        watching = asyncio.create_task(_watch.watch(ours, house, most_sandboxes=9))  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            await done.wait()
        watching.cancel()
        if held is not None:
            os.close(held)

    asyncio.run(run())
    assert set(ended) == {("a", "a volume is full")}
