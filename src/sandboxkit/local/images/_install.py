"""Fill an environment with wheels, by uv or pip, without running any code of the packages."""

from __future__ import annotations

import collections
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandboxkit.errors import TemplateBuildFailed

TAIL_LINES = 40


@dataclass(frozen=True, slots=True)
class Tool:
    """One way to install: the command up to its verb, and its options."""

    name: str
    command: tuple[str, ...]
    options: tuple[str, ...]


def base_python() -> str:
    """The interpreter that this process's own environment was made from."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def tools(env_python: Path) -> Iterator[Tool]:
    """What can install here, best first. uv does not read pip's configuration, so that one may work where the other
    finds no index."""
    uv_options = ("--python", str(env_python), "--no-build", "--link-mode", "copy", "--no-compile-bytecode")
    if path := shutil.which("uv"):
        yield Tool("uv", (path, "pip", "install"), uv_options)
    elif importlib.util.find_spec("uv"):
        yield Tool("uv", (sys.executable, "-m", "uv", "pip", "install"), uv_options)
    pip_options = ("--only-binary", ":all:", "--no-compile", "--no-warn-script-location", "--progress-bar", "off")
    for python in dict.fromkeys((sys.executable, base_python())):
        if _has_pip(python):
            command = (python, "-m", "pip", "--disable-pip-version-check", "--python", str(env_python), "install")
            yield Tool("pip", command, pip_options)
            return


def install(env_python: Path, requirements: Path, *, on_line: Callable[[str], object]) -> None:
    """Install the requirements into the environment of `env_python`, with the first tool that can.

    Raises:
        TemplateBuildFailed: every tool failed, or there is none; `log_tail` has the last lines of each.
    """
    failures: list[str] = []
    tails: list[str] = []
    for tool in tools(env_python):
        on_line(f"Installing with {tool.name}.")
        status, tail = _run([*tool.command, *tool.options, "-r", str(requirements)], on_line=on_line)
        if status == 0:
            return
        failures.append(f"{tool.name} failed ({_last(tail)})")
        tails += tail
        on_line(f"{tool.name} failed with status {status}.")
        if _says_full("\n".join(tail)):
            break  # another tool needs the same room
    if not failures:
        raise TemplateBuildFailed(
            f"Neither uv nor pip was found. Install one of them: {shlex.quote(sys.executable)} -m ensurepip",
            log_tail="",
        )
    raise TemplateBuildFailed(
        f"The packages could not be installed: {'; '.join(failures)}. {advice(chr(10).join(tails), env_python)}",
        log_tail="\n".join(tails),
    )


def advice(said: str, place: Path) -> str:
    """What to do about a failure that was told like this, while something was put at `place`."""
    if _says_full(said):
        existing = next(path for path in (place, *place.absolute().parents) if path.is_dir())
        free = {str(existing): _free(existing), tempfile.gettempdir(): _free(Path(tempfile.gettempdir()))}
        shown = ", ".join(f"{mib} MiB free in {name}" for name, mib in free.items())
        return (
            f"A disk is full ({shown}): make room (`sandboxkit cache prune` frees templates that are not in use), or "
            "set SANDBOXKIT_HOME, and TMPDIR for the installer, to a larger disk."
        )
    if re.search(r"permission denied|read-only file system|errno 13\b|os error 13\b", said, re.IGNORECASE):
        return "Let the folder that it names be written, or set SANDBOXKIT_HOME to a directory of yours."
    return "Check that a package index can be reached."


def _says_full(said: str) -> bool:
    return bool(re.search(r"no space left on device|disk quota exceeded|errno 28\b|os error 28\b", said, re.IGNORECASE))


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free >> 20


def compile_all(root: Path, *, seen_as: str, on_line: Callable[[str], object]) -> None:
    """Compile every module beneath `root` to byte code that names `seen_as` instead of where it lies here.

    The files are marked as never to be checked against their sources: the layer is read-only, and its times may not
    survive a copy. Test suites stay as sources; nobody imports them.

    Raises:
        TemplateBuildFailed: the disk is full.
    """
    command = [base_python(), "-I", "-S", "-m", "compileall", "-q", "-j", "0", "-x", "/tests?/"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(root), "-p", seen_as, str(root)]
    full: list[str] = []
    # Its status is ignored: packages ship templates and old sources that don't compile, and none is imported.
    _run(command, on_line=lambda line: full.append(line) if _says_full(line) else None)
    if full:
        raise TemplateBuildFailed(
            f"The packages could not be compiled: {full[0][:300]}. {advice(full[0], root)}",
            log_tail="\n".join(full[-40:]),
        )


def _run(command: Sequence[str], *, on_line: Callable[[str], object]) -> tuple[int, list[str]]:
    """Run to the end, telling each line; the whole process group is killed if the caller is interrupted."""
    tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
    # A user's virtual environment, or modules of theirs, must not decide what lands in the layer.
    unwanted = {"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    environment |= {"PYTHONIOENCODING": "utf-8", "NO_COLOR": "1"}
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line := line.rstrip():
                tail.append(line)
                on_line(line)
        return process.wait(), list(tail)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


def _has_pip(python: str) -> bool:
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is None)"
    return subprocess.run([python, "-I", "-c", probe], check=False, capture_output=True).returncode == 0


def _last(tail: Sequence[str]) -> str:
    said = [line for line in tail if "error" in line.lower()] or list(tail)
    return said[-1][:300] if said else "it said nothing"
