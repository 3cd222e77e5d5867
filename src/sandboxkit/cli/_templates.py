"""`sandboxkit templates`: which templates the engine has, and building them."""

from __future__ import annotations

import collections
import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from sandboxkit.errors import TemplateNotBuilt, TemplateNotFound


@click.group()
def templates() -> None:
    """List and build the engine's templates."""


@templates.command("ls")
def list_templates() -> None:
    """List the templates of the local engine: id, state, description."""
    from sandboxkit.local import images
    from sandboxkit.template import Template

    descriptions = {template.id: template.description for template in Template.all()}
    names = images.known()
    width = max(len(name) for name in names)
    for name in names:
        try:
            state = "damaged" if images.damage(images.find(name)) else "ready"
        except TemplateNotFound:
            state = "ready"  # it has no default tag, only others
        except TemplateNotBuilt as error:
            state = "damaged" if error.is_damaged else "not built"
        click.echo(f"{name:<{width}}  {state:<9}  {descriptions.get(name, '')}".rstrip())


@templates.command("build")
@click.argument("name", metavar="NAME|DIR")
@click.option("--force", is_flag=True, help="Build it again, whatever there is; sandboxes that run keep theirs.")
@click.option("--as", "as_name", metavar="NAME[:TAG]", help="Build it under this name instead of its own.")
@click.option("--cpu", type=click.IntRange(min=1), help="CPUs of one sandbox, instead of the template's own.")
@click.option("--memory-mb", type=click.IntRange(min=128), help="Its memory in MiB, instead of the template's own.")
def build_template(name: str, force: bool, as_name: str | None, cpu: int | None, memory_mb: int | None) -> None:
    """Build a template of the library by its NAME, or the folder DIR with a template.py; what was built before is not
    built again. Safe beside another build of the same, and while sandboxes run."""
    from sandboxkit.cli._build import build_folder, find_folder
    from sandboxkit.local import images

    started = time.monotonic()
    if name in images.OWN:
        if as_name or cpu or memory_mb:
            raise click.UsageError(f"--as, --cpu and --memory-mb are not for {name}, which is the engine's own.")
        with progress(f"building {name}") as tell:
            images.build(name, force=force, on_line=tell)
        click.echo(f"{name} is ready ({time.monotonic() - started:.1f} s)")
        return
    found = find_folder(name)
    with progress(f"building {as_name or found.name}") as tell:
        versions = build_folder(found, name=as_name, cpu=cpu, memory_mb=memory_mb, force=force, on_line=tell)
    for library, version in versions.items():
        click.echo(f"  {library} {version}")
    click.echo(f"{as_name or found.name} is ready ({time.monotonic() - started:.1f} s)")


@templates.command("init")
@click.argument("name")
@click.argument("place", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def init_template(name: str, place: Path) -> None:
    """Write the files of a new template called NAME into DIR: one that builds and answers, to be changed."""
    from sandboxkit.cli._build import write_new

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,127}", name):
        raise click.UsageError(f"{name!r}: a template's name has a-z, 0-9, '.', '_' and '-'.")
    for path in write_new(name, place):
        click.echo(path)
    click.echo(f"Build it with: sandboxkit templates build {place}")


@contextlib.contextmanager
def progress(title: str, *, tail_lines: int = 15) -> Iterator[Callable[[str], object]]:
    """Show that something long goes on: one moving line on a terminal, plain lines elsewhere, both on stderr.

    A terminal shows only the newest line, so the last `tail_lines` are printed there when the work fails.
    """
    if not sys.stderr.isatty():
        click.echo(f"{title} ...", err=True)
        yield lambda line: click.echo(f"  {line}", err=True)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    tail: collections.deque[str] = collections.deque(maxlen=tail_lines)
    with console.status(title) as status:

        def tell(line: str) -> None:
            tail.append(line)
            status.update(Text(f"{title}: {line}", no_wrap=True, overflow="ellipsis"))

        try:
            yield tell
        except BaseException:
            status.stop()
            for line in tail:
                click.echo(f"  {line}", err=True)
            raise
