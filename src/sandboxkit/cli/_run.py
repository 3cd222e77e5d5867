"""`sandboxkit run`: runs one Python program in a fresh sandbox, as if it were run here.

The program is a process of its own there (`python3 -u FILE ARGS`), not a cell of an interpreter: so it has arguments,
a standard error, a traceback like any other, and above all an exit code, which becomes ours. Standard input is empty.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxkit._types import CODE_INTERPRETER, OutputMessage, TimeoutPolicy
from sandboxkit.cli import FAILED, INTERRUPTED, report
from sandboxkit.errors import CommandTimeout, ConfigurationError, SandboxkitError, UnsupportedOption

if TYPE_CHECKING:
    from sandboxkit import Session

TIMED_OUT = 124
MAX_OUTPUT = 256 * 1024 * 1024
"""Bytes that a program may print. They pass through as they come, but are held until it ends, so there is a bound."""
MARGIN = 120.0
"""Seconds that the sandbox outlives the program's time limit: for its creation, the upload, and the end."""


class _UsageError(click.UsageError):
    """A usage error that is a failure of ours: click's own exit code, 2, may be the program's."""

    exit_code = FAILED


class _Command(click.Command):
    """A command whose usage errors end with our exit code."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise _UsageError(error.format_message(), ctx=ctx) from None


def _pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, separator, text = value.partition("=")
        if not (name and separator):
            raise click.BadParameter("NAME=VALUE is needed.")
        pairs[name] = text
    return pairs


@click.command(cls=_Command)
@click.argument("file", metavar="FILE")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-t", "--template", default=CODE_INTERPRETER, show_default=True, help="What the sandbox starts from.")
@click.option("--session", help="Go on in the sandbox of an earlier run (not supported yet).")
@click.option(
    "--endpoint",
    "--engine",
    type=click.Choice(["auto", "e2b", "local"]),
    default="auto",
    show_default=True,
    help="Where: auto is E2B where E2B_API_KEY is set, else the engine on this machine.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=300.0,
    show_default=True,
    help="Time limit in seconds.",
)
@click.option(
    "-e", "--env", "envs", metavar="NAME=VALUE", multiple=True, callback=_pairs, help="Set a variable for it."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of the output.")
def run(
    file: str,
    args: tuple[str, ...],
    template: str,
    session: str | None,
    endpoint: str,
    timeout: float,
    envs: dict[str, str],
    as_json: bool,
) -> None:
    """Run the Python program FILE ("-": from standard input) in a fresh sandbox.

    Its output is passed on as it comes. What follows FILE, after "--" where it looks like an option, are its
    arguments. Exits with the program's own code (1 on an exception), 124 on timeout, 125 on a failure of ours, 130 on
    Ctrl-C; the sandbox is killed in each case.
    """
    output = _Output(quiet=as_json)
    try:
        if session is not None:
            raise UnsupportedOption(
                "--session is not supported yet: sessions end with the command that opened them.",
                option="--session",
            )
        name, program = _read(file)
        code = _carry_out(name, program, args, template, endpoint, timeout, envs, output)
    except CommandTimeout as error:
        code = output.fail(TIMED_OUT, error)
    except SandboxkitError as error:
        code = output.fail(FAILED, error)
    except KeyboardInterrupt:
        if not as_json:
            raise
        code = INTERRUPTED
    if as_json:
        click.echo(json.dumps(output.summary(code)))
    raise click.exceptions.Exit(code)


def _carry_out(
    name: str,
    program: bytes,
    args: tuple[str, ...],
    template: str,
    endpoint: Any,
    timeout: float,
    envs: dict[str, str],
    output: _Output,
) -> int:
    """Run the program in a sandbox of its own, and return its exit code."""
    from sandboxkit import SandboxPool  # late: it imports the SDK, which `run --help` need not wait for

    limits = TimeoutPolicy(lifetime=timeout + MARGIN, command=timeout)
    with (
        SandboxPool(endpoint=endpoint, template=template, max_live=1, timeouts=limits, name="run") as pool,
        pool.session(None) as sandbox,
    ):
        output.sandbox_id = sandbox.sandbox_id
        return _run_in(sandbox, name, program, args, timeout, envs, output)


def _run_in(
    sandbox: Session,
    name: str,
    program: bytes,
    args: tuple[str, ...],
    timeout: float,
    envs: dict[str, str],
    output: _Output,
) -> int:
    sandbox.files.write(name, program)
    path = f"{sandbox.files.root}/{name}"
    output.started_at = time.monotonic()
    done = sandbox.run_command(
        # With a command after it the shell stays, and says 128 + N for a signal, where E2B's own answer is -1.
        f"{shlex.join(['python3', '-u', path, *args])}\nexit $?",
        timeout=timeout,
        envs=envs,
        on_stdout=output.take,
        on_stderr=output.take,
        max_output=MAX_OUTPUT,
    )
    return done.exit_code & 0xFF


def _read(file: str) -> tuple[str, bytes]:
    """The program's name in the sandbox, and its bytes.

    Raises:
        ConfigurationError: it cannot be read.
        UnsupportedOption: its suffix says another language.
    """
    if file == "-":
        if sys.stdin is None:
            raise ConfigurationError("Standard input is closed, and FILE '-' reads the program from it.")
        return "stdin.py", sys.stdin.buffer.read()
    path = Path(file)
    if path.suffix not in ("", ".py", ".pyw"):
        raise UnsupportedOption(
            f"{file}: only Python programs can be run yet, not {path.suffix!r} files.", option="FILE"
        )
    try:
        return path.name, path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from error


@dataclass(slots=True)
class _Output:
    """Passes the program's output on, or keeps it for the JSON object."""

    quiet: bool
    sandbox_id: str | None = None
    started_at: float | None = None
    error: SandboxkitError | None = None
    kept: dict[str, list[str]] = field(default_factory=lambda: {"stdout": [], "stderr": []})

    def take(self, message: OutputMessage) -> None:
        if self.quiet:
            self.kept[message.stream].append(message.text)
            return
        click.echo(message.text, nl=False, err=message.stream == "stderr")

    def fail(self, code: int, error: SandboxkitError) -> int:
        self.error = error
        if not self.quiet:
            report(error)
        return code

    def summary(self, code: int) -> dict[str, Any]:
        """What --json prints."""
        duration = None if self.started_at is None else round(time.monotonic() - self.started_at, 3)
        error = None if self.error is None else {"code": self.error.code, "message": str(self.error)}
        texts = {name: "".join(pieces) for name, pieces in self.kept.items()}
        return {"exit_code": code, **texts, "sandbox_id": self.sandbox_id, "duration": duration, "error": error}
