"""What a runner asks of a sandbox by shell: logged commands, processes, sockets, and what Python thinks of a file.

All of it is read from inside, where everything may be forged: an answer decides about that sandbox's own fragment, and
about nothing else. Answers are bounded, and what is read as text is text.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sandboxkit._types import DEFAULT_ROOT, CommandResult
from sandboxkit.provider._base import ProviderSandbox, RunningCommand
from sandboxkit.runner._sockets import Listening, read_sockets

PLACE = "/tmp/.sandboxkit"
APP_LOG = f"{PLACE}/app.log"
"""Where the output of an app is, also of one that the engine started by the template's command."""
TAIL = 8 * 1024
"""Bytes of a log that an error carries."""
PIECE = 64 * 1024
"""Bytes of a log that one look gives."""
ASK_WITHIN = 30.0
MOST = 256 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """A command in the background that writes its output to one file of the sandbox, and its exit code to another."""

    name: str
    command: RunningCommand

    @property
    def log(self) -> str:
        return f"{PLACE}/{self.name}.log"


async def start_job(
    sandbox: ProviderSandbox, name: str, line: str, *, envs: dict[str, str] | None = None, cwd: str = DEFAULT_ROOT
) -> Job:
    """Start a shell line as a job. Its log begins anew."""
    log, code = f"{PLACE}/{name}.log", f"{PLACE}/{name}.code"
    # Before it starts: what an earlier one has left would be taken for its own words and its own end.
    await _ask(sandbox, f"mkdir -p {PLACE}; rm -f {log} {code}")
    script = f"( {line}\n) >{log} 2>&1 </dev/null; echo $? >{code}"
    command = await sandbox.start_command(script, cwd=cwd, envs=envs)
    return Job(name, command)


@dataclass(frozen=True, slots=True)
class Look:
    """What a job has written since the last look, and how it ended; None while it runs."""

    text: bytes
    exit_code: int | None


async def look(sandbox: ProviderSandbox, job: Job, *, since: int) -> Look:
    """See how far a job is."""
    code = f"{PLACE}/{job.name}.code"
    # The code first: what was written before it is in the log by then.
    script = f"C=$(cat {code} 2>/dev/null); tail -c +{since + 1} {job.log} 2>/dev/null | head -c {PIECE} | base64 -w0"
    done = await _ask(sandbox, f'{script}; echo; echo "$C"')
    text, _, rest = done.stdout.partition("\n")
    digits = rest.strip()
    return Look(_bytes(text), int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else None)


async def tail(sandbox: ProviderSandbox, log: str, size: int = TAIL) -> str:
    """The last lines of a log, as text; empty where there is none."""
    done = await _ask(sandbox, f"tail -c {size} {shlex.quote(log)} 2>/dev/null | base64 -w0")
    text = _bytes(done.stdout).decode("utf-8", "replace")
    # It may begin in the middle of a line, which says nothing by itself.
    return text.partition("\n")[2] if len(text) >= size and "\n" in text else text


# -- processes ----------------------------------------------------------------------------------------------------

# By what bash has of its own: a program for each process would cost a starting server a tenth of its time.
_FIND = r"""
group() { local stat; mapfile -d '' -t stat <"/proc/$1/stat" && set -- ${stat##*) } && [ "$1" != Z ] && echo "$3"; }
own=$(group $$)
for one in /proc/[0-9]*; do
  mapfile -d '' -t words <"$one/cmdline" || continue
  case "${words[*]}" in
    *"$NEEDLE"*) found=$(group "${one#/proc/}") && [ "$found" != "$own" ] && echo "$found" ;;
  esac
done 2>/dev/null | sort -un
"""


async def groups_of(sandbox: ProviderSandbox, start: str) -> tuple[int, ...]:
    """The process groups in which a start command runs."""
    # In a variable: on a command line the search would find itself.
    done = await _ask(sandbox, _FIND, envs={"NEEDLE": needle(start)})
    return read_groups(done.stdout)


