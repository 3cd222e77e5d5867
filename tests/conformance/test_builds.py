"""The unmodified SDK's template builder against the real engine: built in boxes, layer by layer, and used."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxkit.local import _child
from sandboxkit.local._config import EngineConfig

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]


WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init()
watched = {libc.inotify_add_watch(fd, path.encode(), 0x2): path for path in sys.argv[1:]}
open("/tmp/ready", "w").close()
seen = set()
while len(seen) < len(watched):
    data = os.read(fd, 65536)
    while data:
        number, _, _, length = struct.unpack_from("iIII", data)
        seen.add(watched[number])
        data = data[16 + length :]
text = ""
while not text:  # the first event is that it was emptied
    text = open(sys.argv[1]).read()
print(*sys.argv[1:], text)
"""


class World:
    """An engine with a store of its own, and the SDK's options for it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        isolation = os.environ["SANDBOXKIT_ISOLATION"]
        self.config = EngineConfig(isolation=isolation, log_level="warning", warm=0, max_sandboxes=50)
        self.engine = _child.start_engine(self.config)

    @property
    def options(self) -> dict[str, Any]:
        """For every call of the SDK."""
        endpoint = self.engine.endpoint
        return {"api_key": endpoint.api_key, "api_url": endpoint.api_url, "sandbox_url": endpoint.sandbox_url}

    @property
    def layers(self) -> set[str]:
        """The names of all layers that are made."""
        found = self.home.glob("built/*/layers/*")
        return {path.name for path in found if path.is_dir() and not path.name.startswith(".")}

    def build(self, template: Any, name: str, **more: Any) -> tuple[Any, list[str]]:
        """Build by the sync SDK; the result, and the lines of the log."""
        from e2b import Template

        lines: list[str] = []
        built = Template.build(
            template, name, on_build_logs=lambda entry: lines.append(entry.message), **self.options, **more
        )
        return built, lines

    def run(self, name: str, command: str, **more: Any) -> str:
        """What a command prints in a new sandbox of a template."""
        from e2b import Sandbox

        with Sandbox.create(name, timeout=120, **self.options, **more) as sandbox:
            return str(sandbox.commands.run(command, timeout=60).stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One engine for the module, with an empty cache."""
    home = tmp_path_factory.mktemp("home")
    home.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SANDBOXKIT_HOME", str(home))
        found = World(home)
        yield found
        found.engine.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A template's folder with some files."""
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "sub" / "deep" / "b.txt").write_text("deep")
    (tmp_path / "sub" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "sub" / "run.sh").chmod(0o755)
    return tmp_path


def begun(folder: Path, base: str = "3.11") -> Any:
    """A definition over Python, with this folder."""
    from e2b import Template

    return Template(file_context_path=str(folder)).from_python_image(base)


def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Poll until something has come about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def test_every_kind_of_step(world: World, folder: Path) -> None:
    """Files, variables, directories and commands are what the definition says, in the sandbox too."""
    name = f"t{uuid.uuid4().hex[:8]}"
    template = (
        begun(folder, "3.13-slim")
        .set_envs({"GREETING": "hi", "BOTH": "$GREETING you"})
        .copy("a.txt", "files/")
        .copy("sub", "/app/sub", mode=0o755)
        .set_workdir("/app")
        .run_cmd("sub/run.sh > ran && echo $BOTH >> ran && pwd >> ran")
        .run_cmd("id -u > /home/user/who", user="root")
        .make_dir("made")
        .make_symlink("/app/ran", "/home/user/link")
        .rename("made", "renamed")
        .remove("/home/user/files/a.txt")
        .copy("a.txt", "/tmp/kept")
        .run_cmd("cp /tmp/kept from-tmp")
    )
    built, lines = world.build(template, name, cpu_count=1, memory_mb=512)
    assert built.template_id == name
    assert any("Python 3.11 here" in line or "not 3.13" in line for line in lines) or lines
    out = world.run(
        name,
        "pwd; cat ran from-tmp; cat ~/who; ls; ls -A ~/files; readlink ~/link; echo $BOTH; stat -c %a sub/deep/b.txt",
    )
    assert out.splitlines() == [
        *("/app", "ran", "hi you", "/app"),
        *("hello1000", "from-tmp", "ran", "renamed", "sub", "/app/ran", "hi you", "755"),
    ]


@pytest.mark.full
def test_a_sandbox_has_its_resources_and_says_so(world: World, folder: Path) -> None:
    """CPUs, memory and free disk are those of the build."""
    from e2b import Sandbox

    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).copy("a.txt", "."), name, cpu_count=1, memory_mb=300, min_free_disk_mb=1500)
    with Sandbox.create(name, timeout=60, **world.options) as sandbox:
        info = sandbox.get_info()
        assert (info.template_id, info.name, info.cpu_count, info.memory_mb) == (name, name, 1, 300)
        assert sandbox.get_metrics()[-1].disk_total == 1500 * 1024 * 1024


