"""Behaviour that E2B's protocol states and that no other file tries end to end: the unmodified SDK, the real engine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import e2b
import httpx
import pytest
from e2b.sandbox.commands.command_handle import PtySize

from sandboxkit._types import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SIZE = PtySize(cols=80, rows=24)


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


@pytest.fixture(scope="module")
def sandbox(sdk: dict[str, str]) -> Iterator[e2b.Sandbox]:
    """One sandbox for the tests that leave it as they found it."""
    with e2b.Sandbox.create("base", timeout=600, **sdk) as made:
        yield made


# -- terminals ----------------------------------------------------------------------------------------------------


def terminal(colour: Any, box: Any, seen: list[bytes], **options: Any) -> Any:
    """A terminal whose output is heard by nobody in sync until somebody waits, and goes to `seen` in async."""
    if colour.name == "sync":
        return colour.do(box.pty.create(SIZE, **options))
    return colour.do(box.pty.create(SIZE, on_data=seen.append, **options))


def test_a_terminals_deadline_ends_it(colour: Any, box: Any) -> None:
    """A terminal past its `timeout` raises, and its shell is gone."""
    made = terminal(colour, box, [], timeout=1)
    with pytest.raises(e2b.TimeoutException):
        colour.do(made.wait())
    until(lambda: made.pid not in [process.pid for process in colour.do(box.commands.list())])


def test_input_is_streamed_to_a_terminal(colour: Any, box: Any) -> None:
    """Keys that come as a stream arrive in order, while it is open."""
    seen: list[bytes] = []
    made = terminal(colour, box, seen, timeout=0)
    keys = [b"echo $((40", b" + 2)) > /tmp/typed\n", b"exit\n"]
    if colour.name == "sync":
        box.pty.stream_input(made.pid, keys)
    else:
        stream = colour.on_loop(lambda: box.pty.stream_input(made.pid))
        for key in keys:
            colour.do(stream.send(key))
        colour.do(stream.close())
    colour.do(made.wait())
    assert colour.do(box.files.read("/tmp/typed")) == "42\n"


def test_a_terminal_is_connected_to_again(colour: Any, box: Any) -> None:
    """Who disconnects leaves the shell running; who connects hears what comes from then on."""
    seen: list[bytes] = []
    made = terminal(colour, box, [], timeout=0)
    colour.do(made.disconnect())
    if colour.name == "sync":
        again = box.pty.connect(made.pid)

        def follow() -> None:
            with contextlib.suppress(e2b.CommandExitException):  # it is killed in the end
                again.wait(on_pty=seen.append)

        follower = threading.Thread(target=follow)
        follower.start()
    else:
        again = colour.do(box.pty.connect(made.pid, on_data=seen.append))
        follower = None
    colour.do(box.pty.send_stdin(made.pid, b"echo still-$((1 + 1))-here\n"))
    until(lambda: b"still-2-here" in b"".join(seen))
    colour.do(box.pty.kill(made.pid))
    if follower is not None:
        follower.join(20)


# -- errors -------------------------------------------------------------------------------------------------------


def test_errors_have_e2bs_words_and_codes(sandbox: e2b.Sandbox, sdk: dict[str, str]) -> None:
    """What programs match on: the texts of envd, and the exceptions that its codes become."""
    with pytest.raises(e2b.NotFoundException, match="process with pid 999999 not found"):
        sandbox.commands.send_stdin(999999, "x")
    with pytest.raises(e2b.InvalidArgumentException, match=r"cwd '/no/such' does not exist"):
        sandbox.commands.run("true", cwd="/no/such")
    with pytest.raises(e2b.AuthenticationException, match="invalid username: 'root'"):
        sandbox.commands.run("true", user="root")
    sandbox.files.write("plain", "x")
    with pytest.raises(e2b.InvalidArgumentException, match="not a directory"):
        sandbox.files.list("plain")
    with pytest.raises(e2b.InvalidArgumentException):
        sandbox.files.read("/tmp")
    with pytest.raises(e2b.FileNotFoundException):
        sandbox.files.read("missing")
    with pytest.raises(e2b.InvalidArgumentException):
        sandbox.files.read("~nobody/x")
    assert sandbox.commands.kill(999999) is False
    assert sandbox.files.exists("missing") is False
    assert sandbox.files.make_dir("/tmp") is False
    sandbox.files.remove("missing")
    with pytest.raises(e2b.SandboxNotFoundException):
        e2b.Sandbox.connect("i" * 20, **sdk)


# -- files --------------------------------------------------------------------------------------------------------


def test_a_signed_url_gives_parts_and_says_what_has_not_changed(sandbox: e2b.Sandbox) -> None:
    """Ranges, conditional requests and gzip, for any client that holds a signed URL until it ends."""
    data = b"0123456789" * 1000
    sandbox.files.write("ranged.bin", data)
    url = sandbox.download_url("ranged.bin", use_signature_expiration=60)
    whole = httpx.get(url, headers={"Accept-Encoding": "identity"})
    assert (whole.status_code, whole.content) == (200, data)
    assert "ranged.bin" in whole.headers["content-disposition"]
    part = httpx.get(url, headers={"Range": "bytes=5-14", "Accept-Encoding": "identity"})
    assert (part.status_code, part.content) == (206, data[5:15])
    assert part.headers["content-range"] == f"bytes 5-14/{len(data)}"
    assert httpx.get(url, headers={"Range": "bytes=99999-"}).status_code == 416
    same = httpx.get(url, headers={"If-Modified-Since": whole.headers["last-modified"]})
    assert (same.status_code, same.content) == (304, b"")
    packed = httpx.get(url, headers={"Accept-Encoding": "gzip"})
    assert (packed.headers["content-encoding"], packed.content) == ("gzip", data)
    ended = httpx.get(sandbox.download_url("ranged.bin", use_signature_expiration=-10))
    assert (ended.status_code, ended.json()["message"]) == (401, "signature is already expired")


def _engine_memory(endpoint: Endpoint) -> Callable[[], int]:
    """How to ask for the resident bytes of the process that listens on the endpoint's port."""
    port = int(str(endpoint.api_url).rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {row[9] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(entry) == f"socket:[{inode}]" for entry in (process / "fd").iterdir()):
                status = process / "status"
                return lambda: int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0]) * 1024
        except OSError:
            continue  # another user's, or ended
    pytest.skip("the engine's process is not to be seen here (its descriptors are another user's)")


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_file_of_a_gibibyte_goes_up_and_down_in_bounded_memory(engine: Endpoint, sdk: dict[str, str]) -> None:
    """1 GiB, as a stream each way, in a sandbox with the disk for it: the engine grows by less than 64 MiB."""
    name = f"large-{uuid.uuid4().hex[:8]}"
    with httpx.Client(base_url=str(engine.api_url), headers={"X-API-KEY": engine.api_key}) as client:
        build = client.post("/v3/templates", json={"name": name, "minFreeDiskMb": 1536, "memoryMB": 4096}).json()
        place = f"/v2/templates/{build['templateID']}/builds/{build['buildID']}"
        assert client.post(place, json={"fromTemplate": "code-interpreter-v1", "steps": []}).status_code == 202
        status = f"/templates/{build['templateID']}/builds/{build['buildID']}/status"
        assert until(lambda: {"ready": 1, "error": 2}.get(client.get(status).json()["status"]), 120) == 1
    memory = _engine_memory(engine)
    piece = os.urandom(1024 * 1024)
    sent = hashlib.sha256()

    def pieces() -> Iterator[bytes]:
        for _ in range(1024):
            sent.update(piece)
            yield piece

    with e2b.Sandbox.create(name, timeout=600, **sdk) as sandbox:
        before, peak, over = memory(), 0, threading.Event()

        def look() -> None:
            nonlocal peak
            while not over.wait(0.02):
                peak = max(peak, memory())

        looking = threading.Thread(target=look)
        looking.start()
        try:
            sandbox.files.write("big", pieces())  # type: ignore[arg-type]
            got = hashlib.sha256()
            for chunk in sandbox.files.read("big", format="stream"):
                got.update(chunk)
        finally:
            over.set()
            looking.join()
    with httpx.Client(base_url=str(engine.api_url), headers={"X-API-KEY": engine.api_key}) as client:
        assert client.delete(f"/templates/{build['templateID']}").status_code == 204
    assert got.hexdigest() == sent.hexdigest()
    assert peak - before < 64 * 1024 * 1024


