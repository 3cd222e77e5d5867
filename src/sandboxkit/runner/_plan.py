"""The pure plan: which steps carry a fragment out on its template.

Order, and why: all files are written before anything runs, so that no code meets half of its files; edits come after
them, since they may change what was just written; packages come after the files, because an app may bring the list of
its own; what Python can say about code without running it is asked before an app gets it; an app is started, then
waited for; code for an interpreter is run as one cell, so that its last expression is its result and its variables
stay.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from sandboxkit._confine import confine
from sandboxkit.errors import DependencyError, FragmentError
from sandboxkit.fragment import Fragment
from sandboxkit.template import Template

QUIET: dict[str, tuple[str, ...]] = {
    "pip": ("--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
    "npm": ("--no-audit", "--no-fund", "--loglevel", "http"),
}
"""What an installer is told besides: to ask nothing, and to draw nothing."""
OFFLINE: dict[str, tuple[str, ...]] = {
    "pip": ("--retries", "0"),
    "npm": ("--fetch-retries", "0", "--prefer-offline"),
}
"""And where no index can be reached: what is there already satisfies it; for the rest it need not wait."""


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write one file, unless its text is there already. `path` is absolute and below the home directory."""

    path: str
    text: str

    name = "write"

    @property
    def detail(self) -> str:
        """What a listener may know: the path, never the text."""
        return self.path


@dataclass(frozen=True, slots=True)
class EditFile:
    """Replace passages of one file that is there, all of them or none."""

    path: str
    changes: tuple[tuple[str, str], ...]
    """What to look for, and what to put in its place, in order."""

    name = "edit"

    @property
    def detail(self) -> str:
        """The path, never a text."""
        return self.path


@dataclass(frozen=True, slots=True)
class Install:
    """Install packages, by argument list."""

    dependencies: tuple[str, ...]
    installer: tuple[str, ...]
    offline: bool = False
    """No index can be reached."""

    name = "install"

    @property
    def detail(self) -> str:
        """The requirements, as they were given."""
        return " ".join(self.dependencies)

    def argv(self, dependencies: tuple[str, ...]) -> tuple[str, ...]:
        """The command that installs these; none of them begins with a "-" (`fragment.Requirement`)."""
        tool = self.installer[0]
        more = OFFLINE.get(tool, ()) if self.offline else ()
        return (*self.installer, *QUIET.get(tool, ()), *more, *dependencies)


@dataclass(frozen=True, slots=True)
class InstallCommand:
    """Run the fragment's own command, which its caller has permitted."""

    command: str

    name = "install"

    @property
    def detail(self) -> str:
        """That there is one; its text may hold anything."""
        return "install_command"


@dataclass(frozen=True, slots=True)
class Check:
    """See whether Python files can be read, and whether what they import is there."""

    paths: tuple[str, ...]

    name = "check"

    @property
    def detail(self) -> str:
        """Which files."""
        return " ".join(self.paths)


@dataclass(frozen=True, slots=True)
class Start:
    """Start the app with the template's command, unless it runs."""

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
    """Run a file's text as one cell of the interpreter. `path` says which file it is; without `code` it is read."""

    path: str
    code: str | None
    language: str

    name = "run"

    @property
    def detail(self) -> str:
        """Which file runs."""
        return self.path


Step = WriteFile | EditFile | Install | InstallCommand | Check | Start | Wait | Run


