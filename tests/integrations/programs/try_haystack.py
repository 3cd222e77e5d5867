"""Haystack: the four tools of `E2BToolset`, alone and below an agent whose model says what it is told to say."""

from __future__ import annotations

from haystack.components.agents import Agent
from haystack.components.generators.chat import MockChatGenerator
from haystack.dataclasses import ChatMessage, ToolCall
from haystack.tools.errors import ToolInvocationError
from haystack_integrations.tools.e2b import E2BToolset


def alone() -> None:
    toolset = E2BToolset(environment_vars={"FROM": "create"})
    tools = {tool.name: tool for tool in toolset}
    toolset.warm_up()
    try:
        run = tools["run_bash_command"].invoke
        assert run(command="echo out; echo err >&2; exit 3") == "exit_code: 3\nstdout:\nout\n\nstderr:\nerr\n"
        assert run(command="printf %s $FROM") == "exit_code: 0\nstdout:\ncreate\nstderr:\n"
        tools["write_file"].invoke(path="notes/a.txt", content="grün\n")
        assert tools["read_file"].invoke(path="/home/user/notes/a.txt") == "grün\n"
        run(command="mkdir notes/deeper")
        # It means to end directories with a slash, and with this SDK does not.
        listed = tools["list_directory"].invoke(path="notes").splitlines()
        assert sorted(name.rstrip("/") for name in listed) == ["a.txt", "deeper"]
        for name, given in [
            ("read_file", {"path": "none"}),
            ("run_bash_command", {"command": "sleep 9", "timeout": 1}),
        ]:
            try:
                tools[name].invoke(**given)
            except ToolInvocationError:
                continue
            raise AssertionError(f"{name} did not fail")
    finally:
        toolset.close()
    print("alone")


def agent() -> None:
    toolset = E2BToolset.from_dict(E2BToolset().to_dict())
    call = ToolCall(tool_name="run_bash_command", arguments={"command": "python3 -c 'print(6 * 7)'"}, id="1")
    said = [ChatMessage.from_assistant(tool_calls=[call]), "done"]
    agent = Agent(chat_generator=MockChatGenerator(said), tools=toolset)
    try:
        messages = agent.run(messages=[ChatMessage.from_user("What is 6 * 7?")])["messages"]
        (answer,) = [message.tool_call_result for message in messages if message.tool_call_result is not None]
        assert (answer.result, answer.error) == ("exit_code: 0\nstdout:\n42\n\nstderr:\n", False), answer
    finally:
        toolset.close()
    print("agent")


alone()
agent()
print("all")