def test_sandboxes_share_layers_and_nothing_else(world: World, folder: Path) -> None:
    """What one sandbox does to the template's files, no other one sees, nor a later one; nothing is copied."""
    from e2b import Sandbox

    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).copy("sub", ".").run_cmd("head -c 20000000 /dev/zero > large"), name, memory_mb=256)
    layers = world.layers
    with Sandbox.create(name, **world.options) as one, Sandbox.create(name, **world.options) as other:
        assert one.get_metrics()[-1].disk_used < 2_000_000
        one.commands.run(
            "rm -r deep; echo changed > run.sh; chmod 600 large; mv large moved; mkdir deep; touch deep/new"
        )
        assert other.commands.run("ls . deep; cat run.sh").stdout.split() == [
            ".:",
            "deep",
            "large",
            "run.sh",
            "deep:",
            "b.txt",
            "#!/bin/sh",
            "echo",
            "ran",
        ]
        assert one.commands.run("ls . deep").stdout.split() == [".:", "deep", "moved", "run.sh", "deep:", "new"]
    assert world.run(name, "cat deep/b.txt") == "deep"
    assert world.layers == layers


def test_the_home_is_an_ordinary_one(world: World, folder: Path) -> None:
    """Disk limit, extended attributes, watching, owners and the view of mounts are those of any sandbox's home."""
    from e2b import Sandbox

    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).copy("sub", ".").run_cmd("touch -d 2020-01-01 old"), name, memory_mb=2048)
    with Sandbox.create(name, **world.options) as sandbox:
        full = sandbox.commands.run(
            "head -c 3000000000 /dev/zero > big; rm -f big; stat -c '%U %a' . run.sh", timeout=60
        )
        assert "No space left" in full.stderr
        assert full.stdout.splitlines() == ["user 755", "user 755"]
        mounts = sandbox.commands.run("cat /proc/self/mountinfo").stdout
        assert str(world.home) not in mounts
        assert not re.search(r"(lowerdir|upperdir|workdir)=/|:/", mounts)
        sandbox.files.write("with", "x", metadata={"a": "b"})
        assert sandbox.files.get_info("with").metadata == {"a": "b"}
        # A watcher inside, as development servers have them: on a file of a layer, and on the directory around it.
        sandbox.files.write("watch.py", WATCH)
        running = sandbox.commands.run("python3 watch.py deep/b.txt deep", background=True)
        until(lambda: sandbox.files.exists("/tmp/ready"))
        sandbox.files.write("deep/b.txt", "edited")
        assert running.wait().stdout.split() == ["deep/b.txt", "deep", "edited"]


def test_the_start_command_runs_in_each_sandbox(world: World, folder: Path) -> None:
    """It is tried at the end of the build, runs from a sandbox's creation on, and writes to its log."""
    from e2b import Sandbox, wait_for_url

    name = f"t{uuid.uuid4().hex[:8]}"
    template = (
        begun(folder)
        .set_envs({"GREETING": "hi"})
        .copy("a.txt", ".")
        .set_start_cmd(
            "echo started $GREETING in $PWD; exec python3 -u -m http.server 8123",
            wait_for_url("http://localhost:8123/a.txt"),
        )
    )
    _, lines = world.build(template, name, memory_mb=256)
    assert any("It is ready after" in line for line in lines)
    assert "started hi in /home/user" in lines
    with Sandbox.create(name, **world.options) as sandbox:
        ask = "python3 -c \"import urllib.request as u; print(u.urlopen('http://127.0.0.1:8123/a.txt').read())\""
        until(lambda: "hello" in sandbox.commands.run(f"{ask} 2>&1 || true").stdout)
        until(lambda: "GET /a.txt" in sandbox.files.read("/tmp/.sandboxkit/app.log"))
        assert sandbox.files.read("/tmp/.sandboxkit/app.log").startswith("started hi in /home/user\n")


@pytest.mark.full
def test_a_start_command_is_found_whatever_its_program_calls_itself(world: World, folder: Path) -> None:
    """Its shell stays, and shows the whole of it: npm renames itself twice before it starts a server."""
    from e2b import Sandbox

    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).set_start_cmd("perl -e '$0 = q(another); sleep 300'", "true"), name, memory_mb=256)
    with Sandbox.create(name, **world.options) as sandbox:
        seen = "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'"
        until(lambda: "another" in sandbox.commands.run(seen).stdout.splitlines())
        assert "perl -e '$0 = q(another); sleep 300'" in sandbox.commands.run(seen).stdout.splitlines()


