"""`sandboxkit run` of a web app or a fragment: the steps as they are taken, the URL, then the log until Ctrl-C."""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import time
from typing import TYPE_CHECKING, Any

import click
import httpx
from rich.console import Console
from rich.text import Text

from sandboxkit.cli import FAILED, report
from sandboxkit.cli._what import Given
from sandboxkit.errors import FragmentError, NotFound
from sandboxkit.runner._inside import ending, finding, read_groups
from sandboxkit.template import Template

if TYPE_CHECKING:
    from sandboxkit import App, Event, FragmentResult, Session

LOG = "/tmp/.sandboxkit/app.log"
PACE = 0.5
ASK_EVERY = 5.0
"""Seconds between two questions whether the app is still there."""
PIECE = 64 * 1024
ENDED = 1
TIMED_OUT = 124


class Steps:
    """Shows steps on standard error; what an installer says goes between them."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def show(self, event: Event) -> None:
        """Show one event of a fragment."""
        if event.name == "fragment.step":
            self._console.print(Text(f"{event.data['step']:>8}", "bold cyan"), Text(str(event.data["detail"])[:200]))
        elif event.name == "fragment.log":
            # It comes from inside: as text, without what a terminal would act on.
            self._console.print(Text(printable(event.data["text"]).rstrip("\n"), "dim"))

    def say(self, text: str) -> None:
        """A line of ours."""
        self._console.print(Text(text))

    def tail(self, error: FragmentError) -> None:
        """The end of the log that an error carries."""
        log = str(getattr(error, "log_tail", "") or "")
        if log.strip():
            self._console.print(Text(printable(log).rstrip("\n"), "dim"))


def carry_out(session: Session, given: Given, *, allow_install_command: bool, timeout: float | None) -> int:
    """Carry it out in a session, and follow its app until it ends, or Ctrl-C. Returns the exit code."""
    steps = Steps()
    try:
        if given.replaces:
            _make_room(session, given)
        for name, data in given.files.items():
            session.files.write_bytes(name, data)
        result: Any = None
        for event in session.stream(given.fragment, allow_install_command=allow_install_command):
            steps.show(event)
            result = event.data.get("result", result)
    except FragmentError as error:
        steps.tail(error)
        report(error)
        if near := sorted(given.beside.intersection(getattr(error, "dependencies", ()))):
            steps.say(f"Beside the file there is {', '.join(near)}: run the folder, and it is taken along.")
        return FAILED
    if result.app is None:
        return _show(result)
    click.echo(result.app.browser_url)
    if result.app.url != result.app.browser_url:
        steps.say(f"For programs: {result.app.url}")
    steps.say("Ctrl-C stops it.")
    return _follow(session, result.app, timeout)


def _make_room(session: Session, given: Given) -> None:
    """Remove what a project takes the place of, and end the server that has begun with it: it would not look again."""
    start = Template.get(given.fragment.template).start
    if start is not None:
        line, envs = finding(start)
        if groups := read_groups(session.run_command(line, envs=envs).stdout):
            session.run_command(ending(groups))
    for path in given.replaces:
        with contextlib.suppress(NotFound):
            session.files.remove(path)


def _show(result: FragmentResult[Any]) -> int:
    """What a fragment's code did, as a program's end."""
    done = result.execution
    assert done is not None
    click.echo(printable(done.stdout), nl=False)
    click.echo(printable(done.stderr), nl=False, err=True)
    if done.error is not None:
        click.echo(printable(done.error.traceback), err=True)
        return ENDED
    if done.text is not None:
        click.echo(printable(done.text))
    return 0


def _follow(session: Session, app: App, timeout: float | None) -> int:
    """Pass the log on while the app is there; each look prolongs the sandbox's life."""
    since, asked_at, started_at = 0, time.monotonic(), time.monotonic()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while timeout is None or time.monotonic() - started_at < timeout:
        data = _log_since(session, since)
        since += len(data)
        if text := decoder.decode(data):
            click.echo(printable(text), nl=False, err=True)
        if time.monotonic() - asked_at > ASK_EVERY:
            asked_at = time.monotonic()
            if not data and not _is_there(app.url):
                click.echo("The app has ended.", err=True)
                return ENDED
        if len(data) < PIECE:
            time.sleep(PACE)
    click.echo(f"Stopped after {timeout:g} s (--timeout).", err=True)
    return TIMED_OUT


def _log_since(session: Session, since: int) -> bytes:
    done = session.run_command(f"tail -c +{since + 1} {LOG} 2>/dev/null | head -c {PIECE} | base64 -w0")
    try:
        return base64.b64decode(done.stdout.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_there(url: str) -> bool:
    """Whether the app's port is open; an app that is only slow, or in trouble, is there."""
    is_local = url.startswith("http://127.0.0.1:")
    try:
        answer = httpx.get(url, trust_env=not is_local, verify=not is_local, timeout=ASK_EVERY)
    except httpx.ConnectError:
        return False
    except httpx.HTTPError:
        return True
    return answer.status_code != 502 or "port is not open" not in answer.text[:1000]


def printable(text: str) -> str:
    """Text without what would move a terminal's cursor, set its title or colours, or worse."""
    return "".join(one for one in text if one in "\n\t" or one.isprintable())
