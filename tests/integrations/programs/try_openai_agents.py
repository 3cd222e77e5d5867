"""OpenAI Agents: its E2B sandbox client alone, and below an agent whose model says what it is told to say."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

from agents import Runner, set_tracing_disabled
from agents.extensions.sandbox.e2b import E2BSandboxClient, E2BSandboxClientOptions
from agents.run import RunConfig
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.entries import File
from agents.sandbox.errors import ExecTimeoutError, WorkspaceReadNotFoundError
from agents.testing import ScriptedModel, assistant_message, function_call
from e2b import AsyncSandbox

ROOT = "/home/user/work"
client = E2BSandboxClient()


def options(**more: Any) -> E2BSandboxClientOptions:
    """`allow_internet_access` is true unless one says otherwise, which an engine without `--internet` refuses."""
    return E2BSandboxClientOptions("e2b_code_interpreter", timeout=60, allow_internet_access=False, **more)


def manifest() -> Manifest:
    """The root that it has otherwise, /workspace, cannot be made in the engine's own templates."""
    return Manifest(root=ROOT, entries={"notes.md": File(content=b"first\n")})


async def work() -> None:
    session = await client.create(manifest=manifest(), options=options(envs={"FROM": "create"}, exposed_ports=(8000,)))
    async with session:
        done = await session.exec("cat notes.md; pwd; echo $FROM; echo err >&2; exit 3")
        assert (done.exit_code, done.stdout, done.stderr) == (3, f"first\n{ROOT}\ncreate\n".encode(), b"err\n"), done
        await session.mkdir("deeper")
        await session.write(Path("deeper/a.bin"), io.BytesIO(b"\x00\xff"))
        assert (await session.read(Path("deeper/a.bin"))).read() == b"\x00\xff"
        assert await session.read_bounded(Path("deeper/a.bin"), max_bytes=1) == b"\x00"
        names = {entry.path.rpartition("/")[2]: entry.is_dir() for entry in await session.ls(".")}
        assert (names["notes.md"], names["deeper"]) == (False, True), names
        for action, expected in [
            (lambda: session.read(Path("none")), WorkspaceReadNotFoundError),
            (lambda: session.exec("sleep 9", timeout=1), ExecTimeoutError),
        ]:
            try:
                await action()
            except expected:
                continue
            raise AssertionError(f"no {expected.__name__}")
        assert await session.running()
        endpoint = await session.resolve_exposed_port(8000)
        assert endpoint.host.startswith("8000-"), endpoint
        assert endpoint.tls is False, endpoint
        await terminal(session)
    assert not await session.running()
    print("work")


async def terminal(session: Any) -> None:
    assert session.supports_pty()
    started = await session.pty_exec_start("read line; echo got $line", tty=True, yield_time_s=0.5)
    update = await session.pty_write_stdin(session_id=started.process_id, chars="this\n", yield_time_s=5)
    assert b"got this" in started.output + update.output, (started, update)
    done = await session.pty_exec_start("echo out; exit 3", yield_time_s=5)
    assert (done.output, done.exit_code) == (b"out\n", 3), done
    await session.pty_terminate_all()


async def kept(persistence: str) -> None:
    """A workspace is taken along to another sandbox, as an archive and as a snapshot of E2B's."""
    session = await client.create(manifest=manifest(), options=options(workspace_persistence=persistence))
    async with session:
        await session.write(Path("notes.md"), io.BytesIO(b"second\n"))
        taken = await session.persist_workspace()
    session = await client.create(manifest=manifest(), options=options(workspace_persistence=persistence))
    async with session:
        await session.hydrate_workspace(taken)
        assert (await session.read(Path("notes.md"))).read() == b"second\n"
    if persistence == "snapshot":
        for snapshot in await AsyncSandbox.list_snapshots().next_items():
            await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
    print(f"kept as {persistence}")


async def paused() -> None:
    """A session that pauses at its end goes on where it was, processes included."""
    session = await client.create(manifest=manifest(), options=options(pause_on_exit=True))
    async with session:
        await session.exec("(sleep 60 & echo $! > pid)")
    state = client.deserialize_session_state(session.state.model_dump(mode="json"))
    state.pause_on_exit = False
    again = await client.resume(state)
    async with again:
        assert (await again.exec("kill -0 $(cat pid)")).exit_code == 0
    print("paused")


async def agent() -> None:
    model = ScriptedModel(
        [
            [function_call("exec_command", {"cmd": "wc -c < notes.md", "yield_time_ms": 5000}, call_id="1")],
            [assistant_message("six")],
        ]
    )
    agent = SandboxAgent(name="reader", model=model, default_manifest=manifest())
    config = RunConfig(sandbox=SandboxRunConfig(client=client, options=options()), tracing_disabled=True)
    result = await Runner.run(agent, "How long are the notes?", run_config=config)
    assert result.final_output == "six"
    (answer,) = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert "6" in answer.splitlines(), answer
    print("agent")


async def main() -> None:
    set_tracing_disabled(True)
    await work()
    await kept("tar")
    await kept("snapshot")
    await paused()
    await agent()
    print("all")


asyncio.run(main())