# -- many at once -------------------------------------------------------------------------------------------------


def test_pages_are_stable_while_sandboxes_come_and_go(sdk: dict[str, str]) -> None:
    """Each sandbox that is there throughout comes on exactly one page, whatever is made or killed in between."""
    tag = {"pages": uuid.uuid4().hex}
    made = [e2b.Sandbox.create("base", timeout=120, metadata=tag, **sdk) for _ in range(5)]
    try:
        pages = e2b.Sandbox.list(query=e2b.SandboxQuery(metadata=tag), limit=2, **sdk)
        listed = [info.sandbox_id for info in pages.next_items()]
        assert len(listed) == 2
        gone = listed[0]
        e2b.Sandbox.kill(gone, **sdk)
        made.append(e2b.Sandbox.create("base", timeout=120, metadata=tag, **sdk))
        while pages.has_next:
            listed += [info.sandbox_id for info in pages.next_items()]
        throughout = {sandbox.sandbox_id for sandbox in made[:5]}
        assert sorted(one for one in listed if one in throughout) == sorted(throughout)
    finally:
        for sandbox in made:
            sandbox.kill()


@pytest.mark.full
def test_what_comes_at_once_never_gets_a_wrong_answer(sdk: dict[str, str]) -> None:
    """Pauses, connects, infos and one kill at the same time: each call answers true or raises not found; in the end
    the sandbox is gone for everybody."""
    for round_ in range(6):
        sandbox = e2b.Sandbox.create("base", timeout=120, **sdk)
        sandbox.files.write("kept", "here")
        wrong: list[BaseException] = []

        def call(number: int, sandbox: e2b.Sandbox = sandbox, wrong: list[BaseException] = wrong) -> None:
            try:
                match number % 4:
                    case 0:
                        sandbox.pause()
                    case 1:
                        other = e2b.Sandbox.connect(sandbox.sandbox_id, **sdk)
                        assert other.sandbox_id == sandbox.sandbox_id
                    case 2:
                        assert sandbox.get_info().state in ("running", "paused")
                    case 3:
                        assert sandbox.files.read("kept") == "here"
            except (e2b.NotFoundException, e2b.SandboxNotRunningException):
                pass  # paused or killed by another of them
            except BaseException as error:
                wrong.append(error)

        with ThreadPoolExecutor(9) as threads:
            calls = [threads.submit(call, number) for number in range(16)]
            if round_ % 2:
                threads.submit(sandbox.kill)
            for one in calls:
                one.result()
        assert not wrong, wrong
        sandbox.kill()
        with pytest.raises(e2b.SandboxNotFoundException):
            sandbox.get_info()