def read_groups(told: str) -> tuple[int, ...]:
    """What the line of `finding` has printed."""
    return tuple(int(word) for word in told.split() if word.isascii() and word.isdigit() and int(word) > 1)


async def end_groups(sandbox: ProviderSandbox, groups: Sequence[int]) -> None:
    """Ask process groups to end, and kill what has not a second later."""
    if groups:
        await _ask(sandbox, ending(groups))


def ending(groups: Sequence[int]) -> str:
    """The line that ends process groups."""
    named = " ".join(f"-{group}" for group in groups)
    alive = f"kill -0 -- {named} 2>/dev/null"
    waits = f"for i in 1 2 3 4 5 6 7 8 9 10; do {alive} || break; sleep 0.1; done"
    return f"kill -TERM -- {named} 2>/dev/null; {waits}; kill -KILL -- {named} 2>/dev/null; true"


def finding(start: str) -> tuple[str, dict[str, str]]:
    """The line that prints the process groups in which a start command runs, and the variables that it needs."""
    return _FIND, {"NEEDLE": needle(start)}


def needle(start: str) -> str:
    """What the command line of a process shows that a start command led to: `npx next dev` becomes a `node` with
    `.../next dev` in it."""
    try:
        words = shlex.split(start)
    except ValueError:
        return start
    while len(words) > 1 and ("=" in words[0] or words[0] in ("exec", "env", "npx", "sudo")):
        words = words[1:]
    return " ".join([words[0].rpartition("/")[2], *words[1:]]) if words else start


# -- sockets and code ---------------------------------------------------------------------------------------------


async def listening(sandbox: ProviderSandbox) -> tuple[Listening, ...]:
    """What listens in the sandbox, as far as it can be seen."""
    done = await _ask(sandbox, "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; true")
    return read_sockets(done.stdout)


async def error_page(sandbox: ProviderSandbox, port: int, path: str) -> str:
    """What an app that fails says to who asks for it; empty where that cannot be had."""
    ask = ["curl", "-s", "--max-time", "10", "-H", "Accept: application/json", f"http://127.0.0.1:{port}{path}"]
    done = await _ask(sandbox, f"{shlex.join(ask)} 2>/dev/null | head -c {PIECE} | base64 -w0")
    return _bytes(done.stdout).decode("utf-8", "replace")


_CHECK = """
import ast, importlib.util, json, os, sys
found = {"broken": [], "missing": []}
for path in sys.argv[1:]:
    for place in ("/home/user", os.path.dirname(path)):
        if place not in sys.path:
            sys.path.insert(0, place)
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
    except (SyntaxError, ValueError) as error:
        import traceback
        text = "".join(traceback.format_exception_only(type(error), error))
        found["broken"].append([path, text[:4000]])
        continue
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            try:
                there = top in sys.modules or importlib.util.find_spec(top) is not None
            except (ImportError, ValueError, AttributeError):
                there = True
            if not there:
                found["missing"].append([path, node.lineno, top])
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What Python says of files that it has not run: syntax errors by path, and imports that lead nowhere."""

    broken: tuple[tuple[str, str], ...] = ()
    missing: tuple[tuple[str, int, str], ...] = ()


async def check_python(sandbox: ProviderSandbox, paths: Sequence[str]) -> Verdict:
    """Read Python files in the sandbox. Where that cannot be done there is nothing to say against them."""
    done = await _ask(sandbox, shlex.join(["python3", "-c", _CHECK, *paths]))
    try:
        told = json.loads(done.stdout)
        return Verdict(
            tuple((str(path), str(text)) for path, text in told["broken"]),
            tuple((str(path), int(line), str(name)) for path, line, name in told["missing"]),
        )
    except (ValueError, TypeError, KeyError):
        return Verdict()


async def _ask(sandbox: ProviderSandbox, line: str, envs: dict[str, str] | None = None) -> CommandResult:
    return await sandbox.run_command(line, timeout=ASK_WITHIN, envs=envs, max_output=MOST)


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""