@pytest.mark.full
def test_the_log_of_a_start_command_is_bounded(world: World, folder: Path) -> None:
    """An app that prints without end keeps the last part of it, and the sandbox works."""
    from e2b import Sandbox

    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).set_start_cmd("seq 1 400000; echo last", "true"), name, memory_mb=256)
    with Sandbox.create(name, **world.options) as sandbox:
        until(lambda: "last" in sandbox.commands.run("tail -n 1 /tmp/.sandboxkit/app.log || true").stdout)
        assert 100_000 < sandbox.files.get_info("/tmp/.sandboxkit/app.log").size <= 512 * 1024


def test_a_failed_step_is_named_and_not_done_again(world: World, folder: Path) -> None:
    """The error has the step's place in the definition; the next build begins there, with the layers before it."""
    from e2b import BuildException

    name = f"t{uuid.uuid4().hex[:8]}"
    nonce = uuid.uuid4().hex
    first = begun(folder).run_cmd(f"echo {nonce}; date +%N > when").run_cmd("echo bad news >&2; exit 7")
    with pytest.raises(BuildException, match="ended with status 7") as caught:
        world.build(first, name)
    assert any(entry.path == Path(__file__) for entry in caught.traceback)
    second = begun(folder).run_cmd(f"echo {nonce}; date +%N > when").run_cmd("cat when > copy")
    _, lines = world.build(second, name)
    assert f"CACHED [1] RUN echo {nonce}; date +%N > when" in lines
    before = world.run(name, "cat copy")
    world.build(second, name)
    assert world.run(name, "cat copy") == before
    _, lines = world.build(second, name, skip_cache=True)
    assert not any(line.startswith("CACHED [1]") for line in lines)
    assert world.run(name, "cat copy") != before


@pytest.mark.parametrize("ready", ["false", "sleep 2"])
def test_what_a_start_that_fails_is_told(world: World, folder: Path, ready: str) -> None:
    """An app that ends before it is ready fails the build, with its status; waiting alone makes nothing ready."""
    from e2b import BuildException

    with pytest.raises(BuildException, match="status 3 before the ready command"):
        world.build(begun(folder).set_start_cmd("echo no; exit 3", ready), "never")


def test_tags_and_names(world: World, folder: Path) -> None:
    """A build has the tags that it was given; others come and go; each means its build."""
    from e2b import Template

    name = f"t{uuid.uuid4().hex[:8]}"
    assert not Template.exists(name, **world.options)
    world.build(begun(folder).run_cmd("echo one > n"), f"{name}:v1")
    assert [Template.exists(f"{name}{tag}", **world.options) for tag in ("", ":v1", ":v2")] == [True, True, False]
    Template.assign_tags(f"{name}:v1", "default", **world.options)
    two, _ = world.build(begun(folder).run_cmd("echo two > n"), f"{name}:v2")
    assert world.run(f"{name}:{two.build_id}", "cat n").strip() == "two"
    assert [world.run(f"{name}{tag}", "cat n").strip() for tag in ("", ":v1", ":v2")] == ["one", "one", "two"]
    Template.assign_tags(f"{name}:v2", ["default", "stable"], **world.options)
    assert world.run(name, "cat n").strip() == "two"
    Template.remove_tags(name, "v1", **world.options)
    assert {one.tag for one in Template.get_tags(name, **world.options)} == {"v2", "default", "stable"}
    with pytest.raises(Exception, match="v1"):
        world.run(f"{name}:v1", "true")


@pytest.mark.full
def test_templates_stand_on_templates(world: World, folder: Path) -> None:
    """A template built over another has its files, variables, directory and start command."""
    name = f"t{uuid.uuid4().hex[:8]}"
    from e2b import Template

    below = begun(folder).set_envs({"A": "1"}).copy("a.txt", "/data/").set_workdir("/app").run_cmd("echo below > one")
    world.build(below, name)
    above = Template().from_template(name).run_cmd("cat one /data/a.txt > two; echo $A >> two")
    world.build(above, f"{name}-above")
    assert world.run(f"{name}-above", "cat two; pwd; ls /data").splitlines() == ["below", "hello1", "/app", "a.txt"]


def test_the_async_sdk_and_builds_in_the_background(world: World, folder: Path) -> None:
    """The other colour builds, too; a build in the background is asked for its status."""
    from e2b import AsyncTemplate, Template

    name = f"t{uuid.uuid4().hex[:8]}"
    template = AsyncTemplate(file_context_path=str(folder)).from_python_image("3").copy("a.txt", ".").run_cmd("seq 300")
    lines: list[str] = []

    async def build() -> Any:
        return await AsyncTemplate.build(
            template, name, on_build_logs=lambda entry: lines.append(entry.message), **world.options
        )

    assert asyncio.run(build()).name == name
    assert [line for line in lines if line.isdecimal()] == [str(number) for number in range(1, 301)]
    info = Template.build_in_background(begun(folder).run_cmd("sleep 0.2; echo slept"), f"{name}-b", **world.options)
    until(lambda: Template.get_build_status(info, **world.options).status.value == "ready")
    entries = Template.get_build_status(info, **world.options).log_entries
    assert "slept" in [entry.message for entry in entries]


