"""The pure plan: which steps carry a fragment out on its template.

Order, and why: all files are written before anything runs, so that no code meets half of its files; packages come
after the files, because an app may bring the list of its own; an app is started, then waited for; code for an
interpreter is run as one cell, so that its last expression is its result and its variables stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sandboxkit._confine import confine
from sandboxkit.errors import FragmentError
from sandboxkit.fragment import Fragment
from sandboxkit.template import Template


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write one file. `path` is absolute and below the home directory."""

    path: str
    text: str

    name = "write"

    @property
    def detail(self) -> str:
        """What a listener may know: the path, never the text."""
        return self.path


@dataclass(frozen=True, slots=True)
class Install:
    """Install packages, by argument list."""

    dependencies: tuple[str, ...]

    name = "install"

    @property
    def detail(self) -> str:
        """The requirements, as they were given."""
        return " ".join(self.dependencies)


@dataclass(frozen=True, slots=True)
class Start:
    """Start the app with the template's command."""

    command: str

    name = "start"

    @property
    def detail(self) -> str:
        """The template's command, which is the registry's and no secret."""
        return self.command


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the app answers over HTTP."""

    port: int
    path: str

    name = "wait"

    @property
    def detail(self) -> str:
        """Where an answer is expected."""
        return f":{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Run:
    """Run a file's text as one cell of the interpreter. `path` says which file it is."""

    path: str
    code: str
    language: str

    name = "run"

    @property
    def detail(self) -> str:
        """Which file runs."""
        return self.path


Step = WriteFile | Install | Start | Wait | Run


def plan(fragment: Fragment, template: Template) -> tuple[Step, ...]:
    """List the steps that carry a fragment out.

    Raises:
        FragmentError: the fragment is for another template; names no file to run where it has to; has no port
            although the template's apps need one, or a port although the template runs cells; or the template
            cannot start an app.
        PathError: a path leaves the home directory (the fragment was altered after it was checked).
    """
    if fragment.template != template.id:
        raise _refusal(fragment, f"it is for the template {fragment.template!r}, not for {template.id!r}")
    files = _files(fragment, template)
    steps: list[Step] = [WriteFile(path, text) for path, text in files.items()]
    if fragment.dependencies:
        steps.append(Install(fragment.dependencies))
    if template.runs_cells:
        if fragment.port is not None:
            raise _refusal(fragment, f"it has port={fragment.port}, but {template.id!r} runs code and serves no port")
        path = _main_file(fragment, template, files)
        steps.append(Run(path, files[path], template.language))
        return tuple(steps)
    port = fragment.port if fragment.port is not None else template.port
    if template.start is None or port is None:
        raise _refusal(fragment, f"the template {template.id!r} has no start command")
    return (*steps, Start(template.start), Wait(port, template.ready or "/"))


def _files(fragment: Fragment, template: Template) -> dict[str, str]:
    """All files to be written, by confined path."""
    if fragment.code is not None:
        return {confine(fragment.file or template.file): fragment.code}
    return {confine(path): text for path, text in (fragment.files or {}).items()}


def _main_file(fragment: Fragment, template: Template, files: dict[str, str]) -> str:
    """The file that is run: the one that is named, else the template's own, else the only one."""
    if fragment.file is not None:
        return confine(fragment.file)
    if confine(template.file) in files:
        return confine(template.file)
    if len(files) == 1:
        return next(iter(files))
    raise _refusal(fragment, f"none of its {len(files)} files is {template.file!r}; say which one runs with file=...")


def _refusal(fragment: Fragment, reason: str, **facts: Any) -> FragmentError:
    title = f" {fragment.title!a}" if fragment.title else ""
    return FragmentError(f"The fragment{title} cannot be carried out: {reason}.", template=fragment.template, **facts)
