"""What running code must do: results, limits, interruption, a kernel that dies."""

from __future__ import annotations

import anyio
import anyio.lowlevel

from sandboxkit._types import CODE_INTERPRETER, DEFAULT_ROOT, OutputMessage, Result
from sandboxkit.errors import (
    CodeTimeout,
    ConfigurationError,
    KernelDied,
    OutputTooLarge,
    SandboxLost,
)
from sandboxkit.provider._base import Provider
from sandboxkit.testing.conformance._check import (
    check,
    must,
    raises,
    running,
)


@check
async def code_keeps_its_state(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Variables live from run to run; the last expression is the main result; runs are counted."""
    async with running(provider, template) as sandbox:
        first = await sandbox.run_code("x = 20")
        must(first.text is None and first.error is None, "A statement has no result.")
        second = await sandbox.run_code("print('out')\nx + 1")
        must(second.text == "21", "Variables live on, and the last expression is the result.")
        must(second.stdout == "out\n" and second.stderr == "", "Standard output is in the result.")
        must((await sandbox.run_code("'text'")).text == "text", "The text of a string has no quotes, as E2B's.")
        must(isinstance(second.count, int) and second.count > (first.count or 0), "Runs are counted.")


@check
async def code_exceptions_are_data(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """An exception in the code is data in the result, and so is a syntax error; output before it is kept."""
    async with running(provider, template) as sandbox:
        ran = await sandbox.run_code("import sys\nprint('before')\nsys.stderr.write('oops\\n')\n1 / 0")
        must(ran.error is not None and ran.error.name == "ZeroDivisionError", "An exception is data in the result.")
        assert ran.error is not None
        must("division by zero" in ran.error.value, "Its value is told.")
        must("ZeroDivisionError" in ran.error.traceback, "Its traceback is told.")
        must(ran.stdout == "before\n" and "oops" in ran.stderr, "Output before the exception is kept, by stream.")
        broken = await sandbox.run_code("def (")
        must(broken.error is not None and broken.error.name == "SyntaxError", "A syntax error is data, too.")


@check
async def code_tells_callbacks_in_order(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Callbacks get the output and the results in order, and what they return is awaited if it can be."""
    told: list[str] = []

    async def on_result(result: Result) -> None:
        await anyio.lowlevel.checkpoint()
        told.append(f"result {result.text}")

    def on_stdout(message: OutputMessage) -> None:
        must(message.stream == "stdout", "A message names its stream.")
        told.append(message.text)

    async with running(provider, template) as sandbox:
        await sandbox.run_code("for n in range(3):\n    print(n)\n'last'", on_stdout=on_stdout, on_result=on_result)
    must("".join(told) == "0\n1\n2\nresult last", f"Callbacks are called in order, and awaited: {told}.")


@check
async def code_ends_with_a_callbacks_exception(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A callback that raises ends the run with its exception; the sandbox serves the next run."""

    class Mine(Exception):
        pass

    def refuse(message: OutputMessage) -> None:
        raise Mine(message.text)

    async with running(provider, template) as sandbox:
        await raises(
            Mine,
            lambda: sandbox.run_code("while True:\n    print('x')", on_stdout=refuse, timeout=20),
            "A callback's exception ends the run.",
        )
        must((await sandbox.run_code("1 + 1", timeout=20)).text == "2", "The next run is served.")


@check
async def code_is_interrupted_at_its_limit(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Past its limit a run is interrupted and raises CodeTimeout; variables are kept."""
    async with running(provider, template) as sandbox:
        await sandbox.run_code("kept = 7")
        started = anyio.current_time()
        error = await raises(
            CodeTimeout,
            lambda: sandbox.run_code("while True:\n    pass", timeout=0.5),
            "A run that goes past its limit is ended.",
        )
        must(anyio.current_time() - started < 5, "The limit holds by the wall clock.")
        must(isinstance(error, TimeoutError) and "timeout=0.5" in str(error), "The error names the limit.")
        must(error.sandbox_id == sandbox.sandbox_id, "The error names the sandbox.")
        must((await sandbox.run_code("kept", timeout=20)).text == "7", "The run was interrupted, the kernel lives.")


@check
async def code_is_interrupted_when_cancelled(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A cancelled run is interrupted."""
    async with running(provider, template) as sandbox:
        started = anyio.Event()
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await sandbox.run_code(
                    "print('started')\nwhile True:\n    pass", on_stdout=lambda _: started.set(), timeout=60
                )

            group.start_soon(run)
            with anyio.fail_after(20):
                await started.wait()
            group.cancel_scope.cancel()
        must((await sandbox.run_code("'free'", timeout=20)).text == "free", "The next run is not kept waiting.")


@check
async def code_output_has_a_bound(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """More than `max_output` bytes end the run with OutputTooLarge, which keeps the head and the tail."""
    async with running(provider, template) as sandbox:
        error = await raises(
            OutputTooLarge,
            lambda: sandbox.run_code(
                "print('HEAD')\nwhile True:\n    print('x' * 1000)", max_output=50_000, timeout=30
            ),
            "Endless output is ended.",
        )
        must(error.head.startswith("HEAD\n"), "`head` is the beginning.")
        must(len(error.head) + len(error.tail) <= 50_000, "No more than the bound is kept.")
        must("x" in error.tail, "`tail` is the end.")
        must((await sandbox.run_code("1", timeout=20)).text == "1", "The run was interrupted.")


@check
async def code_tells_of_a_dead_kernel(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A kernel that dies raises KernelDied; the next run has a new one, and files are still there."""
    async with running(provider, template) as sandbox:
        await sandbox.files.write(f"{DEFAULT_ROOT}/kept.txt", b"kept")
        await sandbox.run_code("x = 1")
        error = await raises(
            KernelDied, lambda: sandbox.run_code("import os\nos._exit(3)", timeout=30), "A dead kernel is told of."
        )
        must(error.sandbox_id == sandbox.sandbox_id, "The error names the sandbox.")
        again = await sandbox.run_code("'x' in globals()", timeout=30)
        must(again.text == "False", "The next run has a new interpreter.")
        must(await sandbox.files.read(f"{DEFAULT_ROOT}/kept.txt") == b"kept", "Files outlive the interpreter.")


@check
async def code_has_an_environment_of_its_own(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """`envs` of a run are seen by that run only."""
    async with running(provider, template) as sandbox:
        ask = "import os\nos.environ.get('ONCE')"
        must((await sandbox.run_code(ask, envs={"ONCE": "1"})).text == "1", "The run sees its environment.")
        must((await sandbox.run_code(ask)).text is None, "The next run does not.")


@check
async def restart_forgets_variables(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """restart() forgets variables and keeps files; an unknown context is a ConfigurationError."""
    async with running(provider, template) as sandbox:
        await sandbox.run_code("x = 1")
        await sandbox.files.write(f"{DEFAULT_ROOT}/kept.txt", b"kept")
        await sandbox.restart()
        must((await sandbox.run_code("'x' in globals()")).text == "False", "Variables are gone.")
        must(await sandbox.files.exists(f"{DEFAULT_ROOT}/kept.txt"), "Files are there.")
        unknown = "00000000-0000-0000-0000-000000000000"
        await raises(ConfigurationError, lambda: sandbox.restart(unknown), "There is no such context.")
        await raises(ConfigurationError, lambda: sandbox.run_code("1", context=unknown), "There is no such context.")


@check
async def code_fails_when_the_sandbox_goes(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A sandbox that goes away in the middle of a run raises SandboxLost, and so does the next run."""
    async with running(provider, template) as sandbox:
        failures: list[BaseException] = []
        started = anyio.Event()

        async def run() -> None:
            try:
                await sandbox.run_code(
                    "print('started')\nwhile True:\n    pass", timeout=60, on_stdout=lambda _: started.set()
                )
            except Exception as error:
                failures.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            with anyio.fail_after(20):
                await started.wait()
            must(await sandbox.kill(), "kill() tells that it killed.")
        must(
            len(failures) == 1 and isinstance(failures[0], SandboxLost),
            f"A run whose sandbox goes away raises SandboxLost: {failures}.",
        )
        await raises(SandboxLost, lambda: sandbox.run_code("1"), "A run in a sandbox that is gone fails.")
        await raises(SandboxLost, lambda: sandbox.run_command("true"), "So does a command.")
        await raises(SandboxLost, lambda: sandbox.start_command("true"), "So does a start.")
