"""`sandboxkit serve`: the engine in the foreground, for any E2B client."""

from __future__ import annotations

import os
import sys

import click

from sandboxkit._types import Endpoint
from sandboxkit.errors import EngineUnavailable


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="IP address to listen on.")
@click.option(
    "--port", default=0, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one."
)
@click.option(
    "--env-file",
    type=click.Path(dir_okay=False),
    help="Write the variables for E2B's SDKs here (mode 0600) once requests are answered.",
)
@click.option(
    "--isolation",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "bwrap", "gvisor"]),
    help="What holds the sandboxes.",
)
@click.option(
    "--internet",
    default="deny",
    show_default=True,
    type=click.Choice(["deny", "packages", "internet"]),
    help="What a sandbox may reach when its creator does not say, and the most that a creator may ask for.",
)
@click.option(
    "--max-sandboxes",
    default=200,
    show_default=True,
    type=click.IntRange(1),
    help="Sandboxes at once; a create past that is refused (429).",
)
@click.option(
    "--max-memory",
    type=click.IntRange(1),
    metavar="MIB",
    help="MiB that all sandboxes together may be allowed; a create past that is refused (429).  [default: no bound]",
)
@click.option(
    "--warm",
    default=2,
    show_default=True,
    type=click.IntRange(0, 200),
    help="Boxes of each built template that are kept ready for the next sandboxes, as far as memory allows.",
)
@click.option(
    "--keep/--no-keep",
    default=True,
    show_default=True,
    help="Keep paused sandboxes, snapshots and volumes on disk for the next engine.",
)
@click.option(
    "--keep-max",
    default=10_240,
    show_default=True,
    type=click.IntRange(1),
    metavar="MIB",
    help="MiB that all kept files together may take.",
)
@click.option(
    "--volume-max",
    default=10_240,
    show_default=True,
    type=click.IntRange(1),
    metavar="MIB",
    help="MiB that one volume may take; sandboxes that fill one are ended.",
)
@click.option(
    "--zygote/--no-zygote",
    default=True,
    show_default=True,
    help="Fork agents and interpreters from one loaded process for each template, where that works.",
)
def serve(
    host: str,
    port: int,
    env_file: str | None,
    isolation: str,
    internet: str,
    max_sandboxes: int,
    max_memory: int | None,
    warm: int,
    keep: bool,
    keep_max: int,
    volume_max: int,
    zygote: bool,
) -> None:
    """Run the local engine until Ctrl-C, for any E2B client.

    E2B's own SDKs talk to it once four variables are exported. They are printed, or written to --env-file; the
    key is new at each start.
    """
    if sys.platform != "linux":
        raise EngineUnavailable(f"The local engine runs on Linux only, and this is {sys.platform}.")
    from sandboxkit.local._child import serve_foreground
    from sandboxkit.local._config import EngineConfig

    config = EngineConfig(
        host=host,
        port=port,
        env_file=os.path.abspath(env_file) if env_file else None,
        isolation=isolation,  # type: ignore[arg-type]  # click's Choice is this Literal
        internet=internet,  # type: ignore[arg-type]
        max_sandboxes=max_sandboxes,
        max_memory=None if max_memory is None else max_memory * 1024 * 1024,
        warm=warm,
        zygote=zygote,
        warm_from_start=True,
        keep=keep,
        keep_bytes=keep_max * 1024 * 1024,
        volume_bytes=volume_max * 1024 * 1024,
    )

    def announce(endpoint: Endpoint) -> None:
        click.echo(f"serving E2B's API on {endpoint.api_url} (Ctrl-C ends it and its sandboxes)", err=True)
        if env_file:
            click.echo(f"variables written to {env_file}", err=True)
            return
        for name, value in (
            ("E2B_API_KEY", endpoint.api_key),
            ("E2B_API_URL", endpoint.api_url),
            ("E2B_SANDBOX_URL", endpoint.sandbox_url),
            ("E2B_VOLUME_API_URL", endpoint.api_url),
        ):
            click.echo(f"export {name}='{value}'")
        sys.stdout.flush()

    sys.exit(serve_foreground(config, on_ready=announce))