def plan(
    fragment: Fragment, template: Template, *, has_index: bool = True, allow_install_command: bool = False
) -> tuple[Step, ...]:
    """List the steps that carry a fragment out.

    Args:
        has_index: the sandbox reaches a package index.
        allow_install_command: a shell command of the fragment's own may run.

    Raises:
        FragmentError: the fragment is for another template; names no file to run where it has to; has no port
            although the template's apps need one, or a port although the template runs cells; or the template
            cannot start an app.
        DependencyError: it needs packages, and the template has no way to install them; or it has a command of its
            own, which was not permitted.
        PathError: a path leaves the home directory (the fragment was altered after it was checked).
    """
    if fragment.template != template.id:
        raise _refusal(fragment, f"it is for the template {fragment.template!r}, not for {template.id!r}")
    files = _files(fragment, template)
    edits = _edits(fragment)
    steps: list[Step] = [WriteFile(path, text) for path, text in files.items()]
    steps += edits
    steps += _installs(fragment, template, has_index=has_index, allow_install_command=allow_install_command)
    if template.runs_cells:
        if fragment.port is not None:
            raise _refusal(fragment, f"it has port={fragment.port}, but {template.id!r} runs code and serves no port")
        path = _main_file(fragment, template, files, edits)
        is_edited = any(edit.path == path for edit in edits)
        steps.append(Run(path, None if is_edited else files.get(path), template.language))
        return tuple(steps)
    port = fragment.port if fragment.port is not None else template.port
    if template.start is None or port is None:
        raise _refusal(fragment, f"the template {template.id!r} has no start command")
    touched = dict.fromkeys([*files, *(edit.path for edit in edits)])
    python = tuple(path for path in touched if path.endswith(".py"))
    if template.language == "python" and python:
        steps.append(Check(python))
    return (*steps, Start(template.start), Wait(port, template.ready or "/"))


def _files(fragment: Fragment, template: Template) -> dict[str, str]:
    """All files to be written, by confined path."""
    if fragment.code is not None:
        return {confine(fragment.file or template.file): fragment.code}
    return {confine(path): text for path, text in (fragment.files or {}).items()}


def _edits(fragment: Fragment) -> list[EditFile]:
    """The changes of each file, in the order of its first one."""
    by_path: dict[str, list[tuple[str, str]]] = {}
    for edit in fragment.edits:
        by_path.setdefault(confine(edit.path), []).append((edit.search, edit.replace))
    return [EditFile(path, tuple(changes)) for path, changes in by_path.items()]


def _installs(
    fragment: Fragment, template: Template, *, has_index: bool, allow_install_command: bool
) -> list[Install | InstallCommand]:
    steps: list[Install | InstallCommand] = []
    if fragment.dependencies:
        installer = tuple(shlex.split(template.install or ""))
        if not installer:
            raise DependencyError(
                f"The fragment needs {' '.join(fragment.dependencies)}, and the template {template.id!r} has no way to "
                "add packages (Template.install). Use what it has, or a template that has them built in.",
                dependencies=fragment.dependencies,
                template=template.id,
            )
        steps.append(Install(fragment.dependencies, installer, offline=not has_index))
    if fragment.install_command is not None:
        if not allow_install_command:
            raise DependencyError(
                "The fragment has an install command of its own, a line for the sandbox's shell, and running it was "
                "not permitted. List what it installs in `dependencies`, or pass allow_install_command=True.",
                dependencies=fragment.dependencies,
                template=template.id,
            )
        steps.append(InstallCommand(fragment.install_command))
    return steps


def _main_file(fragment: Fragment, template: Template, files: dict[str, str], edits: list[EditFile]) -> str:
    """The file that is run: the one that is named, else the template's own, else the only one."""
    if fragment.file is not None:
        return confine(fragment.file)
    known = list(dict.fromkeys([*files, *(edit.path for edit in edits)]))
    if confine(template.file) in known:
        return confine(template.file)
    if len(known) == 1:
        return known[0]
    raise _refusal(fragment, f"none of its {len(known)} files is {template.file!r}; say which one runs with file=...")


def edited(text: str, edit: EditFile) -> str:
    """The text of a file after its changes.

    Raises:
        FragmentError: a passage does not occur, or more than once; nothing is changed then.
    """
    for number, (search, replace) in enumerate(edit.changes, start=1):
        found = text.count(search)
        if found != 1:
            times = "does not occur" if not found else f"occurs {found} times"
            raise FragmentError(
                f"Edit {number} of {edit.path} cannot be made: the passage it looks for {times} in the file, and must "
                "occur exactly once. Nothing of the file was changed.",
                path=edit.path,
                found=found,
            )
        text = text.replace(search, replace)
    return text


def _refusal(fragment: Fragment, reason: str, **facts: Any) -> FragmentError:
    title = f" {fragment.title!a}" if fragment.title else ""
    return FragmentError(f"The fragment{title} cannot be carried out: {reason}.", template=fragment.template, **facts)
