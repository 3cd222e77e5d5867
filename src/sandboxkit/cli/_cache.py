"""`sandboxkit cache`: what lies on disk, and giving it back."""

from __future__ import annotations

import click


@click.group()
def cache() -> None:
    """Look after what is kept on disk."""


@cache.command("prune")
@click.option(
    "--keep-mib",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Keep the most recently used templates up to this size (MiB).",
)
def prune_cache(keep_mib: int) -> None:
    """Remove built templates that no sandbox uses."""
    from sandboxkit.local import images
    from sandboxkit.local._config import cache_home

    freed = images.prune(keep_mib * 1024 * 1024)
    click.echo(f"freed {freed / 1024 / 1024:.1f} MiB in {cache_home()}")