@pytest.mark.full
def test_fifty_streams_lose_no_line(sandbox: e2b.Sandbox) -> None:
    """Fifty commands that print at the same time: each line of each arrives, in order, at its own reader."""

    def run(number: int) -> bool:
        done = sandbox.commands.run(f"seq -f '{number} %.0f' 5000", timeout=120)
        return done.stdout == "".join(f"{number} {line}\n" for line in range(1, 5001))

    with ThreadPoolExecutor(50) as threads:
        assert all(threads.map(run, range(50)))


def test_commands_are_the_same_beside_an_interpreter(sdk: dict[str, str]) -> None:
    """Where an agent comes from a zygote, it starts programs in a quicker way: what they get does not depend on it."""
    script = (
        "for kind in H S; do ulimit -a$kind | grep -v 'user processes'; done; umask; nice; echo $PWD; "
        "grep -E 'Sig(Blk|Ign)|NoNewPrivs|Seccomp:|CapEff' /proc/self/status; ls /proc/self/fd; "
        "read -r _ _ _ _ group session _ < /proc/$$/stat; [ $group != $$ ] && echo leads nothing; setsid -w echo set"
    )
    told = {}
    for template in ("base", "code-interpreter-v1"):
        with e2b.Sandbox.create(template, timeout=120, **sdk) as sandbox:
            told[template] = sandbox.commands.run(script).stdout
            assert int(sandbox.commands.run("ulimit -Hu").stdout) < 1000
            assert sandbox.commands.run("true").exit_code == 0
            with pytest.raises(e2b.InvalidArgumentException, match="cwd '/no/such' does not exist"):
                sandbox.commands.run("true", cwd="/no/such")
            with pytest.raises(e2b.CommandExitException) as caught:
                sandbox.commands.run("kill -9 $$")
            assert (caught.value.exit_code, caught.value.error) == (-1, "signal: killed")
    assert told["base"] == told["code-interpreter-v1"]
    assert told["base"].splitlines()[-2:] == ["leads nothing", "set"]
