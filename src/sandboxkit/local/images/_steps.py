"""A build's definition, as E2B's template builder sends it, read and decided: what is refused, run and cached.

Pure. The rules:

- Bases are what this machine has: `python:3.N` and E2B's own base are the engine's Python, `node:N` is Node 24, and
  templates of this engine are themselves. Every other base is refused by name.
- There is one user inside, and no root. Steps that ask for root run as that user: what they may change (the home, the
  environment, the working directories) is theirs. Programs that need root are refused by name.
- `apt-get install` cannot install anything: what it names must be on this machine already.
- A layer's name is a digest of everything that decides what is in it, the layers beneath included.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from sandboxkit._confine import confine
from sandboxkit.errors import PathError
from sandboxkit.local.images._commands import NEED_ROOT, programs_of, split_apt, without_sudo
from sandboxkit.local.isolation._base import BASE_PATH, HOME, PREFIX, USER

ENV_TARGET = f"{PREFIX}/env"
BEGINNING = {"PATH": f"{HOME}/.local/bin:{ENV_TARGET}/bin:{BASE_PATH}", "HOME": HOME, "USER": USER}
"""Variables that every step has before a definition sets any."""
MAX_STEPS = 500
MAX_TEXT = 128 * 1024
LAYER_FORMAT = 1
"""Part of every layer's name: raise it whenever the builder puts something else into a layer."""

SYSTEM = frozenset(
    {"bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "proc", "root", "run"}
    | {"sbin", "sys", "usr", "var"}
)
"""Top-level directories that no template can change."""

PROGRAMS = {
    "ca-certificates": None,
    "iproute2": "ss",
    "procps": "pgrep",
    "coreutils": "ls",
    "findutils": "find",
    "ripgrep": "rg",
    "build-essential": "make",
    "python3-pip": None,
    "python3": None,
    "nodejs": "node",
    "openssh-client": "ssh",
    "xz-utils": "xz",
    "netcat-openbsd": "nc",
    "dnsutils": "dig",
    "util-linux": "flock",
}
"""What a package's name means where there is no package database to ask: its program, or None for what is always
there; other packages are taken to be named after their program."""

_IMAGE = re.compile(r"(?:docker\.io/)?(?:library/)?(?P<name>[a-z0-9./_-]+?)(?::(?P<tag>[A-Za-z0-9._-]+))?")
_PYTHON = re.compile(r"3(?:\.(?P<minor>\d{1,2})(?:\.\d{1,3})?)?(?:-[a-z0-9-]+)?|latest|slim")
_NODE = re.compile(r"(?:(?P<major>\d{1,2})(?:\.\d{1,3}){0,2}|lts|current|latest|slim)(?:-[a-z0-9-]+)?")
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<plain>[A-Za-z_][A-Za-z0-9_]*))")
_MODE = re.compile(r"0?[0-7]{3,4}")