@pytest.mark.full
def test_two_builders_at_once_make_each_layer_once(world: World, folder: Path) -> None:
    """The one who comes second waits for the layer, and finds it made; both builds are whole."""
    nonce, count = uuid.uuid4().hex, folder / "count"
    names = [f"t{uuid.uuid4().hex[:8]}" for _ in range(2)]
    logs: list[list[str]] = [[], []]
    assert not count.exists()

    def build(number: int) -> None:
        _, logs[number] = world.build(begun(folder).run_cmd(f"echo {nonce}; sleep 1; date +%N > when"), names[number])

    builders = [threading.Thread(target=build, args=(number,)) for number in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert sum(nonce in lines for lines in logs) == 1
    assert world.run(names[0], "cat when") == world.run(names[1], "cat when")


@pytest.mark.full
def test_what_is_built_outlives_the_engine(world: World, folder: Path) -> None:
    """The next engine finds it under its name."""
    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).copy("a.txt", ".").set_envs({"A": "1"}), name)
    world.engine.stop()
    world.engine = _child.start_engine(world.config)
    assert world.run(name, "cat a.txt; echo $A") == "hello1\n"


def test_a_hostile_step_gets_nowhere(world: World, folder: Path) -> None:
    """A build's box is a sandbox's: no network but the indexes, no file of the host's, no other layer; and what it
    leaves behind is taken away with it."""
    name = f"t{uuid.uuid4().hex[:8]}"
    before = world.layers
    hostile = (
        begun(folder)
        .run_cmd(
            "touch /usr/x /etc/x /x /opt/sandboxkit/agent/x /opt/sandboxkit/python/x 2>&1; ls /root /mnt 2>&1; true"
        )
        .run_cmd(
            "python3 -c \"import urllib.request as u; u.urlopen('http://example.com', None, 20)\" 2>&1 || echo refused"
        )
        .run_cmd("python3 -c \"import socket; socket.create_connection(('1.1.1.1', 53), 5)\" 2>&1 || echo unreachable")
        .run_cmd("mknod device c 1 3 2>&1; ln /etc/passwd linked 2>&1; mkfifo pipe; ln -s /etc/shadow shadow; true")
        .run_cmd("(setsid sleep 300 &) ; nohup sleep 300 > /dev/null 2>&1 & sleep 0.1; echo left")
    )
    _, lines = world.build(hostile, name)
    said = "\n".join(lines)
    assert said.count("Read-only file system") >= 4
    assert "refused" in lines
    assert "unreachable" in lines
    assert "root:" not in said
    assert world.layers > before
    assert not [one for one in Path("/proc").glob("[0-9]*/cmdline") if b"sleep\x00300" in _read(one)]
    out = world.run(name, "ls; cat shadow pipe </dev/null & sleep 0.2; kill %1; wait 2>/dev/null; true")
    assert "device" not in out.split()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.full
def test_a_step_that_kills_its_agent_fails_alone(world: World, folder: Path) -> None:
    """Its box is lost, the build fails with a sentence, and the next one works."""
    from e2b import BuildException

    with pytest.raises(BuildException):
        world.build(begun(folder).run_cmd("kill -9 -1; sleep 1; kill -9 $(pgrep -f agent.py); sleep 30"), "suicide")
    name = f"t{uuid.uuid4().hex[:8]}"
    world.build(begun(folder).run_cmd("echo fine > x"), name)
    assert world.run(name, "cat x") == "fine\n"


def test_what_is_missing_on_the_machine_is_named(world: World, folder: Path) -> None:
    """A system package that is here passes; one that is not is named, with what to do."""
    from e2b import BuildException

    with pytest.raises(BuildException, match="Not on this machine: no-such-package-x"):
        world.build(begun(folder).apt_install(["coreutils", "no-such-package-x"]), "never")


def test_damage_is_found(world: World, folder: Path) -> None:
    """A layer that lost a file is told of by `damage`, and made again by the next build."""
    from sandboxkit.local import images

    name = f"t{uuid.uuid4().hex[:8]}"
    nonce = uuid.uuid4().hex
    template = begun(folder).run_cmd(f"echo {nonce} > x")
    world.build(template, name)
    (made,) = [one for one in world.home.glob("built/*/layers/*/%2Fhome%2Fuser/x") if nonce in one.read_text()]
    assert images.damage(images.find(name)) is None
    made.unlink()
    assert images.damage(images.find(name)) is not None
    world.build(template, name)
    assert world.run(name, "cat x").strip() == nonce
    assert images.damage(images.find(name)) is None
