"""LangChain: the sandboxes of `langchain-e2b` below a Deep Agent, and on sandboxes of a pool, in both colours."""

from __future__ import annotations

import asyncio

from deepagents import create_deep_agent
from e2b import Sandbox
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_e2b import AsyncE2BSandbox, E2BSandbox

from sandboxkit import AsyncSandboxPool, SandboxPool


class Scripted(GenericFakeChatModel):
    """A model that says the next of its messages, whatever tools it has."""

    def bind_tools(self, tools, **kwargs):
        return self


def agent() -> None:
    call = {"name": "execute", "args": {"command": "echo $((6 * 7)); cat /home/user/plan.txt"}, "id": "2"}
    write = {"name": "write_file", "args": {"file_path": "/home/user/plan.txt", "content": "think"}, "id": "1"}
    said = [AIMessage("", tool_calls=[write]), AIMessage("", tool_calls=[call]), AIMessage("done")]
    with Sandbox.create(timeout=60) as sandbox:
        found = create_deep_agent(model=Scripted(messages=iter(said)), backend=E2BSandbox(sandbox=sandbox))
        result = found.invoke({"messages": [{"role": "user", "content": "What is 6 * 7?"}]})
        answers = [message.content for message in result["messages"] if isinstance(message, ToolMessage)]
        assert answers[-1].startswith("42\nthink"), answers
    print("agent")


def pooled() -> None:
    with SandboxPool() as pool, pool.session("alice") as session:
        backend = E2BSandbox(sandbox=session.sandbox)
        session.files.write_text("data.csv", "x\n1\n")
        assert backend.execute("cat data.csv; exit 3").exit_code == 3
        assert backend.read("/home/user/data.csv").file_data["content"].startswith("x\n1")
        assert backend.execute("sleep 9", timeout=1).exit_code == 124
        assert backend.upload_files([("/home/user/a.bin", b"\x00\xff")])[0].error is None
        assert session.files.read_bytes("a.bin") == b"\x00\xff"
        assert [found.error for found in backend.download_files(["/home/user/none", "/home/user"])] == [
            "file_not_found",
            "is_directory",
        ]
    print("pooled")


async def pooled_async() -> None:
    async with AsyncSandboxPool() as pool, pool.session("alice") as session:
        backend = AsyncE2BSandbox(sandbox=session.sandbox)
        await session.files.write_text("data.csv", "x\n1\n")
        assert [found["path"] for found in (await backend.aglob("*.csv", "/home/user")).matches] == ["data.csv"]
        assert (await backend.agrep("1", "/home/user")).matches[0]["line"] == 2
        assert (await backend.aedit("/home/user/data.csv", "1", "2")).error is None
        assert await session.files.read_text("data.csv") == "x\n2\n"
    print("pooled, async")


agent()
pooled()
asyncio.run(pooled_async())
print("all")