class BadDefinition(Exception):
    """A definition that is malformed, or asks for what this engine does not do.

    Attributes:
        step: which step, from 1; 0 is the base, None what concerns the whole.
        option: the name of what is not supported; empty where something is malformed.
        fails: E2B has it no more than this engine: the build is taken, and fails at this step.
    """

    def __init__(self, message: str, *, step: int | None = None, option: str = "", fails: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.step = step
        self.option, self.fails = option, fails


@dataclass(frozen=True, slots=True)
class Base:
    """What a template starts from. `note` says where it is not what was asked for."""

    kind: Literal["python", "node", "template"]
    template: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step that changes files, with the state that the steps before have left.

    Attributes:
        number: as the client counts, from 1.
        shown: as the log shows it.
        command: what runs; empty for a copy.
        files: the digest that the client gave the copied files; empty for a command.
        source, target, mode: of a copy; the target is absolute, `into` says that it is a directory in any case.
        packages: what must be on this machine already.
        root: the step asked for root.
        force: the cache is not to be used, from here on.
    """

    number: int
    shown: str
    command: str = ""
    files: str = ""
    source: str = ""
    target: str = ""
    into: bool = False
    mode: str = ""
    packages: tuple[str, ...] = ()
    root: bool = False
    force: bool = False
    envs: Mapping[str, str] = field(default_factory=dict)
    workdir: str = HOME

    def key(self, below: str) -> str:
        """The name of its layer, over the layer of this name."""
        what = [self.command, self.files, self.source, self.target, self.into, self.mode]
        return digest(below, "step", *what, sorted(self.envs.items()), self.workdir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A definition, understood. `envs` and `workdir` are what the last step leaves."""

    base: Base
    steps: tuple[Step, ...]
    envs: Mapping[str, str]
    workdir: str
    start: str = ""
    ready: str = ""
    force: bool = False
    inherited: tuple[str, ...] = ()
    """Places of the template that it is built over."""

    @property
    def places(self) -> tuple[str, ...]:
        """Directories outside the home and the environment that its steps name: they can be written, too."""
        named = {place_of(path) for step in self.steps for path in (step.target, step.workdir) if path}
        named |= {place_of(self.workdir), *self.inherited}
        return tuple(sorted(named - {HOME, ENV_TARGET, "/tmp", "/"}))

    def final_key(self, below: str) -> str:
        """The name of the layer that starting it once has left."""
        return digest(below, "start", self.start, self.ready, sorted(self.envs.items()), self.workdir)


def digest(*parts: object) -> str:
    """A name for whatever is decided by these values."""
    text = json.dumps([LAYER_FORMAT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


# -- reading ------------------------------------------------------------------------------------------------------


def read_definition(
    body: Mapping[str, Any], *, python: str, envs: Mapping[str, str] | None = None, workdir: str = HOME
) -> Definition:
    """Read the body of a build request.

    Args:
        python: the version of the engine's Python, as `3.N`.
        envs, workdir: what a base that is a template brings; see `base_of`.

    Raises:
        BadDefinition: see there.
    """
    fields = dict(body)
    base = base_of(fields, python=python)
    for name in ("fromImage", "fromTemplate", "fromImageRegistry"):
        fields.pop(name, None)
    steps = fields.pop("steps", None) or []
    force = fields.pop("force", None) or False
    start, ready = (_text(name, fields.pop(name, None) or "", step=None) for name in ("startCmd", "readyCmd"))
    if fields:
        names = ", ".join(sorted(name[:64] for name in fields))
        raise BadDefinition(f"The engine does not know {names}.", option=names)
    if not isinstance(steps, list) or len(steps) > MAX_STEPS or not isinstance(force, bool):
        raise BadDefinition(f"steps: a list of at most {MAX_STEPS} steps is needed, and force is true or false.")
    reader = _Reader(envs=dict(envs or {}), workdir=workdir)
    for number, step in enumerate(steps, start=1):
        reader.read(number, step)
    return Definition(
        base=base,
        steps=tuple(reader.steps),
        envs=reader.envs,
        workdir=reader.workdir,
        start=without_sudo(start),
        ready=without_sudo(ready),
        force=force,
    )


def base_of(body: Mapping[str, Any], *, python: str) -> Base:
    """Say what a build starts from. BadDefinition where this engine has no such base."""
    image, template = body.get("fromImage") or "", body.get("fromTemplate") or ""
    if not isinstance(image, str) or not isinstance(template, str) or bool(image) == bool(template):
        raise BadDefinition("Exactly one of fromImage and fromTemplate is needed.", step=0)
    if body.get("fromImageRegistry"):
        raise BadDefinition(
            "Images are not fetched here: the bases are python:3.N, node:N and templates of this engine.",
            step=0,
            option="fromImageRegistry",
        )
    if template:
        return Base("template", template=template)
    parsed = _IMAGE.fullmatch(image)
    name, tag = (parsed["name"], parsed["tag"] or "latest") if parsed else ("", "")
    if name == "e2bdev/base":
        return Base("python", note=f"{image} is this machine's system here, with Python {python}.")
    if name in ("e2bdev/code-interpreter", "e2bdev/code-interpreter-v1"):
        return Base("template", template="code-interpreter-v1")
    if name == "python" and (found := _PYTHON.fullmatch(tag)):
        asked = f"3.{found['minor']}" if found["minor"] else python
        note = "" if asked == python else f"{image} is Python {python} here, the engine's own, and not {asked}."
        return Base("python", note=note)
    if name == "node" and (found := _NODE.fullmatch(tag)):
        asked = found["major"] or "24"
        return Base("node", note="" if asked == "24" else f"{image} is Node 24 here, and not {asked}.")
    raise BadDefinition(
        f"The base image {image[:128]!r} is not to be had on this machine: the bases are python:3.N, node:N and "
        "templates of this engine (fromTemplate).",
        step=0,
        option=f"fromImage={image[:128]!r}",
    )


@dataclass(slots=True)
class _Reader:
    """The state that steps are read in."""

    envs: dict[str, str]
    workdir: str
    is_root: bool = False
    steps: list[Step] = field(default_factory=list)

    def read(self, number: int, step: object) -> None:
        fields = dict(step) if isinstance(step, Mapping) else {}
        kind, args = fields.pop("type", None), fields.pop("args", None) or []
        files, force = fields.pop("filesHash", None) or "", fields.pop("force", None) or False
        fields.pop("forceUpload", None)
        if fields or not isinstance(args, list) or not isinstance(force, bool):
            raise BadDefinition("A step has a type, args, filesHash and force.", step=number)
        words = [_text("args", word, step=number) for word in args]
        match kind:
            case "RUN":
                self._run(number, words, force)
            case "COPY":
                self._copy(number, words, _text("filesHash", files, step=number), force)
            case "ENV":
                self._env(number, words)
            case "WORKDIR":
                self._set_workdir(number, words)
            case "USER":
                self._set_user(number, words)
            case _:
                raise BadDefinition(
                    f"Steps of the kind {str(kind)[:64]!r} are not known; RUN, COPY, ENV, WORKDIR and USER are.",
                    step=number,
                    option=f"step {str(kind)[:64]}",
                )

    def _run(self, number: int, words: Sequence[str], force: bool) -> None:
        if not 1 <= len(words) <= 2 or not words[0].strip():
            raise BadDefinition("RUN: a command is needed, and perhaps a user.", step=number)
        is_root = self._is_root(number, words[1]) if len(words) == 2 and words[1] else self.is_root
        packages, command = split_apt(without_sudo(words[0]))
        for program in programs_of(command):
            if program in NEED_ROOT:
                raise BadDefinition(
                    f"{program} needs root, and a sandbox of the local engine has none: leave this step out, or build "
                    "the template at E2B.",
                    step=number,
                    option=program,
                )
        is_root = is_root or "sudo " in words[0]
        self._add(number, f"RUN {words[0]}", force, command=command, packages=packages, root=is_root)

    def _copy(self, number: int, words: Sequence[str], files: str, force: bool) -> None:
        source, target, owner, mode = (*words, "", "", "", "")[:4]
        if not source or not target or not 2 <= len(words) <= 4 or not _HASH.fullmatch(files):
            raise BadDefinition("COPY: a source, a target and the digest of the files are needed.", step=number)
        if _leads_out(source):
            raise BadDefinition(f"COPY: {source[:128]!a} leads out of the template's folder.", step=number)
        for name in filter(None, owner.split(":")):
            self._is_root(number, name)
        if mode and not _MODE.fullmatch(mode):
            raise BadDefinition(f"COPY: the mode {mode[:16]!r} is not octal.", step=number)
        place = _writable(self._at(target), number)
        self._add(
            number,
            f"COPY {source} {target}",
            force,
            files=files,
            source=source,
            target=place,
            into=target.endswith("/") or posixpath.basename(target) in (".", ".."),
            mode=mode,
        )

    def _env(self, number: int, words: Sequence[str]) -> None:
        if not words or len(words) % 2:
            raise BadDefinition("ENV: names and values are needed.", step=number)
        for name, value in zip(words[::2], words[1::2], strict=True):
            if not _NAME.fullmatch(name):
                raise BadDefinition(f"ENV: {name[:64]!r} is not the name of a variable.", step=number)
            self.envs[name] = expand(value, self.envs)

    def _set_workdir(self, number: int, words: Sequence[str]) -> None:
        if len(words) != 1 or not words[0]:
            raise BadDefinition("WORKDIR: one path is needed.", step=number)
        path = self._at(expand(words[0], self.envs))
        self.workdir = path if path == "/" else _writable(path, number)  # each Dockerfile begins with "/"

    def _set_user(self, number: int, words: Sequence[str]) -> None:
        if len(words) != 1:
            raise BadDefinition("USER: one name is needed.", step=number)
        self.is_root = self._is_root(number, words[0])

    def _is_root(self, number: int, name: str) -> bool:
        if name not in (USER, "root", "1000", "0"):
            raise BadDefinition(
                f"There is no user {name[:64]!r} in a sandbox of the local engine; there is {USER!r}, and steps that "
                "ask for root run as that one, too.",
                step=number,
                option=f"user {name[:64]!r}",
                fails=bool(re.search(r"[^\w.-]", name)),
            )
        return name in ("root", "0")

    def _at(self, path: str) -> str:
        path = HOME + path[1:] if path == "~" or path.startswith("~/") else path
        return posixpath.normpath("/" + posixpath.join(self.workdir, path).lstrip("/"))

    def _add(self, number: int, shown: str, force: bool, **what: Any) -> None:
        self.steps.append(
            Step(number=number, shown=shown, force=force, envs=dict(self.envs), workdir=self.workdir, **what)
        )


def _text(name: str, value: object, *, step: int | None) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT or "\x00" in value:
        raise BadDefinition(f"{name}: text of at most {MAX_TEXT} characters without NUL is needed.", step=step)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadDefinition(f"{name}: holds text that has no UTF-8 form.", step=step) from None
    return value


def expand(text: str, envs: Mapping[str, str]) -> str:
    """Replace $NAME and ${NAME} by what was set before, or is there from the beginning; other dollars stay."""
    known = {**BEGINNING, **envs}

    def value(match: re.Match[str]) -> str:
        return known.get(match["braced"] or match["plain"], match[0])

    return _VARIABLE.sub(value, text)


# -- places -------------------------------------------------------------------------------------------------------


def place_of(path: str) -> str:
    """The directory that a box gets as a whole, so that this path can be written: the home, the environment, /tmp, or
    the uppermost directory that is not one of the system's."""
    for place in (HOME, ENV_TARGET, "/tmp"):
        if path == place or path.startswith(place + "/"):
            return place
    parts = path.split("/")
    return "/".join(parts[:3]) if parts[1] == "opt" else "/".join(parts[:2])


def _leads_out(source: str) -> bool:
    """Whether a path of a COPY does not count from the template's folder, or is none."""
    with suppress(PathError):
        return not confine(source, "/folder") or source.startswith("/")
    return True


def _writable(path: str, number: int) -> str:
    place = place_of(path)
    top = place.split("/")[1]
    mine = place in (HOME, ENV_TARGET, "/tmp")
    if not mine and (top in SYSTEM or place in ("/", "/opt", PREFIX)):
        raise BadDefinition(
            f"{path[:128]} cannot be written in a template of the local engine: use {HOME}, a directory of your own "
            "such as /app, or /tmp.",
            step=number,
            option=path[:128],
        )
    return path
