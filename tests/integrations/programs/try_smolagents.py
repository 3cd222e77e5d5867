"""smolagents: `E2BExecutor` alone, and below a `CodeAgent` whose model says what it is told to say."""

from __future__ import annotations

from smolagents import ChatMessage, CodeAgent, Model, tool
from smolagents.monitoring import AgentLogger, LogLevel
from smolagents.remote_executors import E2BExecutor
from smolagents.utils import AgentError


class Scripted(Model):
    """A model that answers with the next of its lines."""

    def __init__(self, *lines: str) -> None:
        super().__init__()
        self.lines = iter(lines)

    def generate(self, messages, **kwargs) -> ChatMessage:
        return ChatMessage(role="assistant", content=next(self.lines))


@tool
def double(number: int) -> int:
    """Double a number.

    Args:
        number: what is doubled
    """
    return number * 2


def executor() -> None:
    found = E2BExecutor([], AgentLogger(level=LogLevel.OFF), timeout=120, envs={"FROM": "create"})
    try:
        first = found("x = 20; print('hello')\nx + 1")
        assert (str(first.output), first.logs, first.is_final_answer) == ("21", "hello\n", False), first
        assert str(found("x * 2").output) == "40"
        assert "create" in str(found("import os; os.environ['FROM']").output)
        try:
            found("1 / 0")
        except AgentError as error:
            said = error.message
        assert "ZeroDivisionError" in said, said
        found.send_variables({"given": [1, {"a": 2.5}]})
        assert str(found("given[1]['a']").output) == "2.5"
        picture = found("import matplotlib.pyplot as plt; _ = plt.plot([1, 2]); plt.gcf()")
        assert picture.output.size[0] > 100, picture
    finally:
        found.cleanup()
    print("executor")


def agent() -> None:
    model = Scripted(
        "Thought: use the tool.\n<code>\ny = double(21)\nprint(y)\n</code>",
        "Thought: done.\n<code>\nfinal_answer({'value': y, 'kind': type(y).__name__})\n</code>",
    )
    with CodeAgent(tools=[double], model=model, executor_type="e2b", verbosity_level=LogLevel.OFF) as found:
        assert found.run("Double 21.") == {"value": 42, "kind": "int"}
    print("agent")


executor()
agent()
print("all")
