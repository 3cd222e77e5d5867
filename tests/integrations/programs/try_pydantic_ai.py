"""pydantic-ai: the harness's `E2BSandbox` below an agent, and its backend on a sandbox of a pool."""

from __future__ import annotations

import asyncio

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.workspaces import Workspace, WorkspaceTimeoutError, WorkspaceUnavailableError
from pydantic_ai_harness.e2b_sandbox import E2BSandbox, E2BSandboxBackend
from pydantic_ai_harness.shell import Shell

from sandboxkit import AsyncSandboxPool


def scripted(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """A model that runs one command, and then says what that printed."""
    for part in messages[-1].parts:
        if isinstance(part, ToolReturnPart):
            return ModelResponse(parts=[TextPart(str(part.content))])
    call = ToolCallPart("run_command", {"command": "echo $((6 * 7)); pwd"})
    return ModelResponse(parts=[call])


async def agent() -> None:
    sandbox: E2BSandbox = E2BSandbox(allow_internet_access=False, sandbox_timeout=60)
    agent = Agent(FunctionModel(scripted), capabilities=[sandbox, Shell()])
    result = await agent.run("What is 6 * 7?")
    assert "42\n/home/user" in result.output, result.output
    ref = result.workspace.ref
    assert ref is not None
    # Whoever holds the reference decides: the sandbox is there until it is destroyed.
    again = await agent.run("And once more?", workspace=ref)
    assert "42" in again.output
    assert again.workspace.ref == ref
    await sandbox.destroy(ref)
    try:
        await sandbox.backend(ref).run(["true"])
    except WorkspaceUnavailableError:
        pass
    else:
        raise AssertionError("a destroyed sandbox ran a command")
    print("agent")


async def pooled() -> None:
    async with AsyncSandboxPool() as pool, pool.session("alice") as session:
        backend = E2BSandboxBackend(sandbox=session.sandbox)
        workspace = Workspace(backend)
        await session.files.write_text("data.csv", "x\n1\n")
        assert await workspace.read_text("data.csv") == "x\n1\n"
        done = await backend.run("cat; echo $HERE >&2; exit 3", shell=True, env={"HERE": "here"})
        assert (done.exit_code, done.stdout, done.stderr) == (3, "", "here\n"), done
        try:
            await backend.run(["sleep", "9"], timeout=0.5)
        except WorkspaceTimeoutError:
            pass
        else:
            raise AssertionError("a command ran over its time")
        assert (await session.run_command("pgrep -x sleep")).exit_code == 1
    print("pooled")


asyncio.run(agent())
asyncio.run(pooled())
print("all")
