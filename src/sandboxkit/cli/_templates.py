"""`sandboxkit templates`: which templates the engine has, and building them."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

from sandboxkit.errors import TemplateNotBuilt


@click.group()
def templates() -> None:
    """List and build the engine's templates."""


@templates.command("ls")
def list_templates() -> None:
    """List the templates of the local engine: id, state, description."""
    from sandboxkit.local import images
    from sandboxkit.template import Template

    descriptions = {template.id: template.description for template in Template.all()}
    width = max(len(name) for name in images.known())
    for name in images.known():
        try:
            state = "damaged" if images.damage(images.find(name)) else "ready"
        except TemplateNotBuilt as error:
            state = "damaged" if error.is_damaged else "not built"
        click.echo(f"{name:<{width}}  {state:<9}  {descriptions.get(name, '')}".rstrip())


@templates.command("build")
@click.argument("name")
@click.option("--force", is_flag=True, help="Build it again, whatever there is; sandboxes that run keep theirs.")
def build_template(name: str, force: bool) -> None:
    """Build a template once; the next call finds it, and builds again only what is damaged. Safe beside another build
    of the same, and while sandboxes run."""
    from sandboxkit.local import images

    started = time.monotonic()
    with progress(f"building {name}") as tell:
        images.build(name, force=force, on_line=tell)
    click.echo(f"{name} is ready ({time.monotonic() - started:.1f} s)")


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
