"""`sandboxkit doctor`: one line per check of this machine, with the fix."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from sandboxkit.cli import DISTRIBUTION
from sandboxkit.errors import SandboxkitError, TemplateNotBuilt

Status = Literal["ok", "info", "warn", "fail"]

TESTED = {"e2b": ((2, 61), (3,)), "e2b-code-interpreter": ((2, 11, 5), (3,))}
"""The SDK versions that the tests run with: from, and before. The same as in pyproject.toml."""

GIB = 1024**3
SPACE_NEEDED, SPACE_WANTED = GIB // 2, 2 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the report. `fix` says what to do where the status is `warn` or `fail`."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of {name, status, detail, fix}.")
def doctor(as_json: bool) -> None:
    """Check this machine, and say what to fix. Exits with 1 when something is in the way.

    A check is ok, info, warn (works, with less) or fail (in the way).
    """
    lines = list(examine())
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
    else:
        for line in lines:
            click.echo(f"{line.status:<4}  {line.name}: {line.detail}" + (f" -> {line.fix}" if line.fix else ""))
    sys.exit(1 if any(line.status == "fail" for line in lines) else 0)


def examine() -> Iterator[Line]:
    """Make every check, in the order of what depends on what."""
    yield _python()
    yield from _packages()
    yield _endpoint()
    yield from _proxy()
    if sys.platform != "linux":
        yield Line(
            name="engine",
            status="warn",
            detail=f"the local engine runs on Linux only, and this is {sys.platform}",
            fix="use E2B (set E2B_API_KEY), or a Linux machine",
        )
        return
    yield _extra()
    yield from _isolation()
    yield _network()
    yield _installer()
    yield _space()
    yield _template()


def _python() -> Line:
    return Line(name="python", status="ok", detail=f"{platform.python_version()} ({sys.executable})")


def _packages() -> Iterator[Line]:
    for name, (least, below) in TESTED.items():
        shown = f">={'.'.join(map(str, least))},<{'.'.join(map(str, below))}"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Line(name=name, status="fail", detail="not installed", fix=f"install '{name}{shown}'")
            continue
        if least <= _numbers(found) < below:
            yield Line(name=name, status="ok", detail=found)
        else:
            yield Line(name=name, status="warn", detail=f"{found} is untested", fix=f"install '{name}{shown}'")
    try:
        foreign = importlib.metadata.version("sandboxkit")
    except importlib.metadata.PackageNotFoundError:
        yield Line(name="name clash", status="ok", detail="no other package called sandboxkit is installed")
        return
    yield Line(
        name="name clash",
        status="fail",
        detail=f"the unrelated package sandboxkit {foreign} writes into the same folder",
        fix=f"uninstall sandboxkit, then reinstall {DISTRIBUTION}",
    )


def _endpoint() -> Line:
    if os.environ.get("E2B_API_KEY"):
        return Line(name="endpoint", status="info", detail="E2B_API_KEY is set: pools use E2B unless told otherwise")
    return Line(name="endpoint", status="info", detail="no E2B_API_KEY: pools use the engine on this machine")


def _proxy() -> Iterator[Line]:
    from sandboxkit.provider._proxy import EXEMPT, exemptions, proxy_variables

    if exemptions(os.environ, EXEMPT[:2]) is not None:
        yield Line(
            name="proxy",
            status="info",
            detail=f"{', '.join(proxy_variables(os.environ))} is set, and NO_PROXY lacks this machine: pools see to it "
            "themselves, other clients of the engine do not",
            fix=f"export NO_PROXY={','.join(EXEMPT[:2])} no_proxy={','.join(EXEMPT[:2])}",
        )


def _extra() -> Line:
    missing = [name for name in ("starlette", "uvicorn", "httptools") if importlib.util.find_spec(name) is None]
    if missing:
        return Line(
            name="engine's packages",
            status="fail",
            detail=f"missing: {', '.join(missing)}",
            fix=f"install the extra `local` ({DISTRIBUTION}[local])",
        )
    return Line(name="engine's packages", status="ok", detail="installed")


def _isolation() -> Iterator[Line]:
    from sandboxkit.local.isolation._doctor import checks

    for check in checks():
        yield Line(name=check.name, status=check.status, detail=check.detail, fix=check.fix)


def _network() -> Line:
    """What `packages` would let through, from this machine's own settings."""
    from sandboxkit.local.indexes import learn, read_settings, with_defaults

    found = learn(with_defaults(read_settings()))
    hosts = ", ".join(f"{host}:{port}" for host, port in sorted(found.endpoints))
    notes = f" (left out: {'; '.join(found.left_out)})" if found.left_out else ""
    modes = "deny by default; packages, internet and rules where asked for; "
    if not hosts:
        return Line(
            name="network",
            status="warn",
            detail=f"{modes}packages has nothing to let through{notes}",
            fix="configure an index for pip, uv or npm that sandboxes may know: no credentials, not on loopback",
        )
    behind = next(
        (name for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy") if os.environ.get(name)), None
    )
    if behind:
        return Line(
            name="network",
            status="warn",
            detail=f"{modes}{behind} is set, and the engine does not go through other proxies",
            fix="give this machine a direct way to the package indexes, or leave sandboxes at deny",
        )
    return Line(
        name="network",
        status="ok" if found.is_whole else "warn",
        detail=f"{modes}packages is {hosts}{notes}",
        fix="" if found.is_whole else "see whether the index answers from here",
    )


def _installer() -> Line:
    for name in ("uv", "pip"):
        if shutil.which(name) or importlib.util.find_spec(name):
            return Line(name="installer", status="ok", detail=name)
    return Line(
        name="installer",
        status="warn",
        detail="neither uv nor pip: templates cannot be built",
        fix=f"{sys.executable} -m ensurepip",
    )


def _space() -> Line:
    from sandboxkit.local._config import cache_home

    home = cache_home()
    place = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{free / GIB:.1f} GiB free for {home}"
    fix = "make room, or set SANDBOXKIT_HOME to a larger disk; `sandboxkit cache prune` frees what is not in use"
    if not os.access(place, os.W_OK):
        return Line(
            name="cache",
            status="fail",
            detail=f"{place} cannot be written",
            fix="set SANDBOXKIT_HOME to a directory of yours",
        )
    if free < SPACE_NEEDED:
        return Line(name="cache", status="fail", detail=detail, fix=fix)
    if free < SPACE_WANTED:
        return Line(name="cache", status="warn", detail=detail, fix=fix)
    return Line(name="cache", status="ok", detail=detail)


def _template() -> Line:
    from sandboxkit.local import images

    name = "code-interpreter-v1"
    try:
        built = images.find(name)
    except TemplateNotBuilt as error:
        if error.is_damaged:
            return Line(name=name, status="fail", detail=str(error), fix=images.rebuild_command(name))
        return Line(name=name, status="warn", detail="not built yet", fix=f"sandboxkit templates build {name}")
    except SandboxkitError as error:
        return Line(name=name, status="fail", detail=str(error), fix=f"reinstall {DISTRIBUTION}")
    if (wrong := images.damage(built)) is not None:
        return Line(name=name, status="fail", detail=f"damaged: {wrong}", fix=images.rebuild_command(name))
    where = Path(built.layers[0].source).name if built.layers else "nothing"
    return Line(name=name, status="ok", detail=f"built ({where}, Python {built.python})")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: enough to compare with a range of releases."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
