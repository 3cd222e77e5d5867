"""Google ADK: its own `E2BEnvironment`, and the plugin and tools of `e2b-adk` below a runner with a scripted model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

from e2b_adk import E2BPlugin
from google.adk.agents import LlmAgent
from google.adk.integrations.e2b import E2BEnvironment
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import InMemoryRunner
from google.genai import types


class Scripted(BaseLlm):
    """A model that calls `run_code` once, and then says what that printed."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        last = llm_request.contents[-1].parts[-1]
        if last.function_response is None:
            part = types.Part.from_function_call(name="run_code", args={"code": "print(6 * 7)"})
        else:
            part = types.Part.from_text(text=last.function_response.response["stdout"])
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


async def environment() -> None:
    found = E2BEnvironment(timeout=60, env_vars={"FROM": "create"})
    await found.initialize()
    try:
        done = await found.execute("echo out; echo err >&2; printf $FROM; exit 3")
        assert (done.exit_code, done.stdout, done.stderr) == (3, "out\ncreate", "err\n"), done
        await found.write_file("notes/a.bin", b"\x00\xff")
        assert await found.read_file("/home/user/notes/a.bin") == b"\x00\xff"
        assert (await found.execute("pwd")).stdout.strip() == str(found.working_dir)
        try:
            await found.read_file("none")
        except FileNotFoundError:
            pass
        else:
            raise AssertionError("a missing file was read")
        assert (await found.execute("sleep 9", timeout=1)).timed_out
        # It makes a new sandbox where the old one has ended.
        await cast(Any, found)._sandbox.kill()
        assert (await found.execute("ls notes")).exit_code == 2
    finally:
        await found.close()
    print("environment")


async def tools() -> None:
    plugin = E2BPlugin(timeout=60, envs={"FROM": "create"})
    by_name = {tool.name: tool for tool in plugin.get_tools()}

    async def call(name: str, **args: Any) -> dict[str, Any]:
        return await by_name[name].run_async(args=args, tool_context=cast(Any, None))

    try:
        # Calls of one turn come together, and share one sandbox.
        first, second = await asyncio.gather(
            call("run_code", code="x = 20; print('out')\nx + 1"), call("run_command", command="echo $FROM; exit 3")
        )
        assert (first["stdout"], first["text"], first["error"]) == ("out\n", "21", ""), first
        assert (second["stdout"], second["exit_code"]) == ("create\n", 3), second
        assert (await call("run_code", code="x * 2"))["text"] == "40"
        assert "ZeroDivisionError" in (await call("run_code", code="1 / 0"))["error"]
        assert (await call("write_file", path="site/index.html", content="hello"))["success"] is True
        assert (await call("read_file", path="site/index.html"))["content"] == "hello"
        assert (await call("list_files", path="site"))["entries"] == [{"name": "index.html", "type": "file"}]
        assert (await call("read_file", path="none"))["success"] is False
        server = await call("start_background_command", command="python3 -m http.server -d site 8000", port=8000)
        assert server["success"] is True, server
        ask = "for i in $(seq 100); do curl -s localhost:8000 && break; sleep 0.1; done"
        assert (await call("run_command", command=ask))["stdout"] == "hello"
    finally:
        await plugin.close()
    print("tools")


async def agent() -> None:
    plugin = E2BPlugin()
    agent = LlmAgent(name="coder", model=Scripted(model="scripted"), tools=[*plugin.get_tools()])
    runner = InMemoryRunner(agent=agent, plugins=[plugin])
    events = await runner.run_debug("What is 6 * 7?", quiet=True)
    assert events[-1].content.parts[0].text == "42\n", events
    await runner.close()  # closes the plugin, which kills the sandbox
    print("agent")


asyncio.run(environment())
asyncio.run(tools())
asyncio.run(agent())
print("all")
