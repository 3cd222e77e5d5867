"""What running commands must do, to their end and in the background."""

from __future__ import annotations

import anyio

from sandboxkit._types import CODE_INTERPRETER, DEFAULT_ROOT
from sandboxkit.errors import (
    CommandTimeout,
    ConfigurationError,
    OutputTooLarge,
)
from sandboxkit.provider._base import Provider
from sandboxkit.testing.conformance._check import (
    check,
    must,
    raises,
    running,
)


@check
async def commands_give_their_output_and_code(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A command's output and exit code are data, by stream; it has its directory and environment."""
    async with running(provider, template) as sandbox:
        told: list[tuple[str, str]] = []
        done = await sandbox.run_command(
            "echo out; echo err >&2; exit 3",
            on_stdout=lambda m: told.append((m.stream, m.text)),
            on_stderr=lambda m: told.append((m.stream, m.text)),
        )
        must((done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n"), f"Non-zero exit is data: {done}.")
        must(sorted(told) == [("stderr", "err\n"), ("stdout", "out\n")], f"Callbacks are told: {told}.")
        await sandbox.files.make_dir(f"{DEFAULT_ROOT}/work")
        done = await sandbox.run_command('pwd; echo "$WHO"', cwd=f"{DEFAULT_ROOT}/work", envs={"WHO": "me"})
        must(done.stdout == f"{DEFAULT_ROOT}/work\nme\n", "A command has its directory and environment.")
        await raises(
            ConfigurationError, lambda: sandbox.run_command("pwd", cwd="/no/such/dir"), "A directory must be there."
        )


@check
async def commands_are_killed_at_their_limit(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """Past its limit a command raises CommandTimeout, and has been killed."""
    async with running(provider, template) as sandbox:
        error = await raises(
            CommandTimeout,
            lambda: sandbox.run_command("sleep 1; echo late > late.txt", timeout=0.3),
            "A command that goes past its limit is ended.",
        )
        must(isinstance(error, TimeoutError) and "timeout=0.3" in str(error), "The error names the limit.")
        await sandbox.run_command("sleep 1.2")
        must(not await sandbox.files.exists(f"{DEFAULT_ROOT}/late.txt"), "It does not go on.")


@check
async def commands_are_killed_when_cancelled(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A cancelled command has been killed."""
    async with running(provider, template) as sandbox:
        with anyio.move_on_after(0.3):
            await sandbox.run_command("sleep 1; echo late > late.txt")
        await sandbox.run_command("sleep 1.2")
        must(not await sandbox.files.exists(f"{DEFAULT_ROOT}/late.txt"), "A cancelled command does not go on.")


@check
async def commands_output_has_a_bound(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """More than `max_output` bytes end the command with OutputTooLarge."""
    async with running(provider, template) as sandbox:
        error = await raises(
            OutputTooLarge,
            lambda: sandbox.run_command("echo HEAD; yes", max_output=50_000, timeout=30),
            "Endless output is ended.",
        )
        must(error.head.startswith("HEAD\n") and "y\ny\n" in error.tail, "Head and tail are kept.")


@check
async def background_commands_run_on(provider: Provider, *, template: str = CODE_INTERPRETER) -> None:
    """A background command takes input, is waited for, and killed once."""
    async with running(provider, template) as sandbox:
        reader = await sandbox.start_command('read LINE; echo "got $LINE"', stdin=True)
        must(reader.pid > 0, "A command has a process id.")
        await reader.send_stdin("ping\n")
        with anyio.fail_after(20):
            done = await reader.wait()
        must((done.exit_code, done.stdout) == (0, "got ping\n"), f"It read its input: {done}.")
        must(await reader.kill() is False, "One that has ended cannot be killed.")
        sleeper = await sandbox.start_command("sleep 60")
        await raises(ConfigurationError, lambda: sleeper.send_stdin("x"), "It was not started with stdin=True.")
        must(await sleeper.kill() is True, "A running one can.")
        with anyio.fail_after(20):
            must((await sleeper.wait()).exit_code != 0, "A killed one ends with a code that is not zero.")
