"""The command `sandboxkit`: the group, its lazily loaded commands, and how errors leave it."""

from __future__ import annotations

import importlib
import os
from typing import Any

import click

from sandboxkit.errors import SandboxkitError

DISTRIBUTION = "e2b-sandboxkit"
"""The name on the package index. `sandboxkit` there is an unrelated project."""

FAILED = 125
"""Exit code of a failure of ours, apart from what the user's own program may exit with."""

INTERRUPTED = 130

# Loaded when one is called: `sandboxkit --help` must not wait for an SDK.
_COMMANDS = {
    "demo": ("sandboxkit.cli._demo", "Analyse a real data set in a sandbox on this machine."),
    "run": ("sandboxkit.cli._run", "Run FILE in a fresh sandbox: a Python program, an app, or a fragment."),
    "ls": ("sandboxkit.cli._sandboxes", "List the sandboxes of an endpoint."),
    "kill": ("sandboxkit.cli._sandboxes", "Kill sandboxes by id, or all of one pool."),
    "serve": ("sandboxkit.cli._serve", "Run the local engine until Ctrl-C, for any E2B client."),
    "doctor": ("sandboxkit.cli._doctor", "Check this machine, and say what to fix."),
    "templates": ("sandboxkit.cli._templates", "List and build the engine's templates."),
    "cache": ("sandboxkit.cli._cache", "Look after what is kept on disk."),
}


class _Commands(click.Group):
    """A group that imports a command's module when the command is called, and ends our errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SandboxkitError as error:
            if os.environ.get("SANDBOXKIT_DEBUG"):
                raise
            report(error)
            raise click.exceptions.Exit(FAILED) from None
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


def report(error: SandboxkitError) -> None:
    """Write an error to standard error: what happened in one line, and what to do in the next."""
    message = " ".join(str(error).split())
    click.echo(f"error: {message}", err=True)
    remedy = " ".join(str(getattr(error, "remedy", "") or "").split())
    if remedy and remedy not in message:
        click.echo(f"  fix: {remedy}", err=True)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"sandboxkit {version(DISTRIBUTION)}")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def main() -> None:
    """Run code that an AI wrote in E2B sandboxes: in E2B's cloud, or isolated on this machine.

    Errors end with exit code 125; SANDBOXKIT_DEBUG=1 shows where they come from.
    """
