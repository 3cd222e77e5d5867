"""`sandboxkit ls` and `sandboxkit kill`: the sandboxes of an endpoint, by id or by pool."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import click

if TYPE_CHECKING:
    from sandboxkit._types import SandboxInfo
    from sandboxkit.provider._base import Provider

T = TypeVar("T")

endpoint_option = click.option(
    "--endpoint",
    type=click.Choice(["auto", "e2b", "local"]),
    default="auto",
    show_default=True,
    help="Where: auto is what SANDBOXKIT_ENDPOINT names, E2B where E2B_API_KEY is set, else this machine's engine.",
)


@click.command("ls")
@click.option("--pool", metavar="NAME", help="Only those of pools with this name.")
@endpoint_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, with all metadata.")
def ls(pool: str | None, endpoint: str, as_json: bool) -> None:
    """List the sandboxes of an endpoint: id, state, template, age, pool, session.

    Paused ones are listed, too. The engine that a program has started for itself is known to that program alone; one
    that runs by `sandboxkit serve --env-file F` is named by SANDBOXKIT_ENDPOINT=F.
    """
    found = _with_provider(endpoint, lambda provider: _found(provider, pool))
    if as_json:
        for info in found:
            click.echo(json.dumps(_fields(info)))
        return
    rows = [_row(info) for info in found]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@click.command("kill")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "is_all", is_flag=True, help="Kill all of the pool that --pool names.")
@click.option("--pool", metavar="NAME", help="With --all: the pool's name.")
@endpoint_option
def kill(ids: tuple[str, ...], is_all: bool, pool: str | None, endpoint: str) -> None:
    """Kill sandboxes by id, or all of one pool.

    Prints the ids of those that are gone by it. Whoever uses them loses them: this asks no pool. Exits with 1 if one
    of the IDs was not there.
    """
    if bool(ids) == is_all or is_all != (pool is not None):
        raise click.UsageError("Name sandboxes by id, or a pool with --all --pool NAME.")
    killed = _with_provider(endpoint, lambda provider: _killed(provider, ids, pool))
    for sandbox_id in killed:
        click.echo(sandbox_id)
    missing = [sandbox_id for sandbox_id in ids if sandbox_id not in killed]
    for sandbox_id in missing:
        click.echo(f"{sandbox_id} was not found", err=True)
    if missing:
        raise click.exceptions.Exit(1)


def _with_provider(endpoint: Any, work: Callable[[Provider], Awaitable[T]]) -> T:
    """Carry something out at an endpoint."""
    from sandboxkit.provider._endpoint import open_provider  # late: it imports the SDK

    async def main() -> T:
        provider = open_provider(endpoint)
        try:
            return await work(provider)
        finally:
            await provider.aclose()

    return anyio.run(main)


async def _found(provider: Provider, pool: str | None) -> list[SandboxInfo]:
    from sandboxkit.pool import _tags  # late: the package imports the SDK's part

    found = [info async for info in provider.list(metadata=None if pool is None else {_tags.POOL: pool})]
    return sorted(found, key=lambda info: (info.started_at, info.sandbox_id))


async def _killed(provider: Provider, ids: tuple[str, ...], pool: str | None) -> list[str]:
    wanted = ids if pool is None else [info.sandbox_id for info in await _found(provider, pool)]
    return [sandbox_id for sandbox_id in dict.fromkeys(wanted) if await provider.kill(sandbox_id)]


def _row(info: SandboxInfo) -> tuple[str, ...]:
    from sandboxkit.pool import _tags

    age = int((datetime.now(UTC) - info.started_at).total_seconds())
    told = info.metadata.get
    # Names come from other programs, and must not move the cursor of whoever reads them.
    session = told(_tags.SESSION)
    texts = (info.sandbox_id, info.state, info.template, f"{age} s", told(_tags.POOL, "-"))
    return (*(text if text.isprintable() else ascii(text) for text in texts), ascii(session) if session else "-")


def _fields(info: SandboxInfo) -> dict[str, Any]:
    return {
        "sandbox_id": info.sandbox_id,
        "state": info.state,
        "template": info.template,
        "started_at": info.started_at.isoformat(),
        "end_at": info.end_at.isoformat(),
        "metadata": dict(info.metadata),
    }
