"""`sandboxkit run`: runs one Python program in a fresh sandbox, as if it were run here; or an app, until Ctrl-C.

A program is a process of its own there (`python3 -u FILE ARGS`), not a cell of an interpreter: so it has arguments,
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
from sandboxkit.cli._what import Given, recognise
from sandboxkit.errors import CommandTimeout, ConfigurationError, SandboxkitError, UnsupportedOption

if TYPE_CHECKING:
    from sandboxkit import Session

TIMED_OUT = 124
PROGRAM_LIMIT = 300.0
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
@click.argument("file", metavar="FILE|FOLDER|FRAGMENT.json")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.option("-t", "--template", help="What the sandbox starts from. By default what FILE needs.")
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
    help="Time limit in seconds: 300 for a program, none for an app.",
)
@click.option(
    "--network",
    type=click.Choice(["deny", "packages", "internet"]),
    default="deny",
    show_default=True,
    help="What it may reach; packages are the package indexes of this machine.",
)
@click.option("--allow-install-command", is_flag=True, help="Let a fragment run the install command that it brings.")
@click.option(
    "-e", "--env", "envs", metavar="NAME=VALUE", multiple=True, callback=_pairs, help="Set a variable for it."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end instead of the output.")
def run(
    file: str,
    args: tuple[str, ...],
    template: str | None,
    session: str | None,
    endpoint: str,
    timeout: float | None,
    network: str,
    allow_install_command: bool,
    envs: dict[str, str],
    as_json: bool,
) -> None:
    """Run FILE in a fresh sandbox: a Python program ("-": from standard input), an app, or a fragment.

    A program's output is passed on as it comes. What follows FILE, after "--" where it looks like an option, are its
    arguments. Exits with the program's own code (1 on an exception), 124 on timeout, 125 on a failure of ours, 130 on
    Ctrl-C; the sandbox is killed in each case.

    A file that imports streamlit or gradio, a folder with a Next.js or Nuxt project or such an app.py, and a fragment
    as JSON become an app: its URL is printed, and its log follows until Ctrl-C.
    """
    output = _Output(quiet=as_json)
    try:
        if session is not None:
            raise UnsupportedOption(
                "--session is not supported yet: sessions end with the command that opened them.",
                option="--session",
            )
        given = recognise(file, template)
        if given is not None:
            _refuse_for_apps(args, as_json)
            code = _carry_out_app(given, endpoint, timeout, network, envs, allow_install_command)
        else:
            name, program = _read(file)
            limit = PROGRAM_LIMIT if timeout is None else timeout
            template = template or CODE_INTERPRETER
            code = _carry_out(name, program, args, template, endpoint, limit, network, envs, output)
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
    network: Any,
    envs: dict[str, str],
    output: _Output,
) -> int:
    """Run the program in a sandbox of its own, and return its exit code."""
    from sandboxkit import SandboxPool  # late: it imports the SDK, which `run --help` need not wait for

    limits = TimeoutPolicy(lifetime=timeout + MARGIN, command=timeout)
    with (
        SandboxPool(
            endpoint=endpoint, template=template, max_live=1, timeouts=limits, network=network, name="run"
        ) as pool,
        pool.session(None) as sandbox,
    ):
        output.sandbox_id = sandbox.sandbox_id
        return _run_in(sandbox, name, program, args, timeout, envs, output)


def _refuse_for_apps(args: tuple[str, ...], as_json: bool) -> None:
    for option, is_given in (("ARGS", bool(args)), ("--json", as_json)):
        if is_given:
            raise UnsupportedOption(f"{option} has no meaning for an app or a fragment.", option=option)


def _carry_out_app(
    given: Given, endpoint: Any, timeout: float | None, network: Any, envs: dict[str, str], allow_install_command: bool
) -> int:
    from sandboxkit import SandboxPool
    from sandboxkit.cli._run_app import carry_out

    template = given.fragment.template
    with (
        SandboxPool(endpoint=endpoint, template=template, max_live=1, network=network, name="run") as pool,
        pool.session(None, envs=envs or None) as session,
    ):
        return carry_out(session, given, allow_install_command=allow_install_command, timeout=timeout)


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
